"""Beam search over tokens. Each step adds one token to every prefix of every utterance, scored by any mix of models.

Attention decoders and language models score the whole vocabulary. A CTC prefix scorer (ctc_prefix.py) is asked only
about the tokens that they find best. The weighted sum of both is joint CTC/attention decoding (Watanabe et al. 2017,
"Hybrid CTC/attention architecture for end-to-end speech recognition").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from speechlab.decoding.ctc import Hypothesis
from speechlab.errors import UserError

END = 0  # begins and ends a sentence
CANDIDATES = 1.5  # candidates for the partial scorers, as a multiple of the beam (as in ESPnet)
_ABOVE_ONE = 1e-2  # a log probability may be this much above 0, by rounding


class Scorer(Protocol):
    """Scores the next token of many prefixes at once. Each scorer has its own kind of state, one row per prefix."""

    def start(self, batch: int) -> Any:
        """The state of ``batch`` empty prefixes, one per utterance, in order."""
        ...

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Append ``tokens`` (N,), 0 at the start -> log probabilities (N, V) of the next token, and the new state."""
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of ``rows`` (N',), in that order; a row may be left out or come twice, and keeps its utterance."""
        ...


class PartialScorer(Protocol):
    """Scores a few next tokens of each prefix, where scoring all would cost too much."""

    def start(self, batch: int) -> Any:
        """As :meth:`Scorer.start`."""
        ...

    def score(self, tokens: Tensor, state: Any, candidates: Tensor) -> tuple[Tensor, Any]:
        """Append ``tokens`` (N,) -> log probabilities (N, K) of ``candidates`` (N, K) as the next, and the new state.

        The first candidate of each row is the end; no candidate comes twice in a row. The state is that after
        ``tokens``: the next call tells which candidate was taken.
        """
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """As :meth:`Scorer.select`."""
        ...


@dataclass
class _Hypotheses:
    """W hypotheses of each of A utterances, the best first. Where there are fewer, the rest score minus infinity."""

    scores: Tensor  # (A, W)
    tokens: Tensor  # (A, W, U); those of finished hypotheses are padded
    parts: Tensor  # (A, W, P) log probability by each of P scorers
    lengths: Tensor  # (A, W) tokens of each hypothesis


@torch.no_grad()
def beam_search(
    scorers: Mapping[str, tuple[Scorer, float]],
    batch: int,
    *,
    max_lengths: Tensor,
    vocab: int,
    partial: Mapping[str, tuple[PartialScorer, float]] | None = None,
    beam: int = 8,
    nbest: int = 8,
    length_bonus: float = 0.0,
    margin: float = 20.0,
) -> list[list[Hypothesis]]:
    """The ``nbest`` best token sequences of each utterance that the search finds.

    The score of a prefix is the weighted sum of its log probabilities, plus ``length_bonus`` per token (the end does
    not count). Every prefix in the beam may also be finished as it is. An utterance is done when no prefix in its beam
    can still get among its ``nbest`` finished ones. This is exact: scores only fall, except for the length bonus, which
    is allowed for in full. As a shortcut, an utterance is also done when all its prefixes score ``margin`` less than
    its best finished one.

    Args:
        scorers: for each name a scorer of the whole vocabulary and its weight. A weight of 0 leaves the scorer out.
        batch: number of utterances B; row i of the scorers' start is utterance i.
        max_lengths: the most tokens of each utterance, (B,), on the scorers' device; then it must end.
        vocab: number of tokens, the end (index 0) included.
        partial: the same for partial scorers, which judge what the full ones find best, or everything without those.
        beam: prefixes per utterance that are kept after each step.
        nbest: the most hypotheses per utterance.
        length_bonus: added for each token.
        margin: natural log; with infinity the list is exactly what the beam finds.

    Returns:
        The hypotheses of each utterance, the best first; ``parts`` has the log probability by each scorer without its
        weight. An utterance with a score that is no log probability (NaN, above 0) has one hypothesis with ``error``;
        this does not touch the others.

    Raises:
        UserError: for an option out of range. ValueError: for a scorer of another vocabulary.
    """
    for name, value in (("beam", beam), ("nbest", nbest)):
        if value < 1:
            raise UserError(f"beam search: {name} is {value}; it must be at least 1")
    full = {name: pair for name, pair in scorers.items() if pair[1]}
    some = {name: pair for name, pair in (partial or {}).items() if pair[1]}
    names = [*full, *some]
    if not names or len(set(names)) < len(full) + len(some):
        raise UserError("beam search: no scorer has a weight, or two have one name")
    for name, (_, weight) in (*full.items(), *some.items()):
        if not weight > 0:  # the pruning relies on scores that only fall
            raise UserError(f"beam search: the weight of {name} is {weight}; it must be at least 0")
    if max_lengths.shape != (batch,):
        raise ValueError(f"{batch} utterances, and lengths for {tuple(max_lengths.shape)}")
    if not batch:
        return []

    device = max_lengths.device
    weights = torch.tensor([weight for _, weight in (*full.values(), *some.values())], device=device)
    # Candidates per row: as many as could all survive, or as many as the partial scorers are to choose from.
    width = min(vocab - 1, vocab if not full else math.ceil(CANDIDATES * beam) if some else beam)
    states = {name: scorer.start(batch) for name, (scorer, _) in (*full.items(), *some.items())}
    finished = _Hypotheses(
        torch.full((batch, nbest), -math.inf, device=device),
        torch.zeros(batch, nbest, int(max_lengths.max()), dtype=torch.long, device=device),
        torch.zeros(batch, nbest, len(names), device=device),
        torch.zeros(batch, nbest, dtype=torch.long, device=device),
    )
    live = _Hypotheses(
        torch.zeros(batch, 1, device=device),
        torch.zeros(batch, 1, 0, dtype=torch.long, device=device),
        torch.zeros(batch, 1, len(names), device=device),
        torch.zeros(batch, 1, dtype=torch.long, device=device),
    )
    owner = torch.arange(batch, device=device)  # (A,): which utterances are still searched
    errors: dict[int, str] = {}

    for size in range(int(max_lengths.max()) + 1):
        last = live.tokens[:, :, -1].flatten() if size else torch.full_like(owner, END)
        given, candidates = _score(full, some, states, last, vocab, width)
        dead = live.scores.isneginf()
        for name, log_probs in given.items():
            bad = ~(log_probs.amax(-1) <= _ABOVE_ONE).view_as(dead) & ~dead  # the largest is NaN if any is
            for utterance in owner[bad.any(1)].tolist():
                errors.setdefault(utterance, f"{name} gave no log probability for token {size + 1}: the model diverged "
                                             "or its input is broken")
        if errors:
            dead = dead | torch.tensor([[utterance in errors] for utterance in owner.tolist()], device=device)

        shape = (*live.scores.shape, 1 + width)
        parts = torch.stack([*given.values()], -1).view(*shape, len(names))
        total = (parts * weights).sum(-1) + live.scores[:, :, None]
        total = total.masked_fill(dead[:, :, None], -math.inf)
        parts = parts + live.parts[:, :, None]
        candidates = candidates.view(shape)

        # Each prefix may end here. The nbest best of the old and new finished ones are kept.
        _finish(finished, owner, live, total[:, :, 0], parts[:, :, 0])

        # Or it goes on, if it is not too long: the beam keeps the best of all prefixes with all their candidates.
        limits = max_lengths[owner]
        onward = (total[:, :, 1:] + length_bonus).masked_fill((size >= limits)[:, None, None], -math.inf).flatten(1)
        scores, chosen = onward.topk(min(beam, onward.shape[1]))
        hopeful = scores + (limits - size - 1).clamp(min=0)[:, None] * max(length_bonus, 0.0)
        reached = finished.scores[owner]
        scores = scores.masked_fill((hopeful <= reached[:, -1:]) | (scores < reached[:, :1] - margin), -math.inf)
        open_ = scores > -math.inf  # in each utterance a run from the left
        kept = open_.any(1).nonzero()[:, 0]
        if not len(kept):
            break
        scores, chosen = (x[kept, : int(open_.sum(1).max())] for x in (scores, chosen))
        parent, column = chosen // width, 1 + chosen % width
        row = kept[:, None]
        token = candidates[row, parent, column]
        selected = (row * shape[1] + parent).flatten()
        live = _Hypotheses(scores, torch.cat((live.tokens[row, parent], token[:, :, None]), 2),
                           parts[row, parent, column], live.lengths[row, parent] + 1)
        owner = owner[kept]
        states = {name: {**full, **some}[name][0].select(state, selected) for name, state in states.items()}

    return [_answers(finished, utterance, names, errors.get(utterance)) for utterance in range(batch)]


def _score(full: Mapping[str, tuple[Scorer, float]], some: Mapping[str, tuple[PartialScorer, float]],
           states: dict[str, Any], last: Tensor, vocab: int, width: int) -> tuple[dict[str, Tensor], Tensor]:
    """Append ``last`` (N,) to the prefixes, in ``states``, and score the best next tokens.

    Returns:
        Log probabilities (N, 1 + width) by each scorer's name, and the candidates of the same shape, the end first. The
        candidates are what the full scorers together find best; NaN counts as the best, so that none is overlooked.
    """
    whole, total = {}, torch.zeros(len(last), vocab, device=last.device)
    for name, (scorer, weight) in full.items():
        log_probs, states[name] = scorer.step(last, states[name])
        if log_probs.shape != total.shape:
            raise ValueError(f"{name} gave {tuple(log_probs.shape)} scores where {tuple(total.shape)} were wanted")
        whole[name] = log_probs.float()
        total += weight * whole[name]
    candidates = 1 + total[:, 1:].topk(width).indices
    candidates = torch.cat((torch.full_like(candidates[:, :1], END), candidates), 1)
    given = {name: log_probs.gather(1, candidates) for name, log_probs in whole.items()}
    for name, (scorer, _) in some.items():
        log_probs, states[name] = scorer.score(last, states[name], candidates)
        given[name] = log_probs.float()
    return given, candidates


def _finish(finished: _Hypotheses, owner: Tensor, live: _Hypotheses, scores: Tensor, parts: Tensor) -> None:
    """Merge the ``live`` hypotheses into the finished ones of their utterances.

    ``scores`` (A, W) and ``parts`` (A, W, P) are those of the live ones with the end.
    """
    nbest, size = finished.scores.shape[1], live.tokens.shape[2]
    best, place = torch.cat((finished.scores[owner], scores), 1).topk(nbest)

    def merged(old: Tensor, new: Tensor) -> Tensor:
        both = torch.cat((old[owner], new), 1)
        return both[torch.arange(len(owner), device=owner.device)[:, None], place]

    padded = torch.nn.functional.pad(live.tokens, (0, finished.tokens.shape[2] - size))
    finished.tokens[owner] = merged(finished.tokens, padded)
    finished.parts[owner] = merged(finished.parts, parts)
    finished.lengths[owner] = merged(finished.lengths, live.lengths)
    finished.scores[owner] = best


def _answers(finished: _Hypotheses, utterance: int, names: list[str], error: str | None) -> list[Hypothesis]:
    """The list of hypotheses of an utterance, or its error."""
    scores = finished.scores[utterance].tolist()
    if error is None and scores[0] == -math.inf:
        error = "no token sequence has a probability above 0"
    if error is not None:
        return [Hypothesis(error=error)]
    columns = (x[utterance].tolist() for x in (finished.tokens, finished.lengths, finished.parts))
    return [
        Hypothesis(tokens[:length], score, parts=dict(zip(names, parts)))
        for score, tokens, length, parts in zip(scores, *columns)
        if score > -math.inf
    ]
