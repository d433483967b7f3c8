"""CTC's greedy search, worked by hand."""

import itertools
import math

import pytest
import torch

from speechlab.decoding.ctc import greedy


def posteriors(best: list[int], units: int = 4, p: float = 0.9) -> torch.Tensor:
    """(1, T, units) log posteriors with ``p`` on ``best``."""
    probs = torch.full((1, len(best), units), (1 - p) / (units - 1))
    probs[0, torch.arange(len(best)), torch.tensor(best)] = p
    return probs.log()


def batch(seed: int, size: int = 4, frames: int = 6, units: int = 4, sharp: float = 1.5) -> torch.Tensor:
    return (torch.randn(size, frames, units, generator=torch.Generator().manual_seed(seed)) * sharp).log_softmax(-1)


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != blank)


def test_greedy_by_hand():
    #                            0  1  2  3  4  5  6  7  8
    (one,) = greedy(posteriors([1, 1, 0, 1, 2, 2, 0, 0, 3]), torch.tensor([9]))
    assert one.tokens == [1, 1, 2, 3]
    assert (one.starts, one.ends) == ([0, 3, 4, 8], [2, 4, 6, 9])
    assert one.score == pytest.approx(9 * math.log(0.9), rel=1e-5)


def test_greedy_stops_at_the_length_whatever_pads_the_batch():
    log_probs = posteriors([1, 1, 2, 2, 3, 3]).repeat(3, 1, 1)
    log_probs[2, 3:] = float("nan")
    cut, none, padded = greedy(log_probs, torch.tensor([4, 0, 3]))
    assert (cut.tokens, cut.starts, cut.ends) == ([1, 2], [0, 2], [2, 4])
    assert (none.tokens, none.score) == ([], 0.0)
    assert (padded.tokens, padded.ends, padded.error) == ([1, 2], [2, 3], None)
    assert greedy(torch.zeros(0, 5, 4), torch.zeros(0, dtype=torch.long)) == []
    assert greedy(torch.zeros(1, 0, 4), torch.tensor([0]))[0].tokens == []


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_is_the_collapsed_best_path(blank):
    log_probs = batch(1, size=20, frames=12)
    for row, answer in zip(log_probs, greedy(log_probs, torch.full((20,), 12), blank=blank)):
        path = tuple(row.argmax(-1).tolist())
        assert tuple(answer.tokens) == collapse(path, blank)
        spoken = [(frame, path[frame]) for frame in range(12) if path[frame] != blank]
        covered = [(f, t) for t, a, b in zip(answer.tokens, answer.starts, answer.ends) for f in range(a, b)]
        assert covered == spoken


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_posterior_is_flagged_and_spoils_no_neighbour(value):
    log_probs = posteriors([1, 0, 2]).repeat(3, 1, 1)
    log_probs[1, 2, 3] = value
    log_probs[2] += 5  # logits, not log posteriors
    sound, broken, logits = greedy(log_probs, torch.tensor([3, 3, 3]))
    assert sound.tokens == [1, 2] and sound.error is None
    assert (broken.tokens, broken.score) == ([], None) and "frame 2" in broken.error
    assert (logits.tokens, logits.score) == ([], None) and "log-softmax" in logits.error


def test_half_precision_passes():
    log_probs = batch(3, frames=20, units=2000, sharp=3).bfloat16()
    assert [a.error for a in greedy(log_probs, torch.full((4,), 20))] == [None] * 4


def test_wrong_shapes():
    log_probs = batch(0)
    with pytest.raises(ValueError, match="length of 7"):
        greedy(log_probs, torch.tensor([7, 1, 1, 1]))
    with pytest.raises(ValueError, match="expected"):
        greedy(log_probs[0], torch.full((4,), 6))
