"""Layers that encoders and decoders share. In all of them, padding never changes the output of an utterance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) bool, True where there is data."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


class SharedDropout(nn.Module):
    """Dropout of whole channels of an utterance, (B, T, C): one random draw per utterance and channel."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= self.p
        return x * (keep.to(x.dtype) / (1.0 - self.p))


class UtteranceNorm(nn.Module):
    """Gives each channel of x (B, T, C) mean 0 and variance 1 over an utterance's own frames, by a mask (B, T).

    This is instance normalisation (Ulyanov et al. 2016, arXiv 1607.08022) over time, without the padding. Frames beyond
    the end become 0. It is computed in float32.
    """

    def __init__(self, d: int, eps: float = 1e-3):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        valid = mask[:, :, None].float()
        count = mask.sum(1).clamp(min=1)[:, None, None]
        x = x.float()
        x = (x - (x * valid).sum(1, keepdim=True) / count) * valid
        variance = (x * x).sum(1, keepdim=True) / count
        return torch.addcmul(self.bias, x, self.weight * torch.rsqrt(variance + self.eps)) * valid


class Subsampling(nn.Module):
    """(B, T, bins) -> (B, ceil(T / factor), d): strided convolutions, each halving the time axis.

    Args:
        bins: feature bins of the input.
        d: output width.
        factor: 2, 4 or 8.
        channels: channels of the first, two-dimensional layer; it halves both time and frequency. 0 leaves it out.
    """

    def __init__(self, bins: int, d: int, factor: int = 4, channels: int = 8):
        super().__init__()
        if factor not in (2, 4, 8):
            raise ValueError(f"subsampling factor must be 2, 4 or 8, not {factor}")
        self.factor = factor
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1) if channels else None
        width = channels * ((bins + 1) // 2) if channels else bins
        count = factor.bit_length() - 1 - bool(channels)
        layers = []
        for _ in range(count):
            layers.append(nn.Conv1d(width, d, 3, stride=2, padding=1))
            width = d
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(width, d)
        self.norm = UtteranceNorm(d)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.first is not None:
            x = F.silu(self.first(x[:, None]))  # (B, C, T/2, bins/2)
            x = x.permute(0, 1, 3, 2).flatten(1, 2)  # (B, C * bins/2, T/2)
            lengths = (lengths + 1) // 2
        else:
            x = x.transpose(1, 2)
        for layer in self.layers:
            # The bias has written beyond each utterance's end, where the next layer would read it: set that to 0.
            x = x * padding_mask(lengths, x.shape[2])[:, None].to(x.dtype)
            x = F.silu(layer(x))
            lengths = (lengths + 1) // 2
        x = self.out(x.transpose(1, 2))
        return self.norm(x, padding_mask(lengths, x.shape[1])), lengths


class FeedForward(nn.Sequential):
    """LayerNorm, expand, SiLU, contract."""

    def __init__(self, d: int, hidden: int, dropout: float):
        super().__init__(nn.LayerNorm(d), nn.Linear(d, hidden), nn.SiLU(), SharedDropout(dropout), nn.Linear(hidden, d))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; (B, T, d) with a (B, T) mask of the valid frames."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        if d % heads or (d // heads) % 2:
            raise ValueError(f"d = {d} must be a multiple of heads = {heads}, with an even quotient")
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        y = attend(q, k, v, mask[:, None, None])
        return self.out(y.transpose(1, 2).reshape(b, t, d))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """torch's fused attention. On a CPU it is always in fp32, which is 5 times as fast as bf16 (torch 2.11)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)


def sinusoids(size: int, d: int, device: torch.device, first: int = 0) -> Tensor:
    """The absolute positions ``first`` to ``first + size`` as (size, d) float32: sines in the first half of the
    channels, cosines in the second, of wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017, section 3.5)."""
    frequency = 10000.0 ** (-torch.arange(0, d, 2, device=device) / d)
    angle = torch.arange(first, first + size, device=device)[:, None] * frequency[None]
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :d]


def rotation_table(size: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines, each (size, width / 2), of the rotary positions for heads of ``width`` channels."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(size, device=device)[:, None] * frequency[None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, H, T, width): each pair of channels i and i + width / 2, by the angle of its position."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
