"""Manifests on disk. The same cuts give the same bytes, and either all splits are replaced or none."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab.errors import UserError
from speechlab.files import atomic, shown

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


def write_cuts(path: str | Path, cuts: Iterable[Cut]) -> None:
    """Write one ``.jsonl.gz``. (lhotse's own writer puts the time into gzip's header, so the bytes would differ each
    time.)"""
    with atomic(path) as aside, open(aside, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed:
            for cut in cuts:
                line = json.dumps(cut.to_dict(), ensure_ascii=False) + "\n"
                try:
                    packed.write(line.encode())
                except UnicodeEncodeError:  # bytes of a path, which Python keeps as surrogates
                    source = cut.recording.sources[0].source if cut.has_recording else cut.id
                    raise UserError(f"{shown(source)}: the path of cut {shown(cut.id)} is not UTF-8, which no manifest "
                                    "can hold: rename that file or folder (convmv)") from None


def write_splits(folder: str | Path, splits: Mapping[str, Iterable[Cut]]) -> None:
    """Write ``folder/{split}.jsonl.gz`` for all splits. First all are written under other names; then they are renamed,
    ``train`` last."""
    order = sorted(splits, key=lambda split: split != "train")  # contexts close in reverse: the first is renamed last
    with contextlib.ExitStack() as stack:
        for split in order:
            aside = stack.enter_context(atomic(Path(folder) / f"{split}.jsonl.gz"))
            write_cuts(aside, splits[split])


def read_cuts(path: str | Path) -> CutSet:
    """Read a manifest into memory."""
    from lhotse import CutSet

    return CutSet.from_file(path).to_eager()


def carried(cut: Cut, what: str) -> Any:
    """What ``cut`` carries under the name ``what``: the text or speaker of its supervision, or a custom field. None if
    it carries no such thing."""
    supervision = cut.supervisions[0]
    if what in ("text", "speaker"):
        return getattr(supervision, what)
    return (supervision.custom or {}).get(what)
