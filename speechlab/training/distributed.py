"""Training in one process or several. :func:`helpers` starts the others and tells each which one it is; Slurm's job
script (containers/lib/slurm_job.sh) and ``torchrun`` say it by the same variables."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechlab import cores
from speechlab.errors import UserError
from speechlab.training.interface import Trainable


@dataclasses.dataclass(frozen=True)
class World:
    """Which of the processes this is."""

    rank: int  # from 0
    size: int  # number of processes
    device: torch.device  # that this process trains on

    @property
    def first(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes (in place)."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: float) -> list[float]:
        """``value`` of each process, by rank; every process must call it at the same step."""
        row = torch.zeros(self.size, dtype=torch.float64 if self.device.type != "mps" else torch.float32,
                          device=self.device)
        row[self.rank] = value
        return self.sum(row).tolist()

    def any(self, flag: bool) -> bool:
        """True in every process if ``flag`` is true in one of them: all must stop at the same step."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)))


def start(ngpu: int) -> World:
    """Join the other processes, where there are any (by gloo on CPUs, by NCCL on GPUs).

    Raises:
        UserError: if GPUs are asked for and none can be used.
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


def share(accum: int, ngpu: int) -> int:
    """How many processes share the ``accum`` batches of a step. On GPUs: one for each. On CPUs: the most that divide
    the batches, at most one per core that we may use.

    Each process on a CPU has one thread. Two threads in one process would wait for each other at every small operation,
    and for a whole time slice whenever another program has one of the cores (measured: 10 times slower).

    Raises:
        UserError: if there are fewer GPUs than ``ngpu``, which is more than 1.
    """
    if "WORLD_SIZE" in os.environ:  # they are started already
        return 1
    if ngpu > 1 and torch.cuda.device_count() < ngpu:  # said once here, not by each of them
        raise UserError(f"--ngpu {ngpu}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices "
                        f"(built for CUDA {torch.version.cuda}); --ngpu 0 trains on the CPU")
    if ngpu:
        return ngpu
    return max(n for n in range(1, accum + 1) if accum % n == 0 and n <= cores.usable())


class Losses(nn.Module):
    """The task's loss as the forward pass of a module: DistributedDataParallel can only watch a module."""

    def __init__(self, task: Trainable):
        super().__init__()
        self.model = task.model
        self.task = [task]  # the list hides it: a task is not a submodule

    def forward(self, batch: Any, which: str) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.task[0].loss(batch, which)
        return loss.total, loss.count


LOST = ("one of the processes that share this training has ended (killed, for memory perhaps; its last words are "
        "above): the same command goes on from the last checkpoint")


SAVED = (0, 85, 130)  # exit statuses of one that ended as it should; the first may still be writing the checkpoint
GRACE = 10.0  # seconds in which the first process may say itself why it stops
_PARENT = "SPEECHLAB_FIRST_PID"  # by which one that was started here finds the first process


def _watch(started: list[subprocess.Popen], done: threading.Event) -> None:
    """End this process when another is gone; otherwise it would wait for that one for half an hour."""
    while not done.wait(1.0):
        if any(process.poll() not in (None, *SAVED) for process in started):
            if not done.wait(GRACE):  # this process may stop for the same reason: let it say which
                print(f"error: {LOST}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _follow(first: int) -> None:
    """End this process when the first is gone: on GPUs it would compute on nothing for minutes."""
    while os.getppid() == first:
        time.sleep(1.0)
    os._exit(1)


def places(processes: int, ngpu: int) -> list[dict[str, str]]:
    """What each of ``processes`` on this machine finds in its environment: torchrun's variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A thread of its own on a CPU, whatever the user has set (see `share`); beside a GPU the user may know better.
    threads = os.environ.get("OMP_NUM_THREADS", "1") if ngpu else "1"
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@contextlib.contextmanager
def helpers(processes: int, argv: list[str], ngpu: int = 0) -> Iterator[None]:
    """Start the command ``argv`` in ``processes`` - 1 more processes beside this one, which becomes rank 0; with
    ``ngpu`` each has the GPU of its LOCAL_RANK.

    They end with this one: after the last step, at a signal that rank 0 tells them of, or when this one is gone. The
    exit status is this one's own, also 85, "saved, start me again" (torchrun would make 1 of it).
    """
    if processes == 1:
        if _PARENT in os.environ:
            threading.Thread(target=_follow, args=(int(os.environ[_PARENT]),), daemon=True).start()
        yield
        return
    own, *others = places(processes, ngpu)
    started = [
        subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL,
                         env={**os.environ, **place, _PARENT: str(os.getpid())})
        for place in others
    ]
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    torch.set_num_threads(int(own["OMP_NUM_THREADS"]))
    done = threading.Event()
    threading.Thread(target=_watch, args=(started, done), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if any(process.poll() is not None for process in started):  # gloo's and NCCL's messages do not say why
            raise UserError(LOST) from error
        raise
    finally:
        done.set()
        for process in started:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def stop(world: World) -> None:
    """Leave the group of processes, so that the others do not wait for this one."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
