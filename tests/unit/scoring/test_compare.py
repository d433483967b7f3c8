"""Two systems against each other: the paired bootstrap by brute force and by coverage, and the command line."""

import json

import numpy as np
import pytest

from speechlab.score import main
from speechlab.scoring.bootstrap import interval, paired
from speechlab.scoring.compare import NOISE, compare, compare_values, differences, verdict
from speechlab.scoring.metric import METRICS, Metric
from speechlab.scoring.wer import Item


def test_paired_against_a_plain_loop():
    rng = np.random.default_rng(0)
    length = rng.integers(3, 12, 60)
    a, b = rng.binomial(length, 0.3), rng.binomial(length, 0.25)
    picks = [rng.integers(0, 60, 60) for _ in range(10000)]
    slow = np.array([(b[p] - a[p]).sum() / length[p].sum() for p in picks])
    low, high, better = paired(a, b, length)
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.004)
    assert better == pytest.approx((slow < 0).mean() + (slow == 0).mean() / 2, abs=0.015)
    assert paired(b, a, length) == pytest.approx((-high, -low, 1 - better)), "the other way round"
    assert paired(a, b, length) == paired(a, b, length) != paired(a, b, length, seed=1)


def test_paired_edges():
    assert paired([1, 2, 3], [1, 2, 3], [4, 4, 4]) == (0, 0, 0.5)
    assert paired([1], [0], [2]) == paired([], [], []) == paired([1, 2], [2, 1], [0, 0]) == (None, None, None)
    assert paired([2.0, 2.0], [1.0, 1.0])[:2] == (-1, -1), "plain means without denominators"
    with pytest.raises(ValueError, match="2 and 1 items"):
        paired([1, 2], [1])


def simulated(rng, rate_a, rate_b, n=80):
    """Errors of two systems that find the same utterances hard: (a, b, length)."""
    length = rng.integers(5, 15, n)
    hard = np.clip(rng.normal(0, 0.08, n), -0.09, 0.2)
    return rng.binomial(length, rate_a + hard), rng.binomial(length, rate_b + hard), length


def test_the_interval_of_the_difference_covers_the_truth_about_as_often_as_it_says():
    """300 trials each: systems 4 points apart, and equal ones, of which 5 % may be called different."""
    for gap, seed in ((0.04, 3), (0.0, 4)):
        rng, inside = np.random.default_rng(seed), 0
        for trial in range(300):
            low, high, _ = paired(*simulated(rng, 0.2, 0.2 - gap), resamples=400, seed=trial)
            inside += low <= -gap <= high
        assert 0.91 <= inside / 300 <= 0.98


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(1)
    a, _, length = simulated(rng, 0.3, 0.3, 200)
    b = np.maximum(a - (rng.random(200) < 0.15), 0)  # a's errors, some mended
    (a_low, a_high), (b_low, b_high) = interval(a, length), interval(b, length)
    assert a_low < b_high and b_low < a_high, "the intervals of the rates overlap"
    low, high, better = paired(a, b, length)
    assert high < 0 and better > 0.999


def sentences(n=60, seed=2):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("天地人月火水木车"), 8)) for _ in range(n)]


def answers(texts, wrong, seed=0):
    """One answer an utterance, with each character lost by a chance of ``wrong``."""
    rng = np.random.default_rng(seed)
    return [Item(f"u{i:03}", text, "".join(c for c in text if rng.random() >= wrong)) for i, text in enumerate(texts)]


def test_verdicts():
    texts = sentences()
    good, bad = answers(texts, 0.05), answers(texts, 0.25)
    same = compare(bad, bad, "char", "test", ("m", "m"), "CER jiwer")
    assert (same.verdict, same.difference, same.ci_low, same.ci_high, same.p_improvement) == (NOISE, 0, 0, 0, 0.5)
    better = compare(bad, good, "char")
    assert better.verdict.startswith("B is better by ") and better.ci_high < 0 and better.p_improvement == 1
    assert better.difference == pytest.approx(better.b - better.a) and better.n == 60
    worse = compare(good, bad, "char")
    assert worse.verdict.startswith("A is better by ") and worse.p_improvement == 0
    assert compare(good, answers(texts, 0.05, seed=1), "char").verdict == NOISE
    assert compare(good[::-1], bad, "char") == worse, "the order of the lines does not matter"
    assert verdict(20.0, 15.0, -7.0, -3.0, METRICS["cer"]) == "B is better by 5.00 points (25.0 % fewer errors)"
    assert verdict(0.0, 1.0, 0.5, 1.5, METRICS["cer"]) == "A is better by 1.00 points (100.0 % fewer errors)"
    assert verdict(20.0, 15.0, -10.0, 0.0, METRICS["cer"]) == NOISE
    assert compare(good[:1], bad[:1], "char").verdict == "too few utterances to tell"


def test_values_of_metrics_whose_direction_is_up():
    """SI-SDR: more decibels are better. The same figures as an error would be worse."""
    a, b = [3.0, 4.0, 5.0, 4.0], [8.0, 9.5, 10.0, 9.0]
    found = compare_values(a, b, METRICS["sisdr"], "test", ("m", "m"), 1, "hash")
    assert (found.a, found.b, found.difference, found.p_improvement) == (4.0, 9.125, 5.125, 1.0)
    assert found.verdict == "B is better by 5.12 dB" and found.n_failed == 1 and found.ci_low > 0
    assert compare_values(a, b, METRICS["mcd"], "test", ("m", "m"), 0, "hash").verdict == "A is better by 5.12 dB"
    unknown = compare_values(a, b, Metric("zing", lower=None), "test", ("m", "m"), 0, "hash")
    assert unknown.p_improvement is None and "nobody has said" in unknown.verdict
    rates = compare_values([90.0] * 4, [95.0] * 4, METRICS["accuracy"], "test", ("m", "m"), 0, "hash")
    assert rates.verdict == "B is better by 5.00 points"


