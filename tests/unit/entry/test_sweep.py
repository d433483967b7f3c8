"""Sweeps: the file's checks; a grid over a recipe whose trainings are stand-ins: interrupted, resumed, failing; Optuna.

The recipe's tools are the real ones, and so are speechlab.sweep and speechlab.config; the work is done by work.py.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stages_helper import Recipe, gone

from speechlab.config import setting
from speechlab.errors import UserError
from speechlab.reporting.sweeps import Trial, draw, measure, rows, write
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric
from speechlab.sweep import options, reason
from speechlab.training import tuning
from speechlab.training.sweep_file import read

ROOT = Path(__file__).resolve().parents[3]
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="no optuna (extra `sweep`)")

RUN = """#!/usr/bin/env bash
# A made-up recipe for sweeps.
source "$(dirname "$0")/../../tools/recipe.sh"
option corpus mini "mini | other"
option_path config conf/a.yaml "what to train"
option pause "" "the learning rate whose training waits"
parse_options "$@"
data=data/$corpus exp=${exp:-exp/${corpus}_$(stem "$config")$tag}
stage 1 "Manifests" --out "$data/train" -- python work.py data "$data/train"
stage 4 "Train" --train --conf model,optim,train --in "$data/train" --out "$exp/checkpoints/final.pt" \\
  -- python work.py train "$config" "$exp" --pause "$pause"
stage 6 "Score" --in "$exp/checkpoints/final.pt" --out "$exp/results.json" -- python work.py score "$exp"
run_stages
"""

# A training whose error is (lr - 0.3) ** 2 of its learning rate, falling over its epochs; lr 9 diverges.
WORK = '''
import json, os, sys, time
from pathlib import Path
what, *words = sys.argv[1:]
with open("ran", "a") as file:
    file.write(" ".join([what, *(Path(w).name for w in words if "/" in w)]) + "\\n")
if what == "data":
    Path(words[0]).parent.mkdir(parents=True, exist_ok=True)
    busy = Path(words[0] + ".busy")
    if busy.exists():
        raise SystemExit("two make it at once")
    busy.touch(); time.sleep(0.2); busy.unlink()
    Path(words[0]).write_text("x")
elif what == "train":
    import yaml
    from speechlab import config
    given = [b for a, b in zip(words, words[1:]) if a == "--set"]
    conf = config.override(yaml.safe_load(open(words[0])), given)
    exp = Path(words[1])
    (exp / "checkpoints").mkdir(parents=True, exist_ok=True)
    (exp / "config.yaml").write_text(yaml.safe_dump(conf))
    lr = float(conf["optim"]["lr"])
    if words[words.index("--pause") + 1] == str(lr) and not Path("go on").exists():
        (exp / "checkpoints" / "step-1.pt").write_text("x")
        Path("waits").write_text(str(os.getpid()))
        time.sleep(60)
    if lr == 9:
        print("a line before")
        print("error: 20 steps in a row gave no finite loss: lower optim.lr", file=sys.stderr)
        raise SystemExit(1)
    (exp / "env.json").write_text(json.dumps({"metric": "valid_error"}))
    lines = [{"kind": "epoch", "step": 10 * e, "epoch": e, "train_loss": 1 / e,
              "valid_error": 100 * (lr - 0.3) ** 2 + 10 / e} for e in (1, 2, 3)]
    (exp / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    (exp / "checkpoints" / "final.pt").write_text("x")
else:
    (Path(words[0]) / "results.json").write_text(json.dumps(
        [{"test_set": "test", "method": "plain", "metric": "error", "value": 1.5}]))
'''

CONFIG = """task: toy
optim: {lr: 0.1, name: sgd}
model: {class: 'speechlab.models.toy:Net', d: 4}
"""

TASK = '''
import dataclasses
from speechlab.config import Component
@dataclasses.dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    name: str = "sgd"
@dataclasses.dataclass(frozen=True)
class Train:
    epochs: int = 3
    seed: int = 1
@dataclasses.dataclass(frozen=True)
class Config:
    task: str
    model: Component
    optim: Optim = Optim()
    train: Train = Train()
class Toy:  # what speechlab.tasks.interface.Task offers, without torch: a sweep reads many configs
    Config = Config
    metrics = ()
    trainable = load = None
TASK = Toy()
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A house with the real speechlab (by links) and a task of its own, whose module needs no torch."""
    recipe = Recipe(tmp_path / "a 语音 house")
    package = recipe.house / "speechlab"
    for path in (package / "tasks" / "__main__.py", package / "__init__.py"):
        path.unlink()
    for path in (ROOT / "speechlab").iterdir():
        if path.name not in ("tasks", "models", "__pycache__"):
            (package / path.name).symlink_to(path)
    for name in ("__init__", "__main__"):
        (package / "tasks" / f"{name}.py").symlink_to(ROOT / "speechlab" / "tasks" / f"{name}.py")
    for name, text in (("tasks/toy/__init__.py", TASK), ("models/__init__.py", ""),
                       ("models/toy.py", "class Net:\n    def __init__(self, d=4, act='relu'):\n        pass\n")):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (recipe.folder / "work.py").write_text(WORK, encoding="utf-8")
    (recipe.folder / "conf" / "a.yaml").write_text(CONFIG)
    (recipe.folder / "conf" / "b.yaml").write_text(CONFIG.replace("0.1", "0.5"))
    (recipe.folder / "conf" / "sweep").mkdir()
    recipe.write(RUN)
    # The tests' own Python: the stand-in for .venv/bin/python would not find its packages.
    recipe.env["SPEECHLAB_PYTHON"] = sys.executable
    recipe.env["PYTHONPATH"] = ""
    return recipe


