"""CTC search against brute force over every path, and greedy worked by hand."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from speechlab.decoding import prefix_beam as inner
from speechlab.decoding.ctc import greedy, prefix_beam
from speechlab.errors import UserError


def posteriors(best: list[int], units: int = 4, p: float = 0.9) -> torch.Tensor:
    """(1, T, units) log posteriors with ``p`` on ``best``."""
    probs = torch.full((1, len(best), units), (1 - p) / (units - 1))
    probs[0, torch.arange(len(best)), torch.tensor(best)] = p
    return probs.log()


def batch(seed: int, size: int = 4, frames: int = 6, units: int = 4, sharp: float = 1.5) -> torch.Tensor:
    return (torch.randn(size, frames, units, generator=torch.Generator().manual_seed(seed)) * sharp).log_softmax(-1)


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != blank)


def brute_force(log_probs: torch.Tensor, blank: int = 0) -> dict[tuple[int, ...], float]:
    """Label sequence -> probability, by walking through all V ** T paths."""
    table = log_probs.double().exp().tolist()
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        sums[collapse(path, blank)] += math.prod(row[unit] for row, unit in zip(table, path))
    return sums


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


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_finds_the_most_probable_sequence(seed, blank):
    log_probs = batch(seed)
    answers = prefix_beam(log_probs, torch.full((4,), 6), beam=2000, blank=blank, prune=0)
    for row, answer in zip(log_probs, answers):
        sums = brute_force(row, blank)
        assert sum(sums.values()) == pytest.approx(1)
        best = max(sums, key=sums.get)
        assert tuple(answer.tokens) == best
        assert answer.score == pytest.approx(math.log(sums[best]), abs=1e-4)


def test_beam_sums_over_paths_where_greedy_does_not():
    """Blank is the best path (0.36), but 'a' has 0.24 + 0.24 + 0.16 of three paths."""
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert greedy(log_probs, torch.tensor([2]))[0].tokens == []
    (answer,) = prefix_beam(log_probs, torch.tensor([2]), beam=4)
    assert answer.tokens == [1] and answer.score == pytest.approx(math.log(0.64), abs=1e-5)


def test_beam_equals_greedy_on_peaked_posteriors_with_thousands_of_units():
    paths = [[0, 4000, 4000, 0, 17, 17, 0, 17], [2999, 0, 0, 1, 2, 3, 0, 0]]
    log_probs = torch.cat([posteriors(path, units=4233, p=0.999) for path in paths])
    lengths = torch.tensor([8, 6])
    for beam in (1, 10):
        for one, other in zip(greedy(log_probs, lengths), prefix_beam(log_probs, lengths, beam=beam)):
            assert (one.tokens, one.starts, one.ends) == (other.tokens, other.starts, other.ends)
    assert greedy(log_probs, lengths)[1].tokens == [2999, 1, 2, 3]


def test_beam_gives_the_times_of_the_best_path():
    (answer,) = prefix_beam(posteriors([0, 0, 1, 1, 0, 0, 1, 2, 0]), torch.tensor([9]), beam=20)
    assert (answer.tokens, answer.starts, answer.ends) == ([1, 1, 2], [2, 6, 7], [4, 7, 8])


def test_pruning_keeps_every_frame_alive():
    flat = torch.full((1, 5, 50), 1 / 50).log()
    (answer,) = prefix_beam(flat, torch.tensor([5]), beam=3, prune=0.5)
    assert answer.error is None and math.isfinite(answer.score)
    (answer,) = prefix_beam(posteriors([1, 2], p=0.4), torch.tensor([2]), prune=0.5)
    assert answer.tokens == [1, 2], "a frame's best unit stays, however unsure"
    certain = torch.full((1, 3, 4), -math.inf)
    certain[0, [0, 1, 2], [1, 0, 1]] = 0.0  # exact zeros elsewhere, as a hard posterior has them
    (answer,) = prefix_beam(certain, torch.tensor([3]))
    assert (answer.tokens, answer.score) == ([1, 1], 0.0)


def test_empty_utterances():
    answers = prefix_beam(posteriors([1, 2]).repeat(2, 1, 1), torch.tensor([0, 2]))
    assert (answers[0].tokens, answers[0].score, answers[1].tokens) == ([], 0.0, [1, 2])


@pytest.mark.parametrize("search", [greedy, prefix_beam])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_posterior_is_flagged_and_spoils_no_neighbour(search, value):
    log_probs = posteriors([1, 0, 2]).repeat(3, 1, 1)
    log_probs[1, 2, 3] = value
    log_probs[2] += 5  # logits, not log posteriors
    sound, broken, logits = search(log_probs, torch.tensor([3, 3, 3]))
    assert sound.tokens == [1, 2] and sound.error is None
    assert (broken.tokens, broken.score) == ([], None) and "frame 2" in broken.error
    assert (logits.tokens, logits.score) == ([], None) and "log-softmax" in logits.error


def test_half_precision_passes():
    log_probs = batch(3, frames=20, units=2000, sharp=3).bfloat16()
    assert [a.error for a in greedy(log_probs, torch.full((4,), 20))] == [None] * 4


def test_two_processes_answer_as_one():
    log_probs, lengths = batch(7, size=6), torch.tensor([6, 5, 4, 3, 6, 6])
    assert prefix_beam(log_probs, lengths, nj=2) == prefix_beam(log_probs, lengths)


def test_wrong_options_and_shapes():
    log_probs, lengths = batch(0), torch.full((4,), 6)
    for options in (dict(beam=0), dict(top=0), dict(nj=0), dict(prune=1.0), dict(prune=-0.1)):
        with pytest.raises(UserError, match=next(iter(options))):
            prefix_beam(log_probs, lengths, **options)
    with pytest.raises(ValueError, match="length of 7"):
        greedy(log_probs, torch.tensor([7, 1, 1, 1]))
    with pytest.raises(ValueError, match="expected"):
        greedy(log_probs[0], lengths)


def test_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fast_ctc_decode", None)
    with pytest.raises(UserError, match="fast-ctc-decode"):
        inner.search((batch(0)[0].exp().numpy(), torch.arange(4).numpy()), 5)
