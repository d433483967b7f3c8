"""Configs: command line over YAML over defaults; a mistake is one line that names the key and the nearest valid one."""

import dataclasses
import json
import subprocess
import sys
import typing
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


@pytest.mark.parametrize("text", ["a: {b: 1, b: 2}", "a: 1\n'a': 2", "- x: 1\n- {y: {z: 1, z: 1}}", "yes: 1\ntrue: 2",
                                  "a: {<<: {b: 1}, <<: {c: 2}}", "a: &a {b: 1}\nc: {<<: *a, d: 1, d: 2}"])
def test_twins_are_seen_at_any_depth(text):
    with pytest.raises(yaml.YAMLError, match="stands twice"):
        config.parse_yaml(text)


def test_merge_keys_are_no_twins():
    """A mapping's own keys go over those that it merges, whichever order the mappings are read in."""
    text = "base: &base {x: 0, y: 1}\nmore: &more {<<: *base, x: 1}\nlast: {<<: [*more, *base], z: 2}\nsame: *more\n"
    assert config.parse_yaml(text) == {"base": {"x": 0, "y": 1}, "more": {"x": 1, "y": 1},
                                       "last": {"x": 1, "y": 1, "z": 2}, "same": {"x": 1, "y": 1}}


def test_twins_on_the_command_line(write):
    with pytest.raises(UserError, match="--set data.augment=.*the key 'freq_masks' stands twice") as error:
        tasks.load_config(write(), ["data.augment={freq_masks: 1, freq_masks: 2}"])
    assert error.value.status == 2


ASR, IMAGE, LM = "asr", "image", "lm"
MODELS = {ASR: BASE["model"], IMAGE: {"class": "speechlab.models.images:MLP"},
          LM: {"class": "speechlab.models.lm:TransformerLM"}}


