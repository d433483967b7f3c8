"""A small language model: a causal transformer over tokens (Vaswani et al. 2017), in the shapes of the attention
decoder's self-attention (decoder.py): pre-norm, rotary positions, dropout shared over time."""

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
        """x (N, U, d) -> the same, and keys and values with the ``past`` ones in front; mask (U, past + U)."""
        n, u, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, u, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        x = x + self.dropout(self.out(attend(q, k, v, mask).transpose(1, 2).reshape(n, u, d)))
        return x + self.dropout(self.feed_forward(x)), (k, v)


class TransformerLM(nn.Module):
    """``tokens so far -> logits of the next one``; index 0 begins and ends a sentence.

    The output layer's weights are the embeddings (Press and Wolf 2017, arXiv 1608.05859): most characters are rare, and
    what is learnt of one as a reader serves it as a writer.

    Args:
        vocab: tokens with the boundary (injected).
        d: width; heads; layers; hidden: the feed-forward's inner width (4 d by default); dropout.
    """

    def __init__(self, vocab: int, d: int = 192, heads: int = 4, layers: int = 3, hidden: int | None = None,
                 dropout: float = 0.1):
        super().__init__()
        self.d, self.heads = d, heads
        self.embedding = nn.Embedding(vocab, d)
        nn.init.normal_(self.embedding.weight, std=0.02)  # as an output layer; as an input the norm scales it up
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.input_norm = nn.LayerNorm(d)
        self.dropout = SharedDropout(dropout)
        self.blocks = nn.ModuleList(LMBlock(d, heads, hidden or 4 * d, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, U), each row beginning with 0, padding after its end -> logits (B, U, vocab) of what follows."""
        u = x.shape[1]
        mask = torch.ones(u, u, dtype=torch.bool, device=x.device).tril()
        return self._run(x, mask, [None] * len(self.blocks), 0)[0]

    def _run(self, x: Tensor, mask: Tensor, past: list[Cache | None], size: int) -> tuple[Tensor, list[Cache]]:
        """Logits of tokens (N, U) after ``size`` ones, and what every block keeps of them."""
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
    past: list[Cache | None]
    size: int = 0


class LMScorer:
    """A :class:`TransformerLM` as a search's scorer: what was computed for a prefix is kept, not computed again."""

    def __init__(self, model: TransformerLM):
        self.model = model

    def start(self, batch: int) -> _State:
        """The state of ``batch`` empty prefixes."""
        return _State([None] * len(self.model.blocks))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        """tokens (N,), 0 to begin -> log probabilities (N, vocab) of the next in float32, and the state after them."""
        mask = torch.ones(1, state.size + 1, dtype=torch.bool, device=tokens.device)
        logits, past = self.model._run(tokens[:, None], mask, state.past, state.size)
        return torch.log_softmax(logits[:, 0].float(), -1), _State(past, state.size + 1)

    def select(self, state: _State, rows: Tensor) -> _State:
        """The state of ``rows`` (N',): rows left out are forgotten, rows named twice doubled."""
        past = [kept if kept is None else (kept[0][rows], kept[1][rows]) for kept in state.past]
        return _State(past, state.size)
