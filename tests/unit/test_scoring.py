"""CER/WER against hand-worked alignments and sclite, the bootstrap against known coverage, and the results writer."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from speechlab.scoring.bootstrap import interval
from speechlab.scoring.layout import width
from speechlab.scoring.results import Row, list_hash, write_results
from speechlab.scoring.wer import Counts, Item, alignment, error_rate, mostly_hanzi, trn, worst


def test_word_errors_by_hand():
    items = [
        Item("a", "the cat sat on the mat", "the cat sat on mat"),  # one deletion of 6
        Item("b", "hello world", "hello there big world"),  # two insertions of 2
        Item("c", "yes", "no"),  # one substitution of 1
    ]
    rate = error_rate(items, "word")
    assert rate.counts == Counts(substitutions=1, deletions=1, insertions=2, length=9)
    assert rate.value == pytest.approx(100 * 4 / 9)
    assert [u.counts.errors for u in rate.utterances] == [1, 2, 1]
    assert rate.ci_low < rate.value < rate.ci_high


def test_characters_do_not_count_spaces():
    one = error_rate([Item("a", "老师 您好", "老是您好")], "char")
    assert one.counts == Counts(1, 0, 0, 4) and one.value == 25
    assert error_rate([Item("a", "ab c", "a bc")], "char").value == 0
    assert error_rate([Item("a", "ab c", "a bc")], "word").value == 100


def test_empty_references_and_hypotheses():
    rate = error_rate([Item("a", "", "三个字"), Item("b", "四个字啊", ""), Item("c", "", "")], "char")
    assert rate.counts == Counts(0, 4, 3, 4)
    assert rate.value == pytest.approx(175) and rate.n == 3
    nothing = error_rate([Item("a", "", "x")], "char")
    assert nothing.value is None and nothing.counts.insertions == 1


def test_failed_items_are_counted_and_not_scored():
    items = [Item("a", "ab", "ab"), Item("b", "cdef", "", error="posterior not finite at frame 3")]
    rate = error_rate(items, "char")
    assert (rate.value, rate.n, rate.n_failed) == (0, 1, 1)
    assert rate.counts.length == 2
    none_left = error_rate(items[1:], "char")
    assert (none_left.value, none_left.ci_low, none_left.n, none_left.n_failed) == (None, None, 0, 1)


def test_alignment_lines_stay_straight_with_hanzi():
    (utterance,) = error_rate([Item("u1", "我有A老师好", "我A老是好的")], "char").utterances
    ref, hyp, kinds = alignment(utterance).splitlines()
    assert ref == "REF 我 有 A 老 师 好 **" and hyp == "HYP 我 ** A 老 是 好 的"
    columns = {width(kinds[:place]): kind for place, kind in enumerate(kinds) if kind != " "}
    assert columns == {7: "D", 15: "S", 21: "I"}
    assert all(width(line) <= 20 for line in alignment(utterance, columns=20).splitlines())
    assert len(alignment(utterance, columns=12).splitlines()) > 3


def test_worst_are_those_with_most_errors():
    items = [Item("few", "abcdef", "abcdex"), Item("many", "ab", "cd"), Item("none", "a", "a")]
    text = worst(error_rate(items, "char"))
    assert text.index("many") < text.index("few") and "none" not in text
    assert worst(error_rate([Item("none", "a", "a")], "char")) == ""


def test_mostly_hanzi():
    assert mostly_hanzi(["今天是MONDAY", "老师您好老师"])
    assert not mostly_hanzi(["HELLO WORLD 好"]) and not mostly_hanzi([""])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """Utterances of 5-14 words with a known error rate: the 95 % interval must hold it in most of 300 trials."""
    rng, truth, inside = np.random.default_rng(5), 0.2, 0
    for trial in range(300):
        length = rng.integers(5, 15, size=80)
        errors = rng.binomial(length, truth)
        low, high = interval(errors, length, resamples=1000, seed=trial)
        inside += low <= truth <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_bootstrap_against_a_plain_loop_and_the_normal_interval():
    rng = np.random.default_rng(0)
    errors, length = rng.integers(0, 4, 60), rng.integers(3, 12, 60)
    picks = [rng.integers(0, 60, 60) for _ in range(4000)]
    slow = np.quantile([errors[p].sum() / length[p].sum() for p in picks], [0.025, 0.975])
    assert interval(errors, length, resamples=4000) == pytest.approx(slow, abs=0.004)
    values = rng.normal(3, 1, 400)
    half = 1.96 * values.std() / 20
    assert interval(values, resamples=4000) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.007)
    assert interval(errors, length, seed=1) == interval(errors, length, seed=1) != interval(errors, length, seed=2)
    assert interval([1], [2]) == (None, None) and interval([0, 0], [0, 0]) == (None, None)


def _row(**changes):
    base = dict(test_set="test", method="ctc_greedy", metric="CER", value=12.345, ci_low=11.0, ci_high=13.0, unit="%",
                protocol="CER jiwer", n=10, n_failed=1, list_hash="0123456789ab")
    return Row(**{**base, **changes})


def test_results_files(tmp_path):
    rows = [_row(method="oracle", value=None, ci_low=None, ci_high=None), _row(), _row(test_set="测试集", value=0.0)]
    text = write_results(tmp_path, rows, {"experiment": "mini_conformer"}, ["a note"])
    assert (tmp_path / "results.txt").read_text(encoding="utf-8") == text
    again = write_results(tmp_path, rows[::-1], {"experiment": "mini_conformer"}, ["a note"])
    assert again == text, "the order of rows is not the caller's"
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(r["test_set"], r["method"], r["value"]) for r in read] == [
        ("test", "ctc_greedy", 12.345), ("test", "oracle", None), ("测试集", "ctc_greedy", 0.0)]
    assert list(read[0]) == "test_set method metric value ci_low ci_high unit protocol n n_failed list_hash".split()
    lines = text.splitlines()
    assert lines[0] == "# experiment: mini_conformer" and lines[-1] == "a note"
    ends = [width(line[: line.index("0123456789ab")]) for line in lines if "0123456789ab" in line]
    assert len(ends) == 3 and len(set(ends)) == 1, "columns stay straight with hanzi in them"


def test_list_hash():
    pairs = [("a", "x"), ("b", "y")]
    assert list_hash(pairs) == list_hash(pairs[::-1])
    assert len({list_hash(pairs), list_hash([("a", "x")]), list_hash([("a", "y"), ("b", "x")])}) == 3


SCLITE = [  # without ties: each has one best alignment, so any right implementation gives these counts
    ("spk-1", "今天天气很好", "今天天汽很好"),
    ("spk-2", "我们去学校", "我们学校"),
    ("spk-3", "他来了", "他也来了"),
    ("spk-4", "谢谢", ""),
    ("spk-5", "他说OK(对)", "他说Ok(对)"),
    ("spk-6", "", "啊"),
]


@pytest.mark.parametrize("unit", ["char", "word"])
def test_agrees_with_sclite(tmp_path, unit):
    command = ["sctk", "sclite"] if shutil.which("sctk") else ["sclite"] if shutil.which("sclite") else None
    if command is None:
        pytest.skip("sclite is not installed (Debian: apt-get install sctk)")
    items = [Item(*fixture) for fixture in SCLITE]
    if unit == "word":
        items = [Item(i.id, " ".join(i.ref), " ".join(i.hyp)) for i in items]
    (tmp_path / "ref.trn").write_text(trn([(i.id, i.ref) for i in items], unit), encoding="utf-8")
    (tmp_path / "hyp.trn").write_text(trn([(i.id, i.hyp) for i in items], unit), encoding="utf-8")
    run = subprocess.run(
        [*command, *"-r ref.trn trn -h hyp.trn trn -i rm -e utf-8 -s -o rsum stdout".split()],
        cwd=tmp_path, capture_output=True, text=True, check=True)
    (line,) = [line for line in run.stdout.splitlines() if line.strip("| ").startswith("Sum")]
    _, amounts, kinds = [part.split() for part in line.split("|") if part.strip()]
    sentences, length = map(int, amounts)
    _, substitutions, deletions, insertions, *_ = map(int, kinds)
    rate = error_rate(items, unit)
    assert rate.counts == Counts(substitutions, deletions, insertions, length) and sentences == rate.n
    assert (substitutions, deletions, insertions) == (2, 3, 2)


def test_trn_form():
    assert trn([("a b", "老师 ok")], "char") == "老 师 o k (a_b)\n"
    assert trn([("x", "two  words (really)")], "word") == "two words （really） (x)\n"
    assert trn([("x", "")], "word") == "(x)\n"
