"""Speech recognition networks: an encoder with a CTC head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechlab.models.conformer import Conformer

__all__ = ["CTCModel", "Conformer"]


class CTCModel(nn.Module):
    """An encoder and one linear layer over its output: log-posteriors of the tokens, index 0 the blank.

    Args:
        encoder: ``(x, lengths) -> (y, lengths)`` with an attribute ``output_size``.
        vocab_size: tokens with the blank.
    Source: connectionist temporal classification, Graves et al. 2006.
    """

    def __init__(self, encoder: nn.Module, vocab_size: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, vocab_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins), (B,) -> log-posteriors (B, T', vocab) in float32, lengths (B,)."""
        y, lengths = self.encoder(x, lengths)
        return torch.log_softmax(self.head(y).float(), dim=-1), lengths
