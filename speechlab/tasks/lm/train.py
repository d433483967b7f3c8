"""Trains a language model: a network learns to predict the training transcripts, token by token."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.config import to_dict
from speechlab.data.speech import read_split
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError
from speechlab.scoring.metric import METRICS
from speechlab.tasks.lm.config import Config
from speechlab.training.device import to_device
from speechlab.training.interface import Evaluation, Loss

log = logging.getLogger("speechlab")
BOUNDARY, UNKNOWN, PADDING = 0, 1, -100
POOL = 50  # batches' worth of sentences that are sorted by length together
SHOWN = 4  # validation sentences in samples.md


class TextLoader:
    """The batches of one epoch after another (see speechlab/training/interface.py, Loader).

    A batch has sentences of similar length. Batches depend on seed and epoch alone, not on the number of processes. A
    step takes ``accum`` batches. The last step of an epoch is filled up with the epoch's first batches.

    Args:
        sentences: (id, token numbers) of each sentence.
        size: tokens per batch, padding counted, and one more for each sentence (its boundary).
        train: shuffle, and fill up the last step. Otherwise sentences come in order of length, each once.
        unknown: see :class:`speechlab.tasks.lm.config.TextConfig`.
    """

    def __init__(self, sentences: list[tuple[str, list[int]]], size: int, *, train: bool, seed: int = 0, rank: int = 0,
                 world_size: int = 1, accum: int = 1, unknown: float = 0.0):
        if accum % world_size:
            raise ValueError(f"accum = {accum} must be a multiple of the {world_size} processes")
        self.sentences, self.tokens, self.train, self.seed, self.accum = sentences, size, train, seed, accum
        self.unknown = unknown
        self.places = range(rank, accum, world_size)

    def plan(self, epoch: int) -> list[list[int]]:
        """For each batch of ``epoch``, the numbers of its sentences."""
        count = len(self.sentences)
        generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
        order = torch.randperm(count, generator=generator).tolist() if self.train else list(range(count))
        mean = sum(len(ids) + 1 for _, ids in self.sentences) / max(count, 1)
        pool = max(1, int(POOL * self.tokens / max(mean, 1))) if self.train else max(count, 1)
        batches: list[list[int]] = []
        for first in range(0, count, pool):
            batch: list[int] = []
            for i in sorted(order[first : first + pool], key=lambda i: len(self.sentences[i][1])):
                if batch and (len(self.sentences[i][1]) + 1) * (len(batch) + 1) > self.tokens:
                    batches.append(batch)
                    batch = []
                batch.append(i)
            batches += [batch] if batch else []
        if self.train:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
            batches += [batches[i % len(batches)] for i in range(-len(batches) % self.accum)]
        return batches

    def size(self, epoch: int) -> int:
        """The number of optimiser steps of ``epoch``."""
        return len(self.plan(epoch)) // self.accum

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """The steps of ``epoch`` after the first ``skip``: for each, a list of this process's (place, batch)."""
        plan = self.plan(epoch)
        for step in range(skip, len(plan) // self.accum):
            yield [(place, self.batch(plan[step * self.accum + place], (self.seed, epoch, step, place)))
                   for place in self.places]

    def batches(self) -> Iterator[dict[str, Any]]:
        """All sentences in order of length, for judging."""
        return (self.batch(numbers, ()) for numbers in self.plan(0))

    def batch(self, numbers: list[int], key: tuple[int, ...]) -> dict[str, Any]:
        """``x`` (B, U): the tokens, with the boundary before the first. ``y`` (B, U): for each token of ``x`` the next
        one, with the boundary after the last."""
        chosen = [self.sentences[i] for i in numbers]
        width = 1 + max(len(ids) for _, ids in chosen)
        x = torch.tensor([[BOUNDARY, *ids] + [BOUNDARY] * (width - 1 - len(ids)) for _, ids in chosen])
        y = torch.tensor([[*ids, BOUNDARY] + [PADDING] * (width - 1 - len(ids)) for _, ids in chosen])
        if self.unknown and self.train:
            drawn = torch.rand(y.shape, generator=torch.Generator().manual_seed(hash(key) % 2**63)) < self.unknown
            drawn &= y > BOUNDARY
            y = y.masked_fill(drawn, UNKNOWN)
            x[:, 1:] = x[:, 1:].masked_fill(drawn[:, :-1], UNKNOWN)
        return {"x": x, "y": y, "ids": [name for name, _ in chosen]}


class LmTraining:
    """Training and judging a language model on the transcripts of ``data/<corpus>`` (see training/interface.py)."""

    metric = METRICS["perplexity"]

    def __init__(self, config: Config, data: Path, device: torch.device, seed: int | None = None):
        self.config, self.data, self.device = config, data, device
        self.tokenizer = Tokenizer.load(data / config.tokens.name())
        self.model = build_lm(config, len(self.tokenizer))
        self.seed = config.train.seed if seed is None else seed
        sentences = self._sentences("dev")
        self.valid = TextLoader(sentences, config.data.tokens, train=False)
        self.shown = sorted(name for name, _ in sentences)[:: max(1, len(sentences) // SHOWN)][:SHOWN]

    def _sentences(self, split: str) -> list[tuple[str, list[int]]]:
        return [(s.id, self.tokenizer.encode(s.text)) for cut in read_split(self.data, split) for s in cut.supervisions]

    def loader(self, rank: int = 0, world_size: int = 1, accum: int = 1) -> TextLoader:
        """Training batches for process ``rank`` of ``world_size``. A step of all processes takes ``accum`` batches."""
        sentences = self._sentences("train")
        kept = [(name, ids) for name, ids in sentences if len(ids) <= self.config.data.max_length]
        if not kept:
            raise UserError(f"no training sentence has at most data.max_length = {self.config.data.max_length} tokens")
        if rank == 0:
            log.info("training on %d sentences, %d tokens (%d too long ones left out)", len(kept),
                     sum(len(ids) for _, ids in kept), len(sentences) - len(kept))
        return TextLoader(kept, self.config.data.tokens, train=True, seed=self.seed, rank=rank, world_size=world_size,
                          accum=accum, unknown=self.config.data.unknown)

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.parameters())}

    def loss(self, batch: dict[str, Any], which: str) -> Loss:
        return cross_entropy(self.model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Perplexity per token. The end of a sentence counts as a token, and so does an unknown token."""
        total = count = 0.0
        samples: dict[str, tuple[str, str, str]] = {}
        for batch in self.valid.batches():
            batch = to_device(batch, self.device)
            logits = model(batch["x"])
            loss = cross_entropy(logits, batch["y"])
            total, count = total + float(loss.total), count + float(loss.count)
            for i in (i for i, name in enumerate(batch["ids"]) if name in self.shown):
                said, guessed = batch["y"][i], logits[i].argmax(-1)[batch["y"][i] != PADDING]
                name = batch["ids"][i]
                samples[name] = (name, self.tokenizer.decode(said[said > 0].tolist()), self._spell(guessed.tolist()))
        mean = total / max(count, 1)
        return Evaluation({"loss": mean, "perplexity": math.exp(min(mean, 700.0))},
                          [samples[name] for name in self.shown if name in samples])

    def _spell(self, ids: list[int]) -> str:
        """Spell ``ids``: the likeliest token at each place, given the true tokens before it. ``/`` is the end."""
        return " ".join("/" if i == BOUNDARY else self.tokenizer.units[i] for i in ids)

    def state(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "tokens": self.tokenizer.state()}


def build_lm(config: Config, vocab: int) -> nn.Module:
    """The network that a config describes."""
    try:
        return config.model.build(vocab=vocab)
    except (ValueError, TypeError) as error:
        raise UserError(f"model: {error}", 2) from None


def cross_entropy(logits: Tensor, y: Tensor) -> Loss:
    """Negative log likelihood of ``y`` (B, U), without padding: its sum, and the number of tokens."""
    total = F.cross_entropy(logits.float().transpose(1, 2), y, ignore_index=PADDING, reduction="sum")
    return Loss(total, (y != PADDING).sum().to(total))
