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
        auxiliary_size, auxiliary_layer: a second head of so many units over the output of block ``auxiliary_layer``
            (from 1), for an encoder whose ``forward`` takes ``tap``; used in training only.
    Source: connectionist temporal classification, Graves et al. 2006; intermediate heads, Lee and Watanabe 2021
    (arXiv 2102.03216).
    """

    def __init__(self, encoder: nn.Module, vocab_size: int, auxiliary_size: int = 0, auxiliary_layer: int = 0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, vocab_size)
        self.auxiliary_layer = auxiliary_layer
        self.auxiliary_head = nn.Linear(encoder.output_size, auxiliary_size) if auxiliary_size else None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins), (B,) -> log-posteriors (B, T', vocab) in float32, lengths (B,)."""
        y, lengths = self.encoder(x, lengths)
        return log_posteriors(self.head(y)), lengths

    def forward_both(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, with the auxiliary head's log-posteriors (B, T', auxiliary_size) in the middle."""
        tap: list[Tensor] = []
        y, lengths = self.encoder(x, lengths, tap=tap)
        return log_posteriors(self.head(y)), log_posteriors(self.auxiliary_head(tap[self.auxiliary_layer - 1])), lengths


def log_posteriors(logits: Tensor) -> Tensor:
    """Log-softmax in float32, whatever autocast computed the logits in."""
    return torch.log_softmax(logits.float(), dim=-1)
