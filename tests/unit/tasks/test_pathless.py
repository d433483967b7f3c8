"""Utterances with more tokens than CTC has frames for: counted out of its loss, and named in the log."""

import dataclasses
import logging
import types

import pytest
import torch
import torch.nn.functional as F

from speechlab.data.tokens import Tokenizer
from speechlab.models.layers import padding_mask
from speechlab.tasks import from_dict
from speechlab.tasks.asr.train import AsrTraining, attention_loss, build_model, collapse_loss, frames_needed, shifted

UNITS = ["<blank>", "<unk>", *"abcdefgh"]


def training(ctc=1.0, **model):
    """A task with a small untrained network, and no data."""
    task = AsrTraining.__new__(AsrTraining)
    raw = {"task": "asr", "loss": {"ctc": ctc}, "decoder": {"layers": 0 if ctc == 1 else 1, "heads": 2, "dropout": 0.0},
           "model": {"class": "speechlab.models.asr:Conformer", "d": 16, "heads": 2, "layers": 2, "kernel": 3,
                     "channels": 2, "dropout": 0.0, **model}}
    task.config, task.tokenizer, task.auxiliary = from_dict(raw), Tokenizer(UNITS), None
    torch.manual_seed(0)
    task.model = build_model(task.config, task.tokenizer, None, None)
    return task


def batch(*rows):
    """(frames, tokens) pairs as a batch of noise."""
    torch.manual_seed(1)
    lengths, y_lens = torch.tensor([size for size, _ in rows]), torch.tensor([len(ids) for _, ids in rows])
    y = torch.zeros(len(rows), int(y_lens.max()), dtype=torch.long)
    x = torch.randn(len(rows), int(lengths.max()), 80) * padding_mask(lengths, int(lengths.max()))[:, :, None]
    for row, (_, ids) in zip(y, rows):
        row[:len(ids)] = torch.tensor(ids, dtype=torch.long)
    return {"x": x, "x_lens": lengths, "y": y, "y_lens": y_lens}


def test_frames_needed():
    y = torch.tensor([[2, 2, 3, 0], [2, 3, 2, 3], [4, 4, 4, 4], [0, 0, 0, 0], [5, 0, 0, 0]])
    assert frames_needed(y, torch.tensor([3, 4, 4, 0, 1])).tolist() == [4, 4, 7, 0, 1]
    assert frames_needed(torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0])).tolist() == [0, 0]


@pytest.mark.parametrize("ids", [[2, 3, 4, 5], [2, 2, 3], [3, 3, 3], [2], [2, 3, 3, 2]])
def test_that_is_where_ctc_has_a_path(ids):
    y, y_lens = torch.tensor([ids]), torch.tensor([len(ids)])
    needed = int(frames_needed(y, y_lens))
    for frames in (needed - 1, needed):
        if frames:
            log_probs = torch.zeros(frames, 1, 8).log_softmax(-1)
            loss = F.ctc_loss(log_probs, y, torch.tensor([frames]), y_lens, reduction="sum")
            assert bool(loss.isfinite()) == (frames == needed)


def test_an_utterance_without_a_path_changes_neither_the_sum_nor_the_count():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 6, 10).log_softmax(-1).requires_grad_()
    y = torch.tensor([[2, 3, 0, 0], [2, 2, 2, 2], [4, 4, 0, 0]])
    lengths, y_lens = torch.tensor([6, 6, 3]), torch.tensor([2, 4, 2])  # the second one needs 7 frames
    found = collapse_loss(log_probs, lengths, y, y_lens)
    rest = [0, 2]
    alone = collapse_loss(log_probs[rest], lengths[rest], y[rest], y_lens[rest])
    assert float(found.count) == float(alone.count) == 4
    torch.testing.assert_close(found.total, alone.total)
    found.total.backward()
    assert log_probs.grad.isfinite().all() and not log_probs.grad[1].any() and log_probs.grad[0].any()


def test_what_is_minimised_is_the_mean_over_those_that_have_a_path():
    rows = [(60, [2, 3, 4]), (9, [2, 3, 4, 5, 6, 7]), (44, [5, 5])]  # the second one: 3 frames of the encoder
    task = training()
    found = task.loss(batch(*rows), "model")
    x = batch(*rows)
    rest = {name: value[[0, 2]] for name, value in x.items()}
    alone = task.loss(rest, "model")
    assert float(found.count) == float(alone.count) == 5
    torch.testing.assert_close(found.total, alone.total)

    task = training(ctc=0.4)  # the decoder has a path for each: it learns from all
    found = task.loss(x, "model")
    assert float(found.count) == 11
    with torch.no_grad():
        heard = task.model.encode(x["x"], x["x_lens"])
        ctc = collapse_loss(heard.log_probs, heard.lengths, x["y"], x["y_lens"])
        logits = task.model.decoder(heard.memory, heard.mask, shifted(x["y"], x["y_lens"])[0])
        attention = attention_loss(logits, x["y"], x["y_lens"], task.config.loss.label_smoothing)
    assert float(ctc.count) == 5 and float(attention.count) == 11 + 3
    wanted = 11 * (0.4 * ctc.total / 5 + 0.6 * attention.total / 14)
    torch.testing.assert_close(found.total.detach(), wanted)


