"""Speech recognition networks: an encoder with a CTC head, and one half-way up if wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechlab.models.conformer import Conformer

__all__ = ["CTCModel", "Conformer"]


class FactoredHead(nn.Module):
    """A linear layer whose rows are sums: a token's own weights, and those of the parts that it is made of.

    Most characters are rare and no sound is: what was learnt of a sound from all characters with it serves those that
    were hardly ever seen. (Without parts it is ``nn.Linear``.)

    Args:
        d: input width.
        parts: (vocab, number of parts), how much of each part is in a token; kept with the weights.
    """

    def __init__(self, d: int, parts: Tensor):
        super().__init__()
        self.own = nn.Linear(d, len(parts))
        self.shared = nn.Parameter(torch.randn(parts.shape[1], d) * d**-0.5)
        self.register_buffer("parts", parts)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.own.weight + self.parts @ self.shared, self.own.bias)


class CTCModel(nn.Module):
    """An encoder and one linear layer over its output: log-posteriors of the tokens, index 0 the blank.

    Args:
        encoder: ``(x, lengths) -> (y, lengths)`` with an attribute ``output_size``.
        vocab_size: tokens with the blank.
        auxiliary_size, auxiliary_layer: a second CTC head of so many units over the output of block ``auxiliary_layer``
            (from 1), for an encoder whose ``forward`` takes ``between``. What it hears is told to the blocks above.
        parts: for a :class:`FactoredHead` instead of a plain one.
    Source: connectionist temporal classification, Graves et al. 2006; intermediate heads, Lee and Watanabe 2021
    (arXiv 2102.03216); conditioning on them, Nozaki and Komatsu 2021 (arXiv 2104.02724).
    """

    def __init__(self, encoder: nn.Module, vocab_size: int, auxiliary_size: int = 0, auxiliary_layer: int = 0,
                 parts: Tensor | None = None):
        super().__init__()
        d = encoder.output_size
        self.encoder = encoder
        self.head = nn.Linear(d, vocab_size) if parts is None else FactoredHead(d, parts)
        self.auxiliary_layer = auxiliary_layer if auxiliary_size else 0
        if auxiliary_size:
            self.auxiliary_head = nn.Linear(d, auxiliary_size)
            self.condition = nn.Linear(auxiliary_size, d)

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
