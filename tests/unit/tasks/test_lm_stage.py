"""The language model stage: what it learns from, what it writes, and what it says to a wrong setting."""

import json
import types

import pytest
from lhotse import CutSet

from speechlab.corpora.cuts import utterance
from speechlab.data import lm
from speechlab.data.lm import LMConfig, estimate
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.arpa import load
from speechlab.errors import UserError
from speechlab.files import write_json
from speechlab.tasks.asr import ngram as stage

TRAIN = ["你好", "你好吗", "我很好", "你好", "谢谢你", "很好"]


@pytest.fixture
def data(tmp_path):
    """A corpus of four sets in a folder with a space and hanzi in its name, and its token list."""
    folder = tmp_path / "数 据"
    folder.mkdir()
    for split, lines in {"train": TRAIN, "dev": ["你很好", "我好坏"], "dev_far": ["谢谢"], "test": ["好你"]}.items():
        cuts = [utterance(f"{split}{i}", folder / "none.wav", text, "s", "zh") for i, text in enumerate(lines)]
        CutSet.from_cuts(cuts).to_file(folder / f"{split}.jsonl.gz")
    write_json(folder / "char" / "tokens.json", {"main": Tokenizer.train(TRAIN).state()})
    return folder


def run(monkeypatch, folder, config: LMConfig = LMConfig(), **change) -> int:
    monkeypatch.setattr("speechlab.tasks.asr.ngram.load_config", lambda path, sets: types.SimpleNamespace(lm=config))
    args = {"data": folder, "tokens": folder / "char", "to": folder / "lm"} | change
    return stage.main(["c.yaml", *(text for name, path in args.items() for text in (f"--{name}", str(path)))])


def test_the_stage(data, monkeypatch, capsys):
    assert run(monkeypatch, data, LMConfig(order=3)) == 0
    written = capsys.readouterr().out
    assert "train: 6 sentences, 15 tokens, 0 unknown (0.00 %)" in written
    assert "dev: 2 sentences, 6 tokens, 1 unknown (16.67 %), perplexity" in written and "dev_far: 1 sent" in written
    units = Tokenizer.load(data / "char").units
    described = json.loads((data / "lm" / "lm.json").read_text(encoding="utf-8"))
    assert described["units"] == units and described["order"] == 3
    assert set(described["perplexity"]) == {"train", "dev", "dev_far"}, "test sets are not looked at"
    model = load(data / "lm", units)
    tokenizer = Tokenizer.load(data / "char")
    for split, lines in {"train": TRAIN, "dev": ["你很好", "我好坏"]}.items():
        assert described["perplexity"][split] == pytest.approx(model.perplexity(map(tokenizer.encode, lines)), abs=1e-3)
    first = (data / "lm" / "lm.arpa").read_bytes()
    assert run(monkeypatch, data, LMConfig(order=3)) == 0 and (data / "lm" / "lm.arpa").read_bytes() == first


def test_a_sentence_said_twice_counts_once_unless_asked():
    tokenizer = Tokenizer.train(TRAIN)
    once, each = (estimate(TRAIN, tokenizer, LMConfig(order=2, distinct=distinct)) for distinct in (True, False))
    assert once.log_probability("你好") < each.log_probability("你好")
    alone = estimate(list(dict.fromkeys(TRAIN)), tokenizer, LMConfig(order=2))
    assert once.log_probability("你好吗") == pytest.approx(alone.log_probability("你好吗"))


def test_more_text_is_normalised_and_weighed(tmp_path):
    tokenizer = Tokenizer.train(TRAIN)
    (tmp_path / "more.txt").write_text("\ufeff好你！\n\n 好，你 \n谢 谢 我。\n火车\n", encoding="utf-8")
    texts = tmp_path / "more.txt"
    without, little, much = (estimate(TRAIN, tokenizer, LMConfig(order=2, own_weight=weight), path, "zh")
                             for weight, path in ((10, None), (10, texts), (1, texts)))
    assert max(model.log_probability("好你") for model in (without, little)) < much.log_probability("好你")
    assert much.vocabulary == without.vocabulary, "no character that the recogniser cannot write"
    assert without.probability("<unk>") < much.probability("<unk>")


def test_more_text_keeps_symbols_only_where_transcripts_do(tmp_path):
    """And is read in the language of the corpus: without spaces between hanzi, whatever the language is called."""
    texts = tmp_path / "more.txt"
    texts.write_text("好 <noise> 你\n" * 9, encoding="utf-8")
    for transcripts, before in ((["好你", "我<NOISE>"], "<NOISE>"), (["好你", "我"], "好")):
        tokenizer = Tokenizer.train(transcripts)
        model = estimate(transcripts, tokenizer, LMConfig(order=2, distinct=False), texts, "中文")
        assert ("<NOISE>" in model.vocabulary) == (before == "<NOISE>") and "<" not in model.vocabulary
        assert model.probability("你", before) > 10 * model.probability("你", "我")


def test_every_unit_has_a_probability_and_rare_ones_are_unknown():
    tokenizer = Tokenizer.train(TRAIN, min_count=2)
    assert "吗" not in tokenizer.units
    model = estimate(TRAIN, tokenizer, LMConfig(order=2))
    assert model.vocabulary == {*tokenizer.units[1:], "</s>"}
    assert model.probability("<unk>", "好") > model.probability("<unk>", "我"), "an unknown one was seen after 好"


def test_names_and_ranges():
    assert LMConfig().name().startswith("lm-") and LMConfig().name() != LMConfig(order=5).name()
    for wrong in (dict(order=0), dict(order=11), dict(own_weight=0.0), dict(own_weight=float("nan"))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LMConfig(**wrong)


def test_errors(data, monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, data, data=tmp_path / "none") == 1
    assert "--stage 1" in capsys.readouterr().err
    assert run(monkeypatch, data, tokens=tmp_path / "none") == 1
    assert "--stage 3" in capsys.readouterr().err
    assert run(monkeypatch, data, text=tmp_path / "no.txt") == 1
    assert "--text: no file" in capsys.readouterr().err
    (tmp_path / "gbk.txt").write_bytes("你好".encode("gbk"))
    (tmp_path / "dots.txt").write_text("……\n", encoding="utf-8")
    tokenizer = Tokenizer.train(TRAIN)
    with pytest.raises(UserError, match="not UTF-8"):
        estimate(TRAIN, tokenizer, LMConfig(), tmp_path / "gbk.txt")
    with pytest.raises(UserError, match="nothing is said"):
        estimate(TRAIN, tokenizer, LMConfig(), tmp_path / "dots.txt")
    assert not (data / "lm").exists()
    cut = utterance("a", data / "none.wav", "", "s", "zh")
    CutSet.from_cuts([cut]).to_file(data / "train.jsonl.gz")
    assert run(monkeypatch, data) == 1
    assert "empty" in capsys.readouterr().err


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """U+2028 and others, at which str.splitlines breaks, stand within a sentence."""
    (tmp_path / "text").write_bytes("一\u2028二\r\n三\x0b四\n".encode())
    assert len(lm._read(tmp_path / "text", "zh", lm.LEAVE_OUT)) == 2
