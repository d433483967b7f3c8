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
    """Section ``data``: what a batch is."""

    batch_size: int = 128  # images of one batch; a step takes train.accum of them
    augment: Augment = Augment()  # how training images are changed
    whiten: int = 5000  # training images on which FastNet's first layer is measured before training
    # Training images on which BatchNorm's means are measured anew before judging: running means lag behind the weights,
    # do not fit their average (train.ema; Izmailov et al. 2018, arXiv 1803.05407), and would depend on how many
    # processes share a step. 0 keeps the running means.
    calibrate: int = 2000
    resident: bool = True  # keep the training images on the GPU instead of copying them there batch by batch

    def __post_init__(self) -> None:
        within(self, "batch_size", least=2)
        within(self, "whiten", least=1)
        within(self, "calibrate", least=0)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Section ``loss``."""

    # cross_entropy; or mse: the squared distance between the probabilities (softmax) and the true class's one-hot
    # vector, summed over classes (Brier 1950).
    name: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: float = 0.0  # the part of the target that all classes get alike

    def __post_init__(self) -> None:
        within(self, "label_smoothing", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Section ``decode``."""

    # What else the network is shown at test time, its answers averaged (method tta). flip: the mirrored image;
    # translate: two images shifted by a pixel (Jordan 2024), and mirrored ones too where training mirrors.
    tta: Literal["none", "flip", "translate"] = "none"
    batch_size: int = 500  # images at once

    def __post_init__(self) -> None:
        within(self, "batch_size", least=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """An image classifier's config. ``model``: (B, C, H, W) -> logits (B, classes); it takes ``input_size`` (C, H, W)
    and ``classes``."""

    task: str
    model: Component
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
