"""The batched beam search against plain searches, one utterance and one prefix at a time, and against brute force."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from speechlab.decoding.attention import beam_search
from speechlab.decoding.ctc_prefix import CTCPrefixScorer
from speechlab.errors import UserError
from speechlab.models.lm import TransformerLM

INF = math.inf


class Toy:
    """A scorer whose log probabilities hang on the utterance and the whole prefix; ``made`` may be spoilt by a test."""

    def __init__(self, batch: int, vocab: int, seed: int = 0, scale: float = 1.0, end: float = 0.0):
        self.batch, self.vocab, self.seed, self.scale, self.end = batch, vocab, seed, scale, end
        self.made: dict[tuple[int, ...], Tensor] = {}
        self.asked = 0

    def log_probs(self, utterance: int, prefix: tuple[int, ...]) -> Tensor:
        key = (utterance, *prefix)
        if key not in self.made:
            generator = torch.Generator().manual_seed(hash((self.seed, *key)) % 2**31)
            logits = self.scale * torch.randn(self.vocab, generator=generator)
            logits[0] += self.end
            self.made[key] = logits.log_softmax(-1)
        return self.made[key]

    def start(self, batch):
        assert batch == self.batch
        return [(utterance, None) for utterance in range(batch)]

    def step(self, tokens, state):
        self.asked += 1
        state = [(u, () if prefix is None else (*prefix, token))
                 for (u, prefix), token in zip(state, tokens.tolist(), strict=True)]
        return torch.stack([self.log_probs(*row) for row in state]), state

    def select(self, state, rows):
        return [state[row] for row in rows.tolist()]

    def total(self, utterance: int, tokens: tuple[int, ...]) -> float:
        return sum(float(self.log_probs(utterance, tokens[:i])[token]) for i, token in enumerate((*tokens, 0)))


class PartialToy(Toy):
    """The same, asked about candidates only."""

    def score(self, tokens, state, candidates):
        assert (candidates[:, 0] == 0).all() and all(len(set(row)) == len(row) for row in candidates.tolist())
        log_probs, state = self.step(tokens, state)
        return log_probs.gather(1, candidates), state


def everything(batch, vocab, longest, score):
    """Per utterance all (score, tokens) up to ``longest`` tokens, best first."""
    sequences = [s for n in range(longest + 1) for s in itertools.product(range(1, vocab), repeat=n)]
    return [sorted(((score(u, s), s) for s in sequences), reverse=True) for u in range(batch)]


def plain_beam(scorers, weights, utterance, vocab, beam, nbest, longest, bonus):
    """The same search, written as one would on a blackboard; no early end."""
    live, done = [((), 0.0)], []
    for size in range(longest + 1):
        reached = []
        for prefix, score in live:
            step = sum(w * s.log_probs(utterance, prefix).double() for s, w in zip(scorers, weights))
            done.append((score + float(step[0]), prefix))
            reached += [((*prefix, token), score + float(step[token]) + bonus) for token in range(1, vocab)]
        live = sorted(reached, key=lambda pair: -pair[1])[:beam] if size < longest else []
    return sorted(done, reverse=True)[:nbest]


def same(found, wanted):
    for hypotheses, best in zip(found, wanted, strict=True):
        assert [tuple(h.tokens) for h in hypotheses] == [tokens for _, tokens in best]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in best], abs=1e-4)


def test_a_beam_of_everything_finds_the_best_of_all():
    batch, vocab, longest = 3, 4, 4
    toys = Toy(batch, vocab, 1), Toy(batch, vocab, 2)
    found = beam_search({"a": (toys[0], 0.7), "b": (toys[1], 0.4)}, batch, max_lengths=torch.full((batch,), longest),
                        vocab=vocab, beam=3**4, nbest=10, length_bonus=0.3, margin=INF)
    wanted = everything(batch, vocab, longest,
                        lambda u, s: 0.7 * toys[0].total(u, s) + 0.4 * toys[1].total(u, s) + 0.3 * len(s))
    same(found, [best[:10] for best in wanted])
    for u, hypotheses in enumerate(found):
        for h in hypotheses:
            assert h.parts == pytest.approx({"a": toys[0].total(u, tuple(h.tokens)),
                                             "b": toys[1].total(u, tuple(h.tokens))}, abs=1e-4)


@pytest.mark.parametrize(("beam", "nbest", "bonus"), [(1, 1, 0.0), (2, 4, 0.0), (4, 3, 0.8), (3, 5, -0.5)])
@pytest.mark.parametrize("end", [-2.0, 2.0])
def test_a_narrow_beam_is_the_plain_search(beam, nbest, bonus, end):
    batch, vocab = 5, 7
    toys = Toy(batch, vocab, 3, end=end), Toy(batch, vocab, 4, scale=0.5)
    limits = torch.tensor([6, 0, 9, 1, 4])
    found = beam_search({"a": (toys[0], 1.0), "b": (toys[1], 0.5)}, batch, max_lengths=limits, vocab=vocab, beam=beam,
                        nbest=nbest, length_bonus=bonus, margin=INF)
    same(found, [plain_beam(toys, (1.0, 0.5), u, vocab, beam, nbest, int(limits[u]), bonus) for u in range(batch)])
    assert all(len(h.tokens) <= limits[u] for u, hypotheses in enumerate(found) for h in hypotheses)


def test_an_utterance_does_not_hang_on_its_batch():
    toy = Toy(1, 6, 5)
    options = dict(vocab=6, beam=3, nbest=3)
    (alone,) = beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([7]), **options)
    among = beam_search({"a": (Toy(4, 6, 5), 1.0)}, 4, max_lengths=torch.tensor([7, 2, 9, 0]), **options)[0]
    assert among == alone


def test_it_stops_when_nothing_better_can_come():
    toy = Toy(2, 5, 6, scale=0.1, end=8.0)
    found = beam_search({"a": (toy, 1.0)}, 2, max_lengths=torch.tensor([500, 400]), vocab=5, beam=4, nbest=1)
    assert [h[0].tokens for h in found] == [[], []] and toy.asked <= 2
    toy = Toy(2, 5, 6, scale=0.1, end=8.0)  # many answers wanted: the margin ends it
    found = beam_search({"a": (toy, 1.0)}, 2, max_lengths=torch.tensor([500, 400]), vocab=5, beam=4, nbest=50,
                        margin=15.0)
    assert toy.asked <= 4 and all(h.score > -30 for h in found[0])


def test_a_bonus_may_bring_back_what_fell_behind():
    toy = Toy(1, 3)
    toy.made = {(0, *[1] * size): torch.tensor([-9.0, -1e-4, -9.0]) for size in range(1, 4)}
    toy.made |= {(0,): torch.tensor([-1.0, -4.0, -9.0]), (0, 1, 1, 1, 1): torch.tensor([-1e-4, -9.0, -9.0])}
    (found,) = beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([4]), vocab=3, beam=1, nbest=1,
                           length_bonus=1.0)
    assert found[0].tokens == [1, 1, 1, 1] and found[0].score == pytest.approx(0.0, abs=1e-3)  # after 1 it was -3


@pytest.mark.parametrize("seed", range(4))
def test_the_margin_touches_nothing_within_it(seed):
    found = {}
    for margin in (2.0, INF):
        toy = Toy(1, 6, 200 + seed, scale=2.0)
        (found[margin],) = beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([6]), vocab=6, beam=4, nbest=12,
                                       margin=margin)
    near = [h for h in found[INF] if h.score >= found[INF][0].score - 2.0]
    assert found[2.0][: len(near)] == near


def test_the_end_is_forced_at_the_limit():
    toy = Toy(1, 4, 7, scale=0.1, end=-30.0)
    (found,) = beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([5]), vocab=4, beam=2, nbest=2, margin=INF)
    assert len(found[0].tokens) == 5 or found[0].tokens == []  # the end costs the same anywhere
    assert found[0].score == pytest.approx(toy.total(0, tuple(found[0].tokens)), abs=1e-4)
    (found,) = beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([5]), vocab=4, beam=2, nbest=1,
                           length_bonus=3.0)
    assert len(found[0].tokens) == 5


def test_joint_search_is_the_best_of_all_sequences():
    batch, vocab, frames = 3, 4, 5
    log_probs = (2 * torch.randn(batch, frames, vocab, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    lengths = torch.tensor([5, 3, 4])
    toy = Toy(batch, vocab, 8)

    def ctc(u, tokens):
        loss = torch.nn.functional.ctc_loss(log_probs[u, : lengths[u], None], torch.tensor([tokens]).long(),
                                            lengths[u:u + 1], torch.tensor([len(tokens)]), reduction="sum")
        return -float(loss)

    found = beam_search({"attention": (toy, 0.6)}, batch, partial={"ctc": (CTCPrefixScorer(log_probs, lengths), 0.4)},
                        max_lengths=lengths, vocab=vocab, beam=300, nbest=6, margin=INF)
    for u, best in enumerate(everything(batch, vocab, 5, lambda u, s: 0.6 * toy.total(u, s) + 0.4 * ctc(u, s))):
        assert [h.score for h in found[u]] == pytest.approx([s for s, _ in best[:6]], abs=1e-4)
        assert [tuple(h.tokens) for h in found[u]] == [tokens for _, tokens in best[:6]]
        assert found[u][0].parts["ctc"] == pytest.approx(ctc(u, found[u][0].tokens), abs=1e-4)
    # CTC alone: a label-synchronous prefix search.
    found = beam_search({"attention": (toy, 0.0)}, batch, partial={"ctc": (CTCPrefixScorer(log_probs, lengths), 1.0)},
                        max_lengths=lengths, vocab=vocab, beam=300, nbest=1)
    for u, best in enumerate(everything(batch, vocab, 5, ctc)):
        assert tuple(found[u][0].tokens) == best[0][1] and found[u][0].parts.keys() == {"ctc"}


def test_a_partial_scorer_judges_what_the_full_ones_chose():
    batch, vocab, beam = 2, 40, 2
    full, some = Toy(batch, vocab, 9), PartialToy(batch, vocab, 10)
    found = beam_search({"full": (full, 1.0)}, batch, partial={"some": (some, 3.0)}, max_lengths=torch.tensor([1, 1]),
                        vocab=vocab, beam=beam, nbest=3, margin=INF)
    for u, hypotheses in enumerate(found):
        chosen = (1 + full.log_probs(u, ())[1:].topk(3).indices).tolist()
        reached = sorted(chosen, key=lambda t: -float(full.log_probs(u, ())[t] + 3 * some.log_probs(u, ())[t]))[:beam]
        wanted = sorted([(), *((t,) for t in reached)], key=lambda s: -(full.total(u, s) + 3 * some.total(u, s)))
        assert [tuple(h.tokens) for h in hypotheses] == wanted


@pytest.mark.parametrize("kind", [Toy, PartialToy])
@pytest.mark.parametrize("value", [math.nan, INF, 0.5])
def test_a_broken_score_is_one_utterances_error(kind, value):
    def search(spoil):
        a, b = Toy(3, 6, 11), kind(3, 6, 12)
        if spoil:
            b.log_probs(1, (2,))[:] = value
            a.made[(1,)] = torch.tensor([-9.0, -9.0, -0.1, -9.0, -9.0, -9.0])  # so that the search comes by
        pair = {"b": (b, 0.5)}
        return beam_search({"a": (a, 0.5), **(pair if kind is Toy else {})}, 3,
                           partial=pair if kind is PartialToy else None, max_lengths=torch.tensor([4, 4, 4]),
                           vocab=6, beam=3, nbest=3)

    sound, spoilt = search(False), search(True)
    assert [h.error for h in spoilt[1]] == ["b gave no log probability for token 2: the model diverged or its input is "
                                           "broken"]
    assert spoilt[1][0].tokens == [] and spoilt[1][0].score is None
    assert spoilt[0] == sound[0] and spoilt[2] == sound[2]


def test_nothing_possible_is_an_error_not_an_answer():
    toy = Toy(2, 3, 13)
    toy.made[(0,)] = torch.tensor([-INF, -INF, -INF])
    found = beam_search({"a": (toy, 1.0)}, 2, max_lengths=torch.tensor([3, 3]), vocab=3)
    assert found[0][0].error and not found[1][0].error


def test_unknown_may_be_said_and_a_zero_weight_is_silence():
    toy, mute = Toy(1, 3, 14), Toy(1, 3, 15)
    toy.made[(0,)] = torch.tensor([-9.0, -0.001, -9.0])
    mute.made[(0,)] = torch.full((3,), -INF)
    (found,) = beam_search({"a": (toy, 1.0), "b": (mute, 0.0)}, 1, max_lengths=torch.tensor([1]), vocab=3)
    assert found[0].tokens == [1] and found[0].parts.keys() == {"a"}


@torch.no_grad()
def test_a_network_scores_in_the_search_as_it_does_when_forced():
    torch.manual_seed(0)
    lm = TransformerLM(11, d=16, heads=2, layers=2, dropout=0.5).eval()
    found = beam_search({"lm": (lm.scorer(), 1.0)}, 2, max_lengths=torch.tensor([6, 3]), vocab=11, beam=4, nbest=5)
    for hypotheses in found:
        for h in hypotheses:
            log_probs = lm(torch.tensor([[0, *h.tokens]]))[0].log_softmax(-1)
            assert h.score == pytest.approx(sum(float(log_probs[i, t]) for i, t in enumerate([*h.tokens, 0])), abs=1e-4)


def test_bad_options():
    toy = Toy(1, 3)
    options = dict(max_lengths=torch.tensor([2]), vocab=3)
    for change, word in (({"beam": 0}, "beam is 0"), ({"nbest": 0}, "nbest is 0")):
        with pytest.raises(UserError, match=word):
            beam_search({"a": (toy, 1.0)}, 1, **options, **change)
    with pytest.raises(UserError, match="weight of a is -1"):
        beam_search({"a": (toy, -1.0)}, 1, **options)
    with pytest.raises(UserError, match="no scorer"):
        beam_search({"a": (toy, 0.0)}, 1, **options)
    with pytest.raises(UserError, match="two have one name"):
        beam_search({"a": (toy, 1.0)}, 1, partial={"a": (toy, 1.0)}, **options)
    with pytest.raises(ValueError, match="lengths for"):
        beam_search({"a": (Toy(2, 3), 1.0)}, 2, **options)
    with pytest.raises(ValueError, match=r"a gave \(1, 3\)"):
        beam_search({"a": (toy, 1.0)}, 1, max_lengths=torch.tensor([2]), vocab=4)
    assert beam_search({"a": (toy, 1.0)}, 0, max_lengths=torch.zeros(0, dtype=torch.long), vocab=3) == []
