"""CTC search (Graves et al. 2006): best path (greedy) and prefix beam search, both from log posteriors.

A collapsed CTC path drops repeats, then blanks: ``a a - a b`` is ``a a b``. Greedy takes the best unit of each frame;
the beam sums over the paths of one label sequence, so it can find a sequence that no single path wins with.
"""

from __future__ import annotations

import functools
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from speechlab.decoding.prefix_beam import search
from speechlab.errors import UserError

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


@torch.no_grad()
def prefix_beam(
    log_probs: Tensor,
    lengths: Tensor,
    beam: int = 10,
    blank: int = 0,
    prune: float = 1e-3,
    top: int = 20,
    nj: int = 1,
) -> list[Hypothesis]:
    """Prefix beam search through fast-ctc-decode, with exact scores and Viterbi token times.

    Args:
        log_probs: natural log posteriors, ``(B, T, V)``.
        lengths: frames of each utterance, ``(B,)``.
        beam: prefixes kept after each frame.
        blank: the index of CTC's blank.
        prune: units under this posterior in a frame are left out of that frame (its best unit and blank never are).
        top: units looked at in one frame at most; bounds the time on the flat posteriors of an untrained model.
        nj: processes; worth it for long batches only (the search of a trained model takes milliseconds).

    Returns:
        One :class:`Hypothesis` an utterance; an unsound posterior gives ``error``, never tokens.

    Raises:
        UserError: for an option out of range, or when fast-ctc-decode is not installed.
    """
    for name, value, least in (("beam", beam, 1), ("top", top, 1), ("nj", nj, 1)):
        if value < least:
            raise UserError(f"CTC beam search: {name} is {value}; it must be at least {least}")
    if not 0 <= prune < 1:
        raise UserError(f"CTC beam search: prune is {prune}; it is a probability, at least 0 and less than 1")
    errors = check_posteriors(log_probs, lengths)
    best = log_probs.float().topk(min(top, log_probs.shape[2]), dim=2)
    log_probs, values, units = log_probs.float().cpu(), best.values.cpu().numpy(), best.indices.cpu().numpy()
    sizes = lengths.tolist()
    blanks = log_probs[:, :, blank].numpy()
    jobs = [
        (_candidates(values[row, :size], units[row, :size], blanks[row, :size], blank, prune), beam)
        for row, size in enumerate(sizes)
        if not errors[row]
    ]
    found = iter([search(*job) for job in jobs] if nj == 1 else _pool(nj).map(search, *zip(*jobs)) if jobs else [])
    answers = []
    for row, size, error in zip(log_probs, sizes, errors):
        answers.append(Hypothesis(error=error) if error else _align(row[:size], next(found), blank))
    return answers


def _candidates(
    values: np.ndarray, units: np.ndarray, blanks: np.ndarray, blank: int, prune: float
) -> tuple[np.ndarray, np.ndarray]:
    """From each frame's best log posteriors and their units ``(T, top)`` and blank's log posterior ``(T,)``: posteriors
    ``(T, K)`` of the K units that matter in some frame, blank first, zero where pruned; and the K ids.

    fast-ctc-decode walks every unit over a threshold that may not exceed 1 / V, hopeless with thousands of hanzi, and
    wants blank at 0: so the columns are chosen and put in order before, which changes nothing else.
    """
    probs = np.exp(values)
    keep = probs >= prune
    keep[:, 0] = True
    keep &= units != blank
    ids = np.unique(units[keep])  # sorted, so that a unit's column is found by bisection
    rows, _ = keep.nonzero()
    table = np.zeros((len(probs), 1 + len(ids)), dtype=np.float32)
    table[rows, 1 + np.searchsorted(ids, units[keep])] = probs[keep]
    table[:, 0] = np.exp(blanks)
    return table, np.concatenate([[blank], ids])


def _align(log_probs: Tensor, tokens: list[int], blank: int) -> Hypothesis:
    """The exact log probability of ``tokens`` and the frames of their best path.

    The search's own times are where a prefix was first thought of, not where it is spoken, hence the alignment.
    """
    if not tokens:
        return Hypothesis(score=float(log_probs[:, blank].sum()))
    from torchaudio.functional import forced_align

    target = torch.tensor([tokens], dtype=torch.int32)
    size = log_probs.shape[0]
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None], target, torch.tensor([size]), torch.tensor([len(tokens)]), blank=blank, reduction="sum"
    )
    path = forced_align(log_probs[None], target, blank=blank)[0][0]
    changed = torch.cat([torch.tensor([True]), path[1:] != path[:-1]])
    bounds = [*changed.nonzero()[:, 0].tolist(), size]
    runs = [(first, last) for first, last in zip(bounds, bounds[1:]) if path[first] != blank]
    return Hypothesis(tokens, -float(loss), [first for first, _ in runs], [last for _, last in runs])


@functools.lru_cache(maxsize=1)
def _pool(nj: int) -> Executor:
    """Worker processes, kept between batches; spawned, since a fork after torch's threads have started may hang."""
    return ProcessPoolExecutor(nj, mp_context=get_context("spawn"))
