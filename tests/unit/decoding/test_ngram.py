"""The character n-gram against a hand-worked example, its search against brute force, and the oracle built on both."""

import importlib.util
import itertools
import json
import math
import random
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechlab.decoding.ngram import END, UNKNOWN, NGram, choose

ORACLE = Path(__file__).parents[3] / "egs" / "aishell_asr" / "local" / "oracle.py"


def sentences(count: int = 60, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefg", weights=[9, 5, 4, 3, 2, 1, 1], k=rng.randint(1, 7))) for _ in range(count)]


def test_kneser_ney_by_hand():
    """ab, ab, ac. Bigrams: <s>a 3, ab 2, ac 1, b</s> 2, c</s> 1; so D2 = 2 / (2 + 2 * 2) = 1/3.
    Continuations: a 1, b 1, c 1, </s> 2; so D1 = 3 / (3 + 2 * 1) = 0.6, shared out over 5 tokens with <unk>."""
    model = NGram(["ab", "ab", "ac"], order=2)
    assert model.vocabulary == {"a", "b", "c", END, UNKNOWN}
    left_over = 0.6 * 4 / 5 / 5
    assert model.probability("b") == pytest.approx((1 - 0.6) / 5 + left_over)
    assert model.probability(END) == pytest.approx((2 - 0.6) / 5 + left_over)
    assert model.probability("z") == pytest.approx(left_over)
    b_after_a = (2 - 1 / 3) / 3 + (1 / 3) * 2 / 3 * model.probability("b")
    assert model.probability("b", "a") == pytest.approx(b_after_a)
    assert model.probability("b", "za") == pytest.approx(b_after_a), "a bigram sees one token back"
    assert model.probability("b", "z") == pytest.approx(model.probability("b")), "an unseen context backs off"
    a_at_start = (3 - 1 / 3) / 3 + (1 / 3) * 1 / 3 * model.probability("a")
    end_after_b = (2 - 1 / 3) / 2 + (1 / 3) * 1 / 2 * model.probability(END)
    assert model.log_probability("ab") == pytest.approx(math.log(a_at_start * b_after_a * end_after_b))


def test_a_sentence_start_keeps_its_plain_counts_in_lower_orders():
    """ab, ab, ac as a trigram model. Its bigrams: <s>a 3 as it stands (nothing precedes <s>), the others once."""
    model = NGram(["ab", "ab", "ac"], order=3)
    assert model.probability("a", ["<s>"]) == pytest.approx((3 - 0.5) / 3 + 0.5 / 3 * model.probability("a"))
    assert model.probability("b", "a") == pytest.approx((1 - 0.5) / 2 + 0.5 * 2 / 2 * model.probability("b"))


def test_three_discounts_by_hand():
    """Unigrams, beside </s>: once 4, twice 3, three times 2, four times 1. So Y = 4 / (4 + 6) = .4,
    D1 = 1 - 2 Y 3/4 = .4, D2 = 2 - 3 Y 2/3 = 1.2, D3 = 3 - 4 Y 1/2 = 2.2."""
    words = [*"abcd", *"eeffgg", *"hhhiii", *"jjjj"]
    model = NGram(words, order=1)
    total = len(words) * 2  # each is a sentence, with its end
    free = (4 * 0.4 + 3 * 1.2 + 2 * 2.2 + 2.2 + 2.2) / total / 12
    assert len(model.vocabulary) == 12
    assert model.probability("a") == pytest.approx((1 - 0.4) / total + free)
    assert model.probability("e") == pytest.approx((2 - 1.2) / total + free)
    assert model.probability("h") == pytest.approx((3 - 2.2) / total + free)
    assert model.probability("j") == pytest.approx((4 - 2.2) / total + free)
    assert model.probability(END) == pytest.approx((20 - 2.2) / total + free)


def test_weights_of_sentences():
    text, other = sentences(60), sentences(60, seed=9)
    for order in (1, 3):
        plain, ones = NGram(text, order), NGram(text, order, weights=[1.0] * 60)
        assert ones.log_probability("abc") == pytest.approx(plain.log_probability("abc"))
        mixed = [NGram([*text, *other], order, [1] * 60 + [weight] * 60) for weight in (1e-3, 0.1, 0.5, 1)]
        nearer = [model.perplexity(other) for model in mixed]
        assert nearer == sorted(nearer, reverse=True), "the more it weighs, the better it is predicted"
        for model, context in itertools.product(mixed, ["", "a", "ab", "zz"]):
            assert sum(model.probability(token, context) for token in model.vocabulary) == pytest.approx(1)
    with pytest.raises(ValueError, match="weight"):
        NGram(["a"], weights=[0.0])


def test_a_wider_vocabulary_takes_a_share():
    model = NGram(["ab"], 2, vocabulary="xy")
    assert model.probability("x", "a") == model.probability("y", "a") == model.probability(UNKNOWN, "a") > 0
    assert sum(model.probability(token, "a") for token in model.vocabulary) == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_in_every_context(order):
    model = NGram(sentences(), order)
    contexts = [context for size in range(4) for context in itertools.product(["<s>", *"abgz"], repeat=size)]
    for context in contexts:
        assert sum(model.probability(token, context) for token in model.vocabulary) == pytest.approx(1), context
        assert model.probability("never seen", context) > 0


def test_a_longer_context_helps_where_the_text_has_structure():
    text = ["abcabcabc"[i : i + 6] for i in range(3)] * 10
    one, two = (NGram(text, order).perplexity(text) for order in (1, 3))
    assert two < 2 < one


@pytest.mark.parametrize("order", [1, 2, 3])
def test_search_equals_brute_force(order):
    model, rng = NGram(sentences(), order), random.Random(order)
    for _ in range(10):
        candidates = [rng.sample("abcdefgz", rng.randint(1, 4)) for _ in range(rng.randint(0, 5))]
        best = max(itertools.product(*candidates), key=model.log_probability)
        tokens, score = choose(model, candidates, beam=0)
        assert score == pytest.approx(model.log_probability(best))
        assert model.log_probability(tokens) == pytest.approx(score)
        assert choose(model, candidates, beam=500) == (tokens, score)


def test_a_narrow_beam_still_answers():
    tokens, _ = choose(NGram(sentences(), 3), ["abc", "def", "ab"], beam=1)
    assert len(tokens) == 3 and all(token in options for token, options in zip(tokens, ("abc", "def", "ab")))


def test_what_cannot_be():
    with pytest.raises(ValueError, match="no sentence"):
        NGram(["", ""])
    with pytest.raises(ValueError, match="order"):
        NGram(["a"], order=0)
    with pytest.raises(ValueError, match="position 1"):
        choose(NGram(["ab"]), ["a", ""])


@pytest.fixture(scope="module")
def oracle():
    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_manifest(path: Path, lines: list[tuple[str, str | None]]) -> None:
    """A manifest of (text, pinyin); its audio is never opened."""
    cuts = []
    for number, (text, pinyin) in enumerate(lines):
        name = f"{path.name.split('.')[0]}-{number}"
        recording = Recording(name, sources=[], sampling_rate=16000, num_samples=16000, duration=1.0)
        supervision = SupervisionSegment(name, name, 0.0, 1.0, text=text, speaker="s1",
                                         custom={"pinyin": pinyin} if pinyin else None)
        cuts.append(MonoCut(name, 0.0, 1.0, 0, recording=recording, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(path)


def test_oracle_hears_syllables_and_picks_hanzi(tmp_path, oracle, capsys):
    write_manifest(tmp_path / "train.jsonl.gz", [
        ("老师是他", "lao3 shi1 shi4 ta1"), ("老师是她", "lao3 shi1 shi4 ta1"), ("她是她", "ta1 shi4 ta1"),
        ("有事", "you3 shi4")])
    write_manifest(tmp_path / "test_a.jsonl.gz", [
        ("老师有事", "lao3 shi1 you3 shi4"),  # shi4 is 是 or 事: after 有 it is 事
        ("她是老师", "ta1 shi4 lao3 shi1"),
        ("马", "ma3"),  # no reading in training, and no known character has it: heard, not written
        ("老师", "lao3"),  # not a syllable a character
        ("有", None)])
    write_manifest(tmp_path / "test_b.jsonl.gz", [("有", None)])
    exp = tmp_path / "我的 exp"
    assert oracle.main(["--data", str(tmp_path), "--exp", str(exp)]) == 0
    lines = (exp / "decode/oracle/test_a/hyp.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["hyp"] for a in answers] == ["老师有事", "她是老师", "\ufffd", "", ""]
    assert [bool(a["error"]) for a in answers] == [False, False, False, True, True]
    assert [a["ref"] for a in answers] == ["老师有事", "她是老师", "马", "老师", "有"]
    assert answers[0].keys() == {"id", "ref", "hyp", "seconds", "speaker", "score", "error"}
    assert answers[0]["seconds"] == 1.0 and answers[0]["score"] < 0
    assert not (exp / "decode/oracle/test_b").exists()
    assert "test_a" in capsys.readouterr().out


def test_oracle_falls_back_on_the_dictionary(tmp_path, oracle):
    """长 is read zhang3 in training; chang2 is its other reading."""
    pytest.importorskip("pypinyin")
    write_manifest(tmp_path / "train.jsonl.gz", [("校长", "xiao4 zhang3")])
    write_manifest(tmp_path / "test.jsonl.gz", [("长", "chang2")])
    assert oracle.main(["--data", str(tmp_path), "--exp", str(tmp_path / "exp")]) == 0
    answer = json.loads((tmp_path / "exp/decode/oracle/test/hyp.jsonl").read_text(encoding="utf-8"))
    assert answer["hyp"] == "长"


def test_oracle_without_pinyin_says_so_and_is_no_failure(tmp_path, oracle, capsys):
    write_manifest(tmp_path / "train.jsonl.gz", [("老师", None)])
    write_manifest(tmp_path / "test.jsonl.gz", [("老师", None)])
    assert oracle.main(["--data", str(tmp_path), "--exp", str(tmp_path / "exp")]) == 0
    assert "no oracle row" in capsys.readouterr().out and not (tmp_path / "exp").exists()
    assert oracle.main(["--data", str(tmp_path / "none"), "--exp", str(tmp_path / "exp")]) == 1
    assert "run stage 1" in capsys.readouterr().err
