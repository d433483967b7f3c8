"""The transformer language model: causality, its scorer, its batches, and a training run."""

import json
import math

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment

from speechlab import tasks, train
from speechlab.config import Component
from speechlab.data.tokens import Tokenizer, TokensConfig
from speechlab.errors import UserError
from speechlab.models.lm import TransformerLM
from speechlab.tasks import load_config as load
from speechlab.tasks.lm.config import Config, TextConfig
from speechlab.tasks.lm.train import PADDING, LmTraining, TextLoader, cross_entropy
from speechlab.training.loop import TrainConfig


def small(vocab=9, **options):
    torch.manual_seed(0)
    return TransformerLM(vocab, **{"d": 16, "heads": 2, "layers": 2, **options})


@torch.no_grad()
def test_the_future_and_padding_change_nothing():
    model = small().eval()
    x = torch.randint(0, 9, (3, 7))
    y = x.clone()
    y[:, 4:] = torch.randint(0, 9, (3, 3))
    torch.testing.assert_close(model(x)[:, :4], model(y)[:, :4])
    torch.testing.assert_close(model(x)[1:2, :4], model(x[1:2, :4]))
    assert not torch.allclose(model(x)[:, 4:], model(y)[:, 4:])
    assert not torch.allclose(model(torch.tensor([[0, 2, 3, 4]]))[0, 3], model(torch.tensor([[0, 3, 2, 4]]))[0, 3])


@torch.no_grad()
def test_the_scorer_says_what_the_whole_pass_says():
    model = small().eval()
    x = torch.cat((torch.zeros(3, 1, dtype=torch.long), torch.randint(1, 9, (3, 6))), 1)
    whole = model(x).log_softmax(-1)
    scorer = model.scorer()
    state = scorer.start(3)
    for i in range(4):
        log_probs, state = scorer.step(x[:, i], state)
        torch.testing.assert_close(log_probs, whole[:, i])
    rows = torch.tensor([2, 0, 0, 1])
    state = scorer.select(state, rows)
    for i in range(4, 7):
        log_probs, state = scorer.step(x[rows, i], state)
        torch.testing.assert_close(log_probs, whole[rows, i])


def test_input_and_output_share_their_weights_and_sizes_are_checked():
    model = small(vocab=50, d=8)
    assert sum(p.numel() for p in model.parameters() if 50 in p.shape) == 50 * 8 + 50
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="multiple of heads"):
        small(d=18, heads=4)


def sentences(count=50):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [(f"s{i}", torch.randint(2, 30, (n,), generator=generator).tolist()) for i, n in enumerate(sizes)]


def test_batches_hold_every_sentence_once_and_no_more_tokens_than_allowed():
    loader = TextLoader(sentences(), 40, train=True, seed=3, accum=2)
    seen = []
    for epoch in (0, 1):
        steps = list(loader.epoch(epoch))
        assert len(steps) == loader.size(epoch) and all([place for place, _ in step] == [0, 1] for step in steps)
        batches = [batch for step in steps for _, batch in step]
        assert all(batch["x"].numel() <= 40 for batch in batches)
        ids = [name for batch in batches for name in batch["ids"]]
        assert set(ids) == {name for name, _ in sentences()}
        assert len(ids) - len(set(ids)) <= len(batches[0]["ids"]) + 40  # filled up by one batch at most
        assert [b["ids"] for step in loader.epoch(epoch, skip=2) for _, b in step] == [b["ids"] for b in batches[4:]]
        seen.append(ids)
    assert seen[0] != seen[1]
    assert {len(step) for step in TextLoader(sentences(), 40, train=True, accum=7).epoch(0)} == {7}
    assert {name for step in TextLoader(sentences(), 40, train=True, accum=7).epoch(0) for _, batch in step
            for name in batch["ids"]} == {name for name, _ in sentences()}
    alone = [loader for rank in (0, 1) for loader in [TextLoader(sentences(), 40, train=True, seed=3, rank=rank,
                                                                  world_size=2, accum=2)]]
    shared = [batch["ids"] for steps in zip(*(one.epoch(1) for one in alone)) for step in steps for _, batch in step]
    assert [name for ids in shared for name in ids] == seen[1]  # whoever computes a place
    with pytest.raises(ValueError, match="multiple"):
        TextLoader(sentences(), 40, train=True, world_size=2, accum=3)


