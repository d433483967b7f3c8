"""How many CPU cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable(root: Path = Path("/")) -> int:
    """The cores that this process is bound to (taskset, a cluster, a container), and no more than the CPU time of its
    control groups is worth: ``docker run --cpus 2`` shows all of a machine's cores, and gives the time of two.

    Args:
        root: what stands for ``/`` in a test.
    Returns:
        At least 1. ``tools/recipe.sh`` counts the same way for ``--nj``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(root) or cores))


def _quota(root: Path) -> int:
    """The CPU time that the control groups allow, in cores and rounded up; 0: no limit is known."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    limits = []
    for line in lines:
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            top, version = root / "sys/fs/cgroup", 2
        elif "cpu" in controllers.split(","):
            top, version = root / "sys/fs/cgroup/cpu", 1
        else:
            continue
        group = top / path.strip("/")
        # A group has no more than those above it; in a container its own may be the topmost that is seen.
        for folder in (group, *group.parents):
            limits.append(_limit(folder, version))
            if folder == top:
                break
    return min((limit for limit in limits if limit), default=0)


def _limit(folder: Path, version: int) -> int:
    """What one group allows, in cores; 0: no limit."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return -(-int(quota) // int(period)) if int(quota) > 0 else 0
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return 0
