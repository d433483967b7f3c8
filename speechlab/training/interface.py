"""What the loop asks of a task. The loop knows no task: a recogniser and an image classifier train alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from speechlab.scoring.metric import Metric, key


@dataclasses.dataclass
class Loss:
    """A batch's loss as a sum and what to divide it by.

    Sums, since a mean of means weighs short batches too much: the loop adds sums and counts over accumulated batches
    and over processes, and divides once, so that any split of a joint batch gives the same gradient.
    """

    total: Tensor
    count: Tensor


@dataclasses.dataclass
class Evaluation:
    """What judging the validation set gave: numbers by name (``loss``, ``cer``...) and a few (id, ref, hyp) to read.

    A task without a validation set leaves its ``metric`` out: then the last epoch counts as the best. Names are in
    lower case (``cer``); a record of an epoch has them as ``valid_cer``.
    extra: numbers about the network and not its answers (``dead/conv1``), written under their own names.
    images: pictures by name, uint8 (H, W) or (H, W, 3), which become ``<name>/epoch-NN.png`` of the experiment.
    phase: a few words where the training stands somewhere worth a name ("all blank"); curves.png shades it.
    """

    metrics: dict[str, float]
    samples: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    phase: str = ""


class Loader(Protocol):
    """Training batches by steps; what a step sees depends on seed, epoch and step only."""

    def size(self, epoch: int) -> int:
        """The number of optimiser steps of an epoch."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, Any]]]:
        """The steps of an epoch but the first ``skip``: for each the batches that fall to this process, with the place
        of each among the step's ``accum`` batches."""
        ...


class Trainable(Protocol):
    """Joins model, data, loss and judgement: what a task's ``trainable()`` gives.

    It may also offer ``watch() -> dict[str, float]``: numbers for a logged step's record, asked while the step's
    gradients are there.
    """

    model: nn.Module
    metric: Metric  # which of Evaluation.metrics says which epoch is best, and in which direction

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimiser by its name: one mostly, two for a GAN."""
        ...

    def loss(self, batch: Any, which: str) -> Loss:
        """The loss of a batch for the optimiser ``which``; called under autocast."""
        ...

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Judge ``model`` (the training one, or its average) on the validation set."""
        ...

    def state(self) -> dict[str, Any]:
        """What inference needs beside the weights: feature contract, tokens; plain types and tensors."""
        ...


def record_key(metric: Metric, record: dict[str, Any]) -> str:
    """The key of an epoch's record that holds ``metric``: ``valid_cer`` for CER; "" where the record has none."""
    return next((name for name in record if name.startswith("valid_") and key(name) == key(metric.name)), "")
