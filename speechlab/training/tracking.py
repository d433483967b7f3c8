"""Writes what a run leaves: train.log, metrics.jsonl, pictures, env.json; TensorBoard and wandb if asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import netrc
import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.files import atomic, write_text

log = logging.getLogger("speechlab")
PACKAGES = ("torchaudio", "lhotse", "jiwer", "numpy", "sentencepiece", "soundfile")


def environment(device: torch.device, **more: Any) -> dict[str, Any]:
    """What a person needs to repeat a run: versions, commit, host, device, container, command line."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with the build: +cpu, +cu130
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    engine, image = container()
    return {
        "versions": versions, "git": _git(), "host": platform.node(), "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {_cpu()}",
        "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,  # of the machine; not all may be in use
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
        "engine": engine, "container": image, "image_id": os.environ.get("SPEECHLAB_IMAGE_ID", ""),
        **({"slurm": {"job": os.environ["SLURM_JOB_ID"], "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
                      "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}}
           if os.environ.get("SLURM_JOB_ID") else {}),
        "command": " ".join(["python", "-m", "speechlab.train", *map(shlex.quote, sys.argv[1:])]), **more,
    }


def container() -> tuple[str, str]:
    """The container engine that we run in (``none`` on a plain host), and its image if that is known.

    cmd.sh tells both. If a person has started the recipe inside a container by hand, the marks of the engine tell. A
    docker container of another image than ours counts as ``none``: it is used like a machine (development, CI).
    """
    name, _, image = os.environ.get("SPEECHLAB_CONTAINER", "").partition(":")
    if name in ("apptainer", "singularity", "podman", "docker"):
        return name, image
    for engine in ("apptainer", "singularity"):
        if path := os.environ.get(f"{engine.upper()}_CONTAINER"):
            return engine, path
    try:
        lines = Path("/run/.containerenv").read_text(encoding="utf-8").splitlines()
        return "podman", next((line[7:-1] for line in lines if line.startswith('image="')), "")
    except OSError:
        return ("docker" if name else "none"), ""


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
    """The peak of this process so far, in GB: of the GPU's allocator, or of the process's memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Tracker:
    """Writes a run's metrics. Only the first process of a training has one.

    Args:
        exp: the experiment's folder.
        step: the step from which the run goes on. Lines of later steps, left by an interrupted run, are removed: these
            steps will be done again.
        tensorboard: write event files too.
        histograms: write histograms of weights and gradients to TensorBoard every so many epochs (0: never).
        wandb: log to Weights & Biases too: online if the user is logged in, else into ``exp/wandb``.
    Raises:
        UserError: ``wandb`` without its package.
    """

    def __init__(self, exp: Path, step: int = 0, tensorboard: bool = True, histograms: int = 1, wandb: bool = False):
        self.exp, self.path, self.every = exp, exp / "metrics.jsonl", histograms
        self.wandb = _wandb(exp) if wandb else None  # before anything is written, since it may raise an error
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        kept = [line for line in lines if (record := _record(line)) and record.get("step", 0) <= step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(exp / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line to metrics.jsonl, and its numbers to TensorBoard and wandb.

        A number that is not finite (e.g. the loss of skipped steps) is null in metrics.jsonl, as JSON has no NaN, and
        is not sent to TensorBoard and wandb.
        """
        values = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in values.items()}
        self.file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n")
        self.file.flush()
        numbers = {f"{kind}/{name}": value for name, value in values.items()
                   if isinstance(value, (int, float)) and name != "epoch"}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log({**numbers, "step": step, "epoch": values.get("epoch", 0)})

    def look_inside(self, epoch: int, step: int, model: nn.Module, images: dict[str, Any],
                    captions: dict[str, str] | None = None) -> None:
        """After an epoch, write the task's pictures, and histograms of weights and gradients (those of the last step,
        clipped).

        ``images``: uint8 (H, W) or (H, W, 3), by name. ``images["layers"]`` becomes ``exp/layers/epoch-01.png``.
        ``captions["layers"]``, which says how to read it, becomes ``exp/layers/caption.txt``.
        """
        for name, text in (captions or {}).items():
            write_text(self.exp / name / "caption.txt", text + "\n")
        for name, image in images.items():
            pixels = np.asarray(image)
            pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
            with atomic(self.exp / name / f"epoch-{epoch:02d}.png") as aside:
                _write_png(aside, pixels)
            if self.board is not None:
                self.board.add_image(name, pixels, step, dataformats="HWC")
            if self.wandb is not None:
                self.wandb.log({name: _wandb_package().Image(pixels), "step": step, "epoch": epoch})
        if self.board is not None and self.every and epoch % self.every == 0:
            for name, parameter in model.named_parameters():
                for what, values in (("weights", parameter), ("gradients", parameter.grad)):
                    if values is not None:
                        self._histogram(f"{what}/{name.replace('.', '/')}", values.detach(), step)

    def _histogram(self, name: str, values: Tensor, step: int) -> None:
        """Write a histogram of 64 bins, counted on the tensor's device. (TensorBoard's own function has 1,500 bins and
        takes a second per epoch.)"""
        finite = values.float()[values.isfinite()]
        if finite.numel() == 0:
            return
        low, high = (float(edge) for edge in finite.aminmax())
        counts = torch.histc(finite, 64, low, high).tolist()  # if low == high, torch widens the range by one
        low, high = (low - 1, high + 1) if low == high else (low, high)
        edges = [low + (high - low) * (i + 1) / 64 for i in range(64)]
        self.board.add_histogram_raw(
            name, min=low, max=high, num=finite.numel(), sum=float(finite.sum()), sum_squares=float((finite**2).sum()),
            bucket_limits=edges, bucket_counts=counts, global_step=step)

    def finish(self, metrics: dict[str, float]) -> None:
        """Write the settings (``exp/config.yaml``) together with the run's final metrics, for comparing runs: on
        TensorBoard's page HParams and in wandb's summary."""
        try:
            settings = flat(yaml.safe_load((self.exp / "config.yaml").read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, AttributeError):
            settings = {}
        metrics = {f"final/{name}": float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) and math.isfinite(value)}
        if self.board is not None:
            from torch.utils.tensorboard.summary import hparams

            for part in hparams(settings, metrics):  # not add_hparams(), which would make another run
                self.board.file_writer.add_summary(part)
            for name, value in metrics.items():
                self.board.add_scalar(name, value)
        if self.wandb is not None:
            self.wandb.config.update(settings, allow_val_change=True)
            self.wandb.summary.update(metrics)

    def close(self) -> None:
        """Write what is still in memory, and close all files."""
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish(quiet=True)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as ``{"optim.lr": 0.1, ...}``, lists as text: tables of hyper-parameters can hold this."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return found


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image  # it is installed with matplotlib, which draws curves.png

    Image.fromarray(pixels.astype(np.uint8)).save(path, format="png")


def _wandb_package() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb needs the package wandb: pip install 'wandb==0.28.2' (the extra `wandb` of "
                        "setup.py), or leave train.wandb out: TensorBoard's files are written anyway") from None
    return wandb


def _wandb(exp: Path) -> Any:
    """Open a wandb run, with a name by which a resumed training finds it again. It is offline unless the user is logged
    in or WANDB_MODE says otherwise."""
    package = _wandb_package()
    exp = exp.resolve()
    recipe = exp.parent.parent.name if exp.parent.name == "exp" else exp.parent.name
    mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    if mode == "offline":
        log.info("wandb: not logged in: writing to %s/wandb (wandb login; wandb sync sends it later)", exp)
    try:
        # Its own output would be mixed with the lines of train.log. Code and git state are in env.json already.
        settings = package.Settings(console="off", silent=True, save_code=False, disable_git=True)
        run = package.init(project=recipe, name=exp.name, id=hashlib.sha256(str(exp).encode()).hexdigest()[:12],
                           resume="allow", dir=str(exp), mode=mode, settings=settings)
    except Exception as error:  # errors of many kinds, of wandb and its libraries
        raise UserError(f"train.wandb: wandb can't start ({error}): WANDB_MODE=offline writes files alone") from None
    run.define_metric("*", step_metric="step")  # a resumed run writes no step twice, but may begin at any
    return run


def _logged_in() -> bool:
    """True if wandb would find a key: in the environment, or for its server in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _record(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a run that was killed while it wrote
        return None


class _Log(logging.FileHandler):
    """train.log: where it can't be written, the training ends with that error, instead of a traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self.baseFilename
        raise


def start_log(exp: Path) -> logging.Logger:
    """Start the logger ``speechlab``. It writes lines with dates to train.log, and plain lines to stdout."""
    log = logging.getLogger("speechlab")
    log.setLevel(logging.INFO)
    stop_log()
    log.handlers.clear()
    log.propagate = False
    out = logging.StreamHandler(sys.stdout)
    out.setFormatter(logging.Formatter("%(message)s"))
    file = _Log(exp / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(out)
    log.addHandler(file)
    return log


def stop_log() -> None:
    """Close train.log: a notebook goes on after its training."""
    log = logging.getLogger("speechlab")
    for handler in [handler for handler in log.handlers if isinstance(handler, _Log)]:
        log.removeHandler(handler)
        handler.close()
