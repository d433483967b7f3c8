"""What stage 5 leaves in decode/<method>/<test_set>/: hyp.jsonl with a line an utterance, time.json with its speed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechlab.errors import UserError
from speechlab.scoring.items import folders
from speechlab.scoring.wer import Item

__all__ = ["Speed", "folders", "read_items", "read_speed", "share_pinyin"]
_AGAIN = "decode again (./run.sh --stage 5)"


@dataclass(frozen=True)
class Speed:
    """How fast a test set was decoded: seconds of computing a second of audio (network and search), and on what."""

    real_time_factor: float
    device: str
    threads: int | None


def read_items(path: Path) -> list[Item]:
    """The lines of a hyp.jsonl, sorted by id.

    Raises:
        UserError: for a broken line, a missing field, an id that comes twice, or an empty file.
    """
    items: dict[str, Item] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                item = Item(str(record["id"]), record["ref"] or "", record["hyp"] or "", record.get("error") or None,
                            str(record.get("pinyin") or ""))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is not an answer ({error!r}): {_AGAIN}") from None
            if item.id in items:
                raise UserError(f"{path}, line {number}: utterance {item.id} is there twice: {_AGAIN}")
            items[item.id] = item
    if not items:
        raise UserError(f"{path} is empty: {_AGAIN}")
    return [items[key] for key in sorted(items)]


def share_pinyin(lists: Sequence[list[Item]]) -> list[list[Item]]:
    """The lists with each reference's true readings from whichever list has them.

    Methods of one test set must be judged by the same readings, and not every method's lines carry them.
    """
    known = {(item.id, item.ref): item.pinyin for items in lists for item in items if item.pinyin}
    return [[replace(item, pinyin=known.get((item.id, item.ref), "")) for item in items] for items in lists]


def read_speed(folder: Path) -> Speed | None:
    """The folder's time.json; None where there is none (an oracle has no speed) or it has no real-time factor."""
    try:
        record = json.loads((folder / "time.json").read_text(encoding="utf-8"))
        factor, device, threads = record["real_time_factor"], record.get("device"), record.get("threads")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not math.isfinite(factor):
        return None
    return Speed(float(factor), str(device or "unknown device"), threads if isinstance(threads, int) else None)
