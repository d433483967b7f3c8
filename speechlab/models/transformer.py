"""The Transformer encoder (Vaswani et al. 2017, arXiv 1706.03762; for speech: Dong, Xu and Xu 2018), pre-norm, with
rotary positions inside the attention, as in conformer.py."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.models.layers import (
    Attention,
    FeedForward,
    SharedDropout,
    Subsampling,
    UtteranceNorm,
    padding_mask,
    rotation_table,
)


class Stacking(nn.Module):
    """(B, T, bins) -> (B, ceil(T / factor), d): ``factor`` frames side by side, and a linear layer over them."""

    def __init__(self, bins: int, d: int, factor: int = 4):
        super().__init__()
        self.factor = factor
        self.out = nn.Linear(factor * bins, d)
        self.norm = UtteranceNorm(d)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x * padding_mask(lengths, x.shape[1])[:, :, None].to(x.dtype)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        lengths = (lengths + self.factor - 1) // self.factor
        x = self.out(x.reshape(x.shape[0], -1, self.factor * x.shape[2]))
        return self.norm(x, padding_mask(lengths, x.shape[1])), lengths


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, d: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = Attention(d, heads)
        self.feed_forward = FeedForward(d, hidden, dropout)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.dropout(self.attention(x, mask, rotation))
        return x + self.dropout(self.feed_forward(x))


class Transformer(nn.Module):
    """An encoder ``(x, lengths) -> (y, lengths)`` of Transformer blocks over subsampled features.

    Args:
        input_size: number of feature bins (not set in the config: the features say it).
        d: width.
        heads: attention heads.
        layers: number of blocks.
        hidden: inner width of the feed-forward layers (4 d by default).
        front: ``stack`` puts ``subsampling`` frames side by side; ``conv`` learns strided convolutions, of which the
            first is two-dimensional.
        subsampling: 2, 4 or 8 input frames become one frame of the blocks (any number for ``stack``).
        channels: of the two-dimensional layer of ``conv``.
        dropout: probability; the mask is shared over time.
    Shapes:
        x (B, T, input_size), lengths (B,) -> y (B, ceil(T / subsampling), d), lengths (B,).
    """

    def __init__(self, input_size: int, d: int = 144, heads: int = 4, layers: int = 6, hidden: int | None = None,
                 front: Literal["stack", "conv"] = "stack", subsampling: int = 4, channels: int = 8,
                 dropout: float = 0.1):
        super().__init__()
        if front not in ("stack", "conv"):
            raise ValueError(f"front = {front} must be stack or conv")
        self.output_size, self.heads = d, heads
        self.subsampling = Stacking(input_size, d, subsampling) if front == "stack" else \
            Subsampling(input_size, d, subsampling, channels)
        self.dropout = SharedDropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(d, heads, hidden or 4 * d, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.subsampling(x, lengths)
        x = self.dropout(x)
        mask = padding_mask(lengths, x.shape[1])
        rotation = rotation_table(x.shape[1], self.output_size // self.heads, x.device, x.float().dtype)
        for block in self.blocks:
            x = block(x, mask, rotation)
        return self.norm(x), lengths
