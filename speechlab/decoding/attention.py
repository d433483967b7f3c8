"""Beam search over tokens: at each step one more for every prefix of every utterance, scored by any mix of models.

Attention decoders and language models score the whole vocabulary; a CTC prefix scorer (ctc_prefix.py) is asked only
about the tokens that they think best. Their weighted sum is joint CTC/attention decoding (Watanabe et al. 2017, "Hybrid
CTC/attention architecture for end-to-end speech recognition").
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
CANDIDATES = 1.5  # times the beam: what the full scorers leave for the partial ones to judge (ESPnet's ratio)
_ABOVE_ONE = 1e-2  # by how much a log probability may round above 0


class Scorer(Protocol):
    """Scores the next token of many prefixes at once; the state is the scorer's own, one row a prefix."""

    def start(self, batch: int) -> Any:
        """The state of ``batch`` empty prefixes, one an utterance, in order."""
        ...

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Append ``tokens`` (N,), which are 0 at the start; log probabilities (N, V) of what follows, and the state."""
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the rows ``rows`` (N',): kept, left out, or doubled. A row takes its utterance along."""
        ...


class PartialScorer(Protocol):
    """Scores a few next tokens of each prefix, where scoring all would be dear."""

    def start(self, batch: int) -> Any:
        """As :meth:`Scorer.start`."""
        ...

    def score(self, tokens: Tensor, state: Any, candidates: Tensor) -> tuple[Tensor, Any]:
        """Append ``tokens`` (N,); log probabilities (N, K) of ``candidates`` (N, K) to follow, and the state.

        The first candidate of each row is the end; none is named twice. The state is that after ``tokens``: which
        candidate was taken, the next call tells.
        """
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """As :meth:`Scorer.select`."""
        ...


@dataclass
class _Hypotheses:
    """(A, W): W hypotheses of each of A utterances, best first; where there are fewer, the rest score minus infinity.

    tokens is (A, W, U) (of finished ones wider than their ``lengths`` (A, W)); parts (A, W, P), a scorer each.
    """

    scores: Tensor
    tokens: Tensor
    parts: Tensor
    lengths: Tensor


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

    A prefix's score is the weighted sum of its log probabilities, plus ``length_bonus`` a token (the end is none).
    Every prefix in the beam also offers itself as finished. An utterance is done when no prefix in its beam can still
    come among its ``nbest`` finished ones: exact, as scores only fall from there (but for the length bonus, which is
    allowed for in full); and, a shortcut, when all of them lie ``margin`` under its best finished one.

    Args:
        scorers: by name a scorer of the whole vocabulary and its weight. A weight of 0 leaves the scorer out.
        batch: utterances; row i of the scorers' start is utterance i.
        max_lengths: the most tokens that each may have, (B,), on the scorers' device; then it must end.
        vocab: tokens with the end, index 0.
        partial: likewise, scorers of what the full ones find best; without any full one, of everything.
        beam: prefixes kept an utterance after each step.
        margin: natural log; at infinity the list is exactly what the beam finds.

    Returns:
        Of each utterance its hypotheses, best first; ``parts`` has each scorer's own (unweighted) log probability. An
        utterance with a score that is no log probability (NaN, above 0) has one hypothesis with ``error``; the others
        are not touched by it.

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
        if not weight > 0:  # a search that prunes by what was reached so far needs scores that only fall
            raise UserError(f"beam search: the weight of {name} is {weight}; it must be at least 0")
    if max_lengths.shape != (batch,):
        raise ValueError(f"{batch} utterances, and lengths for {tuple(max_lengths.shape)}")
    if not batch:
        return []

    device = max_lengths.device
    weights = torch.tensor([weight for _, weight in (*full.values(), *some.values())], device=device)
    # Of each row as many tokens as could all survive; at least those that the partial scorers are to choose from.
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

        # Each may end here. The finished ones stay the nbest best of old and new.
        _finish(finished, owner, live, total[:, :, 0], parts[:, :, 0])

        # Or go on, where there is room: the beam best of all the prefixes with all their candidates.
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
    """By each scorer's name log probabilities (N, 1 + width), and the candidates of the same shape, the end first.

    The candidates are what the full scorers together find best; a NaN is best of all, so none is overlooked. ``states``
    move on by ``last`` (N,).
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
    """Put ``live`` hypotheses, whose scores (A, W) and parts now count the end, among their utterances' finished."""
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
    """One utterance's list, or its error."""
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
