"""cifar10 from nothing to a scored classifier, on drawn shapes in colour: the fast net; the others for one epoch."""

import json

import pytest

TASK, OPTIONS = "cifar10", ("--corpus", "synthetic", "--config", "conf/tiny.yaml")


def test_it_learns_and_says_so(trained):
    lab, exp, output = trained
    rows = {(r["method"], r["metric"]): r["value"] for r in json.loads((exp / "results.json").read_text())}
    assert rows["plain", "accuracy"] > 95 and rows["tta", "accuracy"] > 95, output
    about = json.loads((lab.root / "egs" / TASK / "data" / "synthetic" / "images.json").read_text())
    assert about["size"] == [32, 32] and about["channels"] == 3 and len(about["classes"]) == 10


def test_interrupted_by_its_own_limit_and_longer(trained):
    """More epochs just go on from where it stands."""
    lab, exp, _ = trained
    status, output = lab.run(TASK, *OPTIONS, "--set", "train.epochs=4")
    assert status == 0 and "going on from" in output, output
    epochs = [r["epoch"] for line in (exp / "metrics.jsonl").read_text().splitlines()
              if (r := json.loads(line))["kind"] == "epoch"]
    assert epochs == [1, 2, 3, 4]


@pytest.mark.parametrize(("config", "sets"), [
    ("cnn_bn", ("model.widths=[8,16]", "model.hidden=32", "train.accum=1", "data.augment.cutout=8")),
    ("resnet18", ("model.width=4", "model.blocks=[1,1,1]")),
    ("fast_muon", ("model.widths=[8,16,16]", "train.accum=1")), ("fast", ("model.widths=[8,16,16]",)),
])
def test_every_network_trains(trained, config, sets):
    """For one epoch; the last one in as many processes as there are cores, up to two."""
    lab, _, _ = trained
    words = [word for text in ("train.epochs=1", "train.log_steps=1", *sets) for word in ("--set", text)]
    status, output = lab.run(TASK, "--corpus", "synthetic", "--config", f"conf/{config}.yaml", "--stop_stage", "4",
                             *words)
    assert status == 0, output
    exp = lab.root / "egs" / TASK / "exp" / f"synthetic_{config}"
    (epoch,) = [r for line in (exp / "metrics.jsonl").read_text().splitlines()
                if (r := json.loads(line))["kind"] == "epoch"]
    assert epoch["valid_error"] <= 95 and any(key.startswith("grad_norm/") for key in epoch), output
