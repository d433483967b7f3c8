"""Percentile bootstrap over the items of a test list (Bisani & Ney 2004, "Bootstrap estimates for confidence intervals
in ASR performance evaluation")."""

from __future__ import annotations

from collections.abc import Sequence

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
        numerators: a value an item: errors of an utterance; PESQ of a file.
        denominators: words of an utterance; None for a plain mean.
        resamples: draws; the ends of a 95 % interval settle from about 1,000.
        confidence: coverage, 0 to 1.
        seed: of the draws, so that the same list gives the same interval.

    Returns:
        Low and high end, in the ratio's own unit; (None, None) for fewer than two items, which say nothing of a spread.
    """
    top = np.asarray(numerators, dtype=float)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=float)
    if len(top) < 2 or not bottom.sum():
        return None, None
    rng = np.random.default_rng(seed)
    ratios = []
    block = max(1, 4_000_000 // len(top))  # how often each item is drawn: at most 32 MB of counts at once
    for first in range(0, resamples, block):
        draws = rng.multinomial(len(top), np.full(len(top), 1 / len(top)), size=min(block, resamples - first))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append((draws @ top) / (draws @ bottom))
    found = np.concatenate(ratios)
    found = found[np.isfinite(found)]  # a draw of nothing but empty references has no rate
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
