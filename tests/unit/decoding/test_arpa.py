"""ARPA files: ours read back, against the model they were written from, kenlm, and a plain reading of the format."""

import gzip
import itertools
import json
import math
import random

import numpy as np
import pytest

from speechlab.decoding.arpa import ArpaLM, load
from speechlab.decoding.ngram import BEGIN, END, NGram
from speechlab.errors import UserError

UNITS = ["<blank>", "<unk>", *"abcdefg"]


def sentences(count: int = 80, seed: int = 0, letters: str = "abcdefg") -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, weights=range(len(letters), 0, -1), k=rng.randint(1, 9)))
            for _ in range(count)]


def ids(sentence: str) -> list[int]:
    return [UNITS.index(letter) if letter in UNITS else 1 for letter in sentence]


def log_probability(lm: ArpaLM, tokens: list[int]) -> float:
    state, total = lm.start(1), 0.0
    for token in tokens:
        one, state = lm.step(state, np.array([token]))
        total += float(one[0])
    return total + float(lm.final(state)[0])


class Plain:
    """The backoff rule as ARPA defines it, over a dictionary: p(w | h) is the gram's, else backoff(h) p(w | h')."""

    def __init__(self, grams: dict[tuple[str, ...], tuple[float, float]]):
        self.grams = grams

    def log10(self, word: str, history: tuple[str, ...]) -> float:
        if (*history, word) in self.grams:
            return self.grams[(*history, word)][0]
        if not history:
            return self.grams[("<unk>",)][0]
        return self.grams.get(history, (0, 0.0))[1] + self.log10(word, history[1:])

    def write(self, path) -> None:
        order = max(map(len, self.grams))
        lines = ["\\data\\"]
        for size in range(1, order + 1):
            lines.append(f"ngram {size}={sum(len(gram) == size for gram in self.grams)}")
        for size in range(1, order + 1):
            lines += ["", f"\\{size}-grams:"]
            for gram, (p, backoff) in self.grams.items():
                if len(gram) == size:
                    lines.append(f"{p}\t{' '.join(gram)}" + (f"\t{backoff}" if backoff else ""))
        path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")


def random_model(seed: int, order: int = 4) -> Plain:
    """Any backoff model: not normalised, backoff weights over 1, and n-grams whose suffixes do not stand in it."""
    rng = random.Random(seed)
    words = list("abcdefg")
    grams = {(w,): (rng.uniform(-3, -0.1), rng.uniform(-1, 0.3)) for w in [*words, "<unk>"]}
    grams[(END,)] = (-1.5, 0.0)
    grams[(BEGIN,)] = (-99, -0.4)
    contexts = [(w,) for w in [*words, BEGIN]]
    for size in range(2, order + 1):
        new = {}
        for context in contexts:
            for word in rng.sample([*words, END, "<unk>"], 3):
                weight = rng.choice([0.0, rng.uniform(-1, 0.3)]) if size < order and word != END else 0.0
                new[(*context, word)] = (rng.uniform(-3, -0.1), weight)
        grams |= new
        contexts = rng.sample([gram for gram in new if gram[-1] not in (END, "<unk>")], 12)
    return Plain(grams)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_what_is_written_reads_back_the_same(tmp_path, order):
    """Also with a token that was never seen, one that is no unit, and weights between 0 and 1."""
    for weights in (None, [0.3 if number % 3 else 1 for number in range(80)]):
        model = NGram(sentences(), order, weights, vocabulary="g")
        model.write_arpa(tmp_path / "lm.arpa")
        lm = ArpaLM.read(tmp_path / "lm.arpa", UNITS)
        assert lm.order == order
        for sentence in [*sentences(50, seed=1, letters="gfedcbaz"), "", "zzz"]:
            expected = model.log_probability(sentence)
            assert log_probability(lm, ids(sentence)) == pytest.approx(expected, abs=1e-5)
        texts = ["", *sentences(30, seed=2), ""]
        each = lm.log_probabilities(map(ids, texts))
        assert each == pytest.approx([model.log_probability(text) for text in texts], abs=1e-5)
        assert lm.perplexity(map(ids, texts)) == pytest.approx(model.perplexity(texts), rel=1e-5)
    assert len(lm.log_probabilities([])) == 0 and math.isnan(lm.perplexity([]))


def test_the_file_is_sorted_utf8_with_a_start_that_is_never_predicted(tmp_path):
    NGram(["你好", "好"], 2).write_arpa(tmp_path / "lm.arpa")
    lines = (tmp_path / "lm.arpa").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["\\data\\", "ngram 1=5", "ngram 2=4"] and lines[-1] == "\\end\\"
    assert [line.split("\t")[1] for line in lines[5:10]] == ["<s>", "</s>", "<unk>", "你", "好"]
    assert lines[5].startswith("-99\t<s>\t")
    bigrams = [line.split("\t")[1] for line in lines[12:16]]
    assert bigrams == ["<s> 你", "<s> 好", "你 好", "好 </s>"]


