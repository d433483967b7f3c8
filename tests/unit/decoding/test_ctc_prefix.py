"""The CTC prefix scorer against the sum over all alignments, and against CTC loss."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from speechlab.decoding.ctc_prefix import CTCPrefixScorer

IMPOSSIBLE = -math.inf


def posteriors(*shape: int, scale: float = 1.5, seed: int = 0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def brute_force(log_probs: torch.Tensor) -> tuple[dict, dict]:
    """Probability of each labelling, and of all that begin with each prefix, from every alignment of (T, V)."""
    whole, begun = {}, {}
    frames, vocab = log_probs.shape
    for path in itertools.product(range(vocab), repeat=frames):
        p = math.exp(sum(float(log_probs[t, unit]) for t, unit in enumerate(path)))
        labels = collapse(path)
        whole[labels] = whole.get(labels, 0.0) + p
        for size in range(len(labels) + 1):
            begun[labels[:size]] = begun.get(labels[:size], 0.0) + p
    return whole, begun


def log(p: float) -> float:
    return math.log(p) if p > 0 else IMPOSSIBLE


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_every_prefix_is_the_sum_over_all_alignments(frames):
    vocab = 4
    log_probs = posteriors(1, frames, vocab)
    whole, begun = brute_force(log_probs[0])
    scorer = CTCPrefixScorer(log_probs, torch.tensor([frames]))
    candidates = torch.arange(vocab)[None]
    reached = {(): (0.0, torch.tensor([0]), scorer.start(1))}
    for _ in range(frames + 1):  # one token more than there are frames: impossible
        longer = {}
        for prefix, (total, last, state) in reached.items():
            scores, state = scorer.score(last, state, candidates)
            assert total + float(scores[0, 0]) == pytest.approx(log(whole.get(prefix, 0.0)), abs=1e-5), prefix
            for token in range(1, vocab):
                score = total + float(scores[0, token])
                assert score == pytest.approx(log(begun.get((*prefix, token), 0.0)), abs=1e-5), (prefix, token)
                if score > IMPOSSIBLE:
                    longer[(*prefix, token)] = (score, torch.tensor([token]), state)
        reached = longer
    assert not reached


def force(log_probs: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The summed scores of ``labels`` (B, U) with the end."""
    scorer = CTCPrefixScorer(log_probs, lengths)
    state, last = scorer.start(len(labels)), torch.zeros(len(labels), dtype=torch.long)
    total = torch.zeros(len(labels), dtype=torch.float64)
    for column in (*labels.T, torch.zeros_like(last)):
        scores, state = scorer.score(last, state, column[:, None])
        total, last = total + scores[:, 0], column
    return total


@pytest.mark.parametrize(("frames", "scale"), [(60, 1.0), (400, 6.0), (400, 30.0)])
def test_a_whole_sequence_is_ctc_loss(frames, scale):
    log_probs = posteriors(4, frames, 30, scale=scale)
    lengths, labels = torch.tensor([frames, frames - 7, frames // 2, 25]), torch.randint(1, 6, (4, 20))
    labels[0, 5:8] = 3  # repeats
    loss = F.ctc_loss(log_probs.double().transpose(0, 1), labels, lengths, torch.full((4,), 20), reduction="none")
    torch.testing.assert_close(force(log_probs, lengths, labels), -loss, rtol=1e-6, atol=1e-4)


def test_what_lies_beyond_the_length_is_not_looked_at():
    log_probs, lengths = posteriors(3, 12, 6), torch.tensor([12, 5, 0])
    noisy = log_probs.clone()
    noisy[1, 5:], noisy[2] = math.nan, math.nan
    labels = torch.tensor([[2, 3]] * 3)
    found = force(noisy, lengths, labels)
    for row, size in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row:row + 1], force(log_probs[row:row + 1, :size], lengths[row:row + 1],
                                                             labels[:1]))
    assert found[2] == IMPOSSIBLE
    scorer, none = CTCPrefixScorer(noisy, lengths), torch.zeros(3, dtype=torch.long)
    scores, _ = scorer.score(none, scorer.start(3), none[:, None])
    assert float(scores[2]) == 0.0  # of nothing, nothing is certain


def test_impossible_tokens_and_certain_ones():
    log_probs = torch.full((1, 4, 3), IMPOSSIBLE)
    log_probs[0, [0, 1, 2, 3], [1, 0, 1, 2]] = 0.0
    lengths = torch.tensor([4])
    assert float(force(log_probs, lengths, torch.tensor([[1, 1, 2]]))) == pytest.approx(0.0, abs=1e-6)
    assert float(force(log_probs, lengths, torch.tensor([[1, 2]]))) < -5000
    assert float(force(log_probs, lengths, torch.tensor([[2, 2, 2]]))) < -5000


def test_rows_keep_their_utterance():
    log_probs, lengths = posteriors(2, 9, 5), torch.tensor([9, 6])
    scorer = CTCPrefixScorer(log_probs, lengths)
    candidates = torch.arange(5).expand(2, 5)
    _, state = scorer.score(torch.zeros(2, dtype=torch.long), scorer.start(2), candidates)
    rows = torch.tensor([1, 0, 1])
    tokens = torch.tensor([2, 3, 4])
    found, _ = scorer.score(tokens, scorer.select(state, rows), torch.arange(5).expand(3, 5))
    for i, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist())):
        alone = CTCPrefixScorer(log_probs[row:row + 1], lengths[row:row + 1])
        _, first = alone.score(torch.tensor([0]), alone.start(1), candidates[:1])
        scores, _ = alone.score(torch.tensor([token]), first, candidates[:1])
        torch.testing.assert_close(found[i], scores[0])


def test_a_nan_stays_in_its_utterance():
    log_probs = posteriors(2, 8, 5)
    log_probs[0, 3] = math.nan
    found = force(log_probs, torch.tensor([8, 8]), torch.tensor([[1, 2], [1, 2]]))
    assert found[0].isnan() and found[1].isfinite()


def test_wrong_shapes():
    with pytest.raises(ValueError, match="lengths"):
        CTCPrefixScorer(posteriors(2, 4, 3), torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="2 utterances"):
        CTCPrefixScorer(posteriors(2, 4, 3), torch.tensor([4, 4])).start(3)
