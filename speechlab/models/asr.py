"""Speech recognition networks: an encoder with a CTC head, an attention decoder, or both."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from speechlab.models.conformer import Conformer
from speechlab.models.decoder import Decoder
from speechlab.models.layers import padding_mask
from speechlab.models.transformer import Transformer

__all__ = ["AsrModel", "Conformer", "Transformer"]


class FactoredHead(nn.Module):
    """A linear layer in which the weights of a token are a sum: its own, and those of the parts that it is made of.

    Most characters are rare, but no sound is. What is learnt about a sound from all its characters helps with those
    that were hardly ever seen. Without parts this would be ``nn.Linear``.

    Args:
        d: input width.
        parts: (vocab, number of parts), how much of each part is in a token; saved with the weights.
    """

    def __init__(self, d: int, parts: Tensor):
        super().__init__()
        self.own = nn.Linear(d, len(parts))
        self.shared = nn.Parameter(torch.randn(parts.shape[1], d) * d**-0.5)
        self.register_buffer("parts", parts)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.own.weight + self.parts @ self.shared, self.own.bias)


@dataclasses.dataclass
class Encoded:
    """What was heard of a batch."""

    memory: Tensor  # (B, T', d) the encoder's output
    lengths: Tensor  # (B,) its frames
    log_probs: Tensor | None  # (B, T', vocab) CTC's log posteriors in float32; None without a CTC head
    low: Tensor | None = None  # (B, T'', units) the same from the auxiliary head; None without one
    low_lengths: Tensor | None = None  # (B,)

    @property
    def mask(self) -> Tensor:
        """(B, T'), True where there is an utterance and no padding."""
        return padding_mask(self.lengths, self.memory.shape[1])


class AsrModel(nn.Module):
    """An encoder with a CTC head, an attention decoder, or both. Index 0 is CTC's blank and the decoder's boundary.

    Args:
        encoder: ``(x, lengths) -> (y, lengths)`` with an attribute ``output_size``.
        vocab_size: number of tokens, the blank included.
        ctc: True for a CTC head.
        decoder: the arguments of a :class:`Decoder` except vocabulary, width and head; None for no decoder.
        auxiliary_size: units of a second CTC head, whose output is also an input to the blocks above it; 0 for none.
        auxiliary_layer: the block (from 1) whose output this head gets; the encoder must take ``between``.
        parts: makes the output layers :class:`FactoredHead`; None for plain ones.
    Source: connectionist temporal classification, Graves et al. 2006; joint training with attention, Kim, Hori and
    Watanabe 2017 (arXiv 1609.06773); intermediate heads, Lee and Watanabe 2021 (arXiv 2102.03216); conditioning on
    them, Nozaki and Komatsu 2021 (arXiv 2104.02724).
    """

    def __init__(self, encoder: nn.Module, vocab_size: int, *, ctc: bool = True, decoder: dict[str, Any] | None = None,
                 auxiliary_size: int = 0, auxiliary_layer: int = 0, parts: Tensor | None = None):
        super().__init__()
        d = encoder.output_size
        self.encoder = encoder

        def output() -> nn.Module:
            return nn.Linear(d, vocab_size) if parts is None else FactoredHead(d, parts)

        self.head = output() if ctc else None
        self.auxiliary_layer = auxiliary_layer if auxiliary_size else 0
        if auxiliary_size:
            self.auxiliary_head = nn.Linear(d, auxiliary_size)
            self.condition = nn.Linear(auxiliary_size, d)
        self.decoder = None if decoder is None else Decoder(vocab_size, d, **decoder, head=output())

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, bins), lengths (B,) -> CTC's log posteriors (B, T', vocab) in float32, lengths (B,)."""
        found = self.encode(x, lengths)
        if found.log_probs is None:
            raise ValueError("this model was built without a CTC head")
        return found.log_probs, found.lengths

    def encode(self, x: Tensor, lengths: Tensor) -> Encoded:
        """x (B, T, bins), lengths (B,) -> what was heard."""
        heard: list[Tensor] = []

        def between(number: int, x: Tensor, lengths: Tensor) -> Tensor:
            if number != self.auxiliary_layer:
                return x
            heard.extend((log_posteriors(self.auxiliary_head(x)), lengths))
            return x + self.condition(heard[0].exp().to(x.dtype))

        more = {"between": between} if self.auxiliary_layer else {}
        y, lengths = self.encoder(x, lengths, **more)
        return Encoded(y, lengths, None if self.head is None else log_posteriors(self.head(y)), *heard)


def log_posteriors(logits: Tensor) -> Tensor:
    """Log-softmax in float32, also for logits that autocast computed in another type."""
    return torch.log_softmax(logits.float(), dim=-1)