def test_inputs_targets_and_unknown_tokens():
    texts = [("a", [5, 6]), ("b", [7, 8, 9]), ("c", [])]
    (batch,) = TextLoader(texts, 100, train=False, unknown=0.9).batches()
    assert batch["ids"] == ["c", "a", "b"]
    assert batch["x"].tolist() == [[0, 0, 0, 0], [0, 5, 6, 0], [0, 7, 8, 9]]
    pad = PADDING
    assert batch["y"].tolist() == [[0, pad, pad, pad], [5, 6, 0, pad], [7, 8, 9, 0]]
    texts = [(str(i), [2 + i % 5] * 9) for i in range(100)]
    ((_, batch),) = next(iter(TextLoader(texts, 10**4, train=True, unknown=0.2).epoch(0)))
    hidden = batch["y"] == 1
    assert 0.15 < float(hidden[:, :-1].float().mean()) < 0.25
    assert ((batch["x"][:, 1:] == 1) == hidden[:, :-1]).all() and (batch["y"][:, -1] == 0).all()


@torch.no_grad()
def test_the_loss_is_the_negative_log_likelihood():
    model = small().eval()
    (batch,) = TextLoader([("a", [5, 6]), ("b", [7])], 100, train=False).batches()
    loss = cross_entropy(model(batch["x"]), batch["y"])
    total = 0.0
    for tokens in ([5, 6], [7]):
        log_probs = model(torch.tensor([[0, *tokens]]))[0].log_softmax(-1)
        total -= sum(log_probs[i, t].item() for i, t in enumerate([*tokens, 0]))
    assert float(loss.total) == pytest.approx(total, rel=1e-5) and float(loss.count) == 5


@pytest.fixture
def corpus(tmp_path):
    """Sentences in which each letter but the first follows from the one before."""
    data = tmp_path / "data"
    texts = ["abcdef"[i:] + "abcdef"[:i] for i in range(6)] * 20
    for split, lines in (("train", texts), ("dev", [*texts[:6], "a坏"])):
        cuts = [MonoCut(f"{split}{i}", 0.0, 1.0, 0, supervisions=[SupervisionSegment(f"{split}{i}", "r", 0.0, 1.0,
                                                                                      text=text)])
                for i, text in enumerate(lines)]
        data.mkdir(exist_ok=True)
        CutSet.from_cuts(cuts).to_file(data / f"{split}.jsonl.gz")
    folder = data / TokensConfig().name()
    folder.mkdir()
    (folder / "tokens.json").write_text(json.dumps({"main": Tokenizer.train(texts).state()}))
    return data


YAML = """
task: lm
data: {tokens: 100, max_length: 20}
model: {class: 'speechlab.models.lm:TransformerLM', d: 16, heads: 2, layers: 1}
optim: {lr: 1e-2, warmup: 10}
train: {epochs: 6, tensorboard: false, threads: 1, amp: 'off', accum: 1}
"""


def test_training_by_the_command_line_and_loading(corpus, tmp_path, capsys):
    (tmp_path / "lm.yaml").write_text(YAML)
    exp = tmp_path / "exp"
    assert train.main([str(tmp_path / "lm.yaml"), "--data", str(corpus), "--exp", str(exp)]) == 0
    epochs = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    reached = [r["valid_perplexity"] for r in epochs if "valid_perplexity" in r]
    assert len(reached) == 6 and reached[-1] < 3.5 < reached[0]  # a sixth of the letters, and an unknown one, are free
    assert "| answer |" in (exp / "samples.md").read_text()

    found = tasks.load(exp)
    model = found.network
    assert found.units == Tokenizer.load(corpus / TokensConfig().name()).units and not model.training
    task = LmTraining(load(tmp_path / "lm.yaml"), corpus, torch.device("cpu"))
    with torch.no_grad():
        found = task.evaluate(model)
    assert found.metrics["perplexity"] == pytest.approx(reached[-1], rel=1e-4)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(found.metrics["loss"]))
    assert len(found.samples) == 4 and found.samples[0][1] == "abcdef" and "b c d e f" in found.samples[0][2]


def test_what_is_missing_or_wrong_is_one_line(corpus, tmp_path):
    model = Component("speechlab.models.lm:TransformerLM", {"d": 10, "heads": 4}, TransformerLM)
    with pytest.raises(UserError, match="model: d = 10"):
        LmTraining(Config("lm", model, train=TrainConfig()), corpus, torch.device("cpu"))
    model = Component("speechlab.models.lm:TransformerLM", {"d": 8, "heads": 2}, TransformerLM)
    task = LmTraining(Config("lm", model, data=TextConfig(tokens=9, max_length=5)), corpus, torch.device("cpu"))
    with pytest.raises(UserError, match="max_length = 5"):
        task.loader()
    with pytest.raises(UserError, match="no experiment or checkpoint"):
        tasks.load(tmp_path / "nowhere")
    for options in ({"tokens": 20, "max_length": 20}, {"unknown": 1.0}):
        with pytest.raises(ValueError):
            TextConfig(**options)
