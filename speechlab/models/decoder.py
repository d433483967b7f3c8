"""An attention decoder (Vaswani et al. 2017; for speech, Dong, Xu and Xu 2018): it predicts the next token from the
tokens before it and from what the encoder heard."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from speechlab.models.layers import FeedForward, SharedDropout, attend, rotate, rotation_table, sinusoids

GUIDED = 2  # heads of a block whose attention can be guided; the others are free
BOUNDARY = 0  # begins and ends a sentence; the number of CTC's blank, which a decoder never writes


class DecoderBlock(nn.Module):
    """Causal self-attention with rotary positions, attention over the encoder's frames, feed-forward; pre-norm."""

    def __init__(self, d: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        if d % heads or (d // heads) % 2:
            raise ValueError(f"d = {d} must be a multiple of heads = {heads}, with an even quotient")
        self.heads = heads
        self.self_norm, self.cross_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.self_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.query, self.key_value, self.cross_out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.feed_forward = FeedForward(d, hidden, dropout)
        self.dropout = SharedDropout(dropout)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts d) -> ``parts`` of (B, heads, T, d / heads)."""
        b, t, d = x.shape
        return x.view(b, t, parts, self.heads, d // parts // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def heard(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, T, d / heads) of the encoder's frames (B, T, d)."""
        key, value = self._split(self.key_value(memory), 2)
        return key, value

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, heard: tuple[Tensor, Tensor],
                heard_mask: Tensor, past: tuple[Tensor, Tensor] | None = None,
                looks: list[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (N, U, d) -> y (N, U, d), and the self-attention's keys and values with those of ``past`` in front.

        Args:
            rotation: of the U positions.
            mask: (U, past + U) or (1, past + U), True where a position may look.
            heard: keys and values of the encoder's frames.
            heard_mask: (N, T), True where there is a frame.
            past: keys and values of the tokens before; None at the beginning.
            looks: is given (N, GUIDED, U, T), how the first heads weigh the encoder's frames; each row sums to 1.
        """
        n, u, d = x.shape
        q, k, v = self._split(self.qkv(self.self_norm(x)), 3)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = attend(q, k, v, mask).transpose(1, 2).reshape(n, u, d)
        x = x + self.dropout(self.self_out(y))
        (q,) = self._split(self.query(self.cross_norm(x)), 1)
        if looks is not None:
            looks.append(weights(q[:, :GUIDED], heard[0][:, :GUIDED], heard_mask[:, None, None]))
        y = attend(q, *heard, heard_mask[:, None, None]).transpose(1, 2).reshape(n, u, d)
        x = x + self.dropout(self.cross_out(y))
        return x + self.dropout(self.feed_forward(x)), (k, v)


def weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """The attention weights that ``attend`` uses and does not tell, in float32: (N, H, U, T) of queries
    (N, H, U, width) and keys (N, H, T, width); 0 where ``mask`` is False."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(2, 3) / query.shape[-1] ** 0.5
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)


class Decoder(nn.Module):
    """``(memory, memory_mask, tokens so far) -> logits of the next token``.

    Args:
        vocab: number of tokens; index 0 is the sentence boundary.
        d: width, which is the encoder's.
        heads: attention heads.
        layers: number of blocks.
        hidden: inner width of the feed-forward layers (4 d by default).
        dropout: probability; the mask is shared over time.
        head: the output layer (a plain linear one by default).
        positions: ``sinusoids`` are added to the encoder's frames and to the embedded tokens; ``none``: nothing tells
            the attention over the frames where in the utterance a frame lies, and it must find its place by content.
    """

    def __init__(self, vocab: int, d: int, heads: int = 4, layers: int = 3, hidden: int | None = None,
                 dropout: float = 0.1, head: nn.Module | None = None, positions: str = "none"):
        super().__init__()
        if positions not in ("none", "sinusoids"):
            raise ValueError(f"positions = {positions}: there are none, sinusoids")
        self.heads, self.d, self.absolute = heads, d, positions == "sinusoids"
        self.embedding = nn.Embedding(vocab, d)
        self.input_norm = nn.LayerNorm(d)
        self.dropout = SharedDropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(d, heads, hidden or 4 * d, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocab) if head is None else head

    def place(self, memory: Tensor) -> Tensor:
        """The encoder's frames (B, T, d) with their positions, where the decoder has any."""
        return memory + sinusoids(memory.shape[1], self.d, memory.device).to(memory.dtype) if self.absolute else memory

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Tokens (N, U), the first of which is the ``first``-th of its sentence, as (N, U, d)."""
        x = self.input_norm(self.embedding(tokens))
        if self.absolute:
            x = x + sinusoids(tokens.shape[1], self.d, tokens.device, first).to(x.dtype)
        return self.dropout(x)

    def forward(self, memory: Tensor, memory_mask: Tensor, y_in: Tensor, looks: list[Tensor] | None = None) -> Tensor:
        """memory (B, T, d), its mask (B, T), y_in (B, U) beginning with 0 -> logits (B, U, vocab).

        ``looks`` is given what the first heads of each block look at, see :meth:`DecoderBlock.forward`.
        """
        u = y_in.shape[1]
        rotation = rotation_table(u, self.d // self.heads, memory.device, torch.float32)
        causal = torch.ones(u, u, dtype=torch.bool, device=memory.device).tril()
        memory, x = self.place(memory), self.embed(y_in)
        for block in self.blocks:
            x, _ = block(x, rotation, causal, block.heard(memory), memory_mask, looks=looks)
        return self.head(self.norm(x))

    @torch.no_grad()
    def alignment(self, memory: Tensor, y_in: Tensor) -> Tensor:
        """Where each block looks: weights (blocks, B, heads, U, T) over the frames of ``memory`` (B, T, d), which has
        no padding, while it reads ``y_in`` (B, U). Each row sums to 1."""
        u, d = y_in.shape[1], self.d // self.heads
        mask = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        rotation = rotation_table(u, d, memory.device, torch.float32)
        causal = torch.ones(u, u, dtype=torch.bool, device=memory.device).tril()
        memory, x, found = self.place(memory), self.embed(y_in), []
        for block in self.blocks:
            caught: list[Tensor] = []
            hook = block.query.register_forward_hook(lambda module, args, output, caught=caught: caught.append(output))
            heard = block.heard(memory)
            try:
                x, _ = block(x, rotation, causal, heard, mask)
            finally:
                hook.remove()
            (query,) = block._split(caught[0], 1)
            found.append(weights(query, heard[0], mask[:, None, None]))
        return torch.stack(found)

    def scorer(self, memory: Tensor, memory_mask: Tensor) -> DecoderScorer:
        """One token at a time, for a beam search (speechlab/decoding/attention.py)."""
        return DecoderScorer(self, memory, memory_mask)


@dataclasses.dataclass
class _State:
    """What is kept of N prefixes."""

    owner: Tensor  # (N,) the utterance of each
    heard: list[tuple[Tensor, Tensor]]  # by block, keys and values of the encoder's frames
    heard_mask: Tensor  # (N, T)
    past: list[tuple[Tensor, Tensor] | None]  # by block, keys and values of the tokens so far
    size: int = 0  # tokens so far


class DecoderScorer:
    """A :class:`Decoder` as a scorer for a search: it keeps what it computed for a prefix."""

    def __init__(self, decoder: Decoder, memory: Tensor, memory_mask: Tensor):
        self.decoder = decoder
        self.heard = [block.heard(decoder.place(memory)) for block in decoder.blocks]
        self.mask = memory_mask

    def start(self, batch: int) -> Any:
        if batch != len(self.mask):
            raise ValueError(f"{batch} rows to start with, and {len(self.mask)} utterances were heard")
        owner = torch.arange(batch, device=self.mask.device)
        return _State(owner, self.heard, self.mask, [None] * len(self.decoder.blocks))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """tokens (N,), 0 at the start -> log probabilities (N, vocab) of the next in float32, and the new state."""
        decoder, size = self.decoder, state.size
        cos, sin = rotation_table(size + 1, decoder.d // decoder.heads, tokens.device, torch.float32)
        mask = torch.ones(1, size + 1, dtype=torch.bool, device=tokens.device)
        x = decoder.embed(tokens[:, None], size)
        past = []
        for block, heard, before in zip(decoder.blocks, state.heard, state.past, strict=True):
            x, kept = block(x, (cos[size:], sin[size:]), mask, heard, state.heard_mask, before)
            past.append(kept)
        log_probs = torch.log_softmax(decoder.head(decoder.norm(x[:, 0])).float(), -1)
        return log_probs, dataclasses.replace(state, past=past, size=size + 1)

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of ``rows`` (N',), in that order; a row may be left out or come twice."""
        owner = state.owner[rows]
        past = [kept if kept is None else (kept[0][rows], kept[1][rows]) for kept in state.past]
        if owner.shape == state.owner.shape and bool((owner == state.owner).all()):
            return dataclasses.replace(state, past=past)  # usually rows only change places within their beams
        heard = [(key[owner], value[owner]) for key, value in self.heard]
        return _State(owner, heard, self.mask[owner], past, state.size)
