"""mnist from nothing to a scored classifier, on drawn shapes."""

import csv
import json
import os
import signal
import time

import pytest
import yaml
from browser import browse, needs_chromium
from PIL import Image, ImageDraw

TASK, OPTIONS = "mnist", ("--corpus", "synthetic", "--config", "conf/tiny.yaml")


def records(exp, kind):
    return [r for line in (exp / "metrics.jsonl").read_text().splitlines() if (r := json.loads(line))["kind"] == kind]


def test_it_learns_and_says_so(trained):
    lab, exp, output = trained
    rows = {(r["method"], r["metric"]): r for r in json.loads((exp / "results.json").read_text())}
    assert set(rows) == {(method, metric) for method in ("plain", "tta") for metric in ("accuracy", "error")}
    for (_, metric), row in rows.items():
        assert row["value"] > 95 if metric == "accuracy" else row["value"] < 5, output
        assert row["ci_low"] <= row["value"] <= row["ci_high"] and row["unit"] == "%"
        assert row["n"] == 500 and row["n_failed"] == 0 and row["list_hash"]
    epochs = records(exp, "epoch")
    assert epochs[-1]["valid_error"] < 5 and epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert "grad_norm/conv1" in epochs[0] and "dead/conv7" in epochs[0]
    assert "accuracy" in (exp / "results.txt").read_text() and "accuracy" in output


def test_what_a_run_leaves(trained):
    lab, exp, _ = trained
    for name in ("config.yaml", "env.json", "train.log", "metrics.jsonl", "curves.png", "results.txt", "results.json",
                 "checkpoints/final.pt", "layers/epoch-01.png"):
        assert (exp / name).stat().st_size > 0, name
    assert list((exp / "tensorboard").glob("events*"))
    for method in ("plain", "tta"):
        folder = exp / "decode" / method / "test"
        assert len((folder / "pred.jsonl").read_text().splitlines()) == 500
        counts = json.loads((folder / "confusion.json").read_text())["counts"]
        assert sum(map(sum, counts)) == 500 and (folder / "worst.txt").exists()
    with open(lab.root / "egs" / TASK / "params_table.csv", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == "speechlab.models.images:DigitCNN" and row["batch"] == "32"


def test_again_there_is_nothing_to_do(trained):
    lab, exp, _ = trained
    before = {p: p.stat().st_mtime_ns for p in exp.rglob("*.pt")}
    status, output = lab.run(TASK, *OPTIONS)
    assert status == 0 and "speechlab.train" not in output and len(output.splitlines()) < 12, output
    assert {p: p.stat().st_mtime_ns for p in exp.rglob("*.pt")} == before


def test_other_views_are_looked_at_without_training_anew(trained):
    """What a changed section decode says is what is answered and scored; a method that is no more has no row."""
    lab, exp, _ = trained

    def rows(*words):
        status, output = lab.run(TASK, *OPTIONS, *words)
        assert status == 0 and "speechlab.train" not in output, output
        found = {row["method"]: row["value"] for row in json.loads((exp / "results.json").read_text())
                 if row["metric"] == "error"}
        assert all((f" {method} " in (exp / "results.txt").read_text()) == (method in found)
                   for method in ("plain", "tta"))
        said = json.loads((exp / "decode" / "methods.json").read_text())
        assert set(said) == set(found) == {p.parent.name for p in (exp / "decode").glob("*/test")}
        answers = exp / "decode" / "tta" / "test" / "pred.jsonl"
        return found, said, answers.read_text() if answers.exists() else ""

    before, was, old = rows()
    flipped, said, new = rows("--set", "decode.tta=flip")
    assert said["tta"] == {"tta": "flip"} and flipped["plain"] == before["plain"] and new != old
    found, said, _ = rows("--set", "decode.tta=none")
    assert found == {"plain": before["plain"]} and list(said) == ["plain"]
    assert rows() == (before, was, old)


def test_another_network_is_another_experiment(trained):
    lab, _, _ = trained
    status, output = lab.run(TASK, *OPTIONS, "--set", "model.dropout=0.5")
    assert status != 0 and "--tag" in output and "Traceback" not in output, output


@pytest.mark.parametrize(("config", "sets"), [
    ("logistic", ()), ("hidden", ("optim.name=rmsprop", "optim.lr=1e-3", "loss.name=mse")),
    ("deep", ("model.activation=sigmoid", "optim.name=muon", "optim.lr=5e-3")), ("mlp", ("model.hidden=[64]",)),
])
def test_every_network_trains(trained, config, sets):
    lab, _, _ = trained
    words = [word for text in ("train.epochs=1", "train.accum=1", *sets) for word in ("--set", text)]
    status, output = lab.run(TASK, "--corpus", "synthetic", "--config", f"conf/{config}.yaml", "--stop_stage", "4",
                             *words)
    assert status == 0, output
    exp = lab.root / "egs" / TASK / "exp" / f"synthetic_{config}"
    (epoch,) = records(exp, "epoch")
    assert epoch["valid_error"] <= 95 and (exp / "layers" / "epoch-01.png").exists()


def test_a_sweep_interrupted_and_resumed(trained):
    """Ctrl-C in the second of three trials; the same command goes on with it, and leaves the first as it is."""
    lab, _, _ = trained
    recipe = lab.root / "egs" / TASK
    (recipe / "conf" / "sweep" / "try.yaml").write_text(
        "about: Which optimiser?\nconfig: conf/tiny.yaml\nbase: {train.epochs: 2, train.log_steps: 1}\n"
        "experiments:\n  adam: {optim.name: adam}\n  sgd: {optim.name: sgd, optim.lr: 0.1}\n"
        "  rmsprop: {optim.name: rmsprop}\n")
    words = ("--corpus", "synthetic", "--sweep", "conf/sweep/try.yaml")
    process = lab.start(TASK, *words)
    second = recipe / "exp" / "synthetic_tiny_try_sgd"
    until = time.monotonic() + 300
    while not (second / "metrics.jsonl").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in output, output

    def table():
        with open(recipe / "sweep_try.csv", encoding="utf-8-sig") as file:
            return {row["trial"]: row for row in csv.DictReader(file)}

    assert [row["status"] for row in table().values()] == ["done", "interrupted", "to do"]
    first = recipe / "exp" / "synthetic_tiny_try_adam" / "checkpoints" / "final.pt"
    before = first.stat().st_mtime_ns
    status, output = lab.run(TASK, *words)
    assert status == 0, output
    assert first.stat().st_mtime_ns == before
    assert {row["status"] for row in table().values()} == {"done"}
    assert all(float(row["best_valid_error"]) < 20 for row in table().values()), table()
    assert (recipe / "sweep_try.png").read_bytes().startswith(b"\x89PNG")


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280])
def test_its_report_in_a_browser(trained, tmp_path, width):
    """The page that the run left: curves, a confusion matrix of ten classes, no fault, no scrolling sideways."""
    _, exp, _ = trained
    saw = browse((exp / "report.html").read_text(encoding="utf-8"), width, tmp_path)
    assert saw["fault"] == "" and saw["wide"] <= 0 and saw["charts"] >= 3 and saw["cells"] == 100


