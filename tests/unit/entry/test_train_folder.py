"""Where speechlab.train writes: a folder of the experiment's own."""

import sys

import pytest

from speechlab import train


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    folder = tmp_path / "egs" / "little"
    for name in ("conf", "data/mini", "exp", "local"):
        (folder / name).mkdir(parents=True)
    (folder / "conf" / "a.yaml").write_text("task: image\nmodel: {class: 'speechlab.models.images:MLP'}\n")
    (folder / "run.sh").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a recipe's local/ would stay the one that later tests find
    return folder


@pytest.mark.parametrize(("given", "says"), [
    ("/", "is /, and"), (".", "lies in it"), ("..", "lies in it"), ("conf", "conf/ is the recipe's own"),
    ("conf/a", "conf/ is the recipe's own"), ("local", "local/ is the recipe's own"), ("data", "lies in it"),
    ("data/mini", "lies in it"), ("data/other", "data/ is the recipe's own"),
    ("figures", "figures/ is the recipe's own"),
    ("exp", "the folder of all experiments"), ("run.sh", "is a file"),
])
def test_it_is_not_the_recipe_nor_a_part_of_it(recipe, capsys, given, says):
    before = sorted(recipe.parent.rglob("*"))
    assert train.main(["conf/a.yaml", "--data", "data/mini", "--exp", given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --exp {given} ") or said.startswith(f"error: --exp {given}: ")
    assert says in said and said.count("\n") == 1 and "(exp/NAME)" in said
    assert sorted(recipe.parent.rglob("*")) == before


def test_from_another_folder_the_configs_recipe_counts(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(recipe / "conf" / "a.yaml"), "--data", str(recipe / "data" / "mini"), "--exp", "egs/little/conf"]
    assert train.main(words) == 2 and "conf/ is the recipe's own" in capsys.readouterr().err


def test_what_is_an_experiments_own(recipe, tmp_path):
    for good in (recipe / "exp" / "a", tmp_path / "elsewhere", recipe.parent / "other", recipe / "conf_a"):
        train.check_folder(good, recipe / "conf" / "a.yaml", recipe / "data" / "mini")
