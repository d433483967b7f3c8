"""Batches for speech recognition: CutSet manifests in, padded tensors out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from speechlab.data.augment import SpecAugment, item_rng
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section ``data``.

    max_duration: seconds of audio in a batch (padding counted): what bounds memory, whatever one utterance's length.
    min_seconds, max_seconds: training utterances outside are left out, and counted in the log.
    num_buckets: of similar lengths, so that little is padding; num_workers: loading processes (0: the training one).
    speakers: train on these speakers alone (empty: on all).
    on_the_fly: compute features while training instead of reading the stored ones.
    """

    max_duration: float = 120.0
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    num_buckets: int = 10
    num_workers: int = 0
    speakers: tuple[str, ...] = ()
    on_the_fly: bool = False
    augment: SpecAugment | None = SpecAugment()

    def __post_init__(self) -> None:
        if self.max_duration < self.max_seconds:
            raise ValueError(f"max_duration = {self.max_duration:g} is less than max_seconds = {self.max_seconds:g}")


def read_split(folder: str | Path, split: str) -> CutSet:
    """The cuts of ``folder/<split>.jsonl.gz``, read whole; UserError if there is none."""
    path = Path(folder) / f"{split}.jsonl.gz"
    if not path.exists():
        raise UserError(f"no {path}: run the stage that makes it (./run.sh --stage 1 makes manifests, 2 features)")
    return CutSet.from_file(path).to_eager()


class SpeechDataset(Dataset):
    """A batch of cuts to ``{"x": (B, T, bins), "x_lens", "y": (B, U) token ids, "y_lens", "ids"}``.

    Args:
        features: ``cut -> (T, bins)`` float tensor, normalised.
        tokenizer: text to ids.
        augment: applied to training features, seeded by (seed, epoch, cut id).
        auxiliary: makes ``z`` and ``z_lens`` of the text likewise.
    """

    def __init__(self, features: Callable[[Any], Tensor], tokenizer: Tokenizer, augment: SpecAugment | None = None,
                 seed: int = 0, auxiliary: Tokenizer | None = None):
        self.features, self.augment, self.seed = features, augment, seed
        self.targets = {"y": tokenizer, **({"z": auxiliary} if auxiliary is not None else {})}
        self.epoch = 0

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        xs: list[Tensor] = []
        for cut in cuts:
            x = self.features(cut)
            if self.augment is not None:
                x = self.augment(x, item_rng(self.seed, self.epoch, cut.id))
            xs.append(x)
        batch = {"x": pad_sequence(xs, batch_first=True), "x_lens": torch.tensor([len(x) for x in xs]),
                 "ids": [cut.id for cut in cuts]}
        for name, tokenizer in self.targets.items():
            ys = [torch.tensor(tokenizer.encode(cut.supervisions[0].text), dtype=torch.long) for cut in cuts]
            batch[name] = pad_sequence(ys, batch_first=True)
            batch[f"{name}_lens"] = torch.tensor([len(y) for y in ys])
        return batch


class CachedFeatures:
    """``read``'s features kept in memory as float16, up to ``limit`` bytes: a small corpus is read once."""

    def __init__(self, read: Callable[[Any], np.ndarray], limit: int = 2 << 30):
        self.read, self.limit, self.bytes = read, limit, 0
        self.kept: dict[str, Tensor] = {}

    def __call__(self, cut: Any) -> Tensor:
        if cut.id not in self.kept:
            half = torch.from_numpy(self.read(cut)).half()
            if self.bytes + half.nbytes > self.limit:
                return half.float()  # rounded as the kept ones are: which fit must not change a result
            self.kept[cut.id] = half
            self.bytes += half.nbytes
        return self.kept[cut.id].float()


class EpochLoader:
    """The batches of one epoch after another, for one of ``world_size`` processes, from any step on.

    A step takes ``accum`` batches, whoever computes them: the plan is made for ``accum`` places, process r fills the
    places r, r + world_size and so on. So what a step sees depends on seed, epoch and step alone: not on the number of
    processes, nor on an interruption.
    """

    def __init__(self, dataset: SpeechDataset, cuts: CutSet, config: DataConfig, *, train: bool, seed: int = 0,
                 rank: int = 0, world_size: int = 1, accum: int = 1):
        if accum % world_size:
            raise ValueError(f"accum = {accum} must be a multiple of the {world_size} processes")
        self.dataset, self.cuts, self.config = dataset, cuts, config
        self.train, self.seed, self.accum = train, seed, accum
        self.places = range(rank, accum, world_size)
        self._planned: tuple[int, list[list[CutSet]]] = (-1, [])

    def plan(self, epoch: int) -> list[list[CutSet]]:
        """The batches of cuts in ``epoch``, one a step, for each of this process's places."""
        if self._planned[0] != epoch:
            self._planned = (epoch, [self._plan(epoch, place) for place in self.places])
        return self._planned[1]

    def _plan(self, epoch: int, place: int) -> list[CutSet]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")  # a choice: it can be iterated anew
            sampler = DynamicBucketingSampler(
                self.cuts, max_duration=self.config.max_duration, shuffle=self.train, seed=self.seed,
                num_buckets=min(self.config.num_buckets, max(2, len(self.cuts) // 8)), drop_last=False,
                rank=place, world_size=self.accum,
            )
        sampler.set_epoch(epoch)
        return list(sampler)

    def size(self, epoch: int) -> int:
        """The number of steps of ``epoch``, the same in every process."""
        return len(self.plan(epoch)[0])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """The steps of ``epoch`` but the first ``skip``: each this process's (place, batch) pairs."""
        self.dataset.epoch = epoch
        steps = list(zip(*self.plan(epoch), strict=True))[skip:]
        # A generator of its own: the loader draws a seed for its workers, which must not move the global generator.
        loader = iter(DataLoader(self.dataset, batch_size=None, sampler=[cuts for step in steps for cuts in step],
                                 num_workers=self.config.num_workers, generator=torch.Generator()))
        for _ in steps:
            yield [(place, next(loader)) for place in self.places]

    def batches(self, epoch: int = 0) -> Iterator[dict[str, Any]]:
        """All batches of ``epoch`` one by one, for judging and decoding."""
        return (batch for step in self.epoch(epoch) for _, batch in step)
