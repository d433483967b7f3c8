"""The form ``images``: arrays and labels by split become a pack (speechlab/data/image_pack.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from speechlab.data.forms import Corpus
from speechlab.data.image_pack import Split, show_pack, write_pack

CARRIES = ("label",)


def finish(made: tuple[Mapping[str, Split], Sequence[str]], out: Path, corpus: Corpus) -> None:
    """Write the pack. ``made``: ({split: (images, labels) or (images, labels, ids)}, names of the classes); for both,
    and the errors, see ``write_pack``."""
    splits, classes = made
    show_pack(write_pack(out, splits, classes, corpus.name))
