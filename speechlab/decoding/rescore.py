"""Second pass over n-best lists: score them again by other models, weigh all scores anew, choose the weights on dev."""

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

FIRST = "ctc"  # the part that a hypothesis has without parts: its score
BONUS = "length_bonus"
_WORST = -1e30  # for minus infinity, which a weight of 0 cannot undo
_COMBINATIONS = 100_000  # of a grid, tried in some seconds


def rescore(nbest: list[list[Hypothesis]], extra: Mapping[str, list[list[float]]], weights: Mapping[str, float],
            length_bonus: float = 0.0) -> list[list[Hypothesis]]:
    """The lists in the order of the weighted sum of their parts; of equal ones, the first stays first.

    Args:
        nbest: utterances x hypotheses, with ``parts`` (without: the score is the part ``ctc``).
        extra: by name further log probabilities, utterances x hypotheses likewise; they become parts.
        weights: of the parts; a part without a weight does not count.
        length_bonus: added for each token.

    Returns:
        New hypotheses with the new scores and all the parts. An error stays what it is; an utterance with a score that
        is no log probability (NaN) becomes one.

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
    """What an attention decoder gives each hypothesis with its end: natural log probability, the tokens being forced.

    Args:
        decoder_forward: ``(memory (N, T, d), mask (N, T), tokens (N, U)) -> logits (N, U, V)``; in evaluation mode.
        memory: the encoder's output (B, T, d); memory_mask: (B, T), True where it is valid.
        nbest: of each of the B utterances its hypotheses.
        rows: hypotheses computed at a time; bounds memory.

    Returns:
        Utterances x hypotheses; NaN for a hypothesis that is an error.
    """
    if len(nbest) != len(memory):
        raise ValueError(f"{len(nbest)} lists of hypotheses for {len(memory)} utterances")

    def forward(x: Tensor, owner: Tensor) -> Tensor:
        return decoder_forward(memory[owner], memory_mask[owner], x)

    return _forced(forward, nbest, memory.device, rows)


def lm_scores(lm_forward: Callable[[Tensor], Tensor], nbest: list[list[Hypothesis]], device: torch.device | str = "cpu",
              rows: int = 512) -> list[list[float]]:
    """What a language model ``tokens (N, U) -> logits (N, U, V)`` gives each, as :func:`attention_scores`."""
    return _forced(lambda x, owner: lm_forward(x), nbest, torch.device(device), rows)


@torch.no_grad()
def _forced(forward: Callable[[Tensor, Tensor], Tensor], nbest: list[list[Hypothesis]], device: torch.device,
            rows: int) -> list[list[float]]:
    """Log probabilities by ``(tokens (N, U), utterances (N,)) -> logits (N, U, V)``, ``rows`` at a time."""
    answers = [[math.nan] * len(hypotheses) for hypotheses in nbest]
    places = [(u, i) for u, hypotheses in enumerate(nbest) for i, h in enumerate(hypotheses) if not h.error]
    places.sort(key=lambda place: len(nbest[place[0]][place[1]].tokens))  # of like lengths together: little padding
    for first in range(0, len(places), rows):
        batch = places[first : first + rows]
        tokens = [nbest[u][i].tokens for u, i in batch]
        width = 1 + max(map(len, tokens))
        x = torch.tensor([[END, *t] + [END] * (width - 1 - len(t)) for t in tokens], device=device)
        sizes = torch.tensor([len(t) for t in tokens], device=device)
        logits = forward(x, torch.tensor([u for u, _ in batch], device=device))
        # Padding is the end's own index: so the shifted tokens are the targets, each row's first END among them.
        target = torch.nn.functional.pad(x[:, 1:], (0, 1), value=END)
        given = -torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
        inside = torch.arange(width, device=device) <= sizes[:, None]
        for (u, i), score in zip(batch, given.masked_fill(~inside, 0.0).double().sum(1).tolist()):
            answers[u][i] = score
    return answers


@dataclass(frozen=True)
class Tuned:
    """Weights and length bonus that gave the fewest errors, ``errors`` of ``units`` reference units."""

    weights: dict[str, float]
    length_bonus: float
    errors: int
    units: int


def tune(nbest: list[list[Hypothesis]], references: Sequence[Sequence[Hashable]], names: Sequence[str],
         grid: Mapping[str, Sequence[float]], read: Callable[[list[int]], Sequence[Hashable]] = list) -> Tuned:
    """Try all weights of a grid on lists that are scored already; the smallest total edit distance wins.

    It depends on nothing but its arguments: among equals the first combination of the grid wins (its last name turns
    fastest), so each name's values should begin with the one that is trusted most. Errors of the search are counted
    as deletions of the whole reference.

    Args:
        nbest: lists with all the parts, as :func:`rescore` leaves them. Of the development set: what is measured here
            on a test set is no test.
        references: of each utterance its units.
        names: the parts to weigh.
        grid: values to try for each of ``names``, and for ``length_bonus`` (only 0 where it is left out).
        read: tokens to the units of the references, what is written for a person: with the tokens as they are, an
            unknown token would match another.

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
    """Parts (utterances, hypotheses, width) and errors (utterances, hypotheses); what is missing is NaN."""
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
    """Levenshtein distance of each hypothesis to the reference, all at once: substitutions, deletions, insertions."""
    numbers: dict[Hashable, int] = {}
    coded = [[numbers.setdefault(unit, len(numbers)) for unit in units] for units in (reference, *hypotheses)]
    width = max(map(len, coded[1:]), default=0)
    units = np.full((len(hypotheses), width), -1)
    for i, found in enumerate(coded[1:]):
        units[i, : len(found)] = found
    steps = np.arange(width + 1)
    row = np.broadcast_to(steps, (len(units), width + 1))
    for unit in coded[0]:
        # Reached from above (deletion) or aslant; then from the left, each step 1 more: a running minimum.
        reached = row + 1
        reached[:, 1:] = np.minimum(reached[:, 1:], row[:, :-1] + (units != unit))
        row = np.minimum.accumulate(reached - steps, axis=1) + steps
    return [int(row[i, len(found)]) for i, found in enumerate(coded[1:])]
