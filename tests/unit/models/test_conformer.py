"""The Conformer: lengths, padding, parts against definitions, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speechlab.decoding.ctc import greedy
from speechlab.models.asr import AsrModel, Conformer, FactoredHead
from speechlab.models.conformer import ConvModule
from speechlab.models.layers import (
    Attention,
    SharedDropout,
    Subsampling,
    UtteranceNorm,
    attend,
    rotate,
    rotation_table,
)


def test_utterance_norm_is_instance_norm_over_the_valid_frames():
    torch.manual_seed(0)
    layer = UtteranceNorm(5)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x, mask = 3 + 2 * torch.randn(2, 9, 5), torch.arange(9)[None] < torch.tensor([[9], [4]])
    y = layer(x, mask)
    for i, n in enumerate((9, 4)):
        whole = F.instance_norm(x[i:i + 1, :n].transpose(1, 2), weight=layer.weight, bias=layer.bias, eps=layer.eps)
        torch.testing.assert_close(y[i:i + 1, :n], whole.transpose(1, 2))
    assert (y[1, 4:] == 0).all()


@pytest.mark.parametrize("subsampling", [2, 4, 8])
@pytest.mark.parametrize(("channels", "halve_after"), [(0, 0), (4, 0), (4, 1)])
def test_padding_changes_nothing(subsampling, channels, halve_after):
    torch.manual_seed(0)
    model = Conformer(20, d=32, heads=2, layers=2, kernel=7, subsampling=subsampling, channels=channels,
                      halve_after=halve_after).eval()
    subsampling *= 2 if halve_after else 1
    lengths = torch.tensor([93, 64, 17, 1])
    x = torch.randn(4, 93, 20)
    for i, n in enumerate(lengths):
        x[i, n:] = 0
    with torch.no_grad():
        y, y_lens = model(x, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone, alone_len = model(x[i:i + 1, :n], torch.tensor([n]))
            assert int(alone_len) == int(y_lens[i]) == -(-n // subsampling) == alone.shape[1]
            torch.testing.assert_close(y[i:i + 1, :alone.shape[1]], alone, atol=2e-5, rtol=1e-4)


def test_subsampling_sees_no_padding_even_if_it_is_not_zero():
    torch.manual_seed(0)
    layer = Subsampling(10, 16, 8, channels=0).eval()
    x = torch.randn(1, 30, 10)
    padded = F.pad(x, (0, 0, 0, 20))
    a, _ = layer(x, torch.tensor([30]))
    b, _ = layer(padded, torch.tensor([30]))
    torch.testing.assert_close(a, b[:, :a.shape[1]])


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="subsampling factor"):
        Conformer(80, subsampling=3)
    with pytest.raises(ValueError, match="multiple of heads"):
        Conformer(80, d=30, heads=4)
    with pytest.raises(ValueError, match="must be odd"):
        Conformer(80, kernel=4)


def test_rotary_attention_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 12, 8)
    table = rotation_table(40, 8, torch.device("cpu"), torch.float32)
    cos, sin = table

    def scores(shift):
        part = (cos[shift:shift + 12], sin[shift:shift + 12])
        return rotate(q, part) @ rotate(k, part).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(20), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(q, (cos[:12], sin[:12])).norm(dim=-1), q.norm(dim=-1))


def test_attention_is_softmax_over_the_valid_frames():
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])[:, None, None]
    weights = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(attend(q, k, v, mask), weights @ v)
    layer = Attention(8, 2)
    assert layer(torch.randn(2, 5, 8), mask[:, 0, 0], rotation_table(5, 4, q.device, q.dtype)).shape == (2, 5, 8)


def test_depthwise_convolution_is_conv1d():
    torch.manual_seed(0)
    module = ConvModule(6, 5)
    x, mask = torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool)
    gated = F.glu(module.gate(module.norm(x)), dim=-1)
    expected = module.out(F.silu(module.inner_norm(module.depthwise(gated.transpose(1, 2)).transpose(1, 2), mask)))
    torch.testing.assert_close(module(x, mask), expected)


def test_shared_dropout_drops_whole_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = SharedDropout(0.25)
    y = layer(torch.ones(50, 7, 40))
    assert ((y == y[:, :1]).all()), "a channel is kept or dropped for the whole utterance"
    assert abs(float(y.mean()) - 1) < 0.03 and abs(float((y == 0).float().mean()) - 0.25) < 0.03
    assert layer.eval()(torch.ones(1, 2, 3)).equal(torch.ones(1, 2, 3))


def test_the_auxiliary_head_tells_the_blocks_above():
    torch.manual_seed(0)
    model = AsrModel(Conformer(20, d=32, heads=2, layers=3, subsampling=4, halve_after=2), 9, auxiliary_size=5,
                     auxiliary_layer=2).eval()
    x, lengths = torch.randn(2, 40, 20), torch.tensor([40, 22])
    found = model.encode(x, lengths)
    log_probs, out, low, low_lengths = found.log_probs, found.lengths, found.low, found.low_lengths
    assert low.shape == (2, 10, 5) and low_lengths.tolist() == [10, 6]
    assert log_probs.shape == (2, 5, 9) and out.tolist() == [5, 3]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(model(x, lengths)[0], log_probs)
    with torch.no_grad():
        model.condition.weight.mul_(3)
    assert not torch.allclose(model(x, lengths)[0], log_probs)


def test_factored_head_shares_what_its_tokens_are_made_of():
    parts = torch.tensor([[0, 0], [1, 0], [1, 1.0]])
    head = FactoredHead(4, parts)
    x = torch.randn(5, 4)
    own = head.own(x)
    of_parts = torch.stack([0 * own[:, 0], x @ head.shared[0], x @ head.shared.sum(0)], 1)
    torch.testing.assert_close(head(x), own + of_parts)
    head(x)[:, 1].sum().backward()
    assert head.shared.grad[0].abs().sum() > 0 == head.shared.grad[1].abs().sum()


def test_overfits_a_few_utterances_to_zero_error():
    torch.manual_seed(0)
    model = AsrModel(Conformer(20, d=48, heads=2, layers=2, kernel=7, subsampling=4, channels=0, dropout=0.0), 12)
    lengths = torch.tensor([60, 48, 40, 60, 52, 36])
    x = torch.randn(6, 60, 20)
    y = torch.randint(1, 12, (6, 5))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        log_probs, out = model(x, lengths)
        loss = F.ctc_loss(log_probs.transpose(0, 1), y, out, torch.full((6,), 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [h.tokens for h in greedy(*model.eval()(x, lengths))] == y.tolist()
