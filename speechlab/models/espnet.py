"""ESPnet's encoders with the interface of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechlab.models.layers import padding_mask

_SHORTEST = 16  # frames: ESPnet's convolutional front ends refuse fewer than 7 (by 4) to 15 (by 8)


class ESPnetEncoder(nn.Module):
    """An ``espnet2`` encoder (``AbsEncoder``) as ``(x, lengths) -> (y, lengths)`` with ``output_size``.

    In ESPnet, an utterance's output depends on its batch: convolutions over time read the padding behind an utterance
    (15 frames or 0.6 s far in E-Branchformer), and front ends give a padded utterance a frame or two more than it has
    alone. Here padding never changes an answer. Outside of training, utterances of the same length are computed
    together, without padding. In training, the mask is cut to the frames that an utterance has alone, and what lies
    behind them is set to 0 before each convolution; otherwise the network would learn from frames that it never meets
    again.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.output_size: int = encoder.output_size()  # type: ignore[operator]
        self._sizes: dict[int, int] = {}  # frames before the front end -> behind it, of an utterance alone
        self._lengths: Tensor | None = None  # (B,) of the training batch, before the front end
        self._kept: Tensor | None = None  # (B, 1, T') behind the front end, True where there is no padding
        if isinstance(embed := getattr(encoder, "embed", None), nn.Module):
            embed.register_forward_hook(self._after_embed)
            for name, module in encoder.named_modules():
                if isinstance(module, nn.Conv1d) and not name.startswith("embed."):
                    module.register_forward_pre_hook(self._before_convolution)

    def _after_embed(self, embed: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A hook: in training, the front end's output with the mask cut; None leaves it as it is."""
        lengths, self._lengths = self._lengths, None
        if lengths is None or not isinstance(output, tuple) or len(args) < 2 or not isinstance(output[1], Tensor):
            return None
        for size in set(lengths.tolist()) - self._sizes.keys():
            with torch.no_grad():
                alone = args[0].new_zeros(1, size, args[0].shape[2])
                self._sizes[size] = int(embed(alone, args[1].new_ones(1, 1, size))[1].sum())
        sizes = torch.tensor([self._sizes[size] for size in lengths.tolist()])
        self._kept = padding_mask(sizes, output[1].shape[-1]).to(output[1].device)[:, None]
        return output[0], self._kept

    def _before_convolution(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """A hook: (B, channels, T') -> the same with zeros behind each utterance's end; None leaves it as it is."""
        if self._kept is None or self._kept.shape[-1] != args[0].shape[-1]:
            return None
        return (args[0].masked_fill(~self._kept, 0.0),)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, bins), lengths (B,) -> y (B, T', d), lengths (B,); y is 0 beyond an utterance's end."""
        if x.shape[1] < _SHORTEST:
            x = nn.functional.pad(x, (0, 0, 0, _SHORTEST - x.shape[1]))
        lengths = lengths.clamp(min=_SHORTEST)
        if self.training:
            self._lengths = lengths
            y, out, _ = self.encoder(x, lengths)
            self._kept = None
            return y, out
        parts: dict[int, Tensor] = {}
        sizes = torch.zeros_like(lengths)
        for size in lengths.unique().tolist():
            rows = (lengths == size).nonzero()[:, 0]
            y, out, _ = self.encoder(x[rows, :size], lengths[rows])
            sizes[rows] = out.to(sizes)
            parts.update(zip(rows.tolist(), y, strict=True))
        return nn.utils.rnn.pad_sequence([parts[i] for i in range(len(x))], batch_first=True), sizes


def adapt(encoder: nn.Module) -> nn.Module:
    """``encoder`` itself, or in its adapter if it is ESPnet's: there ``output_size`` is a method."""
    return ESPnetEncoder(encoder) if callable(getattr(encoder, "output_size", None)) else encoder
