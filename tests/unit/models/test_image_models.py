"""Networks for small pictures: shapes, sizes as published, initialisations, and the whitening layer's numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from speechlab.models.images import (
    ACTIVATIONS,
    CNN,
    MLP,
    DigitCNN,
    FastNet,
    Layer,
    LogisticRegression,
    ResNet18,
    Whitening,
    initialise,
)

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("cls", "size", "options"), [
    (LogisticRegression, GREY, {}), (MLP, GREY, {"hidden": [16], "batch_norm": True, "dropout": 0.5}),
    (DigitCNN, GREY, {}), (DigitCNN, (3, 32, 40), {"widths": [4, 8, 8, 8]}), (CNN, COLOUR, {"batch_norm": True}),
    (CNN, GREY, {"hidden": 0, "dropout": 0.1}), (ResNet18, COLOUR, {"width": 8}), (FastNet, COLOUR, {}),
    (FastNet, GREY, {"widths": [8, 8], "depth": 3}),
])
def test_logits_gradients_and_no_leak_between_images(cls, size, options):
    torch.manual_seed(0)
    model = cls(size, 7, **options)
    x = torch.randn(4, *size)
    logits = model(x)
    assert logits.shape == (4, 7) and logits.dtype == torch.float32
    logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None or not p.requires_grad, name
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in x])
        torch.testing.assert_close(model(x), alone, atol=1e-4, rtol=1e-4)


def test_sizes_as_published():
    assert parameters(LogisticRegression(GREY, 10)) == 7850
    assert parameters(MLP(GREY, 10, hidden=[128])) == 784 * 128 + 128 + 1280 + 10
    assert parameters(ResNet18(COLOUR, 10)) == 11_173_962  # the CIFAR-10 variant everybody counts
    fast = FastNet(COLOUR, 10)
    filters = sum(p.numel() for p in fast.parameters() if p.ndim == 4)
    assert filters == 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)  # airbench94's
    assert sum(isinstance(m, nn.Conv2d) for m in DigitCNN(GREY, 10).modules()) == 7


def test_pooling_first_changes_nothing():
    """max then BatchNorm then ReLU is BatchNorm then ReLU then max, while BatchNorm's scale is positive."""
    torch.manual_seed(1)
    layer = Layer(nn.Conv2d(2, 5, 3), "relu", nn.BatchNorm2d(5), pool=2).eval()
    layer.norm.weight.data.uniform_(0.1, 2)
    layer.norm.running_mean.normal_()
    x = torch.randn(3, 2, 10, 10)
    other = nn.functional.max_pool2d(torch.relu(layer.norm(layer.op(x))), 2)
    torch.testing.assert_close(layer(x), other)


@pytest.mark.parametrize(("how", "activation", "std"), [
    ("kaiming", "relu", (2 / 400) ** 0.5), ("xavier", "sigmoid", (2 / 700) ** 0.5),
    ("xavier", "tanh", 5 / 3 * (2 / 700) ** 0.5), ("normal", "relu", 0.5), ("zero", "relu", 0.0),
])
def test_initialisations_have_their_deviation(how, activation, std):
    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    initialise(layer, how, activation, std=0.5)
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert not layer.bias.any()


def test_kaiming_keeps_the_signal_through_many_layers_and_a_small_gaussian_loses_it():
    x = torch.randn(64, 1, 20, 20)
    strength = {}
    for how in ("kaiming", "normal"):
        torch.manual_seed(0)
        strength[how] = float(MLP((1, 20, 20), 10, hidden=[400] * 8, init=how)(x).detach().std())
    assert 0.2 < strength["kaiming"] < 5 and strength["normal"] < 1e-4


def test_default_init_leaves_pytorchs():
    torch.manual_seed(3)
    ours = CNN(COLOUR, 10, widths=[4, 4], init="default")
    before = copy.deepcopy(ours.state_dict())
    initialise(ours, "default")
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_whitening_gives_about_unit_covariance():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(40, 3, 17, 17)).cumsum(2).cumsum(3)  # neighbours alike, as in photographs
    x = torch.from_numpy((smooth - smooth.mean()) / smooth.std()).float()
    layer = Whitening(3, 2, eps=0.0)
    layer.measure(x)
    out = layer(x)
    assert out.shape == (40, 24, 16, 16)
    flat = out[:, :12].transpose(0, 1).flatten(1).double()
    half = {tuple(row) for row in layer.weight.flatten(1).round(decimals=4).tolist()}
    assert all(tuple(-v for v in row) in half for row in half), "each filter has its negative"
    # Second moments about zero (as in the paper), of independent filters, computed by numpy on the same patches.
    patches = np.stack([x.numpy()[:, :, i:i + 16, j:j + 16] for i in (0, 1) for j in (0, 1)], 2)
    moments = patches.transpose(0, 3, 4, 1, 2).reshape(-1, 12)
    values = np.linalg.eigvalsh(moments.T @ moments / len(moments))
    assert values[-1] > 50 * values[0], "the input was far from white"
    torch.testing.assert_close((flat @ flat.T / flat.shape[1]).diagonal(), torch.ones(12, dtype=torch.double),
                               atol=0.02, rtol=0)


def test_whitening_is_kept_in_the_checkpoint_and_not_trained():
    net = FastNet(COLOUR, 10, widths=[4, 4])
    net.measure(torch.randn(20, *COLOUR))
    assert "whiten.weight" in net.state_dict() and "whiten.weight" not in dict(net.named_parameters())
    other = FastNet(COLOUR, 10, widths=[4, 4])
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.whiten.weight, net.whiten.weight)


def test_fast_net_begins_by_handing_on_its_input():
    net = FastNet(COLOUR, 10)
    weight = net.layers["group1_conv1"].op.weight
    x = torch.randn(1, 24, 6, 6)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, padding=1)[:, :24], x)
    assert not any(m.weight.requires_grad for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("build", [
    lambda: MLP(GREY, 10, activation="rely"), lambda: MLP(GREY, 10, init="he"), lambda: MLP(GREY, 10, hidden=[0]),
    lambda: DigitCNN((1, 8, 8), 10), lambda: DigitCNN(GREY, 10, widths=[8, 8]),
    lambda: CNN(COLOUR, 10, widths=[4] * 6), lambda: FastNet((3, 8, 8), 10), lambda: FastNet(COLOUR, 10, depth=0),
])
def test_what_can_not_be_built_says_so(build):
    with pytest.raises(ValueError, match=r"\d|there are"):
        build()


def test_every_activation_builds():
    for name in ACTIVATIONS:
        assert MLP((1, 4, 4), 3, hidden=[4], activation=name, init="xavier")(torch.randn(2, 1, 4, 4)).isfinite().all()


def test_fast_nets_output_learns():
    """At the recipe's rate (conf/fast.yaml): scaled down too far it would stand still, and nothing would say so."""
    torch.manual_seed(0)
    net = FastNet(COLOUR, 10, widths=[16, 32, 32])
    x, y = torch.randn(64, *COLOUR), torch.randint(10, (64,))
    assert net(x).std() < 0.5, "it begins with all but even answers"
    weight = net.output.op.weight
    begun = weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.75, momentum=0.85, nesterov=True)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (weight - begun).norm() > 0.3 * begun.norm()
