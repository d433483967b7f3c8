"""Percentile bootstrap over the items of a test list: for the rate of one system, and for the difference between two.

Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def interval(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """The interval of ``sum(numerators) / sum(denominators)`` when the items are drawn again with replacement.

    Args:
        numerators: one value per item, for example the errors of an utterance, or PESQ of a file.
        denominators: one value per item, for example the words of an utterance; None for a plain mean.
        resamples: number of draws; the ends of a 95 % interval are stable from about 1,000.
        confidence: the share of draws within the interval, 0 to 1.
        seed: of the draws; the same list and seed give the same interval.

    Returns:
        The low and the high end, in the unit of the ratio; (None, None) for fewer than two items, which have no spread.
    """
    found = _ratios(numerators, denominators, resamples, seed)
    return _ends(found, confidence) if found is not None else (None, None)


def paired(
    a: Sequence[float],
    b: Sequence[float],
    denominators: Sequence[float] | None = None,
    resamples: int = 10000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float] | tuple[None, None, None]:
    """The interval of ``sum(b - a) / sum(denominators)``, and how often b is lower, when the items are drawn again.

    Both systems get the same draws. An utterance that is hard for one is mostly hard for the other, too, which cancels
    out: the interval is much narrower than those of the two rates suggest.

    Args:
        a, b: one value per item for each system, in the same order.
        denominators: one value per item, for both systems; None for plain means.
        resamples, confidence, seed: as for :func:`interval`.

    Returns:
        The low and the high end of the difference, and the probability of improvement: the share of draws in which b is
        lower, where equal ones count half (it is 0.5 for two systems with the same answers). All are None for fewer
        than two items.

    Raises:
        ValueError: when the lists are not of one length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items can't be paired")
    found = _ratios(np.asarray(b, dtype=float) - np.asarray(a, dtype=float), denominators, resamples, seed)
    if found is None:
        return None, None, None
    return *_ends(found, confidence), float((found < 0).mean() + (found == 0).mean() / 2)


def _ratios(top: Sequence[float], bottom: Sequence[float] | None, resamples: int, seed: int) -> np.ndarray | None:
    """The ratio of sums in each draw that has one; None if there are fewer than two items or no draws."""
    top = np.asarray(top, dtype=float)
    bottom = np.ones_like(top) if bottom is None else np.asarray(bottom, dtype=float)
    if len(top) < 2 or not bottom.sum() or resamples < 1:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.concatenate([(draws @ top) / (draws @ bottom) for draws in _draws(len(top), resamples, seed)])
    return found[np.isfinite(found)]  # a draw of empty references only has no rate


def _draws(items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is drawn, in blocks (resamples, items) of at most 32 MB."""
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // items)
    for first in range(0, resamples, block):
        yield rng.multinomial(items, np.full(items, 1 / items), size=min(block, resamples - first))


def _ends(found: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
