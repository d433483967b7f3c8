"""The recipe that egs/README.md shows, with a task of its own, made just as it stands there: every stage and tool."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lhotse import CutSet

ROOT = Path(__file__).resolve().parents[2]
TASK = "pitch"


def files_of_the_readme() -> dict[str, str]:
    """Path -> content of each code block that stands under a line that is a path in backquotes."""
    text = (ROOT / "egs" / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^`(egs/pitch/[\w./]+)`\n\n```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


def package(root: Path) -> dict[str, bytes]:
    """All that is not the new recipe."""
    return {str(path.relative_to(root)): path.read_bytes() for top in ("speechlab", "tools", "containers", "egs")
            for path in sorted((root / top).rglob("*")) if path.is_file() and "__pycache__" not in path.parts
            and path.parts[len(root.parts):][:2] != ("egs", TASK)}


@pytest.fixture(scope="module")
def own(lab):
    """The recipe, run once from end to end."""
    found = files_of_the_readme()
    assert len(found) == 3 and sum(text.count("\n") for text in found.values()) <= 60
    for name, text in found.items():
        (lab.root / name).parent.mkdir(parents=True, exist_ok=True)
        (lab.root / name).write_text(text, encoding="utf-8")
    before = package(lab.root)
    status, output = lab.run(TASK, "--nj", "2")
    assert status == 0, output
    yield lab, lab.root / "egs" / TASK, output
    assert package(lab.root) == before, "a task of one's own touches no file of the house"


def call(lab, *words, cwd=None) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=cwd or lab.root, text=True, capture_output=True,
                          env={**lab.env, "PYTHONPATH": str(lab.root)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_learns(own):
    lab, recipe, output = own
    exp = recipe / "exp" / "synthetic_pitch"
    (row,) = [row for row in json.loads((exp / "results.json").read_text()) if row["metric"] == "MAE"]
    assert 0 < row["value"] < 15 and row["unit"] == "Hz" and row["ci_low"] < row["value"] < row["ci_high"]
    assert row["n"] == 40 and row["n_failed"] == 0
    lines = output.strip().splitlines()
    assert lines[-2].startswith("test: plain, MAE ")
    assert lines[-1] == "report: egs/pitch/exp/synthetic_pitch/report.html"
    assert (exp / "results.txt").read_text().startswith(lines[-2] + "\n\n# experiment: synthetic_pitch\n")
    epochs = [record for line in (exp / "metrics.jsonl").read_text().splitlines()
              if (record := json.loads(line))["kind"] == "epoch"]
    assert epochs[-1]["valid_mae"] < epochs[0]["valid_mae"] and "| answer |" in (exp / "samples.md").read_text()
    assert json.loads((exp / "env.json").read_text())["metric"] == "valid_mae"
    best = min(epochs, key=lambda record: record["valid_mae"])["epoch"]  # the task says: lower is better
    assert f"mean of epochs {best}" in (exp / "train.log").read_text()
    (one,) = json.loads((exp / "mistakes.json").read_text())["sets"]
    wrong = [item["figures"]["MAE"] for item in one["items"]]
    assert one["view"] == "audio" and wrong == sorted(wrong, reverse=True)
    assert len(one["items"][0]["tracks"]) == 1 and one["items"][0]["tracks"][0]["clip"]  # it can be heard


def test_a_change_in_its_own_code_is_noticed(own):
    lab, recipe, _ = own
    code = recipe / "local" / "pitch.py"
    text = code.read_text()
    code.write_text(text + "# another line\n")
    try:
        status, output = lab.run(TASK)
        assert status != 0 and "local/pitch.py has changed" in output and "--force" in output and "--tag" in output
    finally:
        code.write_text(text)
    status, output = lab.run(TASK)
    assert status == 0 and "nothing to do" in output, output


def test_again_there_is_nothing_to_do(own):
    lab, _, _ = own
    status, output = lab.run(TASK)
    assert status == 0 and "nothing to do" in output and "speechlab.train" not in output


def test_a_sweep_and_the_report(own):
    lab, recipe, _ = own
    (recipe / "conf" / "sweep").mkdir(exist_ok=True)
    (recipe / "conf" / "sweep" / "width.yaml").write_text("grid: {model.d: [4, 16]}\nbase: {train.epochs: 2}\n")
    status, output = lab.run(TASK, "--sweep", "conf/sweep/width.yaml")
    assert status == 0 and "best_valid_mae" in output, output
    assert (recipe / "sweep_width.png").exists() and "d4,done" in (recipe / "sweep_width.csv").read_text()
    assert "MAE Hz" in call(lab, "speechlab.report", recipe)
    page = (recipe / "report.html").read_text(encoding="utf-8")
    assert "synthetic_pitch_width_d16" in page and "valid_mae" in page


def test_two_of_them_are_compared(own):
    lab, recipe, _ = own
    status, output = lab.run(TASK, "--set", "model.d=4", "--set", "train.epochs=1", "--tag", "small")
    assert status == 0, output
    pair = [recipe / "exp" / name for name in ("synthetic_pitch_small", "synthetic_pitch")]
    (row,) = json.loads(call(lab, "speechlab.score", "--compare", *pair, "--json"))["rows"]
    assert row["metric"] == "MAE" and row["verdict"].startswith("B is better by ") and row["verdict"].endswith(" Hz")
    assert row["p_improvement"] > 0.9 and row["difference"] < 0


def test_it_answers_on_files_and_from_python(own):
    lab, recipe, _ = own
    record = json.loads((recipe / "exp/synthetic_pitch/decode/plain/test/hyp.jsonl").read_text().splitlines()[0])
    cut = next(c for c in CutSet.from_file(recipe / "data/synthetic/test.jsonl.gz") if c.id == record["id"])
    wav = cut.recording.sources[0].source
    exp = recipe / "exp" / "synthetic_pitch"
    found = json.loads(call(lab, "speechlab.infer", exp, wav, "--json", cwd=os.sep))
    assert found["hyp"] == pytest.approx(record["hyp"], abs=0.2) and found["error"] is None
    code = f"import speechlab; m = speechlab.load({str(exp)!r}); print(m({str(wav)!r})['hyp'], list(m.methods()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=os.sep, text=True, capture_output=True,
                          env={**lab.env, "PYTHONPATH": str(lab.root)})
    assert done.stdout.split() == [str(found["hyp"]), "['plain']"], done.stderr


@pytest.mark.parametrize(("text", "says"), [
    ("task: local.nothing\n", "there is no local/nothing.py"),
    ("task: local.empty\n", "local.empty has no TASK"),
    ("task: pich\n", "no task 'pich'"),
])
def test_a_task_that_is_none_is_one_line(own, text, says):
    lab, recipe, _ = own
    (recipe / "local" / "empty.py").write_text("")
    (recipe / "conf" / "wrong.yaml").write_text(text + "model: {class: 'local.pitch:Net', d: 4}\n")
    status, output = lab.run(TASK, "--config", "conf/wrong.yaml")
    assert status == 2 and says in output and "Traceback" not in output, output
