"""Tonal syllables: how much was heard correctly, whichever characters were written for it.

A Chinese recogniser makes two kinds of errors: it hears another syllable, or it hears the right one and writes a
homophone. CER counts both, the syllable error rate (SER) only the first. So CER - SER is about what a better language
model could win. It is not exact: a character with several readings gets the one that the dictionary prefers, and
therefore even a recogniser that hears every syllable has an SER above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import jiwer

from speechlab.scoring.wer import Item, is_hanzi, units


def canonical(syllable: str) -> str:
    """A numbered syllable in pypinyin's spelling: ``Nü3``, ``nu:3`` -> ``nv3``; ``r`` -> ``er``; neutral tone is 5."""
    text = syllable.lower().replace("u:", "v").replace("ü", "v")
    text = text[:-1] + "5" if text.endswith("0") else text if text[-1:].isdigit() else text + "5"
    return "e" + text if text[:-1] == "r" else text


@dataclass(frozen=True)
class Syllables:
    """Texts as tonal syllables, one unit per character: the syllable of a hanzi, any other character as it is."""

    # Hanzi -> their tonal syllables, with the tone as a digit at the end (5 is neutral): speechlab/data/pinyin.py. The
    # caller gives it, since scoring imports no other room.
    read: Callable[[str], list[str]]
    name: str  # of the reader, for the protocol

    def units(self, text: str) -> list[str]:
        """One unit per character of ``text``, without spaces; hanzi that ``read`` does not know stay as they are."""
        found: list[str] = []
        for hanzi, run in groupby(units(text, "char"), key=is_hanzi):
            characters = list(run)
            syllables = self.read("".join(characters)) if hanzi else characters
            if len(syllables) != len(characters):  # some are unknown: read each alone, to keep them in their places
                syllables = [(self.read(c) or [c])[0] for c in characters]
            found += syllables
        return found

    def split(self, item: Item) -> tuple[list[str], list[str]]:
        """Reference and hypothesis in syllables.

        Without true readings, both texts are read by the dictionary. With them, a right character of the hypothesis
        (aligned with the same one) gets the reference's reading, and only the others are read by the dictionary: its
        choice for 了 (le5 or liao3) must not count as an error of the recogniser.
        """
        read = self.units(item.hyp)
        true = true_readings(item)
        if true is None:
            return self.units(item.ref), read
        ref, hyp = units(item.ref, "char"), units(item.hyp, "char")
        (chunks,) = jiwer.process_words(" ".join(ref), " ".join(hyp)).alignments
        for chunk in chunks:
            if chunk.type == "equal":
                read[chunk.hyp_start_idx : chunk.hyp_end_idx] = true[chunk.ref_start_idx : chunk.ref_end_idx]
        return true, read

    def protocol(self, items: Sequence[Item]) -> str:
        """The results' column ``protocol``: what was compared, and where the readings of the references come from."""
        scored = [item for item in items if item.error is None]
        true = sum(true_readings(item) is not None for item in scored)
        if not true:
            return f"SER jiwer, tonal, {self.name}"
        some = "" if true == len(scored) else f" ({true} of {len(scored)})"
        return f"SER jiwer, tonal, ref true readings{some}, else {self.name}"


def true_readings(item: Item) -> list[str] | None:
    """The true readings of the reference, one per character; None unless it has exactly that many."""
    found = item.pinyin.split()
    return [canonical(s) for s in found] if found and len(found) == len(units(item.ref, "char")) else None
