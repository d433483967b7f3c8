"""Checkpoints that are whole or refused. Each is written to another name, flushed to the disk and renamed; its checksum
is written last.

A checkpoint ``<name>.pt`` is only valid with a matching ``<name>.pt.sha256`` beside it. When the disk was full or the
machine died while the newest one was written, the one before is loaded.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechlab.errors import UserError
from speechlab.files import atomic, sha256, write_text

log = logging.getLogger("speechlab")


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, texts, lists, mappings) so that ``path`` is never half a checkpoint."""
    path = Path(path)
    checksum = path.with_name(path.name + ".sha256")
    with atomic(path) as aside:
        aside.touch()  # where that is not allowed, Python says why
        try:
            torch.save(state, aside)
        except RuntimeError as error:  # torch's writer does not say why it could not write
            if shutil.disk_usage(aside.parent).free < 16 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        digest = sha256(aside)
        checksum.unlink(missing_ok=True)  # that of an old file: until the new one is written, the checkpoint is invalid
    write_text(checksum, digest + "\n")


def load(path: str | Path) -> dict[str, Any]:
    """Read one checkpoint to the CPU (``weights_only=True``); UserError if it is missing or damaged."""
    path = Path(path)
    checksum = path.with_name(path.name + ".sha256")
    if not path.exists():
        raise UserError(f"no checkpoint {path}: train first (./run.sh --stage 4)")
    if not checksum.exists():
        raise UserError(f"checkpoint {path} has no {checksum.name} beside it: it was copied without it, or never "
                        "written to its end")
    if checksum.read_text().strip() != sha256(path):
        raise UserError(f"checkpoint {path} is damaged (its checksum is not the one in {checksum.name}): delete it, or "
                        "copy it again; training goes on from the one before")
    return torch.load(path, map_location="cpu", weights_only=True)


def steps(folder: str | Path) -> list[Path]:
    """The training checkpoints ``step-N.pt`` in ``folder``, oldest first."""
    found = [(int(m[1]), p) for p in Path(folder).glob("step-*.pt") if (m := re.fullmatch(r"step-(\d+)\.pt", p.name))]
    return [p for _, p in sorted(found)]


def load_latest(folder: str | Path) -> dict[str, Any] | None:
    """The newest good training checkpoint; None if there is no file. A warning says why a bad one is passed over.

    Raises:
        UserError: if there are checkpoints and none is good; a fresh start without a word would lose them.
    """
    found = steps(folder)
    for path in reversed(found):
        try:
            return load(path)
        except UserError as error:
            log.warning("%s", error)
    if found:
        raise UserError(f"none of the {len(found)} checkpoints in {folder} can be read: run with --force to train "
                        "afresh (they are moved aside)")
    return None


def prune(folder: str | Path, keep: int) -> None:
    """Remove all but the newest ``keep`` training checkpoints."""
    for path in steps(folder)[:-keep]:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """The state of all global random generators, in types that ``weights_only`` loading reads."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss], "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators back to what :func:`random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def average(weights: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of several state dicts, computed in float64; integer entries are taken from the last one."""
    mean = {}
    for name, last in weights[-1].items():
        if last.is_floating_point():
            mean[name] = torch.stack([w[name].double() for w in weights]).mean(0).to(last.dtype)
        else:
            mean[name] = last
    return mean