def test_a_token_that_arpa_cannot_write_is_refused(tmp_path):
    for token in ("a b", "", "\u3000"):
        with pytest.raises(ValueError, match="ARPA"):
            NGram([["a", token]], 2).write_arpa(tmp_path / "lm.arpa")
    assert not (tmp_path / "lm.arpa").exists()


@pytest.mark.parametrize("order", [2, 4])
def test_kenlm_agrees(tmp_path, order):
    kenlm = pytest.importorskip("kenlm")
    model = NGram(sentences(200), order)
    model.write_arpa(tmp_path / "lm.arpa")
    judge, lm = kenlm.Model(str(tmp_path / "lm.arpa")), ArpaLM.read(tmp_path / "lm.arpa", UNITS)
    for sentence in [*sentences(100, seed=3, letters="abcdefgz"), ""]:
        theirs = judge.score(" ".join(sentence)) * math.log(10)
        assert theirs == pytest.approx(model.log_probability(sentence), abs=1e-4)
        assert theirs == pytest.approx(log_probability(lm, ids(sentence)), abs=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_any_backoff_model_is_scored_as_the_format_says(tmp_path, order):
    plain = random_model(order, order)
    plain.write(tmp_path / "lm.arpa")
    lm = ArpaLM.read(tmp_path / "lm.arpa", UNITS)
    rng = np.random.default_rng(order)
    tokens = rng.integers(1, len(UNITS), (300, 8))
    states = lm.start(300)
    for position in range(8):
        every = lm.step_all(states)
        assert every.shape == (300, len(UNITS))
        np.testing.assert_allclose(every[:, 0], lm.final(states), atol=1e-5)
        log_probs, states = lm.step(states, tokens[:, position])
        np.testing.assert_allclose(every[np.arange(300), tokens[:, position]], log_probs, atol=1e-5)
        assert states.dtype == np.int64
        for row in range(0, 300, 7):
            history = (BEGIN, *(UNITS[t] for t in tokens[row, :position]))[max(0, position + 2 - order) :]
            expected = plain.log10(UNITS[tokens[row, position]], history if order > 1 else ())
            assert log_probs[row] == pytest.approx(expected * math.log(10), abs=1e-5)


def test_words_that_are_no_unit_and_units_that_are_no_word(tmp_path):
    """A word z with its n-grams is passed over; the unit g is not in the file and is <unk>, in contexts too."""
    plain = random_model(0, 3)
    plain.grams = {gram: value for gram, value in plain.grams.items() if "g" not in gram}
    plain.grams |= {("z",): (-1.0, -0.5), ("a", "z"): (-0.1, -0.2), ("a", "z", "b"): (-0.2, 0.0)}
    plain.write(tmp_path / "lm.arpa")
    lm = ArpaLM.read(tmp_path / "lm.arpa", UNITS)
    log_probs, _ = lm.step(lm.start(2), np.array([UNITS.index("g"), 1]))
    expected = plain.log10("<unk>", (BEGIN,)) if (BEGIN, "<unk>") not in plain.grams else None
    assert log_probs[0] == pytest.approx((plain.grams[(BEGIN,)][1] + plain.grams[("<unk>",)][0]) * math.log(10))
    assert expected is None or log_probs[1] == pytest.approx(expected * math.log(10))


def test_without_unk_a_missing_unit_is_as_rare_as_the_rarest_word(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text("\\data\\\nngram 1=7\n\n\\1-grams:\n-99 <s>\n-1 </s>\n-0.5 a\n-0.7 b\n-2 c\n-1 d\n-1 e\n\\end\\\n")
    lm = ArpaLM.read(path, UNITS)
    np.testing.assert_allclose(lm.step_all(lm.start(1))[0] / math.log(10), [-1, -2, -0.5, -0.7, -2, -1, -1, -2, -2],
                               rtol=1e-6)


def test_gzip_comments_crlf_and_an_ideographic_space(tmp_path):
    units = [*UNITS, "\u3000"]
    lines = ["made by hand", "", "\\data\\", "ngram 1=8", "ngram 2=1", "", "\\1-grams:", "-99 <s> -0.5", "-1 </s>",
             "-1 a", "-1 b", "-1 c", "-1 d", "-1\t\u3000\t0", "-inf <unk>", "", "\\2-grams:", "-0.25 <s> \u3000", "",
             "\\end\\", ""]
    with gzip.open(tmp_path / "lm.arpa.gz", "wb") as file:
        file.write("\r\n".join(lines).encode())
    lm = ArpaLM.read(tmp_path / "lm.arpa.gz", units)
    log_probs, _ = lm.step(lm.start(2), np.array([9, 2]))
    np.testing.assert_allclose(log_probs / math.log(10), [-0.25, -1.5])
    assert np.isfinite(lm.step_all(lm.start(1))).all(), "minus infinity would forbid what the recogniser may hear"
    (tmp_path / "cut.arpa.gz").write_bytes((tmp_path / "lm.arpa.gz").read_bytes()[:60])
    with pytest.raises(UserError, match="whole gzip"):
        ArpaLM.read(tmp_path / "cut.arpa.gz", units)


GOOD = ["\\data\\", "ngram 1=5", "ngram 2=2", "", "\\1-grams:", "-1\t<unk>", "-99\t<s>\t-0.3", "-1\t</s>",
        "-1\ta\t-0.2", "-1\tb\t-0.2", "", "\\2-grams:", "-0.5\t<s> a", "-0.5\ta b", "", "\\end\\"]


@pytest.mark.parametrize("change, message", [
    ({0: None}, "no line .data"),
    ({1: "ngram 1=x"}, "line 2: expected 'ngram 1=<count>'"),
    ({2: "ngram 3=2"}, "line 3: expected 'ngram 2=<count>'"),
    ({1: "ngram 1=6"}, "line 11: expected a log probability"),
    ({1: "ngram 1=4"}, "line 10: expected .2-grams: after the 4 1-grams"),
    ({2: "ngram 2=3"}, "line 15: .*an empty line"),
    ({2: "ngram 2=1"}, "line 14: expected .end. after the 1 2-grams"),
    ({8: "-1,5\ta\t-0.2"}, "line 9: '-1,5' is not the log10"),
    ({8: "nan\ta\t-0.2"}, "line 9: 'nan' is not the log10"),
    ({8: "0.5\ta\t-0.2"}, "line 9: '0.5' is not the log10 of a probability"),
    ({8: "-1\ta\tx"}, "line 9: 'x' is not a backoff weight"),
    ({8: "-1"}, "line 9: expected a log probability, 1 words"),
    ({12: "-0.5\t<s> a a b"}, "line 13: expected a log probability, 2 words"),
    ({13: "-0.5\t<s> a"}, "line 14: this n-gram stands in it twice"),
    ({15: None}, "ends without .end"),
    (dict.fromkeys(range(13, 16)), "ends within its 2-grams: 1 of 2"),
    (dict.fromkeys(range(3, 16)), "ends before its 1-grams"),
    ({2: "ngram 2=2\nngram 3=1", 15: "\\3-grams:\n-1\tb a b\n\\end\\"}, "line 18: the context of this 3-gram"),
])
def test_broken_files_are_one_clear_line(tmp_path, change, message):
    path, units = tmp_path / "lm.arpa", ["<blank>", "<unk>", "a", "b"]
    path.write_text("\n".join(GOOD) + "\n")
    ArpaLM.read(path, units)
    path.write_text("".join(f"{line}\n" for n, old in enumerate(GOOD) if (line := change.get(n, old)) is not None))
    with pytest.raises(UserError, match=message) as caught:
        ArpaLM.read(path, units)
    assert str(path) in str(caught.value)


def test_a_model_over_other_units_is_refused(tmp_path):
    NGram([["HELLO", "WORLD"], ["HELLO"]], 2).write_arpa(tmp_path / "lm.arpa")
    with pytest.raises(UserError, match="over other units: it has 1 of the recogniser's 8"):
        ArpaLM.read(tmp_path / "lm.arpa", UNITS)
    with pytest.raises(UserError, match="no language model"):
        ArpaLM.read(tmp_path / "none.arpa", UNITS)


def test_a_language_model_folder(tmp_path):
    with pytest.raises(UserError, match="run the recipe's language model stage"):
        load(tmp_path, UNITS)
    NGram(sentences(), 2).write_arpa(tmp_path / "lm.arpa")
    (tmp_path / "lm.json").write_text(json.dumps({"units": UNITS, "order": 2}), encoding="utf-8")
    assert load(tmp_path, UNITS).order == 2
    with pytest.raises(UserError, match="other units"):
        load(tmp_path, [*UNITS, "h"])
    (tmp_path / "lm.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="make it again"):
        load(tmp_path, UNITS)


def test_many_keys_find_their_slots(tmp_path):
    """Every n-gram of a model of some size is found, and no other."""
    rng = random.Random(0)
    units = ["<blank>", "<unk>", *map(chr, range(0x4E00, 0x4E00 + 400))]
    text = [rng.choices(units[2:], k=12) for _ in range(1500)]
    model = NGram(text, 3, vocabulary=units[2:])
    model.write_arpa(tmp_path / "lm.arpa")
    lm = ArpaLM.read(tmp_path / "lm.arpa", units)
    assert len(lm) == 401 + 1 + sum(map(len, [{p for s in text for p in zip(*([BEGIN, *s, END][k:] for k in range(n)))}
                                             for n in (2, 3)]))
    index = {unit: number for number, unit in enumerate(units)}
    known = [(index[a], index[b], index[c]) for s in text[:200] for a, b, c in zip(s, s[1:], s[2:])]
    for a, b, c in itertools.chain(known[:300], (rng.choices(range(2, 402), k=3) for _ in range(300))):
        _, state = lm.step(lm.step(lm.start(1), [a])[1], [b])
        p = model.probability(units[c], [units[a], units[b]])
        assert float(lm.step(state, [c])[0][0]) == pytest.approx(math.log(p), abs=1e-6)
