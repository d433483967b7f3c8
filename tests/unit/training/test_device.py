"""What CPUs keep of shapes they have seen is bounded, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.mark.parametrize("given", [None, "300"])
def test_the_caches_are_bounded_before_the_first_operation(given):
    code = f"import os, speechlab.training.loop; print(*(os.environ[n] for n in {NAMES}))"
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env=env | (dict.fromkeys(NAMES, given) if given else {}))
    assert done.stdout.split() == [given or "16"] * 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_many_shapes_need_little_memory():
    """A thousand shapes of a linear layer in bf16, computed by oneDNN: little stays of them, much without a bound."""
    code = """
import torch
import speechlab.training.device
layer = torch.nn.Linear(512, 512).bfloat16()
# The peak since exec, in MB: ru_maxrss would start at what the process of the tests holds.
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
with torch.no_grad():
    layer(torch.randn(1200, 512).bfloat16())
    before = peak()
    for n in range(100, 1100):
        layer(torch.randn(n, 512).bfloat16())
print(peak() - before)
"""
    grown = {}
    for capacity in ("16", "1024"):
        env = os.environ | dict.fromkeys(NAMES, capacity) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, env=env)
        grown[capacity] = float(done.stdout)
    print(grown)
    if grown["1024"] < 30:
        pytest.skip(f"this CPU's kernels keep next to nothing: {grown}")
    assert grown["16"] < grown["1024"] / 2, grown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_free_memory_goes_back_to_the_system():
    """Every second of many small blocks is freed: the heap keeps the gaps until it is told to give them back."""
    code = """
import numpy as np
from speechlab.training.device import _malloc_trim, give_back
def now(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
if _malloc_trim() is None:
    print("skip"); raise SystemExit
blocks = [np.ones(12_000) for _ in range(3000)]  # 96 kB each: below the size that malloc maps by itself
full = now()
del blocks[::2]
kept = now()
give_back()
print(full, kept, now())
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_TOP_PAD_": "0", "GLIBC_TUNABLES": ""})
    if done.stdout.strip() == "skip":
        pytest.skip("no malloc_trim here")
    full, kept, after = map(float, done.stdout.split())
    assert full - kept < 40 and kept - after > 100, done.stdout
