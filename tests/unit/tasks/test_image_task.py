"""The task image: losses by hand, what it says of its layers, training with resume, prediction from several views."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from image_helper import CLASSES, make_pack, pictures
from PIL import Image
from torch import nn

from speechlab import decode, infer
from speechlab.config import dump, override
from speechlab.data.augment import seed_everything
from speechlab.data.images import write_pack
from speechlab.errors import UserError
from speechlab.tasks import from_dict
from speechlab.tasks.image import layers
from speechlab.tasks.image.classifier import Classifier
from speechlab.tasks.image.config import LossConfig
from speechlab.tasks.image.train import ImageTraining, judge
from speechlab.training import checkpoint
from speechlab.training.distributed import World
from speechlab.training.loop import REQUEUE, Trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def config(**sections):
    """A small net with all that has a state: BatchNorm, dropout, augmentation, a running average."""
    raw = {"task": "image",
           "model": {"class": "speechlab.models.images:CNN", "widths": [4, 8], "hidden": 16, "batch_norm": True,
                     "dropout": 0.2},
           "data": {"batch_size": 32, "augment": {"translate": 1, "padding": "edge"}},
           "optim": {"name": "sgd", "lr": 0.1, "warmup": 4, "clip": 0.0, "bias_scale": 2},
           "train": {"epochs": 3, "log_steps": 1, "amp": "off", "ema": 0.9, "tensorboard": False, "histograms": 0}}
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return from_dict(raw)


def train(pack_folder, exp, stop_at=0, **sections):
    """Train in this process; with ``stop_at``, a signal comes at that step."""
    conf = config(**sections)
    exp.mkdir(parents=True, exist_ok=True)
    seed_everything(1)
    task = ImageTraining(conf, pack_folder, CPU)
    loader = task.loader(accum=conf.train.accum)
    trainer = Trainer(task, loader, conf.train, conf.optim, exp, World(0, 1, CPU), {"env": {}})
    original, calls = task.loss, []

    def loss(batch, which):
        calls.append(1)
        trainer.signal = 15 if len(calls) == stop_at else trainer.signal
        return original(batch, which)

    task.loss = loss
    return task, trainer.run()


def records(exp, kind):
    return [r for line in (exp / "metrics.jsonl").read_text().splitlines() if (r := json.loads(line))["kind"] == kind]


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "数据 pack"
    make_pack(folder)
    return folder


@pytest.fixture(scope="module")
def trained(pack, tmp_path_factory):
    exp = tmp_path_factory.mktemp("exp") / "whole"
    task, status = train(pack, exp, decode={"tta": "translate"})
    assert status == 0
    return task, exp


def test_losses_by_hand():
    logits, y = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    found = judge(logits, y, LossConfig("cross_entropy"))
    assert float(found.total) == pytest.approx(-np.log(p[0, 0]) - np.log(p[1, 2]), rel=1e-5) and found.count == 2
    target = np.eye(3)[[0, 2]]
    assert float(judge(logits, y, LossConfig("mse")).total) == pytest.approx(((p - target) ** 2).sum(), rel=1e-5)
    target = 0.7 * target + 0.1
    assert float(judge(logits, y, LossConfig("mse", 0.3)).total) == pytest.approx(((p - target) ** 2).sum(), rel=1e-5)
    assert float(judge(logits, y, LossConfig(label_smoothing=0.3)).total) == pytest.approx(
        -(target * np.log(p)).sum(), rel=1e-5)
    assert judge(logits.bfloat16(), y, LossConfig()).total.dtype == torch.float32


def test_it_learns_and_leaves_what_it_should(trained):
    _, exp = trained
    epochs, steps = records(exp, "epoch"), records(exp, "step")
    assert epochs[-1]["valid_error"] < 10 and epochs[-1]["valid_accuracy"] == 100 - epochs[-1]["valid_error"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    names = {"conv1", "conv2", "conv3", "conv4", "hidden"}
    for record in (epochs[0], steps[0], steps[-1]):
        assert {k.removeprefix("grad_norm/") for k in record if k.startswith("grad_norm/")} == names | {"output"}
    assert {k.removeprefix("dead/") for k in epochs[0] if k.startswith("dead/")} == names
    squares = sum(v**2 for k, v in steps[0].items() if k.startswith("grad_norm/"))
    assert 0 < squares <= steps[0]["grad_norm"] ** 2 * (1 + 1e-4), "the layers' norms are parts of the whole"
    pages = sorted(path.name for path in (exp / "layers").glob("*.png"))
    assert "Row: an image" in (exp / "layers" / "caption.txt").read_text()
    assert pages == ["epoch-01.png", "epoch-02.png", "epoch-03.png"]
    assert (exp / "layers" / pages[0]).read_bytes()[:4] == b"\x89PNG"
    state = checkpoint.load(exp / "checkpoints" / "final.pt")
    assert state["classes"] == list(CLASSES) and state["size"] == [16, 16] and len(state["mean"]) == 1


def test_interrupted_and_resumed_is_bit_identical(trained, pack, tmp_path):
    _, exp = trained
    assert train(pack, tmp_path / "again", stop_at=11, decode={"tta": "translate"})[1] == REQUEUE
    assert train(pack, tmp_path / "again", decode={"tta": "translate"})[1] == 0
    whole, again = (checkpoint.load(e / "checkpoints" / "final.pt")["model"] for e in (exp, tmp_path / "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [r["loss"] for r in records(exp, "step")] == [r["loss"] for r in records(tmp_path / "again", "step")]


def test_two_processes_are_one(pack, tmp_path):
    """BatchNorm included: each place of a step has its own statistics, and the judged ones are measured anew."""
    sections = {"train": {"accum": 2, "epochs": 2}}
    assert train(pack, tmp_path / "one", **sections)[1] == 0
    (tmp_path / "net.yaml").write_text(dump(config(**sections)))
    done = subprocess.run(
        [sys.executable, "-m", "speechlab.train", str(tmp_path / "net.yaml"), "--data", str(pack), "--exp",
         str(tmp_path / "two")], text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr  # starts a second process where there is a second core
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "final.pt")["model"] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3, msg=name)


def test_without_a_dev_split_the_last_epoch_counts(tmp_path):
    make_pack(tmp_path / "pack", dev=0)
    _, status = train(tmp_path / "pack", tmp_path / "exp", train={"epochs": 2})
    assert status == 0 and checkpoint.load(tmp_path / "exp/checkpoints/final.pt")["epochs"] == [2]
    assert not any(key.startswith("valid_") for r in records(tmp_path / "exp", "epoch") for key in r)


def test_calibration_measures_batchnorm_for_these_weights(pack):
    conf = config(data={"batch_size": 64, "calibrate": 256, "augment": {}})
    seed_everything(0)
    task = ImageTraining(conf, pack, CPU)
    task.model.eval()
    with torch.no_grad():
        task._calibrate(task.model)
    assert not task.model.training
    first = task.model.layers["conv1"]
    images, _ = task.pack.split("train")
    x = (torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255 - task.pack.mean[0]) / task.pack.std[0]
    out = first.op(x.float())
    torch.testing.assert_close(first.norm.running_mean, out.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)


def test_the_whitening_layer_is_measured_on_the_pack(pack):
    seed_everything(0)
    task = ImageTraining(from_dict({"task": "image", "data": {"whiten": 100},
                                "model": {"class": "speechlab.models.images:FastNet", "widths": [4, 4]}}), pack, CPU)
    before = task.model.whiten.weight.clone()
    images, _ = task.pack.split("train")
    task.model.measure(task.floats(torch.from_numpy(images[:100].copy())))
    assert torch.equal(before, task.model.whiten.weight)


def test_dead_units_and_answers():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid())
    model[0].bias.data[:] = torch.tensor([-1e3, 0.5, -1e3, 0.5])
    model[2].bias.data[:] = torch.tensor([0.0, 1e3])
    x = torch.randn(50, 3)
    with layers.answers(model) as kept:
        model(x)
    assert layers.dead_units(kept) == {"1": 0.5, "3": 0.5}
    assert not model[1]._forward_hooks, "the hooks are gone"


def test_gradient_norms_by_hand(pack):
    task = ImageTraining(config(), pack, CPU)
    batch = next(iter(task.valid.batches()))
    task.model(task.floats(batch["x"])).square().mean().backward()
    found = task.watch()
    weight = task.model.head["output"].op.weight
    assert found["grad_norm/output"] == pytest.approx(float(weight.grad.pow(2).sum().sqrt()), rel=1e-5)
    assert layers.gradient_norms(nn.Linear(2, 2)) == {}


def test_pictures_of_a_convolutional_net_and_of_an_mlp(pack):
    for model, rows in (("CNN", 4), ("MLP", 5)):  # an MLP's first row is its weights
        task = ImageTraining(from_dict({"task": "image", "model": {"class": f"speechlab.models.images:{model}"}}), pack,
                         CPU)
        x = task.floats(next(iter(task.valid.batches()))["x"][:4])
        with layers.answers(task.model) as kept, torch.no_grad():
            task.model(x)
            page = layers.picture(x, task.model, kept)
        assert page.dtype == np.uint8 and page.shape[0] == rows * (32 + layers.GAP) - layers.GAP
        assert page.ndim == 3 and page.shape[2] == 3 and page.std() > 0


# --- prediction


def classifier(trained, *sets):
    state = checkpoint.load(trained[1] / "checkpoints" / "final.pt")
    return Classifier({**state, "config": override(state["config"], sets)}, CPU)


def test_views_by_hand(trained):
    images = torch.from_numpy(pictures(8, 1, 5)[0])
    one = classifier(trained, "decode.tta=flip")
    x = (images.permute(0, 3, 1, 2) / 255 - one.mean[0]) / one.std[0]
    padded = F.pad(x, (1, 1, 1, 1), "replicate")
    with torch.no_grad():
        plain, flipped = one.model(x), one.model(x.flip(3))
        # a pixel up and left, and a pixel down and right
        moved = [one.model(padded[:, :, 2:, 2:]), one.model(padded[:, :, :-2, :-2])]
    options = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.probabilities(images), plain.softmax(1), **options)
    torch.testing.assert_close(one.probabilities(images, "tta"), (plain / 2 + flipped / 2).softmax(1), **options)
    shifted = classifier(trained, "decode.tta=translate")  # trained without flips: no mirrored views
    torch.testing.assert_close(shifted.probabilities(images, "tta"),
                               (plain / 2 + moved[0] / 4 + moved[1] / 4).softmax(1), **options)
    views = classifier(trained, "decode.tta=translate", "data.augment.flip=alternate")._views(x)
    assert len(views) == 6 and sum(weight for weight, _ in views) == 1


def test_decode_writes_a_line_an_image(trained, pack, capsys):
    exp = trained[1]
    assert decode.main([str(exp), "--data", str(pack)]) == 0
    assert json.loads((exp / "decode/methods.json").read_text()) == {"plain": {"tta": "none"},
                                                                     "tta": {"tta": "translate"}}
    lines = [json.loads(line) for line in (exp / "decode/plain/test/pred.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(64))
    assert [line["ref"] for line in lines] == [CLASSES[n % 4] for n in range(64)]
    for line in lines:
        assert 1 / 4 <= line["prob"] <= 1 and line["prob_ref"] <= line["prob"] + 1e-6
        assert (line["prob_ref"] == line["prob"]) == (line["ref"] == line["hyp"])
    assert sum(line["ref"] == line["hyp"] for line in lines) > 55
    assert json.loads((exp / "decode/plain/test/classes.json").read_text()) == list(CLASSES)
    assert "64 images" in capsys.readouterr().out
    assert decode.main([str(exp), "--data", str(pack), "--set", "decode.tta=none", "--methods", "all"]) == 0
    assert list(json.loads((exp / "decode/methods.json").read_text())) == ["plain"]


def test_a_changed_section_decode_is_what_decoding_goes_by(trained, pack, tmp_path):
    """The config's, where it is given, over the checkpoint's; and what it no longer asks for does not stay."""
    exp = trained[1]
    own = {**checkpoint.load(exp / "checkpoints" / "final.pt")["config"], "decode": {"tta": "flip"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    given = [str(exp), "--data", str(pack), "--config", str(tmp_path / "own.yaml")]
    assert decode.main(given) == 0
    assert json.loads((exp / "decode/methods.json").read_text())["tta"] == {"tta": "flip"}
    assert decode.main([*given, "--set", "decode.tta=none"]) == 0
    assert not (exp / "decode/tta").exists() and (exp / "decode/plain/test/pred.jsonl").exists()
    (tmp_path / "own.yaml").write_text("task: lm\nmodel: {class: 'speechlab.models.lm:TransformerLM'}\n")
    assert decode.main(given) == 2


def test_infer_answers_on_pictures(trained, tmp_path, capsys):
    exp, (images, labels) = trained[1], pictures(8, 1, 77)
    (tmp_path / "图 s").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).resize((32, 32)).save(tmp_path / "图 s" / f"{number}.png")
    (tmp_path / "图 s" / "notes.txt").write_text("passed over")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert infer.main([str(exp), str(tmp_path / "图 s"), str(tmp_path / "broken.png"), "--json"]) == 1
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert len(found) == 9 and found[-1]["hyp"] is None and "broken.png" in said.err
    assert sum(one["hyp"] == CLASSES[label] for one, label in zip(found, labels)) >= 6
    assert all(abs(sum(one["probs"].values()) - 1) < 1e-4 for one in found[:-1])
    assert infer.main([str(exp), str(tmp_path / "图 s" / "0.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / '图 s' / '0.png'}\t{found[0]['hyp']}\t{found[0]['prob']:.4f}\n"


@pytest.mark.parametrize(("options", "status", "says"), [
    (["--methods", "joint"], 2, "no method 'joint' for images"), (["--lm", "x"], 2, "does not take --lm x"),
    (["--methods", "tta", "--set", "decode.tta=none"], 2, "decode.tta is none"),
    (["--sets", "test_b"], 1, "has no split 'test_b'"), (["--methods", " "], 1, "--methods names none"),
    (["--set", "decode.tta=mirror"], 2, "decode.tta"), (["--set", "decode.batch_size=0"], 2, "batch_size"),
])
def test_what_can_not_be_decoded_is_one_line(trained, pack, capsys, options, status, says):
    assert decode.main([str(trained[1]), "--data", str(pack), *options]) == status
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_another_pack_is_refused(trained, tmp_path, capsys):
    make_pack(tmp_path / "colour", channels=3, train=8, dev=0, test=8)
    assert decode.main([str(trained[1]), "--data", str(tmp_path / "colour")]) == 1
    assert "16 x 16 x 3, the network was trained on 16 x 16 x 1" in capsys.readouterr().err
    images = pictures(8, 1, 0)
    write_pack(tmp_path / "names", {"train": images, "test": images}, ("a", "b", "c", "d"), "x")
    assert decode.main([str(trained[1]), "--data", str(tmp_path / "names")]) == 1
    assert "has the classes a, b, c, d" in capsys.readouterr().err
    write_pack(tmp_path / "no_test", {"train": images}, CLASSES, "x")
    assert decode.main([str(trained[1]), "--data", str(tmp_path / "no_test")]) == 1
    assert "has no test split" in capsys.readouterr().err


@pytest.mark.parametrize(("sections", "says"), [
    ({"model": {"class": "speechlab.models.images:DigitCNN", "widths": [4]}}, "DigitCNN needs four widths"),
    ({"model": {"class": "speechlab.models.images:CNN", "widths": [4] * 9}}, "halve images of 16 x 16"),
])
def test_a_model_that_does_not_fit_the_images(pack, sections, says):
    with pytest.raises(UserError, match=says):
        ImageTraining(from_dict({"task": "image", **sections}), pack, CPU)


@pytest.mark.parametrize(("section", "values", "says"), [
    ("data", {"batch_size": 1}, "data.batch_size = 1"), ("loss", {"label_smoothing": 1.0}, "loss.label_smoothing = 1"),
    ("loss", {"name": "hinge"}, "must be one of"), ("optim", {"bias_scale": 0.0}, "optim.bias_scale"),
    ("data", {"augment": {"flip": "sometimes"}}, "must be one of"), ("model", {"width": 3}, "model.width"),
])
def test_a_bad_config_names_its_key(section, values, says):
    with pytest.raises(UserError, match=says):
        config(**{section: values})
