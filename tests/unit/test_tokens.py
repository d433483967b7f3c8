"""Tokens: characters to numbers and back."""

import json

import pytest

from speechlab.data.tokens import Tokenizer, TokensConfig
from speechlab.errors import UserError


def test_round_trip_and_unknown():
    tokens = Tokenizer.train(["你好你", "AN APPLE"])
    assert tokens.units[:2] == ["<blank>", "<unk>"]
    assert tokens.decode(tokens.encode("你好")) == "你好"
    assert tokens.decode(tokens.encode("AN APPLE")) == "AN APPLE"
    assert tokens.encode("坏") == [1] and tokens.decode([1]) == ""


def test_rare_units_are_left_out_and_order_is_by_count_then_unit():
    assert Tokenizer.train(["bba", "ab", "c"], min_count=2).units[2:] == ["b", "a"]
    assert Tokenizer.train(["ba"]).units[2:] == ["a", "b"]


def test_syllables_and_phones_of_chinese_text():
    syllables = Tokenizer.train(["你好吗"], "syllable")
    assert syllables.decode(syllables.encode("你好吗")) == "ni3 hao3 ma5"
    phones = Tokenizer.train(["你好吗", "爱绿"], "phone")
    assert phones.decode(phones.encode("你好爱绿")) == "n i3 h ao3 ai4 l v4"


def test_names_differ_by_what_defines_the_units():
    assert TokensConfig().name() != TokensConfig(min_count=2).name()


def test_errors(tmp_path):
    with pytest.raises(UserError, match="--stage 3"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="empty"):
        Tokenizer.train([])
    (tmp_path / "tokens.json").write_text(json.dumps({"main": {"units": ["a"]}}), encoding="utf-8")
    with pytest.raises(UserError, match="must begin with"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokens.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not a token list"):
        Tokenizer.load(tmp_path)


def test_the_stage(tmp_path, capsys):
    from lhotse import CutSet

    from speechlab.corpora.cuts import utterance
    from speechlab.data.tokens import main

    def stage(texts):
        for split, lines in texts.items():
            cuts = [utterance(f"{split}{i}", tmp_path / "none.wav", text, "s", "zh") for i, text in enumerate(lines)]
            CutSet.from_cuts(cuts).to_file(tmp_path / f"{split}.jsonl.gz")
        return main([str(tmp_path / "c.yaml"), "--data", str(tmp_path), "--to", str(tmp_path / "tokens")])

    (tmp_path / "c.yaml").write_text(
        "task: asr\nmodel: {class: 'speechlab.models.asr:Conformer'}\ntokens: {auxiliary: phone}\n", encoding="utf-8")
    assert stage({"train": ["你好", "好"], "dev": ["你坏"]}) == 0
    assert "dev: 1 utterances, 2 tokens, 1 unknown (50.00 %)" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "tokens").units[2:] == ["好", "你"]
    assert set(Tokenizer.load(tmp_path / "tokens", "auxiliary").units[2:]) == {"n", "i3", "h", "ao3"}
    assert stage({"train": ["NO HANZI"], "dev": ["X"]}) == 1
    assert "no hanzi" in capsys.readouterr().err
