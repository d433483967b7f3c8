"""A small language model: a causal transformer over tokens (Vaswani et al. 2017). It is built as the self-attention of
the decoder (decoder.py): pre-norm, rotary positions, dropout shared over time."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from speechlab.models.layers import FeedForward, SharedDropout, attend, rotate, rotation_table

Cache = tuple[Tensor, Tensor]  # keys and values (N, heads, U, d / heads) of the tokens so far


class LMBlock(nn.Module):
    """Causal self-attention and feed-forward, each after a LayerNorm and with a residual."""

    def __init__(self, d: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        if d % heads or (d // heads) % 2:
            raise ValueError(f"d = {d} must be a multiple of heads = {heads}, with an even quotient")
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed_forward = FeedForward(d, hidden, dropout)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor,
                past: Cache | None = None) -> tuple[Tensor, Cache]:
        """x (N, U, d), mask (U, past + U) -> y (N, U, d), and the keys and values with those of ``past`` in front."""
        n, u, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, u, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        x = x + self.dropout(self.out(attend(q, k, v, mask).transpose(1, 2).reshape(n, u, d)))
        return x + self.dropout(self.feed_forward(x)), (k, v)


class TransformerLM(nn.Module):
    """``tokens so far -> logits of the next one``; index 0 begins and ends a sentence.

    The weights of the output layer are the embeddings (Press and Wolf 2017, arXiv 1608.05859). Most characters are
    rare: what is learnt about one as an input helps to predict it, too.

    Args:
        vocab: number of tokens, the boundary included (not set in the config: the tokens say it).
        d: width.
        heads: attention heads.
        layers: number of blocks.
        hidden: inner width of the feed-forward layers (4 d by default).
        dropout: probability; the mask is shared over time.
    """

    def __init__(self, vocab: int, d: int = 192, heads: int = 4, layers: int = 3, hidden: int | None = None,
                 dropout: float = 0.1):
        super().__init__()
        self.d, self.heads = d, heads
        self.embedding = nn.Embedding(vocab, d)
        nn.init.normal_(self.embedding.weight, std=0.02)  # for the output; as an input, the norm scales it up
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.input_norm = nn.LayerNorm(d)
        self.dropout = SharedDropout(dropout)
        self.blocks = nn.ModuleList(LMBlock(d, heads, hidden or 4 * d, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, U), rows that begin with 0 and are padded at the end -> logits (B, U, vocab) of the next tokens."""
        u = x.shape[1]
        mask = torch.ones(u, u, dtype=torch.bool, device=x.device).tril()
        return self._run(x, mask, [None] * len(self.blocks), 0)[0]

    def _run(self, x: Tensor, mask: Tensor, past: list[Cache | None], size: int) -> tuple[Tensor, list[Cache]]:
        """Logits after each of the tokens x (N, U), which follow ``size`` others, and what every block keeps."""
        table = rotation_table(size + x.shape[1], self.d // self.heads, x.device, torch.float32)
        rotation = (table[0][size:], table[1][size:])
        y, kept = self.dropout(self.input_norm(self.embedding(x))), []
        for block, before in zip(self.blocks, past, strict=True):
            y, cache = block(y, rotation, mask, before)
            kept.append(cache)
        return nn.functional.linear(self.dropout(self.norm(y)), self.embedding.weight, self.bias), kept

    def scorer(self) -> LMScorer:
        """One token at a time, for a beam search (speechlab/decoding/attention.py)."""
        return LMScorer(self)


@dataclasses.dataclass
class _State:
    """What is kept of N prefixes."""

    past: list[Cache | None]  # by block
    size: int = 0  # tokens so far


class LMScorer:
    """A :class:`TransformerLM` as a scorer for a search: it keeps what it computed for a prefix."""

    def __init__(self, model: TransformerLM):
        self.model = model

    def start(self, batch: int) -> _State:
        """The state of ``batch`` empty prefixes."""
        return _State([None] * len(self.model.blocks))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        """tokens (N,), 0 at the start -> log probabilities (N, vocab) of the next in float32, and the new state."""
        mask = torch.ones(1, state.size + 1, dtype=torch.bool, device=tokens.device)
        logits, past = self.model._run(tokens[:, None], mask, state.past, state.size)
        return torch.log_softmax(logits[:, 0].float(), -1), _State(past, state.size + 1)

    def select(self, state: _State, rows: Tensor) -> _State:
        """The state of ``rows`` (N',), in that order; a row may be left out or come twice."""
        past = [kept if kept is None else (kept[0][rows], kept[1][rows]) for kept in state.past]
        return _State(past, state.size)
