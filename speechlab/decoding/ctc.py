"""CTC's best path, greedily (Graves et al. 2006), from log posteriors. The beam search is fused_beam.py's.

A collapsed CTC path drops repeats, then blanks: ``a a - a b`` is ``a a b``. Greedy takes the best unit of each frame;
the beam sums over the paths of one label sequence, so it can find a sequence that no single path wins with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Rows of a posterior must sum to one; half precision under autocast is off by about 1e-2 at 5,000 units.
_ROW_SUM_TOLERANCE = 0.05


@dataclass
class Hypothesis:
    """One utterance's answer.

    ``score`` is a natural log probability: of the best path (greedy), or of ``tokens`` summed over all their paths
    (beam); None when ``error`` says why there is no answer. Token i takes the frames ``starts[i]`` to ``ends[i] - 1``.
    ``parts`` are the unweighted log probabilities that a score by several models is made of, by the models' names.
    """

    tokens: list[int] = field(default_factory=list)
    score: float | None = None
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    error: str | None = None
    parts: dict[str, float] = field(default_factory=dict)


def check_posteriors(log_probs: Tensor, lengths: Tensor) -> list[str | None]:
    """What is wrong with each utterance's log posteriors ``(B, T, V)`` within its length; None where they are sound.

    Wrong are NaN, plus infinity, and frames that are no distribution (logits given in place of log-softmax).
    """
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        raise ValueError(f"expected (B, T, V) and (B,), not {tuple(log_probs.shape)} and {tuple(lengths.shape)}")
    if len(lengths) and int(lengths.max()) > log_probs.shape[1]:
        raise ValueError(f"a length of {int(lengths.max())} in a batch of {log_probs.shape[1]} frames")
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    if log_probs.device.type == "cpu" and _sound(log_probs, lengths):
        return [None] * len(lengths)
    total = log_probs.float().logsumexp(-1)  # NaN and inf pass through the sum, so one (B, T) array tells all
    finite = total.isfinite() | ~inside
    summed = (total.abs() < _ROW_SUM_TOLERANCE) | ~inside
    answers: list[str | None] = []
    for row_finite, row_summed in zip(finite.cpu(), summed.cpu()):
        if not row_finite.all():
            frame = int((~row_finite).nonzero()[0])
            answers.append(f"posterior not finite at frame {frame}: the model diverged or its input is broken")
        elif not row_summed.all():
            frame = int((~row_summed).nonzero()[0])
            answers.append(f"posterior does not sum to 1 at frame {frame}: log-softmax is missing")
        else:
            answers.append(None)
    return answers


def _sound(log_probs: Tensor, lengths: Tensor) -> bool:
    """Whether all frames sum to one, by numpy: as they nearly always do, in a third of the time of the closer look."""
    table = log_probs.detach().float().numpy()
    probs = np.empty(table.shape[1:], np.float32)  # of one utterance: the cache holds it
    with np.errstate(over="ignore", invalid="ignore"):
        for frames, size in zip(table, lengths.tolist()):
            total = np.exp(frames[:size], out=probs[:size]).sum(1)
            if not (np.abs(total - 1) < _ROW_SUM_TOLERANCE - 0.002).all():  # narrower than that of its log
                return False
    return True


@torch.no_grad()
def greedy(log_probs: Tensor, lengths: Tensor, blank: int = 0) -> list[Hypothesis]:
    """Best path of each utterance, as one batch of tensor operations.

    Args:
        log_probs: natural log posteriors, ``(B, T, V)``, on any device.
        lengths: frames of each utterance, ``(B,)``.
        blank: the index of CTC's blank.

    Returns:
        One :class:`Hypothesis` an utterance; an unsound posterior gives ``error``, never tokens.
    """
    errors = check_posteriors(log_probs, lengths)
    batch, frames, _ = log_probs.shape
    if not batch or not frames:
        return [Hypothesis(score=0.0) for _ in range(batch)]
    best, ids = log_probs.max(-1)
    time = torch.arange(frames, device=ids.device)
    inside = time < lengths.to(ids.device)[:, None]
    ids = ids.masked_fill(~inside, blank)
    scores = best.float().masked_fill(~inside, 0.0).sum(1).tolist()

    changed = torch.ones_like(inside)
    changed[:, 1:] = ids[:, 1:] != ids[:, :-1]
    # The end of a run is the nearest change after it (the padding is blank, a change): a minimum from the right.
    following = torch.where(changed, time, frames)[:, 1:].flip(1).cummin(1).values.flip(1)
    ends = torch.cat([following, following.new_full((batch, 1), frames)], 1)
    kept = changed & (ids != blank)

    utterance, start = kept.nonzero(as_tuple=True)
    answers = [Hypothesis(error=error, score=None if error else score) for error, score in zip(errors, scores)]
    columns = (utterance.tolist(), ids[utterance, start].tolist(), start.tolist(), ends[utterance, start].tolist())
    for row, token, first, last in zip(*columns):
        if not answers[row].error:
            answers[row].tokens.append(token)
            answers[row].starts.append(first)
            answers[row].ends.append(last)
    return answers
