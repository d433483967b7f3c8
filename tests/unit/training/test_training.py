"""The loop on a toy task: resume, processes, skipped steps, signals, damaged checkpoints, schedules."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from speechlab.errors import UserError
from speechlab.training import checkpoint
from speechlab.training.optim import OptimConfig, learning_rate

ROOT = Path(__file__).parents[3]

# A regression with a LayerNorm; each batch is a different length, so that a mean of means would be wrong.
TOY = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    import torch
    from torch import nn
    from speechlab.data.augment import seed_everything
    from speechlab.errors import cli
    from speechlab.scoring.metric import METRICS
    from speechlab.training import distributed
    from speechlab.training.interface import Evaluation, Loss
    from speechlab.training.loop import TrainConfig, Trainer
    from speechlab.training.optim import OptimConfig
    from speechlab.training.tracking import start_log

    DROPOUT, EPOCHS, ACCUM, BAD, GOOD, SLOW, LOG = (float(os.environ.get(n, d)) for n, d in (
        ("DROPOUT", 0.3), ("EPOCHS", 4), ("ACCUM", 1), ("BAD", -1), ("GOOD", "inf"), ("SLOW", 0), ("LOG", 1)))

    class Toy:
        metric = METRICS["loss"]
        def __init__(self):
            self.model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(DROPOUT),
                                       nn.Linear(16, 1))
        def optimized(self):
            return {"model": list(self.model.parameters())}
        def loss(self, batch, which):
            error = (self.model(batch["x"])[:, 0] - batch["y"]) ** 2
            if SLOW:
                time.sleep(SLOW)
            return Loss(error.sum(), torch.tensor(float(len(error))))
        def evaluate(self, model):
            batch = make(999)
            loss = float(((model(batch["x"])[:, 0] - batch["y"]) ** 2).mean())
            return Evaluation({"loss": loss}, [("a", "ref", "hyp")])
        def state(self):
            return {"units": ["x"]}

    def make(i):
        g = torch.Generator().manual_seed(i)
        n = 3 + i % 5
        x = torch.randn(n, 8, generator=g)
        y = x.sum(1) * (float("nan") if BAD >= 0 and BAD <= i < GOOD else 1)
        return {"x": x, "y": y, "ids": list(range(n))}

    class Loader:
        def __init__(self, places):
            self.places = places
        def size(self, epoch):
            return 12 // int(ACCUM)
        def epoch(self, epoch, skip=0):
            for step in range(skip, self.size(epoch)):
                yield [(p, make(100 * epoch + step * int(ACCUM) + p)) for p in self.places]

    if __name__ == "__main__":
        exp = Path(sys.argv[1])
        exp.mkdir(parents=True, exist_ok=True)
        world = distributed.start(0)
        torch.set_num_threads(1)
        seed_everything(3)
        if world.first:
            start_log(exp)
        config = TrainConfig(epochs=int(EPOCHS), accum=int(ACCUM), log_steps=int(LOG), save_minutes=0.0, amp="off",
                             ema=0.9, average=2, keep=3, tensorboard=False)
        optim = OptimConfig(lr=1e-2, warmup=5)
        places = range(world.rank, int(ACCUM), world.size)
        status = cli(lambda argv: Trainer(Toy(), Loader(places), config, optim, exp, world, {"env": {}}).run())()
        distributed.stop(world)
        sys.exit(status)
""")


@pytest.fixture
def toy(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(TOY, encoding="utf-8")

    def run(exp, *, processes=1, wait=True, **env):
        command = [sys.executable, str(script), str(exp)]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not wait:
            return process
        output, _ = process.communicate(timeout=300)
        return process.returncode, output
    return run


def losses(exp):
    return {r["step"]: (r["loss"], r["grad_norm"]) for line in (exp / "metrics.jsonl").read_text().splitlines()
            if (r := json.loads(line))["kind"] == "step"}


def epoch_losses(exp):
    return {r["epoch"]: r["train_loss"] for line in (exp / "metrics.jsonl").read_text().splitlines()
            if (r := json.loads(line))["kind"] == "epoch"}


def test_killed_and_resumed_is_bit_identical(toy, tmp_path):
    status, output = toy(tmp_path / "whole")
    assert status == 0, output
    whole = losses(tmp_path / "whole")
    assert len(whole) == 48

    for _ in range(3):  # kill -9 in the middle of the epochs, at whatever step it is
        process = toy(tmp_path / "killed", wait=False, SLOW=0.05)
        before = len(checkpoint.steps(tmp_path / "killed" / "checkpoints"))
        newest = checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1:]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            now = checkpoint.steps(tmp_path / "killed" / "checkpoints")
            if len(now) > before and before < 3 or now[-1:] != newest and now:
                time.sleep(0.2)
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    status, output = toy(tmp_path / "killed")
    assert status == 0 and "going on from" in output, output
    assert losses(tmp_path / "killed") == whole, "to the last bit"
    final = [checkpoint.load(tmp_path / e / "checkpoints" / "final.pt")["model"] for e in ("whole", "killed")]
    assert all(final[0][k].equal(final[1][k]) for k in final[0])


