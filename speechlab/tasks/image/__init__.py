"""What is in a picture: a network over classes.

config.py has the config's sections; train.py the loss and the training; layers.py looks inside a network; classifier.py
predicts with a checkpoint; decode.py and score.py are the stages of the same names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from speechlab.data.inputs import IMAGES, shown
from speechlab.errors import UserError
from speechlab.scoring.compare import Comparison
from speechlab.scoring.metric import METRICS
from speechlab.tasks.image.config import Config
from speechlab.tasks.interface import Answer, Model, Scored, Task
from speechlab.training.interface import Trainable


class Image(Task):
    """See speechlab/tasks/interface.py. Modules are imported when they are asked for."""

    about = "pictures to classes"
    Config = Config
    metrics = (METRICS["error"], METRICS["accuracy"])
    reads, reads_what = IMAGES, "picture"

    def methods(self) -> dict[str, str]:
        from speechlab.tasks.image.classifier import METHODS

        return METHODS

    def trainable(self, config: Any, data: Path, device: torch.device) -> Trainable:
        from speechlab.tasks.image.train import ImageTraining

        return ImageTraining(config, data, device)

    def load(self, state: dict[str, Any], device: torch.device) -> Model:
        from speechlab.tasks.image.classifier import Classifier

        return Classifier(state, device)

    def decode(self, model: Any, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
        from speechlab.tasks.image.decode import decode

        return decode(model, data, exp, args)

    def score(self, exp: Path, args: argparse.Namespace) -> Scored:
        from speechlab.tasks.image.score import score

        return score(exp, args)

    def compare(self, a: Path, b: Path, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
        from speechlab.tasks.image.score import compare

        return compare(a, b, args)

    def infer(self, model: Any, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[Answer]:
        for path in paths:
            try:
                found: dict[str, Any] = {**model(path, method=args.method), "error": None}
            except UserError as error:
                found = {"hyp": None, "prob": None, "probs": None, "error": str(error)}
            line = None if found["error"] else f"{shown(path)}\t{found['hyp']}\t{found['prob']:.4f}"
            yield Answer({"file": shown(path), **found}, line, complaint=found["error"])


TASK = Image()
