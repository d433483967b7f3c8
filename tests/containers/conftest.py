"""The engines, brought up by podman_up.sh and apptainer_up.sh (minutes and about 6 GB each the first time).

SPEECHLAB_TEST_IMAGE names an image that podman has already, SPEECHLAB_TEST_SIF a SIF, instead.
"""

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Engine:
    """One engine: the environment in which cmd.sh and run.sh use it."""

    def __init__(self, name: str, env: dict[str, str]):
        self.name, self.env, self.image = name, env, env["SPEECHLAB_IMAGE"]

    def run(self, *command: str | Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(word) for word in command], cwd=cwd, env={**self.env, **more}, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True)

    def start(self, *command: str | Path, cwd: Path, **more: str) -> subprocess.Popen:
        return subprocess.Popen([str(word) for word in command], env={**self.env, **more}, cwd=cwd, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def left(self, mark: str) -> list[str]:
        """What still runs: the engine's containers, and processes with ``mark`` in their command line."""
        found = []
        if self.name == "podman":
            found = subprocess.run(["podman", "ps", "--all", "--quiet", "--filter", "label=speechlab.client"],
                                   env=self.env, text=True, capture_output=True, check=True).stdout.split()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if mark in words and path.parent.name != str(os.getpid()):
                found.append(words.replace("\0", " "))
        return found


def brought_up(name: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SPEECHLAB_")}
    env.setdefault("OMP_NUM_THREADS", "1")  # see tools/test.sh
    image = os.environ.get("SPEECHLAB_TEST_IMAGE") if name == "podman" else None
    if image:
        return {**env, "SPEECHLAB_ENGINE": name, "SPEECHLAB_IMAGE": image, "SPEECHLAB_NESTED": "1"}
    if os.environ.get("SPEECHLAB_TEST_SIF"):
        env["SPEECHLAB_TEST_SIF"] = os.environ["SPEECHLAB_TEST_SIF"]
    script = ROOT / "tests" / "containers" / f"{name}_up.sh"
    done = subprocess.run([script], env=env, text=True, capture_output=True)
    if done.returncode:
        pytest.skip(f"{name} can't be brought up: {done.stderr.strip().splitlines()[-1]}")
    exports = shlex.split(done.stdout.strip().splitlines()[-1])[1:]
    return {**env, **dict(word.split("=", 1) for word in exports)}


@pytest.fixture(scope="session")
def bring_up() -> Callable[[str], dict[str, str]]:
    """Brings an engine up by its name, and returns the environment in which cmd.sh uses it."""
    return brought_up


@pytest.fixture(scope="session", params=["podman", "apptainer"])
def engine(request, tmp_path_factory) -> Engine:
    env = brought_up(request.param)
    # Interrupts reach a test's children alone, whatever whoever started pytest ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return Engine(request.param, {**env, "SPEECHLAB_CACHE": str(tmp_path_factory.mktemp("cache"))})


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A copy of the repository, at a path with a space and hanzi, its downloads on another disk behind a link."""
    root = tmp_path / "实验室 one"
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "data", "exp", "log", ".stages")
    for name in ("egs", "tools", "containers"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copytree(ROOT / "speechlab", root / "speechlab", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "big disk").mkdir()
    (root / "downloads").symlink_to(tmp_path / "big disk")
    return root