def test_a_signal_saves_and_says_requeue(toy, tmp_path):
    for number, expected in ((signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)):
        process = toy(tmp_path / "exp", wait=False, SLOW=0.05, EPOCHS=6)
        log = tmp_path / "exp" / "train.log"
        deadline = time.monotonic() + 120
        known = len(losses(tmp_path / "exp")) if (tmp_path / "exp" / "metrics.jsonl").exists() else 0
        marker = f"step {known + 3} "
        while time.monotonic() < deadline and not (log.exists() and marker in log.read_text()):
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == expected, output
        assert "saved; the same command goes on" in output
    status, output = toy(tmp_path / "exp", EPOCHS=6)
    assert status == 0
    toy(tmp_path / "whole", EPOCHS=6)
    assert losses(tmp_path / "exp") == losses(tmp_path / "whole")
    assert epoch_losses(tmp_path / "exp") == epoch_losses(tmp_path / "whole"), "of all their steps, not of those since"


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_two_processes_are_one_with_the_joint_batch(toy, tmp_path, dropout):
    status, output = toy(tmp_path / "two", processes=2, ACCUM=2, DROPOUT=dropout, EPOCHS=2)
    assert status == 0, output
    toy(tmp_path / "one", ACCUM=2, DROPOUT=dropout, EPOCHS=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 12
    for step, (loss, norm) in one.items():
        assert math.isclose(loss, two[step][0], rel_tol=1e-5, abs_tol=1e-6)
        assert math.isclose(norm, two[step][1], rel_tol=1e-4)


def test_more_epochs_go_on(toy, tmp_path):
    toy(tmp_path / "exp", EPOCHS=1)
    first = losses(tmp_path / "exp")
    status, output = toy(tmp_path / "exp", EPOCHS=2)
    assert status == 0 and "going on from checkpoints/step-12.pt" in output
    assert {k: v for k, v in losses(tmp_path / "exp").items() if k <= 12} == first
    assert len(losses(tmp_path / "exp")) == 24


def test_non_finite_losses_are_skipped_kept_for_replay_and_end_the_run(toy, tmp_path):
    status, output = toy(tmp_path / "exp", BAD=105)  # from the second epoch's sixth batch on
    assert status != 0
    assert "20 steps in a row gave no finite loss" in output and "lower optim.lr" in output
    replay = sorted((tmp_path / "exp" / "replay").glob("*.pt"))
    assert 1 <= len(replay) <= 2
    state = checkpoint.load(replay[0])
    assert state["batches"][0]["y"].isnan().any() and not any(v.isnan().any() for v in state["model"].values())


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def test_a_skipped_step_has_no_loss(toy, tmp_path):
    """Batches 2 to 7 of the first epoch (steps 3 to 8) and the whole second epoch have no finite loss."""
    status, output = toy(tmp_path / "all", EPOCHS=1, BAD=2, GOOD=8)
    assert status == 0
    each = losses(tmp_path / "all")
    assert [step for step, (loss, _) in each.items() if loss is None] == [3, 4, 5, 6, 7, 8]
    assert all(norm is None for loss, norm in each.values() if loss is None)
    assert "step 3 (3/12): loss skipped, lr" in output and "loss 0.0000" not in output
    # The epoch's loss is the mean over the items of the steps that were not skipped: a batch i has 3 + i % 5 items.
    sizes = {step: 3 + (step - 1) % 5 for step, (loss, _) in each.items() if loss is not None}
    wanted = sum(each[step][0] * size for step, size in sizes.items()) / sum(sizes.values())
    assert epoch_losses(tmp_path / "all") == {1: pytest.approx(wanted, rel=1e-12)}

    status, output = toy(tmp_path / "some", EPOCHS=1, BAD=2, GOOD=8, LOG=4)
    some = losses(tmp_path / "some")
    assert status == 0 and list(some) == [1, 4, 8, 12]
    assert some[4][0] == pytest.approx(each[2][0], rel=1e-12)  # of steps 2 to 4, only step 2 counts
    assert some[8] == (None, None) and some[12][0] is not None
    assert epoch_losses(tmp_path / "some") == epoch_losses(tmp_path / "all")

    status, output = toy(tmp_path / "epoch", EPOCHS=3, BAD=100, GOOD=112)
    assert status == 0
    found = epoch_losses(tmp_path / "epoch")
    assert found[2] is None and found[1] > 0 and found[3] > 0
    assert "epoch 2/3: train loss skipped; validation loss" in output and "train loss nan" not in output
    said = [line for line in (tmp_path / "epoch" / "samples.md").read_text().splitlines() if line.startswith("## ")]
    assert len(said) == 3 and said[1].endswith("training loss skipped")
    assert all(line.rsplit(" ", 1)[1].replace(".", "").isdigit() for line in (said[0], said[2]))
    for line in (tmp_path / "epoch" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)  # Python alone reads NaN


def test_damaged_checkpoints(toy, tmp_path):
    toy(tmp_path / "exp", EPOCHS=2)
    folder = tmp_path / "exp" / "checkpoints"
    newest = checkpoint.steps(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:newest.stat().st_size // 2])
    status, output = toy(tmp_path / "exp", EPOCHS=3)
    assert status == 0 and "damaged" in output and "going on from checkpoints/step-2" in output

    for path in checkpoint.steps(folder):
        path.write_bytes(b"x")
    status, output = toy(tmp_path / "exp", EPOCHS=4)
    assert status != 0 and "none of the" in output and "--force" in output
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(folder / "nothing.pt")


def test_a_checkpoint_without_its_checksum_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a.pt", {"x": torch.ones(2)})
    assert checkpoint.load(tmp_path / "a.pt")["x"].equal(torch.ones(2))
    (tmp_path / "a.pt.sha256").unlink()
    with pytest.raises(UserError, match="no a.pt.sha256 beside it"):
        checkpoint.load(tmp_path / "a.pt")


def test_a_full_disk_is_one_line_and_loses_nothing(toy, tmp_path):
    small = tmp_path / "small disk"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        status, output = toy(small / "exp", EPOCHS=40)
        assert status == 1 and "no space left while writing" in output and "Traceback" not in output, output
        kept = checkpoint.load_latest(small / "exp" / "checkpoints")
        assert kept is not None and kept["step"] > 0, "what was whole before still is"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_random_states_come_back(tmp_path):
    import random

    import numpy as np

    checkpoint.save(tmp_path / "r.pt", checkpoint.random_state())
    drawn = (random.random(), np.random.rand(), torch.rand(3))
    checkpoint.set_random_state(checkpoint.load(tmp_path / "r.pt"))
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert drawn[:2] == again[:2] and drawn[2].equal(again[2])


def test_average_of_weights():
    mean = checkpoint.average([{"w": torch.tensor([1.0]), "n": torch.tensor(3)},
                               {"w": torch.tensor([2.0]), "n": torch.tensor(5)}])
    assert mean["w"].tolist() == [1.5] and mean["n"].item() == 5


def test_schedules():
    cosine = OptimConfig(lr=1.0, warmup=10, final=0.1)
    assert learning_rate(0, 0.0, cosine) == pytest.approx(0.1)
    assert learning_rate(10**6, 1.0, cosine) == pytest.approx(0.1)
    assert learning_rate(10**6, 0.5, cosine) == pytest.approx(0.55)
    noam = OptimConfig(lr=1.0, warmup=100, schedule="noam")
    assert learning_rate(399, 0.9, noam) == pytest.approx(0.5)
    values = [learning_rate(s, 0.0, noam) for s in range(100)]
    assert values == sorted(values) and values[-1] == pytest.approx(1.0)
