"""Accuracy, its interval, confusion and the worst mistakes: by hand, and python -m speechlab.score on image folders."""

import json

import pytest

from speechlab.score import main
from speechlab.scoring import accuracy
from speechlab.scoring.accuracy import Prediction

LINES = [("cat", "cat", 0.9, 0.9), ("dog", "cat", 0.8, 0.1), ("cat", "dog", 0.6, 0.4), ("dog", "dog", 0.7, 0.7),
         ("newt", "cat", 0.99, 0.0)]


def predictions(lines=LINES):
    return [Prediction(f"i{n}", n, *line) for n, line in enumerate(lines)]


def write(exp, lines=LINES, method="plain", test_set="test"):
    folder = exp / "decode" / method / test_set
    folder.mkdir(parents=True)
    (exp / "config.yaml").write_text("task: image\n")
    (folder / "pred.jsonl").write_text("".join(
        json.dumps({"id": f"i{n}", "index": n, "ref": ref, "hyp": hyp, "prob": p, "prob_ref": q}) + "\n"
        for n, (ref, hyp, p, q) in enumerate(lines)))
    return folder


def test_rows_by_hand():
    right, wrong = accuracy.rows("test", "plain", predictions())
    assert (right.metric, right.value, wrong.metric, wrong.value) == ("accuracy", 40.0, "error", 60.0)
    assert right.unit == "%" and right.n == 5 and right.n_failed == 0
    assert right.ci_low == pytest.approx(100 - wrong.ci_high) and right.ci_high == pytest.approx(100 - wrong.ci_low)
    assert wrong.ci_low < 60 < wrong.ci_high
    assert right.list_hash == wrong.list_hash == accuracy.rows("test", "tta", predictions()[::-1])[0].list_hash


def test_the_interval_is_the_binomials():
    """1,000 images, 10 % wrong: the normal approximation of a binomial is 10 +- 1.96 * sqrt(.1 * .9 / 1000)."""
    _, wrong = accuracy.rows("t", "m", predictions([("a", "b" if n % 10 == 0 else "a", 1.0, 0.0) for n in range(1000)]))
    half = 196 * (0.1 * 0.9 / 1000) ** 0.5
    assert (wrong.ci_low, wrong.ci_high) == (pytest.approx(10 - half, abs=0.2), pytest.approx(10 + half, abs=0.2))


def test_one_image_has_no_interval():
    right, wrong = accuracy.rows("test", "plain", predictions(LINES[:1]))
    assert (right.value, right.ci_low, right.ci_high, wrong.ci_low) == (100.0, None, None, None)


def test_confusion_by_hand():
    assert accuracy.confusion(predictions(), ["dog", "cat"]) == (
        ["dog", "cat", "newt"], [[1, 1, 0], [1, 1, 0], [0, 1, 0]])
    assert accuracy.confusion(predictions())[0] == ["cat", "dog", "newt"]


def test_the_surest_mistake_comes_first():
    text = accuracy.worst(predictions())
    assert text.startswith("3 of 5 wrong") and text.index("i4 ") < text.index("i1 ") < text.index("i2 ")
    assert "newt  cat" in text and accuracy.worst(predictions(LINES[:1])) == "no errors\n"


def test_score_writes_all(tmp_path, capsys):
    exp = tmp_path / "recipe" / "exp" / "a"
    folder = write(exp)
    write(exp, [(r, r, 1.0, 1.0) for r, *_ in LINES], "tta")
    (folder / "classes.json").write_text('["newt", "dog", "cat"]')
    (exp / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "step": 5, "train_loss": 3.0}\n')
    assert main([str(exp), "--corpus", "zoo"]) == 0
    text = (exp / "results.txt").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("test: tta, error 0.00 % (0.00 - 52.18)\n\n# experiment: a\n# corpus: zoo\n\n")
    rows = {(r["method"], r["metric"]): r for r in json.loads((exp / "results.json").read_text())}
    assert rows["plain", "accuracy"]["value"] == 40 and rows["tta", "error"]["value"] == 0
    assert "test plain: 3 of 5 wrong" in text and "test tta: no errors" in text
    found = json.loads((folder / "confusion.json").read_text())
    assert found == {"classes": ["newt", "dog", "cat"], "counts": [[0, 0, 1], [0, 1, 1], [0, 1, 1]]}
    assert (folder / "worst.txt").read_text().startswith("3 of 5")
    assert "40" in (exp.parent.parent / "params_table.csv").read_text()
    assert main([str(exp), "--corpus", "zoo"]) == 0 and (exp / "results.txt").read_text() == text


@pytest.mark.parametrize(("content", "says"), [
    ('{"id": "a", "index": 0, "ref": "x", "hyp": "x", "prob": 1, "prob_', "line 1 is not a prediction"),
    ('{"id": "a", "index": 0, "ref": "x"}\n', "line 1 is not a prediction"),
    ('{"id": "a", "index": 0, "ref": "x", "hyp": "x", "prob": 1, "prob_ref": 1}\n' * 2, "a is there twice"),
    ("", "is empty"),
])
def test_a_broken_file_is_one_line(tmp_path, capsys, content, says):
    (write(tmp_path) / "pred.jsonl").write_text(content)
    (tmp_path / "results.txt").write_text("the old ones\n")
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert says in error and "--stage 5" in error and len(error.splitlines()) == 1
    assert (tmp_path / "results.txt").read_text() == "the old ones\n"


def test_compare_two_classifiers(tmp_path, capsys):
    refs = [f"c{n % 3}" for n in range(200)]
    write(tmp_path / "a", [(r, r if n % 4 else "c9", 1.0, 0.0) for n, r in enumerate(refs)])
    write(tmp_path / "b", [(r, r if n % 40 else "c9", 1.0, 0.0) for n, r in enumerate(refs)])
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["metric"], row["a"], row["b"], row["n"]) == ("error", 25.0, 2.5, 200)
    assert row["verdict"].startswith("B is better by 22.50 points") and row["ci_high"] < 0
    write(tmp_path / "c", [(r, r, 1.0, 0.0) for r in refs[:10]])
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 1
    assert "not one list" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), "--sclite"]) == 2
    said = capsys.readouterr().err
    assert "does not take --sclite" in said and f"the task of {tmp_path / 'a'} is image" in said
    (tmp_path / "c" / "config.yaml").write_text("task: asr\n")
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "of the task image" in capsys.readouterr().err
