"""Tonal syllables: how much of what was heard is right, whichever character was written for it.

A Chinese recogniser errs in two ways: it hears another syllable, or it hears the right one and writes a homophone.
CER counts both; the syllable error rate (SER) only the first, so CER - SER is about what a language model could win.
About, since a character that is read in several ways gets the reading that the dictionary prefers: an oracle that hears
every syllable has an SER above 0 for that reason alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import jiwer

from speechlab.scoring.wer import Item, is_hanzi, units


def canonical(syllable: str) -> str:
    """A numbered syllable in pypinyin's spelling: ``Nü3``, ``nu:3`` -> ``nv3``; neutral (0 or none) is 5; ``r`` er."""
    text = syllable.lower().replace("u:", "v").replace("ü", "v")
    text = text[:-1] + "5" if text.endswith("0") else text if text[-1:].isdigit() else text + "5"
    return "e" + text if text[:-1] == "r" else text


@dataclass(frozen=True)
class Syllables:
    """Texts as tonal syllables, one unit a character: a hanzi's syllable, any other character as it is.

    read: hanzi -> their tonal syllables with the tone as a digit at the end, 5 the neutral one
        (speechlab/data/pinyin.py; given by the caller, since scoring is a leaf).
    name: the reader's, for the protocol.
    """

    read: Callable[[str], list[str]]
    name: str

    def units(self, text: str) -> list[str]:
        """One unit a character of ``text`` without its spaces; hanzi unknown to ``read`` stand for themselves."""
        found: list[str] = []
        for hanzi, run in groupby(units(text, "char"), key=is_hanzi):
            characters = list(run)
            syllables = self.read("".join(characters)) if hanzi else characters
            if len(syllables) != len(characters):  # some unknown: each alone, so that the others keep their places
                syllables = [(self.read(c) or [c])[0] for c in characters]
            found += syllables
        return found

    def split(self, item: Item) -> tuple[list[str], list[str]]:
        """Reference and hypothesis in syllables.

        Without true readings both texts are read alike. With them, a hypothesised character that is right (aligned with
        itself) has the reference's reading, and only the others are read: the dictionary's opinion of 了 (le5 or
        liao3) must not count as an error of the recogniser.
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
        """For the results' column ``protocol``: what was compared, and where the references' readings come from."""
        scored = [item for item in items if item.error is None]
        true = sum(true_readings(item) is not None for item in scored)
        if not true:
            return f"SER jiwer, tonal, {self.name}"
        some = "" if true == len(scored) else f" ({true} of {len(scored)})"
        return f"SER jiwer, tonal, ref true readings{some}, else {self.name}"


def true_readings(item: Item) -> list[str] | None:
    """The reference's own readings, one a character; None where it has none, or not one a character."""
    found = item.pinyin.split()
    return [canonical(s) for s in found] if found and len(found) == len(units(item.ref, "char")) else None
