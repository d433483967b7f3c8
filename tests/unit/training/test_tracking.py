"""What a run leaves besides its weights: metrics.jsonl, TensorBoard's scalars, histograms, images, hparams; wandb."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from speechlab.errors import UserError
from speechlab.training import tracking
from speechlab.training.tracking import Tracker, flat

ROOT = Path(__file__).parents[3]


def events(exp):
    board = EventAccumulator(str(exp / "tensorboard"), size_guidance={"histograms": 0, "images": 0})
    board.Reload()
    return board


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    model(torch.randn(5, 8)).square().sum().backward()
    return model


def test_scalars_of_a_run_that_was_cut_are_written_once(tmp_path):
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.write("step", step, {"epoch": 1, "loss": 1.0 / step, "lr": 0.1, "note": "text"})
    tracker.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')  # killed while it wrote
    again = Tracker(tmp_path, step=2)
    again.write("step", 3, {"epoch": 1, "loss": 0.25, "lr": 0.05})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    board = events(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("step/loss")] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert [e.value for e in board.Scalars("step/lr")] == pytest.approx([0.1, 0.1, 0.05])
    assert "step/epoch" not in board.Tags()["scalars"] and "step/note" not in board.Tags()["scalars"]


def test_numbers_that_are_not_finite_are_null_and_not_drawn(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.write("step", 1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    tracker.write("step", 2, {"loss": 0.5, "grad_norm": -np.inf, "lr": 0.1})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"kind": "step", "step": 1, "loss": null, "grad_norm": null, "lr": 0.1}',
        '{"kind": "step", "step": 2, "loss": 0.5, "grad_norm": null, "lr": 0.1}']
    board = events(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("step/loss")] == [(2, 0.5)]
    assert "step/grad_norm" not in board.Tags()["scalars"]


def test_histograms_count_every_number(tmp_path, model):
    with torch.no_grad():
        model[0].bias.fill_(0.5)  # all alike
        model[2].bias[0] = float("nan")  # is left out
    tracker = Tracker(tmp_path, histograms=2)
    for epoch in (1, 2, 3):
        tracker.look_inside(epoch, 10 * epoch, model, {})
    tracker.close()
    board = events(tmp_path)
    assert set(board.Tags()["histograms"]) == {f"{what}/{place}/{kind}" for what in ("weights", "gradients")
                                               for place in "02" for kind in ("weight", "bias")}
    (found,) = board.Histograms("weights/0/weight")
    value, weight = found.histogram_value, model[0].weight.detach()
    assert found.step == 20 and value.num == sum(value.bucket) == 32
    assert (value.min, value.max) == pytest.approx((float(weight.min()), float(weight.max())))
    assert value.sum == pytest.approx(float(weight.sum()), rel=1e-5)
    assert value.sum_squares == pytest.approx(float(weight.square().sum()), rel=1e-5)
    edges = [value.min, *value.bucket_limit]
    counts, _ = np.histogram(weight.numpy().ravel(), bins=64, range=(edges[0], edges[-1]))
    assert list(value.bucket) == pytest.approx(counts.tolist(), abs=1)  # a number on an edge may fall to either side
    alike = board.Histograms("weights/0/bias")[0].histogram_value
    assert alike.num == sum(alike.bucket) == 4 and alike.min < 0.5 < alike.max
    assert board.Histograms("weights/2/bias")[0].histogram_value.num == 1


def test_no_histograms(tmp_path, model):
    tracker = Tracker(tmp_path, histograms=0)
    tracker.look_inside(1, 1, model, {})
    tracker.close()
    assert not events(tmp_path).Tags()["histograms"]
    without = Tracker(tmp_path / ".", tensorboard=False)
    without.look_inside(1, 1, model, {})
    without.finish({"valid_error": 1.0})
    without.close()


def test_images_become_files_and_events(tmp_path, model):
    from PIL import Image

    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.stack([grey, grey + 50, grey + 100], -1)
    tracker = Tracker(tmp_path)
    tracker.look_inside(1, 5, model, {"layers": grey, "filters": colour})
    tracker.look_inside(12, 60, model, {"layers": torch.from_numpy(grey)})
    tracker.close()
    assert sorted(p.name for p in (tmp_path / "layers").iterdir()) == ["epoch-01.png", "epoch-12.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "filters" / "epoch-01.png")), colour)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "layers" / "epoch-12.png"))[..., 1], grey)
    board = events(tmp_path)
    assert [e.step for e in board.Images("layers")] == [5, 60] and board.Images("layers")[0].width == 4


def test_hyperparameters_with_final_metrics(tmp_path):
    (tmp_path / "config.yaml").write_text("task: image\noptim: {lr: 0.1, betas: [0.9, 0.98], name: sgd}\nloss: null\n")
    tracker = Tracker(tmp_path)
    tracker.finish({"valid_error": 2.5, "valid_loss": float("nan")})
    tracker.close()
    board = events(tmp_path)
    assert [e.value for e in board.Scalars("final/valid_error")] == [2.5]
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optim.lr" in content and b"sgd" in content and b"[0.9, 0.98]" in content
    assert b"final/valid_error" in board.summary_metadata["_hparams_/experiment"].plugin_data.content
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # no run of its own beside the run


def test_flat():
    assert flat({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": True}) == {"a.b.c": 1, "a.d": "[1, 2]", "f": True}


class TestWandb:
    def test_its_absence_is_one_line_and_nothing_is_begun(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)  # what import does without the package
        with pytest.raises(UserError, match="train.wandb needs the package wandb: pip install"):
            Tracker(tmp_path, wandb=True)
        assert not list(tmp_path.iterdir())

    def test_the_pin_in_the_message_is_setup_pys(self):
        text = (ROOT / "setup.py").read_text()
        pin = next(word for word in text.split('"') if word.startswith("wandb=="))
        assert f"pip install '{pin}'" in Path(tracking.__file__).read_text()

    @pytest.mark.parametrize("mode", ["key", "netrc", "other", ""])
    def test_logged_in(self, tmp_path, monkeypatch, mode):
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        if mode == "key":
            monkeypatch.setenv("WANDB_API_KEY", "x")
        if mode in ("netrc", "other"):
            host = "api.wandb.ai" if mode == "netrc" else "example.org"
            (tmp_path / "netrc").write_text(f"machine {host} login user password p\n")
            (tmp_path / "netrc").chmod(0o600)
        assert tracking._logged_in() == (mode in ("key", "netrc"))

    def test_a_run_offline(self, tmp_path):
        """In a process of its own: wandb leaves threads behind."""
        pytest.importorskip("wandb", reason="no wandb here (the extra `wandb` of setup.py)")
        code = (
            "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom torch import nn\n"
            "from speechlab.training.tracking import Tracker\n"
            "tracker = Tracker(Path(sys.argv[1]), wandb=True)\n"
            "tracker.write('step', 1, {'epoch': 1, 'loss': 0.5})\n"
            "tracker.look_inside(1, 1, nn.Linear(1, 1), {'layers': np.zeros((4, 4), np.uint8)})\n"
            "tracker.finish({'valid_error': 1.0})\ntracker.close()\n")
        exp = tmp_path / "egs" / "mnist" / "exp" / "a"
        exp.mkdir(parents=True)
        done = subprocess.run([sys.executable, "-c", code, str(exp)], text=True, capture_output=True, timeout=120, env={
            "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(p for p in sys.path if p) + f":{ROOT}",
            "HOME": str(tmp_path), "WANDB_MODE": "offline"})
        assert done.returncode == 0, done.stderr
        assert list(exp.glob("wandb/offline-run-*/run-*.wandb")) and (exp / "metrics.jsonl").exists()


@pytest.mark.parametrize("env, found", [
    ({"SPEECHLAB_CONTAINER": "podman:localhost/a:1"}, ("podman", "localhost/a:1")),
    ({"SPEECHLAB_CONTAINER": "apptainer:/a/b.sif", "APPTAINER_CONTAINER": "/x"}, ("apptainer", "/a/b.sif")),
    ({"APPTAINER_CONTAINER": "/a/b.sif", "SPEECHLAB_CONTAINER": "image"}, ("apptainer", "/a/b.sif")),  # by hand
    ({"SINGULARITY_CONTAINER": "/a/b.sif"}, ("singularity", "/a/b.sif")),
    ({"SPEECHLAB_CONTAINER": "image"}, ("docker", "")),  # our image, by hand
    ({"SPEECHLAB_ENGINE": "auto", "SPEECHLAB_IMAGE": "i"}, ("none", "")),  # what was asked for is not what we are in
])
@pytest.mark.skipif(Path("/run/.containerenv").exists(), reason="in podman")
def test_the_engine_is_the_one_we_are_in(monkeypatch, env, found):
    for name in ("SPEECHLAB_CONTAINER", "SPEECHLAB_ENGINE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPEECHLAB_IMAGE_ID", "sha256:1")
    assert tracking.container() == found
    env = tracking.environment(torch.device("cpu"))
    assert (env["engine"], env["container"], env["image_id"]) == (*found, "sha256:1")
    assert env["versions"]["torch"] == torch.__version__ and env["gpus"] == torch.cuda.device_count()
