"""Second pass: forced scores against one hypothesis at a time, weights against arithmetic and brute force."""

import itertools
import math
import random

import jiwer
import pytest
import torch

from speechlab.decoding.ctc import Hypothesis
from speechlab.decoding.rescore import attention_scores, distances, lm_scores, rescore, tune
from speechlab.errors import UserError
from speechlab.models.lm import TransformerLM

NAN, INF = math.nan, math.inf


def hyp(tokens, **parts):
    return Hypothesis(list(tokens), sum(parts.values()), parts=parts)


class ToyDecoder(torch.nn.Module):
    """Logits from the tokens so far and the mean of the valid memory: enough to see whether rows get mixed up."""

    def __init__(self, vocab=7, d=5):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = torch.nn.Embedding(vocab, d), torch.nn.Linear(d, vocab)
        self.calls = []

    def forward(self, memory, mask, y_in):
        self.calls.append(tuple(y_in.shape))
        heard = (memory * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return self.out(torch.tanh(self.embedding(y_in).cumsum(1) + heard[:, None]))


def forced(logits, tokens):
    log_probs = logits.log_softmax(-1)
    return sum(float(log_probs[i, token]) for i, token in enumerate([*tokens, 0]))


@torch.no_grad()
def test_forced_scores_are_those_of_each_hypothesis_alone():
    decoder = ToyDecoder()
    memory, mask = torch.randn(3, 6, 5), torch.arange(6)[None] < torch.tensor([[6], [4], [2]])
    nbest = [[hyp([1, 2, 3]), hyp([])], [Hypothesis(error="broken")], [hyp([6]), hyp([5, 5, 5, 5, 5]), hyp([1, 2])]]
    for rows in (100, 2):
        decoder.calls = []
        found = attention_scores(decoder, memory, mask, nbest, rows=rows)
        assert [len(scores) for scores in found] == [2, 1, 3] and math.isnan(found[1][0])
        assert decoder.calls == ([(5, 6)] if rows == 100 else [(2, 2), (2, 4), (1, 6)])  # of like length together
        for u in (0, 2):
            for h, score in zip(nbest[u], found[u]):
                x = torch.tensor([[0, *h.tokens]])
                wanted = forced(decoder(memory[u:u + 1, mask[u]], mask[u:u + 1, mask[u]], x)[0], h.tokens)
                assert score == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ValueError, match="2 lists"):
        attention_scores(decoder, memory, mask, nbest[:2])
    assert attention_scores(decoder, memory[:0], mask[:0], []) == []


@torch.no_grad()
def test_forced_scores_of_a_language_model():
    torch.manual_seed(0)
    lm = TransformerLM(9, d=16, heads=2, layers=2).eval()
    nbest = [[hyp([3, 8]), hyp([3])], [hyp([4, 4, 4])]]
    found = lm_scores(lm, nbest, rows=2)
    for hypotheses, scores in zip(nbest, found):
        for h, score in zip(hypotheses, scores):
            assert score == pytest.approx(forced(lm(torch.tensor([[0, *h.tokens]]))[0], h.tokens), abs=1e-5)


def test_rescoring_weighs_the_parts_and_sorts():
    first = [[Hypothesis([1, 2], -3.0, [0, 4], [2, 6]), Hypothesis([1], -4.0), Hypothesis([1, 3], -4.5)],
             [hyp([2], ctc=-1.0, lm=-2.0), hyp([], ctc=-1.0, lm=-2.0)]]
    extra = {"attention": [[-5.0, -1.0, -2.0], [-3.0, -3.0]]}
    found = rescore(first, extra, {"ctc": 0.5, "attention": 1.0}, 0.25)
    assert [h.tokens for h in found[0]] == [[1], [1, 3], [1, 2]]
    assert [h.score for h in found[0]] == pytest.approx([-2.75, -3.75, -6.0])
    assert found[0][2].parts == {"ctc": -3.0, "attention": -5.0} and found[0][2].starts == [0, 4]
    assert found[1][0].tokens == [2] and found[1][0].score == pytest.approx(-3.25)
    assert found[1][0].parts == {"ctc": -1.0, "lm": -2.0, "attention": -3.0}
    assert [h.tokens for h in rescore(first, {}, {})[0]] == [[1, 2], [1], [1, 3]]  # of equal ones the first stays first
    assert first[0][0].parts == {} and first[0][0].score == -3.0  # nothing given is changed
    with pytest.raises(UserError, match="a weight for 'lm', and the hypotheses have ctc"):
        rescore(first, {}, {"ctc": 1.0, "lm": 0.5})
    with pytest.raises(ValueError, match="attention: not as many"):
        rescore(first, {"attention": [[-1.0], [-1.0, -1.0]]}, {"ctc": 1.0})


