"""Networks that classify small pictures: from logistic regression to a ResNet and a net made for speed.

Each takes ``x`` (B, C, H, W), normalised to about mean 0 and standard deviation 1, and gives logits (B, classes). All
are built of :class:`Layer`. So every layer has a name (``hidden1``, ``conv3``), under which its gradients and outputs
are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.1), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU,
    "silu": nn.SiLU,
}
Init = Literal["default", "xavier", "kaiming", "normal", "zero"]
INITS = ("default", "xavier", "kaiming", "normal", "zero")


def make_activation(name: str) -> nn.Module:
    """The activation called ``name``; ValueError with the known names for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation '{name}': there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def make_pool(size: int) -> nn.Module | None:
    return nn.MaxPool2d(size) if size > 1 else None


class Layer(nn.Module):
    """A linear map or convolution, and what follows it: pooling, normalisation, activation, dropout.

    Pooling comes before normalisation and activation. The largest value stays the largest through both (if BatchNorm's
    scale is positive), and with a quarter of the values they are a quarter of the work.
    """

    def __init__(self, op: nn.Module, activation: str | None = "relu", norm: nn.Module | None = None, pool: int = 1,
                 dropout: float = 0.0):
        super().__init__()
        self.op = op
        self.pool = make_pool(pool)
        self.norm = norm
        self.act = make_activation(activation) if activation else None
        self.drop = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.op, self.pool, self.norm, self.act, self.drop):
            if part is not None:
                x = part(x)
        return x


def initialise(model: nn.Module, how: str, activation: str = "relu", std: float = 0.01) -> None:
    """Set the weights of all linear maps and convolutions, and their biases to zero.

    Args:
        model: the network to initialise.
        how: ``default`` leaves PyTorch's own weights and biases. ``xavier`` keeps the variance of activations and
            gradients from layer to layer (Glorot and Bengio 2010), with PyTorch's gain for the activation. ``kaiming``
            keeps the variance of activations through ReLUs (He et al. 2015, arXiv 1502.01852). ``normal`` draws from a
            Gaussian of the same width for all layers. ``zero`` makes all units equal, and they stay so.
        activation: of the hidden layers, for ``xavier``.
        std: standard deviation of the Gaussian of ``normal``.
    """
    if how not in INITS:
        raise ValueError(f"init '{how}': there are {', '.join(INITS)}")
    if how == "default":
        return
    known = {"relu", "leaky_relu", "tanh", "sigmoid"}  # PyTorch has no gain for the others; ReLU's is near
    kind: Any = activation if activation in known else "relu"
    gain = nn.init.calculate_gain(kind, 0.1 if kind == "leaky_relu" else None)
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        if how == "xavier":
            nn.init.xavier_normal_(module.weight, gain)
        elif how == "kaiming":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif how == "normal":
            nn.init.normal_(module.weight, std=std)
        else:
            nn.init.zeros_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """Fully connected layers over the pixels; no ``hidden`` layer at all is logistic regression.

    Args:
        input_size: (C, H, W) (not set in the config: the data says it).
        classes: number of classes (not set in the config: the data says it).
        hidden: the width of each hidden layer.
        activation: a name in :data:`ACTIVATIONS`.
        init, init_std: how the weights begin; see :func:`initialise`.
        batch_norm: put BatchNorm between a layer and its activation (Ioffe and Szegedy 2015, arXiv 1502.03167).
        dropout: probability, after each hidden layer (Srivastava et al. 2014).
        input_dropout: probability with which a pixel is dropped.
    """

    def __init__(self, input_size: Sequence[int], classes: int, hidden: Sequence[int] = (512, 512),
                 activation: str = "relu", init: Init = "kaiming", init_std: float = 0.01, batch_norm: bool = False,
                 dropout: float = 0.0, input_dropout: float = 0.0):
        super().__init__()
        widths = [math.prod(input_size), *hidden]
        if min(widths) < 1:
            raise ValueError(f"hidden = {list(hidden)}: a width must be at least 1")
        self.drop = nn.Dropout(input_dropout) if input_dropout else None
        self.layers = nn.ModuleDict()
        for i, (inner, width) in enumerate(zip(widths, widths[1:]), 1):
            norm = nn.BatchNorm1d(width) if batch_norm else None
            self.layers[f"hidden{i}"] = Layer(nn.Linear(inner, width), activation, norm, dropout=dropout)
        self.layers["output"] = Layer(nn.Linear(widths[-1], classes), None)
        initialise(self, init, activation, init_std)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.drop is not None:
            x = self.drop(x)
        for layer in self.layers.values():
            x = layer(x)
        return x


class LogisticRegression(MLP):
    """One weight per pixel and class: the picture that a class looks for, drawn in layers/."""

    def __init__(self, input_size: Sequence[int], classes: int, init: Init = "zero", init_std: float = 0.01):
        super().__init__(input_size, classes, (), init=init, init_std=init_std)  # no hidden units: zero does no harm


