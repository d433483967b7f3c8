"""The sections of an image classifier's config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from speechlab.config import Component
from speechlab.data.image_augment import Augment
from speechlab.ranges import within
from speechlab.training.loop import TrainConfig
from speechlab.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section ``data``: how batches are made."""

    batch_size: int = 128  # images per batch; a step takes train.accum batches
    augment: Augment = Augment()  # how training images are changed
    whiten: int = 5000  # training images whose statistics set FastNet's first layer before training
    # Training images on which BatchNorm's means are measured anew each time before the network is judged. The running
    # means of training would lag behind the weights, would not fit averaged weights (train.ema; Izmailov et al. 2018,
    # arXiv 1803.05407), and would depend on how many processes share a step. 0: use them all the same.
    calibrate: int = 2000
    resident: bool = True  # keep all training images on the GPU; false: copy each batch to it

    def __post_init__(self) -> None:
        within(self, "batch_size", least=2)
        within(self, "whiten", least=1)
        within(self, "calibrate", least=0)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Section ``loss``."""

    # cross_entropy, or mse: the squared distance between the probabilities (softmax) and the one-hot vector of the true
    # class, summed over classes (Brier 1950).
    name: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: float = 0.0  # share of the target (0 to below 1) that is spread evenly over all classes

    def __post_init__(self) -> None:
        within(self, "label_smoothing", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Section ``decode``."""

    # Views of an image that the method tta adds; it averages the network's answers to all views. flip: the mirrored
    # image. translate: the image shifted by a pixel in two directions (Jordan 2024), and mirrored if training mirrors.
    tta: Literal["none", "flip", "translate"] = "none"
    batch_size: int = 500  # images per batch; changes speed and memory, not results

    def __post_init__(self) -> None:
        within(self, "batch_size", least=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """An image classifier's config. ``model`` maps (B, C, H, W) to logits (B, classes). Its arguments ``input_size``
    (C, H, W) and ``classes`` come from the data, not from the config."""

    task: str
    model: Component
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
