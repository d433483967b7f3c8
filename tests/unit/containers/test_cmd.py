"""containers/cmd.sh: the exact command lines, exit statuses, signals, and one clear line for each mistake."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from signals_helper import heard

CMD = Path(__file__).resolve().parents[3] / "containers" / "cmd.sh"
TOOLS = "bash sh env sed dirname basename readlink uname id tr grep mkdir tee ls cat sleep tail cksum od find".split()
GPU_HERE = any(Path("/dev").glob("nvidia[0-9]*"))


class Lab:
    """A copy of cmd.sh in a repository of its own, and a PATH that holds only what a test puts there."""

    def __init__(self, base: Path):
        self.root = base / "实验室 one"
        self.recipe = self.root / "egs" / "任务 a"
        self.bin = base / "bin"
        for folder in (self.root / "containers", self.recipe, self.bin):
            folder.mkdir(parents=True)
        self.cmd = Path(shutil.copy(CMD, self.root / "containers"))
        shutil.copytree(CMD.parent / "lib", self.root / "containers" / "lib")
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.program("id", 'echo "${TEST_UID:-1000}"')

    def program(self, name: str, body: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        kept = {key: value for key, value in os.environ.items() if key in ("LANG", "LC_ALL", "TMPDIR")}
        whole = {**kept, "PATH": str(self.bin), "HOSTNAME": "here", "SPEECHLAB_NESTED": "1", **env}
        return subprocess.Popen(["bash", self.cmd, *arguments], cwd=self.recipe, env=whole, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                preexec_fn=heard)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path.resolve())


def error(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


# --- none ---

def test_none_hands_on_arguments_folder_and_status(lab):
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), repr(os.environ['CUDA_VISIBLE_DEVICES'])); sys.exit(85)"
    words = ["a b", "你好", "it's", "$HOME", "", "--log", "two\nlines"]
    done = lab.run("--", sys.executable, "-c", code, *words, CUDA_VISIBLE_DEVICES="3")
    assert done.returncode == 85
    assert done.stdout == f"{words} {lab.recipe} ''\n"


def test_dry_run_prints_and_runs_nothing(lab):
    words = ["touch", "it's a 你好", "$x", ""]
    done = lab.run("--dry_run", "--", *words)
    assert (done.returncode, shlex.split(done.stdout)) == (0, ["CUDA_VISIBLE_DEVICES=", *words])
    assert list(lab.recipe.iterdir()) == []


def test_log_holds_both_streams_and_keeps_the_status(lab):
    done = lab.run("--log=日志 a/1.log", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, sorted(done.stdout.split())) == (7, ["err", "out"])
    assert (lab.recipe / "日志 a" / "1.log").read_text() == done.stdout


@pytest.mark.parametrize("log", [[], ["--log", "x.log"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_command(lab, number, log):
    code = ("import os, signal, sys, time\n"
            "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):\n"
            "    signal.signal(s, lambda s, _: (os.write(1, b'got %d\\n' % s), sys.exit(85)))\n"
            "print('ready', flush=True); time.sleep(60)")
    process = lab.start(*log, "--", sys.executable, "-c", code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (85, f"got {int(number)}\n")


def test_unknown_command(lab):
    assert "nosuchprogram" in error(lab.run("--", "nosuchprogram"), 127)


# --- mistakes ---

@pytest.mark.parametrize("arguments, says", [
    (["--nogpu", "--", "true"], "--nogpu"),
    (["--ngpus=1", "--", "true"], "--ngpus"),
    (["true"], "after --"),
    (["--"], "no command"),
    ([], "no command"),
    (["--ngpu", "--", "true"], "--ngpu needs a value"),
    (["--image"], "--image needs a value"),
    (["--ngpu", "two", "--", "true"], "'two'"),
    (["--nodes", "0", "--", "true"], "'0'"),
    (["--engine", "lxc", "--", "true"], "'lxc'"),
    (["--backend", "pbs", "--", "true"], "'pbs'"),
    (["--engine", "podman", "--", "true"], "--image"),
    (["--engine", "docker", "--", "true"], "--image"),
    (["--engine", "apptainer", "--", "true"], "--image"),
    (["--engine", "singularity", "--", "true"], "--image"),
    (["--nodes", "2", "--", "true"], "need --backend slurm"),
    (["--procs", "2", "--", "true"], "need --backend slurm"),
    (["--array", "no", "--", "true"], "'no'"),
    (["--array", "3", "--procs", "2", "--", "true"], "one process"),
])
def test_wrong_usage_is_one_line_and_status_2(lab, arguments, says):
    assert says in error(lab.run(*arguments), 2)


def test_help(lab):
    done = lab.run("--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage") and "SPEECHLAB_BINDS" in done.stdout


@pytest.mark.parametrize("nested, ran", [("", "true"), ("1", "podman")])
def test_inside_a_container(lab, nested, ran):
    done = lab.run("--dry_run", "--", "true", APPTAINER_CONTAINER="/x.sif", SPEECHLAB_ENGINE="podman",
                   SPEECHLAB_IMAGE="i", SPEECHLAB_NESTED=nested)
    assert done.stdout.split()[1] == ran


# --- GPUs ---

@pytest.mark.skipif(GPU_HERE, reason="this machine has a GPU")
def test_no_gpu_says_what_was_looked_for(lab):
    line = error(lab.run("--ngpu", "1", "--", "true"))
    assert "nvidia-smi not found" in line and "/dev/nvidia" in line and "MPS" in line and "--ngpu 0" in line
    assert error(lab.run("--", "true", SPEECHLAB_NGPU="1")) == line


def test_gpus_are_counted(lab):
    lab.program("nvidia-smi", "printf 'GPU 0: NVIDIA A (UUID: GPU-1)\\nGPU 1: NVIDIA A (UUID: GPU-2)\\n'")
    show = ["sh", "-c", "echo \"${CUDA_VISIBLE_DEVICES-unset} $SPEECHLAB_NGPU\""]
    assert lab.run("--ngpu", "2", "--", *show).stdout == "unset 2\n"
    assert lab.run("--ngpu", "1", "--", *show, CUDA_VISIBLE_DEVICES="1").stdout == "1 1\n"
    assert lab.run("--", *show, CUDA_VISIBLE_DEVICES="1").stdout == " 0\n"
    assert "2 usable" in error(lab.run("--ngpu", "3", "--", "true"))
    assert "1 usable" in error(lab.run("--ngpu", "2", "--", "true", CUDA_VISIBLE_DEVICES="1"))
    assert "0 usable" in error(lab.run("--ngpu", "1", "--", "true", CUDA_VISIBLE_DEVICES=""))
    assert "0 usable" in error(lab.run("--ngpu", "1", "--", "true", CUDA_VISIBLE_DEVICES="-1"))
