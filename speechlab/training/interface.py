"""What the training loop asks of a task. It knows no task: a recogniser and an image classifier train alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from speechlab.scoring.metric import Metric, key


@dataclasses.dataclass
class Loss:
    """The loss of a batch as a sum, and what to divide it by.

    The loop adds the sums and the counts of all batches of a step, over all processes, and divides once. So any split
    of a joint batch gives the same gradient, where a mean of means would weigh short batches too much.
    """

    total: Tensor  # scalar, the sum over the batch
    count: Tensor  # scalar, for example the number of items or of tokens in the batch


@dataclasses.dataclass
class Evaluation:
    """What judging the validation set gave.

    A task without a validation set leaves its ``metric`` out of ``metrics``: then the last epoch counts as the best.
    Names are in lower case (``cer``); the record of an epoch has them as ``valid_cer``.
    """

    metrics: dict[str, float]  # by name: loss, cer...
    samples: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # a few (id, ref, hyp) to read
    # Numbers about the network and not about its answers (dead/conv1), written under their own names.
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    # Pictures by name, uint8 (H, W) or (H, W, 3); they become <name>/epoch-NN.png in the experiment.
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)  # by picture: how to read it, for the report
    # A few words where the training stands somewhere worth a name ("all blank"); curves.png shades it.
    phase: str = ""


class Loader(Protocol):
    """Training batches, step by step. The batches of a step depend on seed, epoch and step only."""

    def size(self, epoch: int) -> int:
        """The number of optimiser steps of an epoch."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, Any]]]:
        """The steps of an epoch, without the first ``skip``.

        Each step is a list of (place, batch): this process's batches, and where they stand among the ``accum`` batches
        of the step.
        """
        ...


class Trainable(Protocol):
    """A model, its data, its loss, and how it is judged: what a task's ``trainable()`` gives.

    It may also have ``watch() -> dict[str, float]``: numbers for the record of a logged step. The loop calls it while
    the gradients of that step are still there.
    """

    model: nn.Module
    metric: Metric  # which of Evaluation.metrics says which epoch is best, and in which direction

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimiser, by its name. Most tasks have one optimiser, a GAN has two."""
        ...

    def loss(self, batch: Any, which: str) -> Loss:
        """The loss of a batch for the optimiser ``which``; called under autocast."""
        ...

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Judge ``model`` (the training one, or its average) on the validation set."""
        ...

    def state(self) -> dict[str, Any]:
        """What inference needs beside the weights, as plain types and tensors: feature contract, tokens..."""
        ...


def record_key(metric: Metric, record: dict[str, Any]) -> str:
    """The key of an epoch's record that holds ``metric``: ``valid_cer`` for CER; "" where the record has none."""
    return next((name for name in record if name.startswith("valid_") and key(name) == key(metric.name)), "")
