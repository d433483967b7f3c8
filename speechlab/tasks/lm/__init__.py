"""Language modelling: how likely a sentence is, token by token.

A recogniser can add its scores to its own (speechlab/decoding/rescore.py). For this, both must have the same section
``tokens`` and the same corpus. A language model is judged by its perplexity while it is trained; it has no test stages.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from speechlab import tasks
from speechlab.data.inputs import shown
from speechlab.data.text import normalise
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError
from speechlab.scoring.metric import METRICS
from speechlab.tasks.interface import Answer, Model, Task
from speechlab.tasks.lm.config import Config
from speechlab.training.interface import Trainable


class LanguageModel(Model):
    """A trained language model: ``network`` maps tokens to logits, and ``units`` are what the tokens stand for."""

    def __init__(self, state: dict[str, Any], device: torch.device):
        from speechlab.tasks.lm.train import build_lm

        self.config, self.device = tasks.from_dict(state["config"], "the checkpoint's config"), device
        self.tokenizer = Tokenizer(**state["tokens"])
        self.network = build_lm(self.config, len(self.tokenizer))
        self.network.load_state_dict(state["model"])
        self.network.to(device).eval()

    @property
    def units(self) -> list[str]:
        return self.tokenizer.units

    @torch.no_grad()
    def __call__(self, source: Any, rate: int | None = None, method: str | None = None) -> dict[str, Any]:
        """A sentence's log probability (natural logarithm), its number of tokens (with its end), and its perplexity per
        token."""
        if not isinstance(source, str):
            raise UserError("a language model reads text: model('a sentence')")
        ids = self.tokenizer.encode(normalise(source, None))
        x = torch.tensor([[0, *ids]], device=self.device)
        y = torch.tensor([*ids, 0], device=self.device)
        log_probs = self.network(x).float().log_softmax(-1)[0]
        total = float(log_probs.gather(1, y[:, None]).sum())
        return {"text": source, "log_prob": total, "tokens": len(y), "perplexity": math.exp(-total / len(y))}


class Lm(Task):
    """See speechlab/tasks/interface.py."""

    about = "how likely a sentence is"
    Config = Config
    metrics = (METRICS["perplexity"],)
    reads, reads_what = frozenset({".txt"}), "text"

    def trainable(self, config: Any, data: Path, device: torch.device) -> Trainable:
        from speechlab.tasks.lm.train import LmTraining

        return LmTraining(config, data, device)

    def load(self, state: dict[str, Any], device: torch.device) -> Model:
        return LanguageModel(state, device)

    def decode(self, model: Model, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
        raise UserError(f"{exp} is a language model: it has nothing to decode (recognisers take it by --neural_lm)", 2)

    def infer(self, model: Model, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[Answer]:
        """How likely text files are. Each line is a sentence."""
        for path in paths:
            try:
                lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                yield Answer({"file": shown(path), "perplexity": None, "error": str(error)})
                continue
            found = [model(line) for line in lines]
            total, count = sum(one["log_prob"] for one in found), sum(one["tokens"] for one in found)
            perplexity = math.exp(-total / count) if count else None
            record = {"file": shown(path), "sentences": len(found), "tokens": count, "log_prob": total,
                      "perplexity": perplexity, "error": None if found else "no sentence in it"}
            yield Answer(record, f"{shown(path)}\t{perplexity:.2f}" if found else None)


TASK = Lm()
