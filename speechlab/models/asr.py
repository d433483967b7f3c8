"""Speech recognition networks: an encoder with a CTC head, and one half-way up if wanted."""

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
        auxiliary_size, auxiliary_layer: a second CTC head of so many units over the output of block ``auxiliary_layer``
            (from 1), for an encoder whose ``forward`` takes ``between``. What it hears is told to the blocks above.
    Source: connectionist temporal classification, Graves et al. 2006; intermediate heads, Lee and Watanabe 2021
    (arXiv 2102.03216); conditioning on them, Nozaki and Komatsu 2021 (arXiv 2104.02724).
    """

    def __init__(self, encoder: nn.Module, vocab_size: int, auxiliary_size: int = 0, auxiliary_layer: int = 0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, vocab_size)
        self.auxiliary_layer = auxiliary_layer if auxiliary_size else 0
        if auxiliary_size:
            self.auxiliary_head = nn.Linear(encoder.output_size, auxiliary_size)
            self.condition = nn.Linear(auxiliary_size, encoder.output_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, bins), (B,) -> log-posteriors (B, T', vocab) in float32, lengths (B,)."""
        log_probs, lengths, _, _ = self.forward_both(x, lengths)
        return log_probs, lengths

    def forward_both(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """As :meth:`forward`, and the same two of the auxiliary head (None without one)."""
        if not self.auxiliary_layer:
            y, lengths = self.encoder(x, lengths)
            return log_posteriors(self.head(y)), lengths, None, None
        heard: list[Tensor] = []

        def between(number: int, x: Tensor, lengths: Tensor) -> Tensor:
            if number != self.auxiliary_layer:
                return x
            heard.extend((log_posteriors(self.auxiliary_head(x)), lengths))
            return x + self.condition(heard[0].exp().to(x.dtype))

        y, lengths = self.encoder(x, lengths, between=between)
        return log_posteriors(self.head(y)), lengths, heard[0], heard[1]


def log_posteriors(logits: Tensor) -> Tensor:
    """Log-softmax in float32, whatever autocast computed the logits in."""
    return torch.log_softmax(logits.float(), dim=-1)
