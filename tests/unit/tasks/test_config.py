"""Configs: command line over YAML over defaults; a mistake is one line that names the key and the nearest valid one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechlab import config, tasks
from speechlab.errors import UserError

BASE = {"task": "asr", "model": {"class": "speechlab.models.asr:Conformer", "d": 64, "heads": 2}}


@pytest.fixture
def write(tmp_path):
    def _write(**sections) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**BASE, **sections}), encoding="utf-8")
        return path
    return _write


def test_command_line_over_yaml_over_defaults(write):
    found = tasks.load_config(write(train={"epochs": 3}, optim={"lr": "1e-3"}), ["train.epochs=7", "data.augment=null"])
    assert found.train.epochs == 7 and found.optim.lr == 1e-3
    assert found.data.augment is None
    assert tasks.load_config(write(), ["train.amp=off"]).train.amp == "off"
    assert found.train.seed == type(found.train)().seed
    assert found.model.args == {"d": 64, "heads": 2}


@pytest.mark.parametrize(("sections", "sets", "words"), [
    ({"trian": {}}, [], ["unknown key 'trian'", "'train'"]),
    ({"train": {"epoch": 3}}, [], ["unknown key 'train.epoch'", "'epochs'"]),
    ({"train": {"epochs": "many"}}, [], ["'train.epochs' must be int", "'many'"]),
    ({"train": {"epochs": True}}, [], ["'train.epochs' must be int"]),
    ({"train": {"epochs": 0}}, [], ["train.epochs = 0 must be at least 1"]),
    ({"train": 3}, [], ["'train' must be a section"]),
    ({"optim": {"name": "adamm"}}, [], ["'optim.name' must be one of", "did you mean 'adam"]),
    ({"optim": {"betas": [0.9]}}, [], ["optim.betas must be two numbers"]),
    ({}, ["epochs"], ["--set wants key=value"]),
    ({}, ["train.epohcs=3"], ["unknown key 'train.epohcs'", "'epochs'"]),
    ({}, ["model.layrs=3"], ["unknown key 'model.layrs'", "'layers'"]),
    ({}, ["model.class=os:system"], ["only modules of", "local"]),
    ({}, ["model.class=speechlab.models.asr:Conformr"], ["has no 'Conformr'", "'Conformer'"]),
    ({}, ["model.class=speechlab.models.nothing:X"], ["no module 'speechlab.models.nothing'"]),
    ({}, ["model.class=Conformer"], ["not of the form"]),
    ({"task": "asrr"}, [], ["no task 'asrr'", "did you mean 'asr'"]),
    ({"task": "layers"}, [], ["no task 'layers'", "asr, image, lm"]),
    ({"task": "interface"}, [], ["no task 'interface'"]),
    ({"task": "local.nothing"}, [], ["there is no local/nothing.py"]),
    ({"tokens": {"auxiliary": "phone"}, "model": {"class": "speechlab.models.asr:Transformer"}}, [],
     ["tokens.auxiliary judges a block of the encoder", "speechlab.models.asr:Conformer"]),
])
def test_a_mistake_is_one_line(write, sections, sets, words):
    with pytest.raises(UserError) as error:
        tasks.load_config(write(**sections), sets)
    assert error.value.status == 2
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    for name, word in (("bad.yaml", "not plain YAML"), ("list.yaml", "task"), ("none.yaml", "no config")):
        with pytest.raises(UserError, match=word):
            tasks.load_config(tmp_path / name)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("task: asr\noptim:\n  lr: 1e-3\n  name: adamw\n  lr: 1e-4\nmodel: {class: 'a:B'}\n")
    with pytest.raises(UserError, match="line 5: the key 'lr' stands twice \\(first in line 3\\)"):
        tasks.load_config(path)


def test_yaml_cannot_construct_objects(tmp_path):
    (tmp_path / "evil.yaml").write_text("task: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(UserError, match="not plain YAML"):
        tasks.load_config(tmp_path / "evil.yaml")


def test_resolved_config_reads_back_to_itself(write):
    found = tasks.load_config(write(optim={"betas": [0.9, 0.95]}))
    again = tasks.from_dict(yaml.safe_load(config.dump(found)))
    assert again == found


def test_a_network_of_the_recipes_own(tmp_path, monkeypatch):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "model.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, input_size, width=3):\n"
        "        super().__init__()\n        self.output_size = width\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("task: asr\nmodel: {class: 'local.model:Net', width: 5}\n", encoding="utf-8")
    found = tasks.load_config("c.yaml")
    assert found.model.build(input_size=80).output_size == 5
    for name in [n for n in sys.modules if n.split(".")[0] == "local"]:
        del sys.modules[name]


def test_json_names_change_with_what_they_stand_for(write):
    def names(*sets):
        command = [sys.executable, "-m", "speechlab.tasks", str(write()), "--json"]
        for text in sets:
            command += ["--set", text]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["names"]

    base = names()
    assert base["features"].startswith("fbank80-") and base["tokens"].startswith("char-")
    other = names("features.num_mel_bins=40", "train.epochs=9")
    assert other["features"] != base["features"] and other["tokens"] == base["tokens"]
