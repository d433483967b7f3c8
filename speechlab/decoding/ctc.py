"""Greedy CTC decoding (Graves et al. 2006) of log posteriors. The beam search is in fused_beam.py.

A CTC path is collapsed by dropping repeats, then blanks: ``a a - a b`` becomes ``a a b``. Greedy decoding takes the
best unit of each frame. Beam search sums over all paths of a token sequence, so it can find one whose best single path
is not the best of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# The posteriors of a frame must sum to 1; in half precision under autocast they miss it by about 1e-2 at 5,000 units.
_ROW_SUM_TOLERANCE = 0.05


@dataclass
class Hypothesis:
    """An answer to an utterance."""

    tokens: list[int] = field(default_factory=list)
    # Natural log probability: of the best path (greedy), or of the tokens over all their paths (beam); None with error.
    score: float | None = None
    starts: list[int] = field(default_factory=list)  # token i takes the frames starts[i] to ends[i] - 1
    ends: list[int] = field(default_factory=list)
    error: str | None = None  # why there is no answer
    # The log probabilities without weights that a score by several models is made of, by the models' names.
    parts: dict[str, float] = field(default_factory=dict)


def check_posteriors(log_probs: Tensor, lengths: Tensor) -> list[str | None]:
    """What is wrong with the log posteriors (B, T, V) of each utterance, within its length; None where nothing is.

    NaN, plus infinity, and frames that are no distribution (logits instead of their log-softmax) are wrong.
    """
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        raise ValueError(f"expected (B, T, V) and (B,), not {tuple(log_probs.shape)} and {tuple(lengths.shape)}")
    if len(lengths) and int(lengths.max()) > log_probs.shape[1]:
        raise ValueError(f"a length of {int(lengths.max())} in a batch of {log_probs.shape[1]} frames")
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    if log_probs.device.type == "cpu" and _sound(log_probs, lengths):
        return [None] * len(lengths)
    total = log_probs.float().logsumexp(-1)  # NaN and inf pass through the sum, so one (B, T) array shows everything
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
    """True if all frames sum to 1, as nearly always: numpy finds it in a third of the time of the closer look."""
    table = log_probs.detach().float().numpy()
    probs = np.empty(table.shape[1:], np.float32)  # of one utterance, which the cache can hold
    with np.errstate(over="ignore", invalid="ignore"):
        for frames, size in zip(table, lengths.tolist()):
            total = np.exp(frames[:size], out=probs[:size]).sum(1)
            if not (np.abs(total - 1) < _ROW_SUM_TOLERANCE - 0.002).all():  # stricter than the same for the log
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
        One :class:`Hypothesis` per utterance; posteriors that are wrong give ``error`` and no tokens.
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
    # A run ends at the nearest change after it: a running minimum from the right. The padding counts as blank.
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
