"""Recipes through a real Slurm of one node, which slurm_up.sh brings up and takes down again.

tests/unit/containers/test_slurm.py has what needs no Slurm: exact lines, every end that a job can come to.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.container, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
CMD = ROOT / "containers" / "cmd.sh"
UP = ROOT / "tests" / "containers" / "slurm_up.sh"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which cmd.sh and run.sh submit; skips where Slurm can't be had."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPEECHLAB_", "SLURM_"))}
    done = subprocess.run([UP], env=env, text=True, capture_output=True)
    if done.returncode:
        pytest.skip(f"Slurm can't be brought up: {done.stderr.strip().splitlines()[-1]}")
    exports = shlex.split(done.stdout.strip().splitlines()[-1])[1:]
    env |= dict(word.split("=", 1) for word in exports)
    yield {**env, "SPEECHLAB_BACKEND": "slurm", "SPEECHLAB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
           "SPEECHLAB_SLURM": "num_threads=1", "SPEECHLAB_SLURM_CONF": str(ROOT / "containers" / "slurm.conf.example")}
    subprocess.run(["scancel", f"--user={os.getuid()}"], env=env)
    subprocess.run([UP, "down"], env=env, capture_output=True)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """The repository's recipes at a path with a space and hanzi."""
    root = tmp_path / "实验室 one"
    ignore = shutil.ignore_patterns("__pycache__", "data", "exp", "log", ".stages", "params_table.csv")
    for name in ("egs", "tools", "containers", "speechlab"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore if name == "egs" else None)
    return root


