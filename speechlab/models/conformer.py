"""The Conformer encoder (Gulati et al. 2020, arXiv 2005.08100), written to be read and to be fast on a CPU too.

What differs from the paper, and why:

* Positions are rotary (Su et al. 2021, arXiv 2104.09864): relative as in the paper, but inside the fused attention.
* The convolution module and the front end normalise each channel over the utterance's own frames
  (:class:`UtteranceNorm`). Like the paper's BatchNorm, this removes what all frames have in common, which would keep a
  CTC model on its all-blank plateau for long; LayerNorm cannot do that. Unlike with BatchNorm, neither padding nor the
  rest of the batch changes an utterance's output, and training and inference compute the same.
* Dropout draws one mask per utterance and channel, and shares it over time (Gal & Ghahramani 2016, arXiv 1512.05287):
  on a CPU, drawing one number per element takes long.
* The front end is one thin two-dimensional layer, then one-dimensional layers over time with the mel bins as channels.
  The usual two full two-dimensional layers cost more than the whole encoder behind them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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

Between = Callable[[int, Tensor, Tensor], Tensor]


class Halving(nn.Module):
    """(B, T, d) -> (B, ceil(T / 2), d): two neighbouring frames side by side, and a linear layer over them."""

    def __init__(self, d: int):
        super().__init__()
        self.out = nn.Linear(2 * d, d)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x * padding_mask(lengths, x.shape[1])[:, :, None].to(x.dtype)
        x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
        return self.out(x.reshape(x.shape[0], -1, 2 * x.shape[2])), (lengths + 1) // 2


class ConvModule(nn.Module):
    """LayerNorm, gated pointwise, depthwise over ``kernel`` frames, UtteranceNorm, SiLU, pointwise."""

    def __init__(self, d: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the convolution's kernel must be odd, not {kernel}")
        self.norm = nn.LayerNorm(d)
        self.gate = nn.Linear(d, 2 * d)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d)
        self.inner_norm = UtteranceNorm(d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = F.glu(self.gate(self.norm(x)), dim=-1) * mask[:, :, None].to(x.dtype)
        # Computed as on an image, T high and 1 wide, in channels-last layout, which (B, T, d) already has. On a CPU
        # this is 3-4 times as fast as conv1d if T is at least the kernel (oneDNN of torch 2.11).
        size, kernel = x.shape[1], self.depthwise.kernel_size[0]
        x = F.pad(x, (0, 0, 0, max(0, kernel - size))).transpose(1, 2)[:, :, :, None]
        x = F.conv2d(x, self.depthwise.weight[:, :, :, None], self.depthwise.bias, padding=(kernel // 2, 0),
                     groups=x.shape[1])
        x = x[:, :, :size, 0].transpose(1, 2)
        return self.out(F.silu(self.inner_norm(x, mask)))


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm; each with a residual."""

    def __init__(self, d: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        self.before = FeedForward(d, hidden, dropout)
        self.attention = Attention(d, heads)
        self.convolution = ConvModule(d, kernel)
        self.after = FeedForward(d, hidden, dropout)
        self.norm = nn.LayerNorm(d)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + 0.5 * self.dropout(self.before(x))
        x = x + self.dropout(self.attention(x, mask, rotation))
        x = x + self.dropout(self.convolution(x, mask))
        x = x + 0.5 * self.dropout(self.after(x))
        return self.norm(x)


class Conformer(nn.Module):
    """An encoder ``(x, lengths) -> (y, lengths)`` of Conformer blocks over subsampled features.

    Args:
        input_size: number of feature bins (not set in the config: the features say it).
        d: width.
        heads: attention heads.
        layers: number of blocks.
        hidden: inner width of the feed-forward layers (4 d by default).
        kernel: frames of the depthwise convolution (odd).
        subsampling: 2, 4 or 8 input frames become one frame of the first block.
        halve_after: the number of blocks after which time is halved once more (0: never), as in Efficient Conformer
            (Burchi and Vielzeuf 2021, arXiv 2109.01163): sounds need the finer frames, words do not.
        channels: of the front end's two-dimensional layer.
        dropout: probability; the mask is shared over time.
    Shapes:
        x (B, T, input_size), lengths (B,) -> y (B, T', d), lengths (B,), where T' is ceil(T / subsampling), and half of
        it with ``halve_after``.
    """

    def __init__(self, input_size: int, d: int = 144, heads: int = 4, layers: int = 6, hidden: int | None = None,
                 kernel: int = 15, subsampling: int = 4, halve_after: int = 0, channels: int = 8, dropout: float = 0.1):
        super().__init__()
        self.output_size = d
        self.heads = heads
        self.subsampling = Subsampling(input_size, d, subsampling, channels)
        self.dropout = SharedDropout(dropout)
        self.halve_after = halve_after
        self.halving = Halving(d) if halve_after else None
        self.blocks = nn.ModuleList(ConformerBlock(d, heads, hidden or 4 * d, kernel, dropout) for _ in range(layers))

    def forward(self, x: Tensor, lengths: Tensor, between: Between | None = None) -> tuple[Tensor, Tensor]:
        """``between(number, x, lengths) -> x``, if given, gets the output of each block (from 1) and may change it."""
        x, lengths = self.subsampling(x, lengths)
        x = self.dropout(x)
        mask, rotation = self._positions(x, lengths)
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, rotation)
            if between is not None:
                x = between(number, x, lengths)
            if number == self.halve_after:
                x, lengths = self.halving(x, lengths)
                mask, rotation = self._positions(x, lengths)
        return x, lengths

    def _positions(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        table = rotation_table(x.shape[1], self.output_size // self.heads, x.device, torch.float32)
        return padding_mask(lengths, x.shape[1]), table
