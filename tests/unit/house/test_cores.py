"""How many cores we may use: speechlab/cores.py, and the same count in tools/recipe.sh."""

import os
import subprocess
from pathlib import Path

import pytest

from speechlab import cores

RECIPE = Path(__file__).resolve().parents[3] / "tools" / "recipe.sh"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A made-up /, with this /proc/self/cgroup and these files under /sys/fs/cgroup."""
    whole = {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}
    for name, text in whole.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def shell(root: Path, bound: int, tmp_path: Path, **env: str) -> int:
    """What recipe.sh counts where nproc says ``bound``."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    nproc = tmp_path / "bin" / "nproc"
    nproc.write_text(f'#!/bin/sh\necho "${{OMP_NUM_THREADS:-{bound}}}"\n')  # as coreutils has it
    nproc.chmod(0o755)
    code = 'set -euo pipefail; eval "$(sed -n "/^_cores() {/,/^}/p" "$1")"; _cores "$2"'
    done = subprocess.run(["bash", "-c", code, "-", RECIPE, root], text=True, capture_output=True, check=True,
                          env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **env})
    assert done.stderr == ""
    return int(done.stdout)


@pytest.mark.parametrize("cgroup, files, bound, wanted", [
    ("0::/\n", {"cpu.max": "max 100000\n"}, 8, 8),
    ("0::/\n", {"cpu.max": "200000 100000\n"}, 8, 2),  # docker run --cpus 2
    ("0::/\n", {"cpu.max": "250000 100000\n"}, 8, 3),  # the third has half of its time: better than none
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 8, 1),
    ("0::/\n", {"cpu.max": "800000 100000\n"}, 4, 4),  # bound to fewer than it has time for
    ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 8, 3),  # the group above
    ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "200000 100000\n"}, 8, 2),
    ("0::/of/the host\n", {"cpu.max": "200000 100000\n"}, 8, 2),  # a container that does not see its group's path
    ("5:cpuset:/\n3:cpu,cpuacct:/x y\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 8, 2),
    ("3:cpuacct,cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8, 1),
    ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8, 8),
    ("1:cpuset:/\n", {"cpu.max": "100000 100000\n"}, 8, 8),  # not ours
    ("", {}, 8, 8),
    ("nonsense\n", {"cpu.max": "\n"}, 8, 8),
])
def test_bound_and_paid_for(tmp_path, monkeypatch, cgroup, files, bound, wanted):
    root = machine(tmp_path / "root 一", cgroup, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
    assert cores.usable(root) == wanted
    assert shell(root, bound, tmp_path) == wanted


def test_where_nothing_is_known(tmp_path):
    """A Mac has no /proc."""
    assert cores.usable(tmp_path / "none") == shell(tmp_path / "none", cores.usable(tmp_path / "none"), tmp_path)


def test_threads_are_not_cores(tmp_path):
    assert shell(tmp_path, 4, tmp_path, OMP_NUM_THREADS="1", OMP_THREAD_LIMIT="1") == 4
