"""Number types and batches on a device."""

from __future__ import annotations

from typing import Any

import torch


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