@pytest.mark.parametrize(("task", "key", "value", "words"), [
    (ASR, "train.seed", -1, "at least 0"), (ASR, "train.seed", 2**64, "below"), (ASR, "train.ema", 2, "below 1"),
    (ASR, "train.ema", 1.0, "below 1"), (ASR, "train.ema", -0.1, "at least 0"),
    (ASR, "train.threads", -3, "at least 0"), (ASR, "train.threads", 10**6, "at most 1024"),
    (ASR, "train.patience", -1, "at least 0"), (ASR, "train.save_minutes", -1, "at least 0"),
    (ASR, "train.save_minutes", float("inf"), "a finite number"), (ASR, "train.histograms", -1, "at least 0"),
    (ASR, "train.keep", 0, "at least 1"), (ASR, "optim.lr", float("nan"), "a finite number, not nan"),
    (ASR, "optim.lr", float("inf"), "a finite number"), (ASR, "optim.lr", 0, "above 0"),
    (ASR, "optim.weight_decay", -0.1, "at least 0"), (ASR, "optim.clip", -1, "at least 0"),
    (ASR, "optim.betas", [0.9, 1.0], "below 1"), (ASR, "optim.betas", [float("nan"), 0.9], "a finite number"),
    (ASR, "optim.momentum", 1, "below 1"), (ASR, "optim.warmup", -5, "at least 0"),
    (ASR, "optim.final", 2, "at most 1"), (ASR, "optim.bias_scale", 0, "above 0"),
    (ASR, "decoder.dropout", -0.1, "at least 0"), (ASR, "decoder.dropout", 1, "below 1"),
    (ASR, "decoder.layers", -1, "at least 0"), (ASR, "decoder.heads", 0, "at least 1"),
    (ASR, "decoder.hidden", 0, "at least 1"), (ASR, "loss.ctc", 1.5, "at most 1"),
    (ASR, "loss.layer", 0, "at least 1"), (ASR, "loss.label_smoothing", -1, "at least 0"),
    (ASR, "data.num_workers", -1, "at least 0"), (ASR, "data.max_duration", float("inf"), "a finite number"),
    (ASR, "data.max_seconds", -1, "above 0"), (ASR, "data.min_seconds", -1, "at least 0"),
    (ASR, "data.min_seconds", 31, "less than min_seconds"), (ASR, "data.augment.vtlp", 1, "below 1"),
    (ASR, "data.augment.tempo", 1.5, "below 1"), (ASR, "data.augment.tempo", -0.1, "at least 0"),
    (ASR, "data.augment.freq_masks", -1, "at least 0"), (ASR, "data.augment.time_width", -1, "at least 0"),
    (ASR, "data.augment.time_share", 1.5, "at most 1"), (ASR, "decode.beam", 0, "at least 1"),
    (ASR, "decode.max_duration", 0, "above 0"), (ASR, "decode.ctc_weight", 2, "at most 1"),
    (ASR, "decode.lm_weight", -1, "at least 0"), (ASR, "decode.length_bonus", float("nan"), "a finite number"),
    (ASR, "tokens.min_count", 0, "at least 1"), (ASR, "tokens.vocab_size", -5, "at least 0"),
    (ASR, "lm.order", 0, "at least 1"), (ASR, "lm.order", 11, "at most 10"),
    (ASR, "lm.own_weight", float("nan"), "a finite number"), (ASR, "features.sample_rate", 0, "at least 1000"),
    (ASR, "features.sample_rate", 10**9, "at most"), (ASR, "features.num_mel_bins", -1, "at least 1"),
    (ASR, "features.num_mel_bins", 10**6, "at most 4096"),
    (ASR, "features.frame_length_ms", float("nan"), "a finite number"),
    (ASR, "features.frame_length_ms", -25, "above 0"),
    (ASR, "features.frame_length_ms", float("inf"), "a finite number"), (ASR, "features.frame_shift_ms", 0, "above 0"),
    (ASR, "features.low_freq", -20, "at least 0"), (ASR, "features.high_freq", float("nan"), "a finite number"),
    (ASR, "features.high_freq", 9000, "0 to 8000 Hz"), (ASR, "features.preemphasis", 2, "at most 1"),
    (ASR, "features.log_floor", 0, "above 0"), (ASR, "features.dither", float("nan"), "a finite number"),
    (ASR, "model.dropout", -1, "at least 0"), (ASR, "model.dropout", 1, "below 1"),
    (ASR, "model.layers", -2, "at least 0"), (ASR, "model.dropout", float("nan"), "a finite number"),
    (IMAGE, "data.batch_size", 1, "at least 2"), (IMAGE, "data.whiten", 0, "at least 1"),
    (IMAGE, "data.calibrate", -1, "at least 0"), (IMAGE, "data.augment.translate", -1, "at least 0"),
    (IMAGE, "data.augment.degrees", 181, "at most 180"),
    (IMAGE, "data.augment.elastic", float("inf"), "a finite number"), (IMAGE, "data.augment.scale", 1, "at most 0.9"),
    (IMAGE, "loss.label_smoothing", 1, "below 1"), (IMAGE, "decode.batch_size", 0, "at least 1"),
    (IMAGE, "model.dropout", 1.5, "below 1"), (LM, "data.tokens", 0, "at least 1"),
    (LM, "data.max_length", -1, "at least 1"), (LM, "data.unknown", 1, "below 1"),
])
def test_a_number_out_of_its_range_is_one_line_with_its_key(tmp_path, task, key, value, words):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"task": task, "model": MODELS[task]}), encoding="utf-8")
    tasks.load_config(path)  # whole without it
    with pytest.raises(UserError) as error:
        tasks.load_config(path, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])
    assert error.value.status == 2 and "\n" not in str(error.value)
    assert str(path) in str(error.value) and key.split(".")[0] + "." in str(error.value)
    assert key.split(".")[-1] in str(error.value) and words in str(error.value)


def test_every_number_of_a_section_has_a_range():
    """A new key of a section that takes numbers cannot be forgotten: a number far below zero is refused."""
    free = {"decode.length_bonus", "features.high_freq"}  # may be negative
    for task in (ASR, IMAGE, LM):
        kind = tasks.find(task).Config
        for section, hint in typing.get_type_hints(kind).items():
            for name, its in (typing.get_type_hints(hint).items() if dataclasses.is_dataclass(hint) else ()):
                numbers = [k for k in (its, *typing.get_args(its)) if k in (int, float)]
                if not numbers or f"{section}.{name}" in free or section == "model":
                    continue
                raw = {"task": task, "model": MODELS[task], section: {name: [-5.0, -5.0] if name == "betas" else -5}}
                with pytest.raises(UserError, match=f"{section}.{name} = -5 must be"):
                    tasks.from_dict(raw)


def test_a_field_may_take_infinity_if_it_says_so():
    @dataclasses.dataclass(frozen=True)
    class Section:
        most: float = dataclasses.field(default=1.0, metadata={"infinite": True})
        least: float = 0.0

    assert config.convert(Section, {"most": float("inf")}, "x", tasks.locate).most == float("inf")
    with pytest.raises(UserError, match="'least' must be a finite number, not inf"):
        config.convert(Section, {"least": float("inf")}, "x", tasks.locate)


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
