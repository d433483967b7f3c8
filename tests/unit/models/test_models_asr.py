"""Every recogniser's network: padding, lengths, the decoder one token at a time, and that each learns by heart."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from speechlab.config import Component
from speechlab.data.tokens import Tokenizer
from speechlab.decoding import ctc
from speechlab.decoding.attention import beam_search
from speechlab.errors import UserError
from speechlab.models.asr import AsrModel, Transformer
from speechlab.models.decoder import Decoder, weights
from speechlab.models.espnet import ESPnetEncoder, adapt
from speechlab.models.layers import attend, padding_mask, sinusoids
from speechlab.tasks import from_dict
from speechlab.tasks import load_config as load
from speechlab.tasks.asr.train import attention_loss, build_model, collapse_loss, guided_loss, shifted

CONF = Path(__file__).resolve().parents[3] / "egs" / "aishell_asr" / "conf"
SMALL = {"d": 48, "heads": 2, "layers": 2, "dropout": 0.0}
MODELS = {  # the recipe's configs, each with its encoder made small
    "transformer_ctc": SMALL, "transformer_ce": SMALL, "conv_transformer": {**SMALL, "channels": 8},
    "conformer": SMALL, "plain": SMALL,
    "e_branchformer": {"output_size": 48, "attention_heads": 2, "num_blocks": 2, "linear_units": 96,
                       "cgmlp_linear_units": 96, "dropout_rate": 0.0, "positional_dropout_rate": 0.0},
}


def small(name):
    """A config of the recipe with a small network; skips without ESPnet where it needs it."""
    if name == "e_branchformer":
        pytest.importorskip("espnet2", reason="ESPnet is not installed: tools/setup.sh --espnet")
    config = load(CONF / f"{name}.yaml")
    args = {k: v for k, v in {**config.model.args, **MODELS[name]}.items() if k not in ("hidden", "halve_after")}
    decoder = dataclasses.replace(config.decoder, hidden=96, dropout=0.0) if config.decoder.layers else config.decoder
    return dataclasses.replace(
        config, model=Component(config.model.path, args, config.model.target), decoder=decoder,
        loss=dataclasses.replace(config.loss, layer=1),
        tokens=dataclasses.replace(config.tokens, auxiliary="", factored=False))


def alphabet(size):
    return Tokenizer(["<blank>", "<unk>", *(chr(0x4E00 + i) for i in range(size - 2))])


def loss_of(model, config, x, lengths, y, y_lens):
    found = model.encode(x, lengths)
    total = 0.0
    if found.log_probs is not None:
        part = collapse_loss(found.log_probs, found.lengths, y, y_lens)
        total = total + config.loss.ctc * part.total / part.count
    if model.decoder is not None:
        part = attention_loss(model.decoder(found.memory, found.mask, shifted(y, y_lens)[0]), y, y_lens, 0.0)
        total = total + (1 - config.loss.ctc) * part.total / part.count
    return total


def answers(model, x, lengths, vocab):
    found = model.encode(x, lengths)
    heads = {}
    if found.log_probs is not None:
        heads["ctc"] = [h.tokens for h in ctc.greedy(found.log_probs, found.lengths)]
    if model.decoder is not None:
        scorer = model.decoder.scorer(found.memory, found.mask)
        best = beam_search({"attention": (scorer, 1.0)}, len(x), max_lengths=found.lengths, vocab=vocab, beam=2,
                           nbest=1)
        heads["attention"] = [h[0].tokens for h in best]
    return heads


@pytest.mark.parametrize("name", MODELS)
def test_each_model_learns_twenty_utterances_by_heart(name):
    config = small(name)
    torch.manual_seed(0)
    tokenizer = alphabet(30)
    model = build_model(config, tokenizer, None, None)
    lengths = torch.randint(70, 110, (20,))
    y_lens = torch.randint(2, 7, (20,))
    y = torch.randint(2, 30, (20, 6)).masked_fill(~padding_mask(y_lens, 6), 0)
    x = torch.randn(20, 110, 80) * 0.3  # each token is a pattern of its own, in its share of the time
    patterns = torch.randn(30, 80)
    for i, (n, u) in enumerate(zip(lengths.tolist(), y_lens.tolist())):
        x[i, :n] += patterns[y[i, (torch.arange(n) * u) // n]]
        x[i, n:] = 0
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(500):
        loss = loss_of(model, config, x, lengths, y, y_lens)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.01:
            break
    model.eval()
    expected = [row[:n].tolist() for row, n in zip(y, y_lens)]
    with torch.no_grad():
        for head, found in answers(model, x, lengths, 30).items():
            assert found == expected, head


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_changes_an_answer(name, training):
    """Nor, without dropout, what is learnt from."""
    config = small(name)
    torch.manual_seed(0)
    model = build_model(config, alphabet(12), None, None).train(training)
    lengths = torch.tensor([93, 64, 17, 1])
    x = torch.randn(4, 93, 80) * padding_mask(lengths, 93)[:, :, None]
    with torch.no_grad():
        together = model.encode(x, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = model.encode(x[i:i + 1, :n], lengths[i:i + 1])
            size = int(alone.lengths[0])
            assert int(together.lengths[i]) == size == alone.memory.shape[1]
            torch.testing.assert_close(together.memory[i:i + 1, :size], alone.memory, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("front", "factor"), [("stack", 3), ("stack", 4), ("conv", 2), ("conv", 4), ("conv", 8)])
def test_lengths_through_subsampling(front, factor):
    encoder = Transformer(20, **SMALL, front=front, subsampling=factor, channels=4)
    lengths = torch.arange(1, 34)
    y, out = encoder(torch.zeros(33, 33, 20), lengths)
    assert out.tolist() == [-(-n // factor) for n in range(1, 34)] and y.shape[1] == -(-33 // factor)


@pytest.mark.parametrize("positions", ["none", "sinusoids"])
def test_one_token_at_a_time_is_all_at_once(positions):
    torch.manual_seed(0)
    decoder = Decoder(11, 32, heads=2, layers=2, positions=positions).eval()
    memory, mask = torch.randn(3, 9, 32), padding_mask(torch.tensor([9, 5, 1]), 9)
    y_in = torch.randint(1, 11, (3, 7))
    y_in[:, 0] = 0
    expected = decoder(memory, mask, y_in).log_softmax(-1)
    scorer = decoder.scorer(memory, mask)
    state = scorer.start(3)
    for i in range(4):
        log_probs, state = scorer.step(y_in[:, i], state)
        torch.testing.assert_close(log_probs, expected[:, i], atol=1e-5, rtol=1e-4)
    rows = torch.tensor([2, 0, 0, 1])  # rows change places and are doubled: each takes its utterance along
    state = scorer.select(state, rows)
    log_probs, state = scorer.step(y_in[rows, 4], state)
    torch.testing.assert_close(log_probs, expected[rows, 4], atol=1e-5, rtol=1e-4)
    state = scorer.select(state, torch.tensor([1]))
    torch.testing.assert_close(scorer.step(y_in[:1, 5], state)[0], expected[:1, 5], atol=1e-5, rtol=1e-4)


def test_only_positions_tell_where_a_frame_lies():
    """Frames in another order are the same to a decoder without positions: it looks by content alone."""
    torch.manual_seed(0)
    memory, mask, y = torch.randn(1, 9, 32), torch.ones(1, 9, dtype=torch.bool), torch.tensor([[0, 4, 5, 6]])
    for positions, same in (("none", True), ("sinusoids", False)):
        decoder = Decoder(11, 32, heads=2, layers=2, positions=positions).eval()
        there, back = decoder(memory, mask, y), decoder(memory.flip(1), mask, y)
        assert torch.allclose(there, back, atol=1e-5) is same
    with pytest.raises(ValueError, match="there are none, sinusoids"):
        Decoder(11, 32, positions="sine")


def test_sinusoids_by_hand():
    found = sinusoids(3, 4, torch.device("cpu"), first=2)
    for row, place in zip(found.tolist(), (2, 3, 4)):
        assert row == pytest.approx([math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)])


def test_what_the_heads_look_at_is_what_attention_uses():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    mask = padding_mask(torch.tensor([5, 3]), 5)[:, None, None]
    found = weights(query, key, mask)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 4))
    torch.testing.assert_close(found @ value, attend(query, key, value, mask))
    decoder = Decoder(11, 32, heads=4, layers=2).eval()
    memory, y = torch.randn(1, 6, 32), torch.tensor([[0, 4, 5]])
    looks = []
    decoder(memory, torch.ones(1, 6, dtype=torch.bool), y, looks)
    torch.testing.assert_close(torch.stack(looks), decoder.alignment(memory, y)[:, :, :2])


def test_guided_attention_by_hand():
    """Two tokens over four frames: on the diagonal nothing is lost, at the far corner nearly all of it."""
    on = torch.zeros(1, 2, 2, 4)
    on[..., 0, 0] = on[..., 1, 2] = 1.0  # token u of 2 looks at frame t of 4 with u / 2 = t / 4
    frames, tokens = torch.tensor([4]), torch.tensor([2])
    found = guided_loss([on, on], frames, tokens, 0.2)
    assert (float(found.total), float(found.count)) == (pytest.approx(0.0), 2)
    off = torch.zeros(1, 2, 2, 4)
    off[..., 0, 3] = off[..., 1, 0] = 1.0  # 0 against 3 / 4, and 1 / 2 against 0
    by_hand = sum(1 - math.exp(-(gap**2) / (2 * 0.2**2)) for gap in (0.75, 0.5))
    assert float(guided_loss([off], frames, tokens, 0.2).total) == pytest.approx(by_hand)
    wide = torch.zeros(1, 2, 4, 9)
    wide[:, :, :2, :4] = off
    wide[:, :, 2:] = 1.0  # padding costs nothing
    assert float(guided_loss([wide], frames, tokens, 0.2).total) == pytest.approx(by_hand)


def test_a_decoder_sees_neither_padding_nor_the_future():
    torch.manual_seed(0)
    decoder = Decoder(11, 32, heads=2, layers=2, positions="sinusoids").eval()
    memory, mask = torch.randn(1, 9, 32), padding_mask(torch.tensor([6]), 9)
    y = torch.tensor([[0, 4, 5, 6]])
    logits = decoder(memory, mask, y)
    other = memory.clone()
    other[:, 6:] = 99.0
    torch.testing.assert_close(decoder(other, mask, y), logits)
    torch.testing.assert_close(decoder(memory, mask, torch.tensor([[0, 4, 9, 1]]))[:, :2], logits[:, :2])


def test_targets_are_shifted_and_padding_is_no_target():
    y, y_lens = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1])
    into, out = shifted(y, y_lens)
    assert into.tolist() == [[0, 5, 6, 7], [0, 8, 0, 0]] and out.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    logits = torch.randn(2, 4, 9)
    found = attention_loss(logits, y, y_lens, 0.0)
    rows = [(0, 0, 5), (0, 1, 6), (0, 2, 7), (0, 3, 0), (1, 0, 8), (1, 1, 0)]
    assert float(found.count) == 6
    torch.testing.assert_close(found.total, -sum(logits[b, u].log_softmax(-1)[t] for b, u, t in rows))


def test_the_large_model_builds_and_takes_a_batch():
    """conv_transformer_460m as it is: a forward and a backward pass, in about 4 GB."""
    config = load(CONF / "conv_transformer_460m.yaml")
    model = build_model(config, alphabet(4233), None, None)  # AISHELL-1's characters
    assert 450 < sum(p.numel() for p in model.parameters()) / 1e6 < 470
    lengths, y_lens = torch.tensor([80, 57]), torch.tensor([4, 2])
    loss = loss_of(model, config, torch.randn(2, 80, 80), lengths, torch.randint(2, 4233, (2, 4)), y_lens)
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    assert torch.isfinite(loss) and torch.isfinite(norms).all() and (norms > 0).float().mean() > 0.99


def test_shares_that_leave_nothing_are_refused():
    raw = {"task": "asr", "model": {"class": "speechlab.models.asr:Transformer"}}
    for more, words in (({"loss": {"ctc": 0.3}}, "give decoder.layers"), ({"decoder": {"layers": 2}}, "leaves nothing"),
                        ({"loss": {"ctc": 1.5}}, "at least 0 and at most 1")):
        with pytest.raises(UserError, match=words):
            from_dict({**raw, **more})


def test_a_model_without_ctc_says_so():
    model = AsrModel(Transformer(8, **SMALL), 5, ctc=False, decoder={"layers": 1, "heads": 2})
    with pytest.raises(ValueError, match="without a CTC head"):
        model(torch.zeros(1, 8, 8), torch.tensor([8]))
    assert adapt(model.encoder) is model.encoder


def test_espnet_encoders_come_with_an_adapter():
    pytest.importorskip("espnet2", reason="ESPnet is not installed: tools/setup.sh --espnet")
    encoder = dataclasses.replace(load(CONF / "e_branchformer.yaml").model, args=small("e_branchformer").model.args)
    adapted = adapt(encoder.build(input_size=80))
    assert isinstance(adapted, ESPnetEncoder) and adapted.output_size == 48
    y, out = adapted.train()(torch.randn(2, 40, 80), torch.tensor([40, 3]))
    assert y.shape[0] == 2 and out.tolist()[0] == y.shape[1]
