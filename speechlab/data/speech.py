"""What any task on cuts needs: section ``data``, a split's cuts, their features, and the batches of epochs.

Each task has its own targets: it gives :class:`EpochLoader` a Dataset that turns cuts into a batch, such as
:class:`speechlab.data.asr.SpeechDataset`. A planner says which cuts make a batch: see :mod:`speechlab.data.batching`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader

from speechlab.data.augment import SpecAugment
from speechlab.data.batching import ByDuration, Planner
from speechlab.errors import UserError
from speechlab.features import storage  # noqa: F401  (tells lhotse how our features are stored)
from speechlab.features.audio import read
from speechlab.features.contract import FeatureContract, load_contract, require_same
from speechlab.features.fbank import extract, normalise
from speechlab.ranges import within


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section ``data``: which utterances, and what a batch is."""

    max_duration: float = 120.0  # seconds of audio in a batch, padding counted: this bounds memory
    min_seconds: float = 0.1  # shorter training utterances are left out; the log counts them
    max_seconds: float = 30.0  # longer training utterances are left out; the log counts them
    num_buckets: int = 10  # groups of similar lengths that batches are made from: more of them, less padding
    num_workers: int = 0  # processes that load batches (0: the training process does it)
    speakers: tuple[str, ...] = ()  # train on these speakers alone (empty: on all)
    on_the_fly: bool = False  # compute features while training, instead of reading the stored ones
    augment: SpecAugment | None = SpecAugment()  # how training features are changed (null: not at all)

    def __post_init__(self) -> None:
        within(self, "max_duration", "max_seconds", above=0)
        within(self, "min_seconds", "num_workers", least=0)
        within(self, "num_buckets", least=2)
        if self.max_duration < self.max_seconds:
            raise ValueError(f"max_duration = {self.max_duration:g} is less than max_seconds = {self.max_seconds:g}")
        if self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds = {self.max_seconds:g} is less than min_seconds = {self.min_seconds:g}")


def read_split(folder: str | Path, split: str) -> CutSet:
    """The cuts of ``folder/<split>.jsonl.gz``, read whole; UserError if there is none."""
    path = Path(folder) / f"{split}.jsonl.gz"
    if not path.exists():
        raise UserError(f"no {path}: run the stage that makes it (./run.sh --stage 1 makes manifests, 2 features)")
    return CutSet.from_file(path).to_eager()


class FeatureReader:
    """A cut's normalised features, (frames, bins): stored ones, or computed from its audio on the fly."""

    def __init__(self, contract: FeatureContract, stored: bool, dither: bool = False):
        self.contract, self.stored, self.dither = contract, stored, dither

    def __call__(self, cut: Any) -> np.ndarray:
        if self.stored:
            x = torch.from_numpy(np.array(cut.load_features()))
        else:
            seed = zlib.crc32(cut.id.encode()) if self.dither else None  # one per utterance: the order has no effect
            x = extract(*read(cut), self.contract, seed)
        if self.contract.normalise == "utterance":
            x = normalise(x[None], torch.tensor([len(x)]))[0]
        return x.numpy()


def read_features(data: str | Path, contract: FeatureContract, split: str, on_the_fly: bool = False,
                  folder: str | Path | None = None) -> tuple[CutSet, FeatureReader]:
    """A split's cuts, and what reads their features: stored ones, or computed from the audio (``on_the_fly``).

    Stored features are in ``folder``, by default ``data/<name of the contract>``. Only training features that are
    computed on the fly are dithered, as the contract says.

    Raises:
        UserError: there is no such split, or the stored features were made by another contract.
    """
    if on_the_fly:
        return read_split(data, split), FeatureReader(contract, stored=False, dither=split == "train")
    folder = Path(data) / contract.name() if folder is None else Path(folder)
    if folder.exists():
        require_same(load_contract(folder), contract, folder)
    return read_split(folder, split), FeatureReader(contract, stored=True)


