"""The processes of a training on one machine: what each finds in its environment, and how they end. No GPU is needed:
the work is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import speechlab.train  # noqa: F401  (the module: `from speechlab import train` may be the function)
from speechlab import cores
from speechlab.errors import UserError
from speechlab.training import distributed

ROOT = Path(__file__).resolve().parents[3]

# work.py PROCESSES NGPU: each notes its environment in a file named by its rank, then does what $HOW says for its rank.
WORK = """
import json, os, sys, time
from pathlib import Path
from speechlab.training import distributed

distributed.GRACE = 0.3
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

def work():
    rank = os.environ["RANK"]
    found = {name: os.environ.get(name) for name in names}
    Path(f"{rank}.tmp").write_text(json.dumps({**found, "pid": os.getpid()}))
    os.rename(f"{rank}.tmp", f"{rank}.json")
    for word in json.loads(os.environ["HOW"])[int(rank)]:
        if word == "die":
            os.kill(os.getpid(), 9)
        if word == "others":
            while not Path("1.json").exists():
                time.sleep(0.02)
        elif isinstance(word, float):
            time.sleep(word)
        else:
            return word
    return 0

processes, ngpu = int(sys.argv[1]), int(sys.argv[2])
with distributed.helpers(1 if "RANK" in os.environ else processes, sys.argv, ngpu):
    status = work()
Path("after.json").write_text(json.dumps({name: os.environ.get(name) for name in names})) if processes > 1 else None
sys.exit(status)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")

    def start(processes: int, ngpu: int, how: list[list], **env: str) -> subprocess.Popen:
        kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return subprocess.Popen([sys.executable, "work.py", str(processes), str(ngpu)], cwd=tmp_path, text=True,
                                env={**kept, "PYTHONPATH": str(ROOT), "HOW": json.dumps(how), **env},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start


def ends(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize("ngpu, threads, wanted", [(0, "4", "1"), (2, None, "1"), (2, "4", "4")])
def test_the_environment_of_each(start, tmp_path, ngpu, threads, wanted):
    env = {"OMP_NUM_THREADS": threads} if threads else {}
    assert ends(start(2, ngpu, [["others"], []], **env)) == (0, "")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("pid") != second.pop("pid")
    assert 1024 <= int(first["MASTER_PORT"]) <= 65535
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": wanted,
            "MASTER_PORT": first["MASTER_PORT"]}
    assert first == {**both, "RANK": "0", "LOCAL_RANK": "0"}
    assert second == {**both, "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize("how, status", [
    ([["others", 2.5, 85], [85]], 85),  # the first is still writing the checkpoint
    ([["others", 7], [0.5, 0]], 7)])
def test_the_exit_status_is_the_firsts_own(start, how, status):
    assert ends(start(2, 2, how)) == (status, "")


@pytest.mark.parametrize("how", [[["others", 60.0], ["die"]], [["others", 60.0], [1]]])
def test_one_that_is_lost_ends_the_training(start, how):
    status, err = ends(start(2, 2, how))
    assert status == 1 and err.endswith(f"error: {distributed.LOST}\n")


def test_none_outlives_the_first(start, tmp_path):
    process = start(2, 2, [[60.0], [60.0]])
    for _ in range(1500):
        if (tmp_path / "1.json").exists() and (tmp_path / "0.json").exists():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    # Both hold our pipes: they are read to their end once the second is gone too.
    process.communicate(timeout=30)


class TestShare:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setattr(cores, "usable", lambda: 3)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    @pytest.mark.parametrize("accum, ngpu, processes", [(4, 0, 2), (3, 0, 3), (5, 0, 1), (4, 1, 1), (4, 2, 2),
                                                        (1, 2, 2)])
    def test_how_many(self, accum, ngpu, processes):
        assert distributed.share(accum, ngpu) == processes

    def test_too_few_gpus_are_one_line(self):
        with pytest.raises(UserError, match="--ngpu 3: torch .* sees 2 CUDA devices"):
            distributed.share(4, 3)

    @pytest.mark.parametrize("ngpu", [0, 2, 8])
    def test_those_that_are_started_start_none(self, monkeypatch, ngpu):
        monkeypatch.setenv("WORLD_SIZE", "8")  # by Slurm
        assert distributed.share(4, ngpu) == 1


def test_train_starts_one_for_each_gpu(monkeypatch, tmp_path):
    """The whole way of --ngpu 2, with a training that says 85 in the first process."""
    asked = []

    class Process:
        def __init__(self, command, env, **options):
            asked.append((command, {name: env[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}))

        def poll(self):
            return None

        def wait(self, timeout=None):
            return 85

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", Process)
    module = sys.modules["speechlab.train"]
    monkeypatch.setattr(module, "train_here", lambda config, args: 85 if os.environ["RANK"] == "0" else 1)
    config = ROOT / "egs" / "mnist" / "conf" / "cnn.yaml"
    threads = torch.get_num_threads()
    try:
        words = [str(config), "--data", str(tmp_path), "--exp", str(tmp_path / "exp"), "--ngpu", "2"]
        assert module.run(words) == 85
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "speechlab.train", *words]
    assert asked == [(command, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"})]
    assert "RANK" not in os.environ
