"""The house from Python, as a notebook uses it."""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from image_helper import make_pack, pictures

import speechlab
from speechlab.errors import UserError
from speechlab.features.contract import FeatureContract
from speechlab.features.fbank import extract

ROOT = Path(__file__).parents[3]
YAML = """
task: image
model: {class: 'speechlab.models.images:MLP', hidden: [16]}
data: {batch_size: 32}
optim: {lr: 1e-2, warmup: 5}
train: {epochs: 2, tensorboard: false, accum: 1, amp: 'off'}
"""


def test_importing_it_imports_nothing_else():
    """So that `import speechlab` costs a notebook nothing; tests/benchmarks/bench_import.py measures it."""
    code = ("import sys; before = set(sys.modules); import speechlab; "
            "print(*sorted(n.partition('.')[0] for n in set(sys.modules) - before))")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})
    heavy = {"torch", "numpy", "lhotse", "yaml", "soundfile", "matplotlib", "argparse", "json"}
    assert "speechlab" in done.stdout and not heavy & set(done.stdout.split()), done.stdout
    assert {"load", "train", "features"} <= set(dir(speechlab))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        speechlab.lode  # noqa: B018


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """A small classifier, trained from Python."""
    root = tmp_path_factory.mktemp("notebook")
    make_pack(root / "data")
    (root / "mlp.yaml").write_text(YAML)
    exp = speechlab.train(root / "mlp.yaml", data=root / "data", exp=root / "exp" / "mlp",
                          sets={"train.epochs": 3, "optim.name": "adamw"})
    return root, exp


def test_train_load_and_answer(lesson):
    root, exp = lesson
    assert exp == root / "exp" / "mlp" and json.loads((exp / "env.json").read_text())["epochs"] == 3
    model = speechlab.load(exp)
    assert list(model.methods()) == ["plain"] and model.exp == exp and model.config.train.epochs == 3
    images, labels = pictures(32, 1, seed=9)
    answers = [model(image) for image in images]
    assert sum(a["hyp"] == model.classes[y] for a, y in zip(answers, labels)) > 24
    assert sum(answers[0]["probs"].values()) == pytest.approx(1.0, abs=1e-4)
    assert answers[0]["prob"] == max(answers[0]["probs"].values())
    with pytest.raises(UserError, match="pixels must be uint8"):
        model(images[0].astype(float))
    with pytest.raises(UserError, match="no method 'tta'"):
        model(images[0], method="tta")


def test_again_there_is_nothing_to_do_and_more_epochs_go_on(lesson):
    root, exp = lesson
    before = (exp / "metrics.jsonl").read_text()
    call = {"data": root / "data", "exp": exp}
    speechlab.train(root / "mlp.yaml", **call, sets=["train.epochs=3", "optim.name=adamw"])
    assert (exp / "metrics.jsonl").read_text() == before
    speechlab.train(root / "mlp.yaml", **call, sets={"train.epochs": 4, "optim.name": "adamw"})
    assert json.loads((exp / "env.json").read_text())["epochs"] == 4


def test_mistakes_are_errors_that_say_what_to_do(lesson, tmp_path):
    root, _ = lesson
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        speechlab.train(root / "mlp.yaml", data=root / "data", exp=tmp_path, sets={"train.epoch": 3})
    with pytest.raises(UserError, match="no folder"):
        speechlab.train(root / "mlp.yaml", data=root / "none", exp=tmp_path)
    with pytest.raises(UserError, match="no experiment or checkpoint"):
        speechlab.load(tmp_path / "none")


def test_features_of_a_file_and_of_samples(tmp_path):
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=16000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    plain = FeatureContract(normalise="none")
    x = speechlab.features(tmp_path / "a.wav", contract=plain)
    assert torch.equal(x, extract(samples, 16000, plain)) and x.shape == (100, 80)
    assert torch.equal(speechlab.features(str(tmp_path / "a.wav"), contract=plain), x)
    assert torch.equal(speechlab.features(samples, rate=16000, contract=plain), x)
    assert abs(float(speechlab.features(samples, 16000).mean())) < 1e-4  # the default is normalised
    integers = (samples * 32768).round().astype(np.int16)
    assert torch.allclose(speechlab.features(integers, 16000, plain), x, atol=0.05)
    for wrong, words in (((samples,), "need their sample rate"), ((tmp_path / "none.wav",), "can't be read"),
                         ((tmp_path / "a.wav", 8000), "says its own")):
        with pytest.raises(UserError, match=words):
            speechlab.features(*wrong)
    assert isinstance(sys.modules["speechlab.features"], types.ModuleType)  # it stays a module as well