def training_cuts(cuts: CutSet, config: DataConfig, tell: Callable[[str], None] | None = None) -> CutSet:
    """The cuts that section ``data`` allows for training: of its speakers, and not too short or too long.

    Args:
        tell: gets one line that says how many there are (for the log of the first process).
    Raises:
        UserError: there is no speaker of such a name, or no cut is left.
    """
    if config.speakers:
        there = {c.supervisions[0].speaker for c in cuts}
        if unknown := sorted(set(config.speakers) - there):
            raise UserError(f"data.speakers: nobody called {', '.join(unknown)} in the training set; there are "
                            f"{', '.join(map(str, sorted(there)[:20]))}", 2)
        cuts = cuts.filter(lambda c: c.supervisions[0].speaker in config.speakers).to_eager()
    kept = cuts.filter(lambda c: config.min_seconds <= c.duration <= config.max_seconds).to_eager()
    if not len(kept):
        raise UserError(f"no training utterance is between data.min_seconds = {config.min_seconds:g} and "
                        f"data.max_seconds = {config.max_seconds:g} long")
    if tell:
        tell(f"training on {len(kept)} utterances, {sum(c.duration for c in kept) / 3600:.2f} h "
             f"({len(cuts) - len(kept)} of other lengths left out)")
    return kept


class CachedFeatures:
    """Keeps what ``read`` gives in memory, as float16, up to ``limit`` bytes: a small corpus is read only once."""

    def __init__(self, read: Callable[[Any], np.ndarray], limit: int = 2 << 30):
        self.read, self.limit, self.bytes = read, limit, 0
        self.kept: dict[str, Tensor] = {}

    def __call__(self, cut: Any) -> Tensor:
        if cut.id not in self.kept:
            half = torch.from_numpy(self.read(cut)).half()
            if self.bytes + half.nbytes > self.limit:
                return half.float()  # rounded like the kept ones: results must not depend on which ones fit
            self.kept[cut.id] = half
            self.bytes += half.nbytes
        return self.kept[cut.id].float()


class BatchDataset(Protocol):
    """What turns cuts into a batch. ``epoch`` is set before an epoch begins; augmentation depends on it."""

    epoch: int

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]: ...


class EpochLoader:
    """The batches of one epoch after another, for one of ``world_size`` processes, from any step on.

    A step takes ``accum`` batches: the plan has ``accum`` places, and process r makes the batches of the places r,
    r + world_size and so on. So a step's cuts depend on seed, epoch and step alone, not on the number of processes or
    on an interruption.

    ``planner`` chooses the cuts of each batch (speechlab/data/batching.py). The default is ``ByDuration`` over all
    ``cuts``, with the limits of ``config``, shuffled if ``train`` is true.
    """

    def __init__(self, dataset: BatchDataset, cuts: CutSet, config: DataConfig, *, train: bool, seed: int = 0,
                 rank: int = 0, world_size: int = 1, accum: int = 1, planner: Planner | None = None):
        if accum % world_size:
            raise ValueError(f"accum = {accum} must be a multiple of the {world_size} processes")
        self.dataset, self.config, self.accum = dataset, config, accum
        self.planner = planner or ByDuration(cuts, config.max_duration, config.num_buckets, shuffle=train, seed=seed)
        self.places = range(rank, accum, world_size)
        self._planned: tuple[int, list[list[CutSet]]] = (-1, [])

    def plan(self, epoch: int) -> list[list[CutSet]]:
        """The cuts of ``epoch``: for each of this process's places a list of batches, one per step."""
        if self._planned[0] != epoch:
            self._planned = (epoch, [self.planner(epoch, place, self.accum) for place in self.places])
        return self._planned[1]

    def size(self, epoch: int) -> int:
        """The number of steps of ``epoch``, the same in every process."""
        return len(self.plan(epoch)[0])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """The steps of ``epoch`` after the first ``skip``: for each, a list of this process's (place, batch)."""
        self.dataset.epoch = epoch
        steps = list(zip(*self.plan(epoch), strict=True))[skip:]
        # The loader draws a seed for its workers. With a generator of its own, it does not change the global one.
        loader = iter(DataLoader(self.dataset, batch_size=None, sampler=[cuts for step in steps for cuts in step],
                                 num_workers=self.config.num_workers, generator=torch.Generator()))
        for _ in steps:
            yield [(place, next(loader)) for place in self.places]

    def batches(self, epoch: int = 0) -> Iterator[dict[str, Any]]:
        """All batches of ``epoch`` one by one, for judging and decoding."""
        return (batch for step in self.epoch(epoch) for _, batch in step)