def test_rescoring_keeps_errors_and_makes_them_of_nan():
    first = [[Hypothesis(error="no sound")], [hyp([1], ctc=-1.0), hyp([2], ctc=-2.0)], [hyp([1], ctc=-1.0)]]
    extra = {"lm": [[NAN], [-1.0, NAN], [-INF]]}
    found = rescore(first, extra, {"ctc": 1.0, "lm": 1.0})
    assert found[0][0].error == "no sound"
    assert len(found[1]) == 1 and found[1][0].error.startswith("lm gave no log probability")
    assert found[2][0].score == -INF
    assert [h.tokens for h in rescore(first, extra, {"ctc": 1.0, "lm": 0.0})[2]] == [[1]]
    assert rescore(first, extra, {"ctc": 1.0, "lm": 0.0})[2][0].score == -1.0


def test_distances_are_jiwers():
    rng = random.Random(0)
    for _ in range(60):
        reference = rng.choices("abcd", k=rng.randint(1, 12))
        hypotheses = [rng.choices("abcde", k=rng.randint(0, 14)) for _ in range(4)]
        wanted = []
        for h in hypotheses:
            out = jiwer.process_words(" ".join(reference), " ".join(h))
            wanted.append(out.substitutions + out.deletions + out.insertions)
        assert distances(reference, hypotheses) == wanted
    assert distances([], [[1, 2], []]) == [2, 0] and distances([1], []) == []


def scored_lists(count, seed):
    """N-best lists in which no single part is right, with their references."""
    rng = random.Random(seed)
    nbest, references = [], []
    for _ in range(count):
        reference = rng.choices(range(2, 12), k=rng.randint(1, 8))
        hypotheses = []
        for _ in range(rng.randint(1, 5)):
            tokens = [t if rng.random() < 0.7 else rng.randrange(2, 12) for t in reference if rng.random() < 0.9]
            wrong = distances(reference, [tokens])[0]
            hypotheses.append(hyp(tokens, ctc=-wrong + rng.gauss(0, 1.5), lm=-wrong + rng.gauss(0, 1.5)))
        nbest.append(hypotheses)
        references.append(reference)
    return nbest, references


def test_tuning_finds_what_trying_everything_finds():
    nbest, references = scored_lists(80, 0)
    nbest.append([Hypothesis(error="no sound")])
    references.append([2, 3, 4])
    grid = {"ctc": [1.0], "lm": [0.5, 0.0, 0.25, 1.0, 2.0], "length_bonus": [0.0, -1.0, 0.5, 1.0]}
    found = tune(nbest, references, ["ctc", "lm"], grid)

    def errors(weights, bonus):
        lists = rescore(nbest, {}, weights, bonus)
        return sum(len(r) if h[0].error else distances(r, [h[0].tokens])[0] for r, h in zip(references, lists))

    tried = {(lm, bonus): errors({"ctc": 1.0, "lm": lm}, bonus)
             for lm, bonus in itertools.product(grid["lm"], grid["length_bonus"])}
    assert found.errors == min(tried.values()) == tried[found.weights["lm"], found.length_bonus]
    assert found.errors < tried[0.0, 0.0] and found.units == sum(map(len, references))
    assert (found.weights["lm"], found.length_bonus) == min(tried, key=tried.get)  # of equals the first of the grid
    assert tune(nbest, references, ["ctc", "lm"], grid) == found
    one = tune([h[:1] for h in nbest], references, ["ctc"], {"ctc": [float(n) for n in range(3, 300)]})
    assert one.weights == {"ctc": 3.0}


def test_tuning_reads_tokens_as_it_is_told_and_bears_the_impossible():
    nbest = [[hyp([1, 2], ctc=-1.0, lm=-INF), hyp([2], ctc=-2.0, lm=-1.0)]]
    read = lambda tokens: [t for t in tokens if t > 1]  # noqa: E731
    both = {"ctc": [1.0], "lm": [0.0, 1.0]}
    assert tune(nbest, [[2]], ["ctc", "lm"], both, read).errors == 0
    found = tune(nbest, [[2]], ["ctc", "lm"], both)
    assert found.weights == {"ctc": 1.0, "lm": 1.0} and found.errors == 0  # minus infinity weighs nothing, then all
    assert tune(nbest, [[2]], ["ctc"], {"ctc": [1.0]}).errors == 1


def test_tuning_refuses_what_makes_no_sense():
    nbest, references = scored_lists(3, 1)
    with pytest.raises(UserError, match="to weigh ctc, lm"):
        tune(nbest, references, ["ctc", "lm"], {"ctc": [1.0]})
    with pytest.raises(UserError, match="to weigh ctc"):
        tune(nbest, references, ["ctc"], {"ctc": [1.0], "llm": [1.0]})
    with pytest.raises(UserError, match="a weight for 'attention'"):
        tune(nbest, references, ["attention"], {"attention": [1.0]})
    with pytest.raises(UserError, match="1000000 combinations"):
        tune(nbest, references, ["ctc", "lm"], {"ctc": range(1000), "lm": range(1000)})
    with pytest.raises(ValueError, match="3 lists"):
        tune(nbest, references[:2], ["ctc"], {"ctc": [1.0]})
    assert tune([], [], ["ctc"], {"ctc": [1.0]}).errors == 0