def conv(inner: int, width: int, kernel: int, padding: int | str = 0, *, activation: str = "relu", pool: int = 1,
         batch_norm: bool = True, stride: int = 1, dropout: float = 0.0) -> Layer:
    """A convolution and what follows it; it has no bias if BatchNorm has one."""
    op = nn.Conv2d(inner, width, kernel, stride=stride, padding=padding, bias=not batch_norm)
    return Layer(op, activation, nn.BatchNorm2d(width) if batch_norm else None, pool, dropout)


class DigitCNN(nn.Module):
    """Seven convolutions with BatchNorm for pictures of about 28 x 28: small, and about as good as any single net.

    Two of 3 x 3 without padding, pooling, three more and pooling, one more, and one as large as what is left (4 x 4),
    which sees the whole digit. 15 M multiply-adds for 28 x 28.

    Args:
        input_size, classes, activation, init: as in :class:`MLP`.
        widths: channels of the four groups.
        dropout: probability, before the output layer.
    """

    def __init__(self, input_size: Sequence[int], classes: int, widths: Sequence[int] = (32, 64, 96, 128),
                 activation: str = "relu", init: Init = "kaiming", dropout: float = 0.3):
        super().__init__()
        channels, height, width = input_size
        left = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        if min(left) < 1 or len(widths) != 4:
            raise ValueError(f"DigitCNN needs four widths and images of 16 x 16 at least, not {list(widths)} and "
                             f"{height} x {width}")
        a, b, c, d = widths
        self.layers = nn.ModuleDict({
            "conv1": conv(channels, a, 3, activation=activation),
            "conv2": conv(a, a, 3, activation=activation, pool=2),
            "conv3": conv(a, b, 3, activation=activation),
            "conv4": conv(b, b, 3, activation=activation),
            "conv5": conv(b, c, 3, 1, activation=activation, pool=2),
            "conv6": conv(c, d, 3, 1, activation=activation),
            "conv7": Layer(nn.Conv2d(d, d, tuple(left), bias=False), activation, nn.BatchNorm2d(d), dropout=dropout),
        })
        self.output = Layer(nn.Linear(d, classes), None)
        initialise(self, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return self.output(x.flatten(1))


class CNN(nn.Module):
    """A plain convolutional net (Simonyan and Zisserman 2015): groups of two 3 x 3 convolutions and pooling.

    Args:
        input_size, classes, activation, init: as in :class:`MLP`.
        widths: channels of each group.
        hidden: width of the fully connected layer before the output (0: none).
        batch_norm: put BatchNorm after each convolution; this is the step from ``cnn`` to ``cnn_bn``.
        dropout: probability, before both linear layers.
    """

    def __init__(self, input_size: Sequence[int], classes: int, widths: Sequence[int] = (32, 64, 128),
                 hidden: int = 256, activation: str = "relu", init: Init = "kaiming", batch_norm: bool = False,
                 dropout: float = 0.0):
        super().__init__()
        inner, height, width = input_size
        if min(height, width) >> len(widths) < 1:
            raise ValueError(f"{len(widths)} groups halve images of {height} x {width} to nothing: give fewer widths")
        self.layers = nn.ModuleDict()
        options = dict(activation=activation, batch_norm=batch_norm)
        for i, channels in enumerate(widths):
            self.layers[f"conv{2 * i + 1}"] = conv(inner, channels, 3, 1, **options)
            self.layers[f"conv{2 * i + 2}"] = conv(channels, channels, 3, 1, pool=2, **options)
            inner = channels
        flat = inner * (height >> len(widths)) * (width >> len(widths))
        self.drop = nn.Dropout(dropout) if dropout else None
        self.head = nn.ModuleDict()
        if hidden:
            self.head["hidden"] = Layer(nn.Linear(flat, hidden), activation, dropout=dropout)
        self.head["output"] = Layer(nn.Linear(hidden or flat, classes), None)
        initialise(self, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        x = x.flatten(1)
        if self.drop is not None:
            x = self.drop(x)
        for layer in self.head.values():
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions whose output is added to their input (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(inner, width, 3, 1, stride=stride)
        self.conv2 = Layer(nn.Conv2d(width, width, 3, padding=1, bias=False), None, nn.BatchNorm2d(width))
        same = stride == 1 and inner == width
        self.shortcut = None if same else Layer(nn.Conv2d(inner, width, 1, stride, bias=False), None,
                                                nn.BatchNorm2d(width))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.conv1(x)) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nn.Module):
    """ResNet-18 for 32 x 32. The 7 x 7 convolution and the pooling with which the net for ImageNet begins would leave
    little of such small pictures; a 3 x 3 convolution takes their place. 11.2 M parameters, 555 M multiply-adds.

    Args:
        input_size, classes: as in :class:`MLP`.
        width: channels of the first of four stages; each further one has twice as many.
        blocks: residual blocks in each stage.
        zero_last: the last BatchNorm of a block begins at 0, so that the block changes nothing at first (Goyal et al.
            2017).
    """

    def __init__(self, input_size: Sequence[int], classes: int, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2),
                 zero_last: bool = True):
        super().__init__()
        self.stem = conv(input_size[0], width, 3, 1)
        stages: list[nn.Module] = []
        inner = width
        for i, count in enumerate(blocks):
            outer = width << i
            stages.append(nn.Sequential(*[ResidualBlock(inner if j == 0 else outer, outer, 2 if i and j == 0 else 1)
                                          for j in range(count)]))
            inner = outer
        self.stages = nn.Sequential(*stages)
        self.output = Layer(nn.Linear(inner, classes), None)
        initialise(self, "kaiming")
        for module in self.modules():
            if zero_last and isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.norm.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.stages(self.stem(x)).mean((2, 3)))