def test_a_folder_of_ones_own(trained, tmp_path):
    lab, _, _ = trained
    for n in range(60):
        for name, box in (("circle", "ellipse"), ("square", "rectangle")):
            picture = Image.new("L", (40, 40), 20 + n)
            getattr(ImageDraw.Draw(picture), box)((8 + n % 5, 8, 28 + n % 5, 30), fill=220)
            (tmp_path / "my pictures" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "my pictures" / name / f"{n}.png")
    status, output = lab.run(TASK, "--corpus", "folder", "--data_dir", str(tmp_path / "my pictures"), "--config",
                             "conf/tiny.yaml", "--set", "data.batch_size=16")
    assert status == 0, output
    (exp,) = (lab.root / "egs" / TASK / "exp").glob("my pictures-*_tiny")
    rows = {r["method"]: r for r in json.loads((exp / "results.json").read_text()) if r["metric"] == "accuracy"}
    (data,) = (lab.root / "egs" / TASK / "data").glob("my pictures-*")
    about = json.loads((data / "images.json").read_text())
    assert about["classes"] == ["circle", "square"] and about["size"] == [28, 28]
    assert rows["plain"]["n"] == about["splits"]["test"]["count"] > 0


def test_all_configs_and_sweeps_are_valid(lab):
    """Every key of every sweep is one of its config's."""
    from speechlab.tasks import load_config as load

    for task in ("mnist", "cifar10"):
        folder = lab.root / "egs" / task
        for path in (folder / "conf").glob("*.yaml"):
            assert load(path).task == "image"
        for path in (folder / "conf" / "sweep").glob("*.yaml"):
            sweep = yaml.safe_load(path.read_text())
            trials = [*sweep.get("experiments", {}).values(),
                      *({key: value} for key, values in sweep.get("grid", {}).items() for value in values)]
            for trial in trials:
                load(folder / sweep["config"], [f"{k}={json.dumps(v)}" for k, v in {**sweep.get("base", {}),
                                                                                   **trial}.items()])


def test_wrong_options(lab):
    for options, says in ((("--corpus", "folder"), "needs --data_dir"), (("--corpus", "minst"), "did you mean mnist")):
        status, output = lab.run(TASK, *options)
        assert status != 0 and says in output and "Traceback" not in output, output
