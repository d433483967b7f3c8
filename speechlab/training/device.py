"""Number types and batches on a device, and a bound on what CPUs keep for shapes that they have seen."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from typing import Any

import torch

# oneDNN keeps compiled code and buffers for each shape that it has computed, 1,024 shapes by default. Batches of speech
# have a new shape nearly every time: a training grew by gigabytes and gained nothing (egs/aishell_asr/RESULTS.md). Both
# variables are read at the first operation on a CPU, so it is early enough here. What the user has set stays.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "16")


@functools.cache
def _malloc_trim() -> ctypes._CFuncPtr | None:
    """glibc's function, or None where the C library has none (macOS, musl)."""
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL("libc.so.6").malloc_trim if sys.platform == "linux" else None
    return None


def give_back() -> None:
    """Give free memory inside the heap back to the system.

    Tensors of a new size for nearly every batch leave gaps in the heap that glibc keeps: a process that trains on
    speech grows by some 100 MB per minute without this (egs/aishell_asr/RESULTS.md).
    """
    if trim := _malloc_trim():
        trim(0)


def amp_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """The number type for autocast that ``train.amp`` = ``choice`` means on a device; None for plain fp32."""
    if choice == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return torch.bfloat16 if fast else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch, a dict, with its tensors on ``device``."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def shape_of(batch: dict[str, Any]) -> str:
    """The shapes of a batch's tensors, for a message."""
    return ", ".join(f"{k} {tuple(v.shape)}" for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim > 1)