class BiasNorm(nn.BatchNorm2d):
    """BatchNorm whose scale stays 1, so that only its bias learns. Before a GELU and another BatchNorm, the scale does
    not matter much. Its running means forget quickly, for trainings of a few hundred steps."""

    def __init__(self, width: int, keep: float = 0.6):
        super().__init__(width, eps=1e-5, momentum=1 - keep)
        self.weight.requires_grad = False


class Whitening(nn.Module):
    """A convolution that is measured and not learnt; only its bias is learnt.

    Its filters are the principal components of small patches of training images, each divided by its standard
    deviation, and their negatives. Its outputs have about unit covariance, so the next layer need not learn first that
    neighbouring pixels are alike.
    """

    def __init__(self, channels: int, kernel: int = 2, eps: float = 5e-4):
        super().__init__()
        self.eps, self.width = eps, 2 * channels * kernel**2
        self.register_buffer("weight", torch.randn(self.width, channels, kernel, kernel) / self.width)
        self.bias = nn.Parameter(torch.zeros(self.width))

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Set the filters from images ``x`` (N, C, H, W), normalised as in training."""
        size = self.weight.shape[-1]
        patches = F.unfold(x.float().contiguous(), size)  # (N, C * size * size, places)
        flat = patches.transpose(0, 1).flatten(1).double()
        values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
        filters = (vectors / (values + self.eps).sqrt()).T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]).flip(0))  # the largest eigenvalue came last; it is drawn first

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def dirac_conv(inner: int, width: int) -> nn.Conv2d:
    """A 3 x 3 convolution that passes on its input at first: each of its first ``inner`` filters copies a channel."""
    op = nn.Conv2d(inner, width, 3, padding=1, bias=False)
    nn.init.dirac_(op.weight.data[: min(inner, width)])
    return op


class FastNet(nn.Module):
    """A net for few epochs, in the spirit of airbench94 (Keller Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a
    single GPU", arXiv 2404.00498): a whitening layer measured from the data, three groups of convolution, pooling, and
    convolution with GELU, and an output that is small at first.

    Train it with label smoothing, alternating flips, translation by 2 pixels, Nesterov SGD with ``optim.bias_scale``
    (or Muon), and test-time averaging. 118 M multiply-adds for 32 x 32.

    Args:
        input_size, classes: as in :class:`MLP`.
        widths: channels of the groups.
        depth: convolutions in a group.
        kernel: side of the whitening layer's filters, in pixels.
        keep: the share of BatchNorm's running means that a step keeps.
        scale: factor of the output; with a small one, all classes are almost equally likely at first.
        activation: GELU in the paper.
    """

    def __init__(self, input_size: Sequence[int], classes: int, widths: Sequence[int] = (64, 256, 256), depth: int = 2,
                 kernel: int = 2, keep: float = 0.6, scale: float = 1 / 9, activation: str = "gelu"):
        super().__init__()
        channels, height, width = input_size
        if min(height, width) - kernel + 1 < 1 << len(widths) or depth < 1:
            raise ValueError(f"{len(widths)} groups of depth {depth} halve images of {height} x {width} to nothing")
        self.whiten = Whitening(channels, kernel)
        self.act = make_activation(activation)
        self.layers = nn.ModuleDict()
        inner = self.whiten.width
        for i, outer in enumerate(widths, 1):
            for j in range(1, depth + 1):
                self.layers[f"group{i}_conv{j}"] = Layer(dirac_conv(inner, outer), activation, BiasNorm(outer, keep),
                                                         pool=2 if j == 1 else 1)
                inner = outer
        self.output = Layer(nn.Linear(inner, classes, bias=False), None)
        self.scale = scale

    def measure(self, x: Tensor) -> None:
        """Measure the whitening layer on training images ``x`` (N, C, H, W), normalised."""
        self.whiten.measure(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.whiten(x))
        for layer in self.layers.values():
            x = layer(x)
        return self.output(x.amax((2, 3))) * self.scale