def test_what_one_system_could_not_answer_is_left_out_for_both():
    texts = sentences(4)
    a, b = answers(texts, 0.0), answers(texts, 0.5)
    a[0], b[1] = Item("u000", texts[0], error="no audio"), Item("u001", texts[1], error="no audio")
    found = compare(a, b, "char")
    assert (found.n, found.n_failed, found.a) == (2, 2, 0)
    nothing = compare([Item("a", "x", error="e")], [Item("a", "x", "x")], "char")
    assert (nothing.n, nothing.difference, nothing.verdict) == (0, None, "too few utterances to tell")


def test_lists_that_differ():
    a = [Item("u1", "x"), Item("u2", "y"), Item("u3", "z")]
    b = [Item("u1", "x"), Item("u2", "other"), Item("u4", "z")]
    assert differences(a, b) == "only in A: u3; only in B: u4; with another reference: u2"
    assert differences(a, a[::-1]) == ""
    many = [Item(f"v{i}", "x") for i in range(8)]
    assert differences(a + many, a, shown=3) == "only in A: v0, v1, v2 and 5 more"
    with pytest.raises(ValueError, match="only in A: u3"):
        compare(a, b, "char")


def write(exp, method, test_set, items):
    path = exp / "decode" / method / test_set / "hyp.jsonl"
    path.parent.mkdir(parents=True)
    (exp / "config.yaml").write_text("task: asr\n")
    path.write_text("".join(json.dumps({"id": i.id, "ref": i.ref, "hyp": i.hyp, "error": i.error},
                                       ensure_ascii=False) + "\n" for i in items), encoding="utf-8")


@pytest.fixture
def two(tmp_path):
    texts = sentences()
    a, b = tmp_path / "a", tmp_path / "实验 b"
    for exp, wrong in ((a, 0.3), (b, 0.1)):
        write(exp, "ctc_greedy", "test", answers(texts, wrong))
        write(exp, "ctc_greedy", "test_2", answers(texts[:30], 0.3))
    write(a, "ctc_beam", "test", answers(texts, 0.05))
    return a, b


def test_command(two, capsys):
    a, b = map(str, two)
    assert main(["--compare", a, b]) == 0
    out = capsys.readouterr().out
    assert f"# A: {a}\n# B: {b}\n" in out and "paired bootstrap" in out
    lines = [line for line in out.splitlines() if line.startswith("test")][1:]
    assert [line.split()[:3] for line in lines] == [[t, "ctc_greedy", m] for t in ("test", "test_2")
                                                    for m in ("CER", "SER")]
    assert all("B is better by" in line for line in lines[:2]) and all(NOISE in line for line in lines[2:])
    assert main(["--compare", a, b, "--test_set", "test_2", "--metric", "cer"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "ctc_greedy" in line]) == 1


def test_command_with_mixed_references(tmp_path, capsys):
    """All test sets of an experiment are compared by what scoring judges them by, also one of a single script."""
    a, b = tmp_path / "a", tmp_path / "b"
    texts = [f"{text}HELLO WORLD" for text in sentences(30)]
    for exp, wrong in ((a, 0.3), (b, 0.1)):
        write(exp, "ctc_greedy", "test_cs", answers(texts, wrong))
        write(exp, "ctc_greedy", "test_zh", answers(sentences(10), wrong))
    assert main(["--compare", str(a), str(b), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["test_set"], row["metric"]) for row in rows if row["metric"] != "SER"] == [
        (test_set, metric) for test_set in ("test_cs", "test_zh") for metric in ("MER", "CER")]
    assert rows[0]["verdict"].startswith("B is better by") and rows[0]["protocol"] == "MER jiwer, hanzi and words"
    assert main(["--compare", str(a), str(b), "--metric", "mer"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test_")]
    assert [line[2] for line in lines if line[1] == "ctc_greedy"] == ["MER", "MER"]


def test_command_with_two_methods_as_json(two, capsys):
    a, b = map(str, two)
    assert main(["--compare", a, b, "--method", "ctc_beam,ctc_greedy", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["A"], said["B"], said["refused"]) == (a, b, [])
    row = said["rows"][0]
    assert (row["method_a"], row["method_b"], row["metric"], row["n"]) == ("ctc_beam", "ctc_greedy", "CER", 60)
    assert row["verdict"].startswith("A is better by") and 0 < row["ci_low"] < row["difference"] < row["ci_high"]
    assert main(["--compare", a, a, "--method", "ctc_greedy,ctc_beam"]) == 0
    assert "ctc_greedy : ctc_beam" in capsys.readouterr().out


def test_command_with_lists_that_differ(two, capsys):
    a, b = two
    path = b / "decode" / "ctc_greedy" / "test" / "hyp.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    assert main(["--compare", str(a), str(b)]) == 0, "the other test set can be compared"
    out = capsys.readouterr().out
    assert out.endswith("test ctc_greedy: not one list, not compared: only in A: u000\n") and "test_2" in out
    assert main(["--compare", str(a), str(b), "--test_set", "test"]) == 1
    error = capsys.readouterr().err
    assert "only in A: u000" in error and len(error.splitlines()) == 1


def test_command_with_nothing_in_common(two, capsys):
    a, b = map(str, two)
    assert main(["--compare", a, b, "--method", "ctc_beam"]) == 1
    error = capsys.readouterr().err
    assert "ctc_beam on test" in error and len(error.splitlines()) == 1
    assert main(["--compare", a, b + "nowhere"]) == 1 and "no experiment" in capsys.readouterr().err
