"""Fused CTC beam search against sums over all paths, a plain search over dictionaries, and fast-ctc-decode."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from speechlab.decoding.alignment import token_frames
from speechlab.decoding.arpa import ArpaLM
from speechlab.decoding.ctc import greedy
from speechlab.decoding.fused_beam import fused_beam
from speechlab.decoding.ngram import NGram
from speechlab.errors import UserError

UNITS = ["<blank>", "<unk>", "a", "b", "c"]
ALL = dict(beam=5000, nbest=5000, prune=0.0, threshold=math.inf)


def made(seed: int, size: int, frames: int, units: int = 5, sharp: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, frames, units, generator=generator) * sharp).log_softmax(-1)


def peaky(seed: int, size: int, frames: int, units: int) -> torch.Tensor:
    """As a trained model's: mostly blank and sure of it, units now and then, some of them doubtful."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, frames, units, generator=generator)
    logits[..., 0] += math.log(units / 5) + torch.where(torch.rand(size, frames, generator=generator) < 0.6, 16.0, 3.0)
    heard = torch.randint(1, units, (size, frames // 2, 1), generator=generator).repeat_interleave(2, 1)
    strength = math.log(units / 5) + 6 * torch.rand(heard.shape, generator=generator)
    return logits.scatter_add_(2, heard, strength).log_softmax(-1)


def collapse(path: tuple[int, ...], blank: int = 0) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != blank)


def all_paths(log_probs: torch.Tensor, blank: int = 0) -> dict[tuple[int, ...], float]:
    """Label sequence -> log of the sum over all V ** T paths."""
    table = log_probs.double().exp().tolist()
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        sums[collapse(path, blank)] += math.prod(row[unit] for row, unit in zip(table, path))
    return {tokens: math.log(p) for tokens, p in sums.items()}


def plain_search(log_probs: torch.Tensor, model: NGram | None, units: list[str], beam: int, weight: float,
                 bonus: float, prune: float, top: int) -> dict[tuple[int, ...], tuple[float, float, float]]:
    """The search as the papers write it, one prefix at a time: tokens -> score, log p_ctc, log p_lm."""
    def lm_log(prefix: tuple[int, ...], end: bool = False) -> float:
        if model is None:
            return 0.0
        words = ["<s>", *(units[token] for token in prefix), *(["</s>"] if end else [])]
        return sum(math.log(model.probability(words[i], words[:i])) for i in range(1, len(words)))

    def rank(prefix: tuple[int, ...], p: float) -> float:
        return math.log(p) + weight * lm_log(prefix) + bonus * len(prefix) if p > 0 else -math.inf

    beams = {(): (1.0, 0.0)}
    for frame in log_probs.double().exp().tolist():
        best = sorted(range(len(frame)), key=lambda unit: -frame[unit])
        some = [unit for unit in best[:top] if unit == best[0] or frame[unit] >= prune]
        grown: dict = defaultdict(lambda: [0.0, 0.0])
        for prefix, (in_blank, in_unit) in beams.items():
            grown[prefix][0] += (in_blank + in_unit) * frame[0]
            for unit in some:
                if unit == 0:
                    continue
                if prefix and unit == prefix[-1]:
                    grown[prefix][1] += in_unit * frame[unit]
                    grown[(*prefix, unit)][1] += in_blank * frame[unit]
                else:
                    grown[(*prefix, unit)][1] += (in_blank + in_unit) * frame[unit]
        kept = sorted(grown, key=lambda prefix: -rank(prefix, sum(grown[prefix])))[:beam]
        beams = {prefix: tuple(grown[prefix]) for prefix in kept if sum(grown[prefix]) > 0}
    answers = {}
    for prefix, pair in beams.items():
        lm = lm_log(prefix, end=True)
        answers[prefix] = (math.log(sum(pair)) + weight * lm + bonus * len(prefix), math.log(sum(pair)), lm)
    return answers


@pytest.fixture(scope="module")
def ngram() -> NGram:
    return NGram(["abc", "abcab", "cab", "ba", "aab", "bcc", "abc"], order=3)


@pytest.fixture(scope="module")
def lm(ngram, tmp_path_factory) -> ArpaLM:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    ngram.write_arpa(path)
    return ArpaLM.read(path, UNITS)


@pytest.mark.parametrize("blank", [0, 2])
def test_every_sequence_has_the_sum_over_its_paths(blank):
    log_probs = made(blank, 6, 5)
    for row, found in zip(log_probs, fused_beam(log_probs, torch.full((6,), 5), blank=blank, **ALL)):
        expected = all_paths(row, blank)
        assert len(found) == len(expected), "each sequence once"
        for hyp in found:
            assert hyp.score == pytest.approx(expected[tuple(hyp.tokens)], abs=1e-9)
            assert hyp.parts == {"ctc": hyp.score}
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("weight, bonus", [(0.5, 0.0), (1.0, -0.7), (0.0, 0.3)])
def test_with_a_language_model_every_score_is_the_weighted_sum(ngram, lm, weight, bonus):
    log_probs = made(3, 4, 5)
    for row, found in zip(log_probs, fused_beam(log_probs, torch.full((4,), 5), lm, lm_weight=weight,
                                                length_bonus=bonus, **ALL)):
        expected = {}
        for tokens, ctc in all_paths(row).items():
            text = ngram.log_probability([UNITS[token] for token in tokens])
            expected[tokens] = (ctc + weight * text + bonus * len(tokens), ctc, text)
        assert tuple(found[0].tokens) == max(expected, key=expected.get)
        for hyp in found:
            score, ctc, text = expected[tuple(hyp.tokens)]
            assert hyp.score == pytest.approx(score, abs=1e-5)
            assert (hyp.parts["ctc"], hyp.parts["lm"]) == (pytest.approx(ctc, abs=1e-9), pytest.approx(text, abs=1e-5))


@pytest.mark.parametrize("beam, prune, top", [(1, 0.0, 20), (3, 0.0, 2), (4, 0.01, 20), (8, 0.05, 3), (16, 1e-3, 20)])
@pytest.mark.parametrize("fused", [False, True])
def test_a_narrow_beam_answers_as_the_plain_search_does(ngram, lm, beam, prune, top, fused):
    """Utterances of all lengths side by side, with sure and doubtful frames, and prefixes that leave and come back."""
    log_probs = torch.cat([made(beam, 8, 24), peaky(beam, 16, 24, 5), made(beam + 1, 8, 24, sharp=0.5)])
    lengths = torch.tensor([24, 1, 7, 0, 24, 13, 2, 20] * 4)
    found = fused_beam(log_probs, lengths, lm if fused else None, beam=beam, nbest=beam, lm_weight=0.6,
                       length_bonus=0.2, prune=prune, top=top, threshold=1e6)
    for row, size, mine in zip(log_probs, lengths.tolist(), found):
        expected = plain_search(row[:size], ngram if fused else None, UNITS, beam, 0.6, 0.2, prune, top)
        if fused:
            assert {tuple(hyp.tokens) for hyp in mine} == set(expected)
        for hyp in mine:
            score, ctc, _ = expected[tuple(hyp.tokens)]
            assert (hyp.score, hyp.parts["ctc"]) == (pytest.approx(score, abs=1e-4), pytest.approx(ctc, abs=1e-6))
        assert [h.score for h in mine] == sorted((h.score for h in mine), reverse=True)


def test_thousands_of_units_as_fast_ctc_decode():
    package = pytest.importorskip("fast_ctc_decode")
    log_probs, lengths = peaky(5, 12, 60, 3000), torch.tensor([60, 59, 60, 1, 33, 60, 60, 60, 12, 60, 60, 60])
    ours = fused_beam(log_probs, lengths, beam=30, threshold=30.0)
    for mine, row, size in zip(ours, log_probs, lengths.tolist()):
        probs = row[:size].exp()
        kept = (probs >= 1e-3).any(0)
        kept[0] = True  # it wants a matrix with blank first, and is lost in thousands of units
        units = kept.nonzero()[:, 0].tolist()
        alphabet = ["", *(chr(0xF0000 + unit) for unit in units[1:])]
        text, _ = package.beam_search(probs[:, units].masked_fill(probs[:, units] < 1e-3, 0.0).numpy(), alphabet,
                                      beam_size=30, beam_cut_threshold=1e-30)
        assert mine[0].tokens == [ord(c) - 0xF0000 for c in text]
        loss = torch.nn.functional.ctc_loss(row[:size, None], torch.tensor([mine[0].tokens]), torch.tensor([size]),
                                            torch.tensor([len(mine[0].tokens)]), reduction="sum")
        # CTC's loss sums over all paths, ours over those within beam and pruning.
        assert -float(loss) - 1 < mine[0].score < -float(loss) + 1e-4


def test_peaked_posteriors_are_searched_as_greedily():
    paths = torch.tensor([[0, 4000, 4000, 0, 17, 17, 0, 17], [2999, 0, 0, 1, 2, 3, 0, 0]])
    log_probs = torch.full((2, 8, 4233), 0.001 / 4232).scatter(2, paths[..., None], 0.999).log()
    lengths = torch.tensor([8, 6])
    for beam in (1, 10):
        for one, (other, *_) in zip(greedy(log_probs, lengths), fused_beam(log_probs, lengths, beam=beam)):
            assert (one.tokens, one.starts, one.ends) == (other.tokens, other.starts, other.ends)
    assert greedy(log_probs, lengths)[1].tokens == [2999, 1, 2, 3]


def test_the_language_model_settles_what_sounds_alike(lm):
    probs = torch.tensor([[0.02, 0.01, 0.9, 0.04, 0.03], [0.02, 0.01, 0.01, 0.47, 0.49],
                          [0.92, 0.02, 0.02, 0.02, 0.02]])
    log_probs, lengths = probs.log()[None], torch.tensor([3])
    assert fused_beam(log_probs, lengths)[0][0].tokens == [2, 4]
    best, second, *_ = fused_beam(log_probs, lengths, lm, lm_weight=0.5)[0]
    assert (best.tokens, second.tokens) == ([2, 3], [2, 4]) and best.parts["ctc"] < second.parts["ctc"]
    assert (best.starts, best.ends) == ([0, 1], [1, 2]) and not second.starts


def test_an_answer_does_not_depend_on_its_neighbours(lm):
    log_probs, lengths = peaky(1, 10, 40, 5), torch.tensor([40, 3, 22, 40, 0, 1, 39, 17, 28, 40])
    together = fused_beam(log_probs, lengths, lm)
    for row, size, mine in zip(log_probs, lengths, together):
        padded = torch.cat([row[None, :size], torch.full((1, 3, 5), math.nan)], 1)  # padding is never looked at
        (alone,) = fused_beam(padded, size[None], lm)
        assert [(h.tokens, h.starts, h.ends) for h in alone] == [(h.tokens, h.starts, h.ends) for h in mine]
        assert [h.score for h in alone] == pytest.approx([h.score for h in mine])


def test_sure_frames_cost_no_step_and_hard_posteriors_pass():
    certain = torch.full((2, 6, 4), -math.inf)
    certain[0, range(6), [1, 1, 0, 1, 0, 0]] = 0.0
    certain[1, :, 0] = 0.0
    one, none = fused_beam(certain, torch.tensor([6, 6]))
    assert [(h.tokens, h.score) for h in one] == [([1, 1], 0.0)] and (one[0].starts, one[0].ends) == ([0, 3], [2, 4])
    assert [(h.tokens, h.score, h.starts) for h in none] == [([], 0.0, [])]


def test_flat_posteriors_keep_every_frame_alive():
    flat = torch.full((2, 5, 50), 1 / 50).log()
    for prune in (0.5, 0.0):
        for found in fused_beam(flat, torch.tensor([5, 3]), beam=3, prune=prune):
            assert len(found) <= 3 and all(math.isfinite(hyp.score) and not hyp.error for hyp in found)


def test_the_threshold_drops_what_is_far_behind():
    log_probs, lengths = peaky(2, 6, 30, 5), torch.full((6,), 30)
    wide = fused_beam(log_probs, lengths, beam=50, nbest=50, threshold=math.inf)
    near = fused_beam(log_probs, lengths, beam=50, nbest=50, threshold=1.0)
    for many, few in zip(wide, near):
        assert few[0].tokens == many[0].tokens and 1 < len(few) < len(many) == 50
        assert few[0].score - few[-1].score <= 1.0


def test_empty_and_tiny_input(lm):
    assert fused_beam(torch.zeros(0, 5, 5), torch.zeros(0, dtype=torch.long), lm) == []
    ((nothing,),) = fused_beam(torch.zeros(1, 0, 5), torch.tensor([0]), lm, lm_weight=0.5)
    assert nothing.tokens == [] and nothing.score == pytest.approx(0.5 * nothing.parts["lm"])
    assert nothing.parts["lm"] == pytest.approx(float(lm.final(lm.start(1))[0]))
    ((one,), (none,)) = fused_beam(made(0, 1, 1).repeat(2, 1, 1), torch.tensor([1, 0]), nbest=1)
    assert one.score == pytest.approx(float(made(0, 1, 1).max())) and none.score == 0.0


def test_a_long_utterance(lm):
    log_probs = peaky(7, 1, 1500, 5)
    ((best, *_),) = fused_beam(log_probs, torch.tensor([1500]), lm, lm_weight=0.3)
    assert len(best.tokens) == len(best.starts) == len(best.ends) > 100 and math.isfinite(best.score)
    assert all(end <= start for end, start in zip(best.ends, best.starts[1:]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_posterior_is_flagged_and_spoils_no_neighbour(lm, value):
    log_probs = made(4, 3, 6)
    log_probs[1, 2, 3] = value
    log_probs[2] += 5  # logits, not log posteriors
    sound, broken, logits = fused_beam(log_probs, torch.tensor([6, 6, 6]), lm)
    assert sound == fused_beam(log_probs[:1], torch.tensor([6]), lm)[0]
    assert len(broken) == len(logits) == 1
    assert (broken[0].tokens, broken[0].score) == ([], None) and "frame 2" in broken[0].error
    assert "log-softmax" in logits[0].error


def test_half_precision_passes(lm):
    assert not fused_beam(made(0, 2, 9).bfloat16(), torch.tensor([9, 5]), lm)[0][0].error


def test_wrong_options(lm):
    log_probs, lengths = made(0, 2, 4), torch.tensor([4, 4])
    for options in (dict(beam=0), dict(nbest=0), dict(top=0), dict(prune=1.0), dict(prune=-0.1), dict(lm_weight=-1.0),
                    dict(threshold=0.0), dict(lm_weight=math.nan)):
        with pytest.raises(UserError, match=next(iter(options))):
            fused_beam(log_probs, lengths, **options)
    with pytest.raises(UserError, match="same units"):
        fused_beam(made(0, 2, 4, units=6), lengths, lm)
    with pytest.raises(UserError, match="blank"):
        fused_beam(log_probs, lengths, lm, blank=1)


@pytest.mark.parametrize("seed", range(4))
def test_token_frames_are_the_best_path(seed):
    """Against all paths, with repeats and as many tokens as frames allow."""
    log_probs = made(seed, 5, 6)
    tokens = [[], [2], [3, 3], [2, 3, 2], [4, 4, 1]]
    sizes = np.array([6, 1, 3, 6, 5])
    for row, size, line, (starts, ends) in zip(log_probs.tolist(), sizes, tokens,
                                               token_frames(log_probs.numpy(), sizes, tokens)):
        paths = [p for p in itertools.product(range(5), repeat=int(size)) if collapse(p) == tuple(line)]
        best = max(paths, key=lambda path: sum(row[frame][unit] for frame, unit in enumerate(path)))
        runs, frame = [], 0
        for unit, run in itertools.groupby(best):
            count = len(list(run))
            runs += [(frame, frame + count)] if unit else []
            frame += count
        assert list(zip(starts, ends)) == runs
