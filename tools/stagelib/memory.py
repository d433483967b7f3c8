"""Finds out whether a stage was killed because memory ran out. Status 137 says only that it got SIGKILL, but the kernel
counts such kills.

We read the counters of the machine and of our control group (a Slurm job, a container). So it works for every way to
run a stage: on the host, in podman, docker or Apptainer.
"""

from __future__ import annotations

import os


def kills() -> int:
    """How many processes the kernel has killed for memory since the machine started; 0 if it doesn't tell."""
    return _field("/proc/vmstat", "oom_kill") or 0


def reason(before: int) -> str:
    """Why a process died with status 137; ``before`` is what ``kills()`` was when it started."""
    sizes = _sizes()
    if kills() > before:
        return f"killed for memory: the kernel needed it back ({sizes})"
    return f"killed from outside, often for memory ({sizes})"


def _sizes() -> str:
    total = _field("/proc/meminfo", "MemTotal:") or 0
    sizes = [f"this machine has {total / 2**20:.1f} GB"] if total else []
    limit = _limit()
    if limit and (not total or limit < total * 1024):
        sizes.append(f"this job may use {limit / 2**30:.1f} GB")
    sizes.append("a smaller batch, fewer --nj or data loaders, or a larger allocation helps")
    return "; ".join(sizes)


def _limit() -> int:
    """The smallest memory limit of the control groups we are in, in bytes; 0 if there is none."""
    limits = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return 0
    for _, controllers, path in groups:
        if controllers == "":  # control groups of version 2
            top, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        while True:
            try:
                with open(os.path.join(top + path, name), encoding="utf-8") as file:
                    limits.append(int(file.read()))
            except (OSError, ValueError):  # "max"
                pass
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return min(limits, default=0)


def _field(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                words = line.split()
                if words and words[0] == name:
                    return int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
