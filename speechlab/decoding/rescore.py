"""A second pass over n-best lists: add the scores of other models, weigh all scores, choose the weights on dev."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from speechlab.decoding.attention import END
from speechlab.decoding.ctc import Hypothesis
from speechlab.errors import UserError

FIRST = "ctc"  # the score of a hypothesis without parts counts as this part
BONUS = "length_bonus"
_WORST = -1e30  # in place of minus infinity, which becomes NaN with a weight of 0
_COMBINATIONS = 100_000  # the most combinations of a grid; they take some seconds


def rescore(nbest: list[list[Hypothesis]], extra: Mapping[str, list[list[float]]], weights: Mapping[str, float],
            length_bonus: float = 0.0) -> list[list[Hypothesis]]:
    """Sort each list by the weighted sum of its parts; of equal hypotheses, the first stays first.

    Args:
        nbest: the hypotheses of each utterance; the score of one without ``parts`` is taken as its part ``ctc``.
        extra: for each name more log probabilities, one per hypothesis of each utterance; they become parts.
        weights: of the parts; a part without a weight does not count.
        length_bonus: added for each token.

    Returns:
        New hypotheses with the new scores and all parts. An error stays as it is. An utterance with a score that is no
        log probability (NaN) becomes an error.

    Raises:
        UserError: for a weight without a part. ValueError: for scores of another number of hypotheses.
    """
    answers = []
    for number, hypotheses in enumerate(nbest):
        if any(h.error for h in hypotheses):
            answers.append(hypotheses)
            continue
        for name, scores in extra.items():
            if len(scores) != len(nbest) or len(scores[number]) != len(hypotheses):
                raise ValueError(f"{name}: not as many scores as hypotheses in utterance {number}")
        merged = [_parts(h) | {name: scores[number][i] for name, scores in extra.items()}
                  for i, h in enumerate(hypotheses)]
        unsound = next((name for parts in merged for name in weights if math.isnan(parts.get(name, 0.0))), None)
        if unsound is not None:
            answers.append([Hypothesis(error=f"{unsound} gave no log probability: the model diverged or its input is "
                                             "broken")])
            continue
        new = [replace(h, parts=parts, score=_weigh(parts, weights) + length_bonus * len(h.tokens))
               for h, parts in zip(hypotheses, merged)]
        answers.append(sorted(new, key=lambda h: -h.score))
    return answers


def _parts(hypothesis: Hypothesis) -> dict[str, float]:
    return dict(hypothesis.parts) or {FIRST: hypothesis.score}


def _weigh(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    missing = [name for name, weight in weights.items() if weight and name not in parts]
    if missing:
        raise UserError(f"rescoring: a weight for '{missing[0]}', and the hypotheses have {', '.join(parts)}")
    return sum(weight * parts[name] for name, weight in weights.items() if weight)


def attention_scores(decoder_forward: Callable[[Tensor, Tensor, Tensor], Tensor], memory: Tensor, memory_mask: Tensor,
                     nbest: list[list[Hypothesis]], rows: int = 128) -> list[list[float]]:
    """The natural log probability of each hypothesis, with its end, by an attention decoder.

    Args:
        decoder_forward: ``(memory (N, T, d), mask (N, T), tokens (N, U)) -> logits (N, U, V)``; in evaluation mode.
        memory: the encoder's output (B, T, d).
        memory_mask: (B, T), True where the memory is valid.
        nbest: the hypotheses of each of the B utterances.
        rows: hypotheses that are computed at a time; this bounds the memory.

    Returns:
        A list per utterance with one number per hypothesis; NaN for a hypothesis that is an error.
    """
    if len(nbest) != len(memory):
        raise ValueError(f"{len(nbest)} lists of hypotheses for {len(memory)} utterances")

    def forward(x: Tensor, owner: Tensor) -> Tensor:
        return decoder_forward(memory[owner], memory_mask[owner], x)

    return _forced(forward, nbest, memory.device, rows)


def lm_scores(lm_forward: Callable[[Tensor], Tensor], nbest: list[list[Hypothesis]], device: torch.device | str = "cpu",
              rows: int = 512) -> list[list[float]]:
    """As :func:`attention_scores`, by a language model ``tokens (N, U) -> logits (N, U, V)``."""
    return _forced(lambda x, owner: lm_forward(x), nbest, torch.device(device), rows)


@torch.no_grad()
def _forced(forward: Callable[[Tensor, Tensor], Tensor], nbest: list[list[Hypothesis]], device: torch.device,
            rows: int) -> list[list[float]]:
    """Log probabilities of all hypotheses, ``rows`` at a time.

    ``forward``: (tokens (N, U), the utterance of each (N,)) -> logits (N, U, V).
    """
    answers = [[math.nan] * len(hypotheses) for hypotheses in nbest]
    places = [(u, i) for u, hypotheses in enumerate(nbest) for i, h in enumerate(hypotheses) if not h.error]
    places.sort(key=lambda place: len(nbest[place[0]][place[1]].tokens))  # similar lengths together: little padding
    for first in range(0, len(places), rows):
        batch = places[first : first + rows]
        tokens = [nbest[u][i].tokens for u, i in batch]
        width = 1 + max(map(len, tokens))
        x = torch.tensor([[END, *t] + [END] * (width - 1 - len(t)) for t in tokens], device=device)
        sizes = torch.tensor([len(t) for t in tokens], device=device)
        logits = forward(x, torch.tensor([u for u, _ in batch], device=device))
        # Rows are padded with END, so that the tokens shifted by one, with the first END of each row, are the targets.
        target = torch.nn.functional.pad(x[:, 1:], (0, 1), value=END)
        given = -torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
        inside = torch.arange(width, device=device) <= sizes[:, None]
        for (u, i), score in zip(batch, given.masked_fill(~inside, 0.0).double().sum(1).tolist()):
            answers[u][i] = score
    return answers


@dataclass(frozen=True)
class Tuned:
    """The weights and the length bonus that gave the fewest errors."""

    weights: dict[str, float]
    length_bonus: float
    errors: int  # edit distance, over all utterances
    units: int  # in all references


def tune(nbest: list[list[Hypothesis]], references: Sequence[Sequence[Hashable]], names: Sequence[str],
         grid: Mapping[str, Sequence[float]], read: Callable[[list[int]], Sequence[Hashable]] = list) -> Tuned:
    """Try all weights of a grid on lists that have all their scores; the smallest total edit distance wins.

    Of equal combinations the first of the grid wins (the last name's values change fastest), so the values of each name
    should begin with the most trusted one. An utterance without an answer counts as deletions of its whole reference.

    Args:
        nbest: lists with all parts, as :func:`rescore` returns them. They should be of the development set: a test set
            that chose the weights is no test any more.
        references: the units of each utterance.
        names: the parts to weigh.
        grid: the values to try for each of ``names``, and for ``length_bonus`` (0 if it is left out).
        read: turns tokens into the units of the references, as they are written for people. As tokens, two different
            unknown words would be equal.

    Raises:
        UserError: for a name without values or without a part, or a grid too large to try.
    """
    axes = [list(grid.get(name, ())) for name in names] + [list(grid.get(BONUS, [0.0]))]
    unknown = set(grid) - {*names, BONUS}
    if unknown or not all(axes):
        raise UserError(f"tuning: values for {', '.join(grid) or 'nothing'} to weigh {', '.join(names)}")
    count = math.prod(map(len, axes))
    if count > _COMBINATIONS:
        raise UserError(f"tuning: the grid has {count} combinations; more than {_COMBINATIONS} take too long")
    if len(references) != len(nbest):
        raise ValueError(f"{len(nbest)} lists of hypotheses for {len(references)} references")
    units = sum(map(len, references))
    lost, scored, errors = 0, [], []
    for hypotheses, reference in zip(nbest, references):
        if not hypotheses or hypotheses[0].error:
            lost += len(reference)
            continue
        rows = []
        for h in hypotheses:
            parts = _parts(h)
            _weigh(parts, dict.fromkeys(names, 1.0))  # says which is missing
            rows.append([*(parts[name] for name in names), len(h.tokens)])
        scored.append(rows)
        errors.append(distances(reference, [read(h.tokens) for h in hypotheses]))

    best: tuple[int, tuple[float, ...]] | None = None
    table, mistakes = _padded(scored, errors, len(axes))
    for block in _blocks(itertools.product(*axes)):
        scores = table @ np.array(block).T  # (utterances, hypotheses, combinations)
        chosen = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
        totals = np.take_along_axis(mistakes, chosen, 1).sum(0)
        place = int(totals.argmin())
        if best is None or totals[place] < best[0]:
            best = (int(totals[place]), block[place])
    assert best is not None
    return Tuned(dict(zip(names, best[1])), best[1][-1], best[0] + lost, units)


def _padded(scored: list[list[list[float]]], errors: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts (utterances, hypotheses, width) and errors (utterances, hypotheses); the parts of missing ones are NaN."""
    size = max(map(len, scored), default=1)
    table = np.full((len(scored), size, width), np.nan)
    mistakes = np.zeros((len(scored), size), dtype=np.int64)
    for i, (rows, counts) in enumerate(zip(scored, errors)):
        table[i, : len(rows)], mistakes[i, : len(rows)] = rows, counts
    return np.maximum(table, _WORST), mistakes


def _blocks(combinations: Iterator[tuple[float, ...]], size: int = 64) -> Iterator[list[tuple[float, ...]]]:
    while block := list(itertools.islice(combinations, size)):
        yield block


def distances(reference: Sequence[Hashable], hypotheses: Sequence[Sequence[Hashable]]) -> list[int]:
    """The Levenshtein distance (substitutions, deletions, insertions) of each hypothesis to the reference."""
    numbers: dict[Hashable, int] = {}
    coded = [[numbers.setdefault(unit, len(numbers)) for unit in units] for units in (reference, *hypotheses)]
    width = max(map(len, coded[1:]), default=0)
    units = np.full((len(hypotheses), width), -1)
    for i, found in enumerate(coded[1:]):
        units[i, : len(found)] = found
    steps = np.arange(width + 1)
    row = np.broadcast_to(steps, (len(units), width + 1))
    for unit in coded[0]:
        # A cell is reached from above (deletion) or diagonally; then from the left at 1 per step: a running minimum.
        reached = row + 1
        reached[:, 1:] = np.minimum(reached[:, 1:], row[:, :-1] + (units != unit))
        row = np.minimum.accumulate(reached - steps, axis=1) + steps
    return [int(row[i, len(found)]) for i, found in enumerate(coded[1:])]
