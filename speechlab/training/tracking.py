"""What a run leaves while it runs: train.log, metrics.jsonl, TensorBoard, env.json."""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torchaudio", "lhotse", "jiwer", "numpy", "sentencepiece", "soundfile")


def environment(device: torch.device, **more: Any) -> dict[str, Any]:
    """What somebody needs to know to repeat a run: versions, commit, host, device, container, command line."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build: +cpu, +cu130
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    container = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SPEECHLAB_IMAGE") or (
        "podman" if Path("/run/.containerenv").exists() else "docker" if Path("/.dockerenv").exists() else "")
    return {
        "versions": versions, "git": _git(), "host": platform.node(), "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {_cpu()}",
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "container": container,
        "engine": os.environ.get("SPEECHLAB_ENGINE", "none"),
        "command": " ".join(["python", "-m", "speechlab.train", *map(shlex.quote, sys.argv[1:])]), **more,
    }


def _git() -> str:
    try:
        found = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
                               capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def memory_gb(device: torch.device) -> float:
    """The peak so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Tracker:
    """Writes a run's metrics; only the first process makes one.

    Args:
        exp: the experiment's folder.
        step: the step that the run goes on from: later lines of an interrupted run are dropped, not written twice.
        tensorboard: write event files too.
    """

    def __init__(self, exp: Path, step: int = 0, tensorboard: bool = True):
        self.path = exp / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if (record := _record(line)) and record.get("step", 0) <= step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(exp / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and every number on TensorBoard."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def _record(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a run that was killed while it wrote
        return None


def start_log(exp: Path) -> logging.Logger:
    """The logger ``speechlab``: train.log with dates, and plain lines on stdout."""
    log = logging.getLogger("speechlab")
    log.setLevel(logging.INFO)
    log.handlers.clear()
    log.propagate = False
    out = logging.StreamHandler(sys.stdout)
    out.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(exp / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(out)
    log.addHandler(file)
    return log
