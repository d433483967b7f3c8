"""Speech recognition: what is said in an utterance. An encoder with CTC, an attention decoder, or both, and any search.

config.py (the sections), train.py (the losses first), recogniser.py (a checkpoint that hears and searches), search.py
(weights tuned on dev), long_audio.py (files of any length), decode.py, score.py, infer.py; tokens.py and ngram.py are
stage 3's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from speechlab.scoring.compare import Comparison
from speechlab.scoring.metric import METRICS
from speechlab.tasks.asr.config import Config
from speechlab.tasks.interface import Answer, Model, Scored, Task
from speechlab.training.interface import Trainable


class Asr(Task):
    """See speechlab/tasks/interface.py. Modules are imported when they are asked for: a config is read in no time."""

    about = "speech to text"
    Config = Config
    metrics = tuple(METRICS[name] for name in ("mer", "wer", "cer", "ser", "rtf"))

    def arguments(self, parser: argparse.ArgumentParser, command: str) -> None:
        if command == "decode":
            parser.add_argument("--lm", type=Path, help="the folder of an n-gram language model, or its lm.arpa")
            parser.add_argument("--neural_lm", type=Path, help="the experiment of a language model as a network")
        elif command == "score":
            from speechlab.tasks.asr.score import arguments

            arguments(parser)
        elif command == "infer":
            from speechlab.tasks.asr.infer import arguments

            arguments(parser)

    def methods(self) -> dict[str, str]:
        from speechlab.tasks.asr.recogniser import METHODS

        return {name: method.about for name, method in METHODS.items()}

    def trainable(self, config: Any, data: Path, device: torch.device) -> Trainable:
        from speechlab.tasks.asr.train import AsrTraining

        return AsrTraining(config, data, device)

    def load(self, state: dict[str, Any], device: torch.device) -> Model:
        from speechlab.tasks.asr.recogniser import Recogniser

        return Recogniser(state, device)

    def decode(self, model: Any, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
        from speechlab.tasks.asr.decode import decode

        return decode(model, data, exp, args)

    def score(self, exp: Path, args: argparse.Namespace) -> Scored:
        from speechlab.tasks.asr.score import score

        return score(exp, args)

    def compare(self, a: Path, b: Path, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
        from speechlab.tasks.asr.score import compare

        return compare(a, b, args)

    def infer(self, model: Any, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[Answer]:
        from speechlab.tasks.asr.infer import infer

        return infer(model, paths, args)


TASK = Asr()
