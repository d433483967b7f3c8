"""Whose ``local/`` is imported: that of the experiment's recipe, or of the config's, wherever one stands."""

import json
import sys

import pytest

from speechlab import tasks
from speechlab.errors import UserError

TASK = ("from speechlab.tasks.interface import Task\nclass T(Task):\n    Config = object\n    about = '{}'\n"
        "    trainable = load = lambda self, *given: None\nTASK = T()\n")


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Two recipes with a module local/own.py each, and an experiment of each; ``local`` is forgotten afterwards."""
    for name in "AB":
        (tmp_path / name / "local").mkdir(parents=True)
        (tmp_path / name / "local" / "own.py").write_text(TASK.format(name))
        exp = tmp_path / name / "exp" / "e"
        exp.mkdir(parents=True)
        (exp / "config.yaml").write_text("task: local.own\n")
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name == "local" or name.startswith("local.")]:
        del sys.modules[name]
    tasks.at("/")


def test_the_experiments_recipe_and_not_the_one_where_one_stands(recipes, monkeypatch):
    monkeypatch.chdir(recipes / "A")
    monkeypatch.syspath_prepend("")  # as in a notebook
    assert tasks.of("../B/exp/e").about == "B"
    assert tasks.of("exp/e").about == "A"
    assert tasks.of("../B/exp/e").about == "B"


def test_an_experiment_elsewhere_is_of_the_recipe_that_made_it(recipes):
    far = recipes / "far"
    (recipes / "A" / "exp" / "e").rename(far)
    (far / "env.json").write_text(json.dumps({"recipe": str(recipes / "A")}))
    assert tasks.of("B/exp/e").about == "B"
    assert tasks.of(far).about == "A"
    (far / "env.json").unlink()  # nobody knows it: better no answer than another recipe's
    with pytest.raises(UserError, match="there is no local/own.py"):
        tasks.of(far)


def test_edited_modules_are_read_anew(recipes):
    assert tasks.of("A/exp/e").about == "A"
    (recipes / "A" / "local" / "own.py").write_text(TASK.format("edited"))
    tasks.at("A", fresh=True)
    assert tasks.find("local.own").about == "edited"


@pytest.mark.parametrize("name", ["local.", "local...etc", "local.a-b"])
def test_what_is_no_modules_name(name):
    with pytest.raises(UserError, match="no task"):
        tasks.find(name)


def test_a_class_is_no_task(recipes):
    (recipes / "A" / "local" / "own.py").write_text(TASK.format("A").replace("T()", "T"))
    with pytest.raises(UserError, match=r"TASK = T\(\)"):
        tasks.of("A/exp/e")


@pytest.mark.parametrize(("given", "says"), [
    ({}, "gives nothing"), ({"jugde": 1.0}, "gives jugde"), ({"MAE": "high"}, "must give numbers"),
    ({"MAE": [1.0, 2.0]}, "must give numbers"),
])
def test_a_judge_that_gives_something_else_is_one_line(given, says):
    from speechlab.scoring.metric import METRICS
    from speechlab.tasks.interface import Task

    class Odd(Task):
        name, metrics = "local.odd", (METRICS["mae"],)

        def judge(self, record):
            return given

    with pytest.raises(UserError, match=says):
        Odd().figures({"ref": 1, "hyp": 2})


@pytest.mark.parametrize("base, lacks", [("interface:Task", "Config, trainable, load"),
                                         ("utterance:UtteranceTask", "target")])
def test_what_must_be_written_is_said_at_once(tmp_path, monkeypatch, base, lacks):
    module, name = base.split(":")
    (tmp_path / "local").mkdir()
    code = f"from speechlab.tasks.{module} import {name}\nclass Mine({name}):\n    pass\nTASK = Mine()\n"
    (tmp_path / "local" / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tasks.at(tmp_path)
    with pytest.raises(UserError, match=f"has a TASK without {lacks}:"):
        tasks.find("local.mine")