def sweep(recipe, text, name="s"):
    path = recipe.folder / "conf" / "sweep" / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return f"conf/sweep/{name}.yaml"


def table(recipe, name="sweep_s"):
    with open(recipe.folder / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ran(recipe):
    note = recipe.folder / "ran"
    lines = note.read_text().splitlines() if note.exists() else []
    note.unlink(missing_ok=True)
    return lines


def test_a_grid_with_a_failed_trial(recipe):
    file = sweep(recipe, "base: {train.epochs: 3}\ngrid: {optim.lr: [0.1, 9, 0.3]}\n"
                         "experiments: {b: {config: conf/b.yaml}}")
    done = recipe.run("--sweep", file, status=1)
    assert "error: 1 of 4 trials failed: lr9: 20 steps in a row gave no finite loss: lower optim.lr" in done.stderr
    found = {row["trial"]: row for row in table(recipe)}
    assert [row["status"] for row in found.values()] == ["done", "failed", "done", "done"]
    assert found["lr9"]["reason"] == "20 steps in a row gave no finite loss: lower optim.lr"
    assert float(found["lr0.1"]["best_valid_error"]) == pytest.approx(4 + 10 / 3, abs=1e-3)
    assert float(found["lr0.3"]["best_valid_error"]) == pytest.approx(10 / 3, abs=1e-3)
    assert found["lr0.3"]["experiment"] == "mini_a_s_lr0.3" and found["b"]["experiment"] == "mini_b_s_b"
    assert found["lr0.3"]["test/plain/error"] == "1.5" and found["lr9"]["test/plain/error"] == ""
    assert found["lr0.1"]["best_epoch"] == "3" and found["lr0.1"]["optim.lr"] == "0.1"
    assert (recipe.folder / "sweep_s.png").read_bytes().startswith(b"\x89PNG")
    rows = {row["experiment"]: row for row in table(recipe, "params_table")}
    assert rows["mini_a_s_lr9"]["status"].startswith("failed: 20 steps") and rows["mini_b_s_b"]["status"] == "done"
    lines = done.stdout[done.stdout.index("\ntrial"):].splitlines()
    assert lines[2].startswith("lr0.3"), "the best first"
    assert (recipe.folder / "exp" / "mini_a_s" / "log" / "lr9.log").read_text().count("no finite loss") == 2
    ran(recipe)

    again = recipe.run("--sweep", file, status=1)  # what is done is kept, what failed is tried again
    assert [line for line in ran(recipe) if not line.startswith("data")] == ["train a.yaml mini_a_s_lr9"]
    assert again.stdout.count("nothing to do") == 3


def test_interrupted_and_resumed(recipe):
    file = sweep(recipe, "grid: {optim.lr: [0.1, 0.2, 0.3]}")
    process = recipe.start("--sweep", file, "--pause", "0.2")
    pid = int(recipe.wait_for("waits").read_text())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted: the same command goes on" in err
    assert gone(pid) and not list((recipe.folder / "exp").glob("*/.stages/lock"))
    assert [row["status"] for row in table(recipe)] == ["done", "interrupted", "to do"]
    assert ran(recipe)[-1] == "train a.yaml mini_a_s_lr0.2"
    shown = recipe.run("--sweep", file, "--dry_run").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["done", "interrupted", "to"] and "optim.lr=0.3" in shown[2]
    assert not ran(recipe)

    (recipe.folder / "go on").touch()
    done = recipe.run("--sweep", file, "--pause", "0.2")
    assert "stage 4: goes on from its checkpoint" in done.stdout
    assert ran(recipe) == ["train a.yaml mini_a_s_lr0.2", "score mini_a_s_lr0.2", "train a.yaml mini_a_s_lr0.3",
                           "score mini_a_s_lr0.3"]
    assert {row["status"] for row in table(recipe)} == {"done"}


def test_sigterm_is_for_a_scheduler(recipe):
    """A training that ends with 85 (saved, start me again) makes the sweep end with it."""
    text = (recipe.folder / "work.py").read_text()
    (recipe.folder / "work.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(85))\n" + text)
    process = recipe.start("--sweep", sweep(recipe, "grid: {optim.lr: [0.1, 0.2]}"), "--pause", "0.1")
    recipe.wait_for("waits")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 85
    assert [row["status"] for row in table(recipe)] == ["interrupted", "to do"]


def test_two_at_once_make_shared_data_once(recipe):
    file = sweep(recipe, "grid: {optim.lr: [0.1, 0.2, 0.3, 0.4]}")
    done = recipe.run("--sweep", file, "--nj", "2")
    lines = ran(recipe)
    assert lines.count("data") + lines.count("data train") == 1
    assert sum(line.startswith("train") for line in lines) == 4
    assert {row["status"] for row in table(recipe)} == {"done"}
    assert "[lr0.1] stage 4: Train" in done.stdout


def test_from_another_folder_with_tag_and_sets(recipe, tmp_path):
    sweep(recipe, "base: {train.epochs: 3, optim.name: adam}\ngrid: {optim.lr: [0.1]}")
    recipe.run("--sweep", "conf/sweep/s.yaml", "--tag", "t", "--set", "train.epochs=2", "--corpus=other",
               cwd=tmp_path, script=str(recipe.folder / "run.sh"))
    config = (recipe.folder / "exp" / "other_a_t_s_lr0.1" / "config.yaml").read_text()
    assert "epochs: 2" in config and "name: adam" in config


@pytest.mark.parametrize("text, says", [
    ("grid: {optim.lrr: [1]}", "unknown key 'optim.lrr'; did you mean 'lr'"),
    ("grid: {optim.lr: [1, many]}", "'optim.lr' must be float, not 'many'"),
    ("base: {trian.epochs: 3}\ngrid: {optim.lr: [1]}", "unknown key 'trian'; did you mean 'train'"),
    ("grid: {model.width: [1]}", "unknown key 'model.width'"),
    ("grid: {optim.lr: 1}", "'optim.lr' must be a list"),
    ("grd: {optim.lr: [1]}", "must be a mapping with grid, experiments or optuna"),
    ("grid: {optim.lr: [1]}\nbas: {}", "unknown key 'bas'"),
    ("grid: {optim.lr: [1, 1]}", "two trials would be called 'lr1'"),
    ("experiments: {'a b': {}}", "can't be a folder's name"),
    ("experiments: {a: 3}", "must be a mapping of keys to values"),
    ("experiments: {a: {config: conf/none.yaml}}", "no config conf/none.yaml"),
    ("config: conf/none.yaml\ngrid: {optim.lr: [1]}", "no config conf/none.yaml"),
    ("grid: [", "is not plain YAML"),
    ("grid: {optim.lr: [1]}\nabout: a\ngrid: {optim.lr: [2]}", "line 3: the key 'grid' stands twice (first in line 1)"),
    ("experiments:\n  a: {optim.lr: 1,\n      optim.lr: 2}", "line 3: the key 'optim.lr' stands twice"),
    ("experiments:\n  a: {}\n  a: {optim.lr: 2}", "line 3: the key 'a' stands twice (first in line 2)"),
    ("grid: {optim.lr: [.nan]}", "'optim.lr' must be a finite number, not nan"),
    ("config: conf/b.yaml", "must be a mapping with grid"),
    ("optuna: {space: {optim.lr: [1]}}", "optuna needs trials or minutes"),
])
def test_what_is_wrong_is_one_line_before_anything_runs(recipe, text, says):
    done = recipe.run("--sweep", sweep(recipe, text), status=2)
    (line,) = done.stderr.strip().splitlines()
    assert says in line and "s.yaml" in line
    assert not ran(recipe) and not (recipe.folder / "exp").exists()


def test_the_command_line_may_not_set_what_varies(recipe):
    file = sweep(recipe, "grid: {optim.lr: [1]}")
    assert "optim.lr is what the sweep varies" in recipe.run("--sweep", file, "--set", "optim.lr=2", status=2).stderr
    assert "there is no sweep conf/sweep/t.yaml: did you mean s.yaml?" in \
        recipe.run("--sweep", "conf/sweep/t.yaml", status=2).stderr


def test_only_one_at_a_time(recipe):
    file = sweep(recipe, "grid: {optim.lr: [0.1]}")
    process = recipe.start("--sweep", file, "--pause", "0.1")
    recipe.wait_for("waits")
    assert "this sweep is running already" in recipe.run("--sweep", file, status=1).stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_names_and_settings(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("grid: {model.class: ['m.images:MLP', 'm.images:CNN'], train.lr: [1e-3, 0.5],\n"
                    "  model.bn: [true, null], a.size: [[3, 3]], b.size: [1], config: [conf/x.yaml],\n"
                    "  data: [{flip: true}]}")
    names = [trial.name for trial in read(path).trials]
    assert names[0] == "MLP_lr1e-3_bn-true_a.size3-3_b.size1_x_flip-true" and len(set(names)) == 8
    assert setting("a", "sgd") == "a=sgd" and setting("a", "true") == 'a="true"' and setting("a", "1e-3") == "a=1e-3"
    assert setting("a", True) == "a=true" and setting("a", None) == "a=null" and setting("a", [1, 2]) == "a=[1, 2]"
    assert setting("a", "x y") == 'a="x y"'
    assert options(["--nj", "2", "--force", "--set=a=b", "--dry-run", "--tag", "x"]) == [
        ("nj", "2", ["--nj", "2"]), ("force", "", ["--force"]), ("set", "a=b", ["--set=a=b"]),
        ("dry_run", "", ["--dry-run"]), ("tag", "x", ["--tag", "x"])]


@pytest.mark.parametrize("text, says", [
    ("  | error: lower lr\nerror: stage 4: Train failed with status 1; log: x\n", "lower lr"),
    ("  | Traceback (most recent call last):\n  |   File x\n  | ValueError: bad\n"
     "error: stage 4: T failed with status 1; log: x\n", "ValueError: bad"),
    ("error: stage 4: Train failed with status 137 (killed)\n", "stage 4: Train failed with status 137 (killed)"),
    ("run.sh: unknown option --x\n", "run.sh: unknown option --x"), ("only words\n", "only words"), ("", "")])
def test_reason(text, says):
    assert reason(text) == says


@needs_optuna
def test_optuna_goes_on_as_if_nothing_had_been(recipe):
    text = ("optuna: {trials: 5, seed: 3, metric: valid_error,\n"
            "  space: {optim.lr: {uniform: [0.0, 1.0]}, optim.name: [sgd, adam]}}")
    recipe.run("--sweep", sweep(recipe, text.replace("trials: 5", "trials: 3"), "t"))
    first = [(row["optim.lr"], row["optim.name"]) for row in table(recipe, "sweep_t")]
    recipe.run("--sweep", sweep(recipe, text, "t"))  # a larger budget: it goes on
    both = [(row["optim.lr"], row["optim.name"]) for row in table(recipe, "sweep_t")]
    assert both[:3] == first and len(set(both)) == 5
    ran(recipe)
    recipe.run("--sweep", sweep(recipe, text, "u"))  # all in one go
    assert [(row["optim.lr"], row["optim.name"]) for row in table(recipe, "sweep_u")] == both
    best = json.loads((recipe.folder / "exp" / "mini_a_u" / "trials.json").read_text())["trials"]
    assert [trial["value"] for trial in best] == pytest.approx(
        [100 * (float(lr) - 0.3) ** 2 + 10 / 3 for lr, _ in both], abs=1e-6)
    other = sweep(recipe, text.replace("1.0", "0.5"), "u")
    assert "chosen from another space" in recipe.run("--sweep", other, status=1).stderr


class TestOptunasSection:
    @needs_optuna
    @pytest.mark.parametrize("section, says", [
        ({"trials": 1, "space": {}}, "needs a space"),
        ({"trials": 1, "space": {"a": {"lgo": [1, 2]}}}, "'a' must be"),
        ({"trials": 1, "space": {"a": {"log": [0, 1]}}}, "'a' must be"),
        ({"trials": 1, "space": {"a": {"int": [5, 1]}}}, "'a' must be"),
        ({"trials": 1, "space": {"a": {"uniform": [1]}}}, "'a' must be"),
        ({"trials": "x", "space": {"a": [1]}}, "trials must be a number"),
        ({"trials": 1, "space": {"a": [1]}, "direction": "up"}, "minimize or maximize"),
        ({"trail": 1, "space": {"a": [1]}}, "unknown key 'trail'")])
    def test_mistakes(self, section, says):
        with pytest.raises(UserError, match=says) as told:
            tuning.Search(section, Path("s.yaml"))
        assert told.value.status == 2

    @needs_optuna
    def test_values_are_what_the_space_says(self):
        space = {"a": {"log": ["1e-4", "1e-1"]}, "b": {"int": [1, 3]}, "c": {"choice": [[1, 2], None, "x"]},
                 "d": [True]}
        search = tuning.Search({"trials": 9, "metric": "valid_accuracy", "space": space}, Path("s.yaml"))
        assert search.direction == "maximize"
        for place in range(9):
            found = search._propose(place)
            assert 1e-4 <= found["a"] <= 1e-1 and found["a"] == float(f"{found['a']:.4g}")
            assert found["b"] in (1, 2, 3) and found["c"] in ([1, 2], None, "x") and found["d"] is True
        probes = [trial.sets for trial in search.probes()]
        assert [p["c"] for p in probes] == [[1, 2], None, "x"] and [p["b"] for p in probes] == [1, 3, 3]

    @needs_optuna
    def test_direction_and_figures_are_the_metrics(self, tmp_path):
        """Of a task's own metric it is known once a trial has left it; what the file says counts before all."""
        section = {"trials": 9, "metric": "valid_pitch", "space": {"a": {"uniform": [0.0, 1.0]}}}
        search = tuning.Search(section, Path("s.yaml"))
        assert search.direction == "minimize"
        own = [Metric("pitch", lower=False)]
        search.trials = [make(tmp_path, name, [1.0, value, 2.0], key="valid_pitch", own=own, a=value / 10)
                         for name, value in (("x", 7.0), ("y", 3.0))]
        assert search.direction == "maximize" and [search._value(trial) for trial in search.trials] == [7.0, 3.0]
        assert 0 <= search._propose(2)["a"] <= 1
        told = tuning.Search({**section, "direction": "minimize"}, Path("s.yaml"))
        assert told.direction == "minimize" and told._value(search.trials[0]) == 1.0
        for name, direction in (("valid_cer", "minimize"), ("valid_si_sdr", "maximize"), ("valid_auc", "maximize")):
            assert tuning.Search({**section, "metric": name}, Path("s.yaml")).direction == direction

    def test_its_absence_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(UserError, match="pip install 'optuna=="):
            tuning.Search({"trials": 1, "space": {"a": [1]}}, Path("s.yaml"))

    def test_the_pin_in_the_message_is_setup_pys(self):
        pin = next(word for word in (ROOT / "setup.py").read_text().split('"') if word.startswith("optuna=="))
        assert f"pip install '{pin}'" in Path(tuning.__file__).read_text()


def make(folder, name, values, key="valid_error", own=(), **sets):
    exp = folder / "exp" / name
    exp.mkdir(parents=True)
    (exp / "metrics.jsonl").write_text("".join(
        json.dumps({"kind": "epoch", "step": e, "epoch": e, key: v}) + "\n" for e, v in enumerate(values, 1)))
    if own:
        metric.write(exp, own)
    return Trial(name, sets, exp=exp, status="done")


@pytest.mark.parametrize("key, own, unit, higher", [
    ("valid_secs", (), "", True), ("valid_recall", (), "%", True), ("valid_auc", (), "", True),
    ("valid_si_sdr", (), "dB", True), ("valid_eer", (), "%", False),
    ("valid_pitch", (Metric("pitch", "Hz", lower=False),), "Hz", True), ("valid_what", (), "", None)])
def test_directions(tmp_path, monkeypatch, key, own, unit, higher):
    """Table, picture and best epoch of three trials, one of them below zero."""
    from matplotlib import pyplot

    trials = [make(tmp_path, name, [low, high, last], key, own, lr=i)
              for i, (name, low, high, last) in enumerate((("a", -4, -2, -3), ("b", 1, 6, 2), ("c", 0, 3, 1)))]
    best = {True: [-2, 6, 3], False: [-4, 1, 0], None: [None] * 3}[higher]
    assert [measure(trial).best for trial in trials] == best
    assert measure(trials[0]).epoch == {True: 2, False: 1, None: None}[higher]
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    lines = write(tmp_path, "s", "", trials).splitlines()
    monkeypatch.undo()
    ranked = {True: "bca", False: "acb", None: "abc"}[higher]
    assert "".join(line.split()[0] for line in lines[1:4]) == ranked
    assert [row[f"best_{key}"] for row in rows(trials)[1]] == ["" if value is None else f"{value}" for value in best]
    left, right = drawn[0].axes
    shown = [-3, 2, 1] if higher is None else best
    assert [bar.get_width() for bar in right.patches] == shown
    said = {True: "of the best epoch (higher is better)", False: "of the best epoch (lower is better)",
            None: "of the last epoch"}[higher]
    assert right.get_title() == f"{key} {said}" and right.get_xlabel() == unit
    assert right.get_xlim()[0] < min(shown) and right.get_xlim()[1] > max(shown)
    assert [text.get_text() for text in right.texts if text.get_fontweight() == "bold"] == (
        [] if higher is None else [str(best["abc".index(ranked[0])])])
    axis = [key, unit, {True: "higher is better", False: "lower is better", None: ""}[higher]]
    assert left.get_ylabel() == ", ".join(filter(None, axis))
    pyplot.close(drawn[0])


def test_picture_of_seeds(tmp_path, monkeypatch):
    """Two settings with three seeds each: a curve a trial, one of their mean, a bar at the mean of the best values."""
    from matplotlib import pyplot

    trials = [make(tmp_path, f"{name}_seed{seed}", [9, low + seed, low + 2 + seed],
                   **{"optim.name": name, "train.seed": seed})
              for name, low in (("sgd", 3), ("adam", 1)) for seed in (1, 2, 3)]
    trials.append(Trial("broken", {}, exp=tmp_path / "none", status="failed", reason="out of memory"))
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    assert draw(tmp_path, "optimizer", "Which one?", trials) == tmp_path / "sweep_optimizer.png"
    (figure,) = drawn
    monkeypatch.undo()
    left, right = figure.axes
    assert [bar.get_width() for bar in right.patches] == [5.0, 3.0]
    assert [label.get_text() for label in right.get_yticklabels()] == ["sgd", "adam", "broken"]
    assert {t.get_text() for t in right.texts} == {"5", "3", "failed: out of memory"}
    means = {line.get_label(): list(line.get_ydata()) for line in left.lines if not line.get_label().startswith("_")}
    assert means == {"adam": [9, 3, 5], "sgd": [9, 5, 7]}
    assert measure(trials[0]).best == 4 and measure(trials[0]).epoch == 2
    pyplot.close(figure)


def test_nothing_to_draw(tmp_path):
    assert draw(tmp_path, "s", "", [Trial("a", {}, exp=tmp_path / "a")]) is None


def test_main_module_runs():
    done = subprocess.run([sys.executable, "-m", "speechlab.sweep", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--caller" in done.stdout