def start(env: dict, *command: str | Path, cwd: Path, **more: str) -> subprocess.Popen:
    return subprocess.Popen([str(word) for word in command], cwd=cwd, env={**env, **more}, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def run(env: dict, *command: str | Path, cwd: Path, **more: str) -> tuple[int, str]:
    process = start(env, *command, cwd=cwd, **more)
    out, _ = process.communicate(timeout=600)
    return process.returncode, out


def queue(env: dict) -> list[str]:
    done = subprocess.run(["squeue", "--noheader", "--format=%A %T %r"], env=env, text=True, capture_output=True)
    return done.stdout.splitlines()


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it does not come about"
        time.sleep(0.1)


def metrics(exp: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock and the machine."""
    lines = (exp / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    volatile = {"seconds", "items_per_s", "memory_gb", "memory_sum_gb"}
    return [{key: value for key, value in json.loads(line).items() if key not in volatile} for line in lines]


def steps(exp: Path) -> int:
    path = exp / "metrics.jsonl"
    return sum('"step"' in line for line in path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def preempt(env: dict, exp: Path, after: int) -> None:
    """Slurm's notice to the one job there is, once it has logged so many steps."""
    wait_for(lambda: steps(exp) >= after)
    job, = {line.split()[0] for line in queue(env)}
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=env, check=True)


def test_mnist(slurm, lab):
    """run.sh through Slurm, in which nothing is different but where it runs; then there is nothing to do."""
    recipe = lab / "egs" / "mnist"
    options = ["--corpus", "synthetic", "--config", "conf/tiny.yaml", "--set", "train.epochs=1"]
    status, out = run(slurm, recipe / "run.sh", *options, cwd=lab)
    assert status == 0, out
    assert out.count(" is submitted; its log: ") == 2  # training and prediction, which are marked --gpu
    exp = recipe / "exp" / "synthetic_tiny"
    rows = json.loads((exp / "results.json").read_text())
    assert all(row["value"] > 80 for row in rows if row["metric"] == "accuracy")
    env = json.loads((exp / "env.json").read_text())
    assert int(env["slurm"]["job"]) and env["slurm"]["nodes"] and env["slurm"]["restarts"] == 0
    assert queue(slurm) == []
    status, out = run(slurm, recipe / "run.sh", *options, cwd=lab)
    assert status == 0 and "nothing to do" in out, out

@pytest.mark.parametrize("engine", ["podman", "apptainer"])
def test_mnist_in_an_engine(slurm, lab, bring_up, engine):
    """The job runs cmd.sh on the node, which makes the engine's line there: env.json knows both."""
    inside = bring_up(engine)
    settings = {name: inside[name] for name in inside
                if name.startswith(("SPEECHLAB_", "CONTAINERS_")) or name == "PATH"}
    recipe = lab / "egs" / "mnist"
    env = {name: value for name, value in slurm.items() if name != "SPEECHLAB_PYTHON"}
    options = ["--corpus", "synthetic", "--config", "conf/tiny.yaml", "--set", "train.epochs=1"]
    status, out = run(env, recipe / "run.sh", *options, cwd=lab, **settings)
    assert status == 0, out
    known = json.loads((recipe / "exp" / "synthetic_tiny" / "env.json").read_text())
    assert known["engine"] == engine and int(known["slurm"]["job"]), known
    assert queue(slurm) == []



def test_speech_preempted(slurm, lab):
    """Features as an array; and a training that is told to make room, saves, waits, goes on: the same figures."""
    recipe = lab / "egs" / "aishell_asr"
    options = ["--corpus", "synthetic", "--config", "conf/tiny.yaml", "--nj", "2", "--decode", "ctc_greedy",
               "--set", "train.epochs=2", "--set", "train.log_steps=1"]
    status, out = run(slurm, recipe / "run.sh", *options, cwd=lab)
    assert status == 0, out
    assert "2 of 2 tasks have ended" in out
    whole = recipe / "exp" / "synthetic_tiny"

    again = recipe / "exp" / "synthetic_tiny_moved"
    process = start(slurm, recipe / "run.sh", *options, "--tag", "moved", cwd=lab)
    preempt(slurm, again, 4)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "saved; back into the queue" in out and "going on from checkpoints/step-" in out
    assert json.loads((again / "env.json").read_text())["slurm"]["restarts"] == 1
    assert metrics(again) == metrics(whole)
    figures = [[(row["test_set"], row["method"], row["metric"], row["value"]) for row in
                json.loads((exp / "results.json").read_text()) if row["metric"] != "RTF"] for exp in (whole, again)]
    assert figures[0] == figures[1] and any(row[2] == "CER" for row in figures[0])

    # The same features as without Slurm, to the byte; and --nj and the backend make nothing stale.
    folder, = (recipe / "data" / "synthetic").glob("fbank*")
    made = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.ark")}
    status, out = run(slurm, recipe / "run.sh", *options[:-4], "--nj", "1", "--stop_stage", "2", cwd=lab,
                      SPEECHLAB_BACKEND="local")
    assert status == 0 and "nothing to do" in out, out
    manifest = (folder / "train.jsonl.gz").read_bytes()
    run(slurm, recipe / "run.sh", *options[:-4], "--nj", "1", "--stage", "2", "--stop_stage", "2", cwd=lab,
        SPEECHLAB_BACKEND="local")
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.ark")} == made
    assert (folder / "train.jsonl.gz").read_bytes() == manifest


def test_two_processes_preempted(slurm, lab):
    """DDP (gloo) of two processes that Slurm starts; both save, and both come back."""
    recipe = lab / "egs" / "mnist"
    status, out = run(slurm, recipe / "run.sh", "--corpus", "synthetic", "--config", "conf/tiny.yaml", "--stop_stage",
                      "1", cwd=lab)
    assert status == 0, out
    found = []
    for name in ("whole", "moved"):
        exp = recipe / "exp" / name
        process = start(slurm, CMD, "--procs", "2", "--requeue", "--", sys.executable, "-m", "speechlab.train",
                        "conf/tiny.yaml", "--data", "data/synthetic", "--exp", exp, "--set", "train.accum=2",
                        "--set", "train.epochs=2", "--set", "train.log_steps=1", cwd=recipe)
        if name == "moved":
            preempt(slurm, exp, 4)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "2 processes on 1 node(s) meet at 127.0.0.1:" in out, out
        assert out.count("back into the queue") == (name == "moved")
        assert json.loads((exp / "env.json").read_text())["processes"] == 2
        found.append(metrics(exp))
    assert found[0] == found[1]


def test_statuses_and_refusals(slurm, tmp_path):
    assert run(slurm, CMD, "--", "sh", "-c", "exit 7", cwd=tmp_path)[0] == 7
    status, out = run(slurm, CMD, "--array", "2", "--", "sh", "-c", '[ "$SPEECHLAB_SHARD" != 2/2 ] || exit 4',
                      cwd=tmp_path)
    assert status == 4 and "_2 of 2 failed with status 4" in out
    for options, says in ((["--slurm", "partition=closed"], "inactive"), (["--slurm", "partition=nosuch"], "nosuch"),
                          (["--slurm", "mem=9000G"], "emory"), (["--ngpu", "1"], "gres")):
        status, out = run(slurm, CMD, *options, "--", "true", cwd=tmp_path)
        assert status == 1 and out.startswith("error: Slurm does not take the job: ") and out.count("\n") == 1
        assert says in out
    assert queue(slurm) == []


@pytest.mark.parametrize("procs", [1, 2])
def test_sbatch_that_hands_on_no_environment(slurm, tmp_path, procs):
    """SBATCH_EXPORT=NONE: the job's own script says what matters, and srun hands it on."""
    code = ("import os; print('has', os.environ['SPEECHLAB_X'], os.environ.get('WORLD_SIZE'), "
            "os.environ.get('MASTER_ADDR'))")
    status, out = run(slurm, CMD, "--procs", str(procs), "--", sys.executable, "-c", code, cwd=tmp_path,
                      SBATCH_EXPORT="NONE", SPEECHLAB_X="x")
    assert status == 0 and out.count("has x 2 127.0.0.1" if procs == 2 else "has x None None") == procs, out


def test_killed_for_memory(slurm, tmp_path):
    code = "import time; held = [bytearray(1 << 20) for _ in range(600)]; time.sleep(30)"
    status, out = run(slurm, CMD, "--slurm", "mem=200M", "--", sys.executable, "-c", code, cwd=tmp_path)
    assert status != 0 and "for memory" in out.splitlines()[-1] and "it had 200M" in out.splitlines()[-1], out


SAVES = ("import signal, sys, time\n"
         "for n in (signal.SIGUSR1, signal.SIGTERM): signal.signal(n, lambda *_: sys.exit(85))\n"
         "print('ready', flush=True); time.sleep(60)")


@pytest.mark.parametrize("saves", [True, False])
def test_ctrl_c_running(slurm, tmp_path, saves):
    more = ["--requeue", "--", sys.executable, "-c", SAVES]
    process = start(slurm, CMD, *(more if saves else ["--", "sh", "-c", "echo ready; exec sleep 60"]), cwd=tmp_path)
    wait_for(lambda: any("ready" in path.read_text() for path in tmp_path.glob("log/slurm/*/log")))
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "is cancelled" in out
    assert queue(slurm) == []
    folder, = tmp_path.glob("log/slurm/*")
    assert not saves or (folder / "status").read_text() == "85\n"  # it was told to save, not killed


def test_ctrl_c_pending(slurm, tmp_path):
    process = start(slurm, CMD, "--slurm", "begin=1", "--", "true", cwd=tmp_path,
                    SPEECHLAB_SLURM_CONF=str(later(tmp_path)))
    wait_for(lambda: any("BeginTime" in line for line in queue(slurm)))
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "is cancelled" in out and queue(slurm) == []


def later(folder: Path) -> Path:
    (folder / "slurm.conf").write_text("option begin=* --begin=now+3600\n")
    return folder / "slurm.conf"


def test_cancelled_by_somebody_else(slurm, tmp_path):
    process = start(slurm, CMD, "--", "sh", "-c", "echo ready; exec sleep 60", cwd=tmp_path)
    wait_for(lambda: any("ready" in path.read_text() for path in tmp_path.glob("log/slurm/*/log")))
    subprocess.run(["scancel", queue(slurm)[0].split()[0]], env=slurm, check=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "was cancelled, and not from here" in out, out


def test_a_killed_run_is_followed_by_the_next(slurm, tmp_path):
    command = [CMD, "--", "sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.1; done; echo 做完了; exit 3"]
    process = start(slurm, *command, cwd=tmp_path)
    wait_for(lambda: any("ready" in path.read_text() for path in tmp_path.glob("log/slurm/*/log")))
    process.kill()
    process.communicate()
    again = start(slurm, *command, cwd=tmp_path)
    assert "following it" in again.stdout.readline()
    (tmp_path / "go").touch()
    out, _ = again.communicate(timeout=30)
    assert again.returncode == 3 and "做完了" in out and len(list(tmp_path.glob("log/slurm/*"))) == 1
