"""ESPnet's encoders behind this house's interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHORTEST = 16  # frames: ESPnet's convolutional front ends refuse fewer than 7 (by 4) to 15 (by 8)


class ESPnetEncoder(nn.Module):
    """An ``espnet2`` encoder (``AbsEncoder``) as ``(x, lengths) -> (y, lengths)`` with ``output_size``.

    ESPnet's convolutions read the padding behind an utterance, so what it answers depends on the batch. Here padding
    never changes an answer: outside of training, utterances of one length are computed together and without padding.
    In training it is as ESPnet trains.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.output_size: int = encoder.output_size()  # type: ignore[operator]

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins), (B,) -> (B, T', d), (B,); what is beyond an utterance's end is zero."""
        if x.shape[1] < _SHORTEST:
            x = nn.functional.pad(x, (0, 0, 0, _SHORTEST - x.shape[1]))
        lengths = lengths.clamp(min=_SHORTEST)
        if self.training:
            y, out, _ = self.encoder(x, lengths)
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
    """``encoder`` itself, or one of ESPnet's in its adapter: they have ``output_size`` as a method."""
    return ESPnetEncoder(encoder) if callable(getattr(encoder, "output_size", None)) else encoder