def test_nothing_but_such_utterances():
    found = training().loss(batch((9, [2, 3, 4, 5, 6, 7]), (5, [2, 2, 2])), "model")
    assert float(found.total.detach()) == 0 and float(found.count) == 0


@pytest.mark.parametrize("ctc", [1.0, 0.4])
def test_where_there_is_none_the_loss_is_the_same_to_the_bit(ctc):
    task, x = training(ctc), batch((60, [2, 3, 4]), (90, [2, 3, 4, 4, 6, 7]), (44, [5, 5]))
    found = task.loss(x, "model")
    with torch.no_grad():
        heard = task.model.encode(x["x"], x["x_lens"])
        count = x["y_lens"].sum().to(torch.float32)
        total = F.ctc_loss(heard.log_probs.transpose(0, 1), x["y"], heard.lengths, x["y_lens"], reduction="sum")
        wanted = ctc * (total / count.clamp(min=1))
        if ctc < 1:
            logits = task.model.decoder(heard.memory, heard.mask, shifted(x["y"], x["y_lens"])[0])
            part = attention_loss(logits, x["y"], x["y_lens"], task.config.loss.label_smoothing)
            wanted = wanted + (1 - ctc) * part.total / part.count.clamp(min=1)
        assert torch.equal(found.total.detach(), wanted * count) and torch.equal(found.count, count)


def cut(number, frames, text):
    supervision = types.SimpleNamespace(text=text)
    return types.SimpleNamespace(id=f"u{number:03d}", has_features=True, num_frames=frames, supervisions=[supervision])


@pytest.mark.parametrize("model", [{}, {"subsampling": 8}, {"halve_after": 1}])
def test_they_are_found_before_training_and_named_once(caplog, monkeypatch, model):
    task = training(**model)
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 200, (150,), generator=generator).tolist()
    counts = [max(0, size // 9 + int(more)) for size, more in zip(sizes, torch.randint(-3, 6, (150,)))]
    texts = ["".join(UNITS[2 + int(i)] for i in torch.randint(0, 3, (n,), generator=generator)) for n in counts]
    cuts = [cut(number, size, text) for number, (size, text) in enumerate(zip(sizes, texts))]
    short = []
    task.model.eval()
    for one in cuts:
        with torch.no_grad():
            frames = int(task.model.encode(torch.zeros(1, one.num_frames, 80), torch.tensor([one.num_frames])).lengths)
        text = one.supervisions[0].text
        if len(text) + sum(a == b for a, b in zip(text, text[1:])) > frames:
            short.append(one.id)
    task.model.train()
    before = torch.random.get_rng_state()
    assert 5 < len(short) < 150 and task.pathless(cuts) == short
    assert task.model.training and torch.equal(before, torch.random.get_rng_state())

    log = logging.getLogger("speechlab")
    with caplog.at_level(logging.WARNING, logger="speechlab"), monkeypatch.context() as patch:
        # A training in this process (start_log) leaves its handlers and no propagation, and pytest then adds its own.
        patch.setattr(log, "handlers", [caplog.handler])
        patch.setattr(log, "propagate", False)
        task._tell_pathless("training", cuts)
        task._tell_pathless("training", [one for one in cuts if one.id not in short])
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"{len(short)} of 150 training utterances have fewer encoder frames than CTC needs")
    assert ": " + ", ".join(short[:5]) + ", ...;" in said and short[5] not in said and "\n" not in said
    assert "model.subsampling" in said and "tokens.kind: bpe" in said


def test_a_second_target_may_have_no_path_either():
    """Syllables have one, their phones (twice as many) have not; and the other way round with halve_after."""
    auxiliary = {"kind": "char", "auxiliary": "phone"}
    for halve, frames, text, lacks in ((0, 44, "好" * 1 + "吗你很我" * 2, True), (1, 44, "你好吗很我", False)):
        task = training(halve_after=halve)
        task.config = dataclasses.replace(task.config, tokens=dataclasses.replace(task.config.tokens, **auxiliary),
                                          loss=dataclasses.replace(task.config.loss, layer=1))
        task.tokenizer = Tokenizer(["<blank>", "<unk>", *"你好吗我很"])
        task.auxiliary = Tokenizer.train(["你好吗我很"], "phone")
        task.model = build_model(task.config, task.tokenizer, task.auxiliary, None)
        assert task.pathless([cut(1, frames, text)]) == (["u001"] if lacks else [])


def test_a_model_without_ctc_lacks_no_path():
    task = training(ctc=0.0)
    assert task.pathless([cut(1, 4, "abcabcabc")]) == []
