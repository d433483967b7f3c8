"""One process or several: ``torchrun`` sets the environment, this reads it."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist
from torch import Tensor

from speechlab.errors import UserError


@dataclasses.dataclass(frozen=True)
class World:
    """Which process of how many this is, and the device that it trains on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes (in place)."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True in every process if it is in one: they must stop or skip at the same step."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)))


def start(ngpu: int) -> World:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on GPUs), or be alone.

    Raises UserError if GPUs are asked for and none can be used.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    if ngpu == 0:
        device = torch.device("cpu")
    elif torch.cuda.is_available() and torch.cuda.device_count() > local:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif torch.backends.mps.is_available() and size == 1:
        device = torch.device("mps")
    else:
        raise UserError(f"--ngpu {ngpu}: no usable GPU: torch {torch.__version__} sees {torch.cuda.device_count()} "
                        f"CUDA devices (built for CUDA {torch.version.cuda}) and no MPS; --ngpu 0 trains on the CPU")
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def stop(world: World) -> None:
    """Leave the group, so that a process that is done does not hang the others."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
