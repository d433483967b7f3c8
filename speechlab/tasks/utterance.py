"""A task with one answer per utterance (a number, a class): to be derived from, in a recipe's ``local/``.

What has to be written is the target of an utterance, the loss, and what the network's output means (see egs/README.md
for a whole recipe). Batches, training, decoding, scoring, comparison, inference and the report are here and in
interface.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechlab import tasks
from speechlab.config import Component, to_dict
from speechlab.data.augment import item_rng
from speechlab.data.inputs import audio_file
from speechlab.data.speech import CachedFeatures, DataConfig, EpochLoader, read_features, training_cuts
from speechlab.errors import UserError
from speechlab.features import features
from speechlab.features.contract import FeatureContract
from speechlab.ranges import within
from speechlab.scoring.metric import METRICS, Metric
from speechlab.tasks.interface import Model, Task
from speechlab.training.device import to_device
from speechlab.training.interface import Evaluation, Loss
from speechlab.training.loop import TrainConfig
from speechlab.training.optim import OptimConfig

log = logging.getLogger("speechlab")
SHOWN = 4  # validation utterances in samples.md


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Section ``decode``."""

    max_duration: float = 120.0  # seconds of audio in a batch

    def __post_init__(self) -> None:
        within(self, "max_duration", above=0)


@dataclasses.dataclass(frozen=True)
class Config:
    """``model``: ``(x (B, T, bins), lengths (B,)) -> (B, outputs)``; it takes ``input_size`` and ``outputs``."""

    task: str
    model: Component
    features: FeatureContract = FeatureContract()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()


class UtteranceTask(Task):
    """One answer per utterance. To be written: :meth:`target`, ``metrics`` and :meth:`judge`; the rest as needed."""

    Config = Config
    outputs = 1  # of the network

    @abstractmethod
    def target(self, cut: Any) -> Any:
        """What is right for a cut: a number (or whatever :meth:`loss` and :meth:`judge` take; JSON must hold it)."""
        raise NotImplementedError

    def loss(self, y: Tensor, targets: list[Any]) -> Tensor:
        """The loss of each utterance, (B,), of the network's output (B, outputs). By default the squared error."""
        return (y[:, 0] - torch.tensor(targets, dtype=y.dtype, device=y.device)).square()

    def answer(self, y: Tensor) -> Any:
        """What the network's output (outputs,) for one utterance says. By default its one number."""
        return round(float(y[0]), 4)

    def trainable(self, config: Any, data: Path, device: torch.device) -> UtteranceTraining:
        return UtteranceTraining(self, config, data, device)

    def load(self, state: dict[str, Any], device: torch.device) -> UtteranceModel:
        return UtteranceModel(self, state, device)


def build(task: UtteranceTask, config: Any) -> nn.Module:
    """The network that a config describes."""
    try:
        return config.model.build(input_size=config.features.dim, outputs=task.outputs)
    except (ValueError, TypeError) as error:
        raise UserError(f"model: {error}", 2) from None


def per_utterance(task: UtteranceTask, y: Tensor, targets: list[Any]) -> Tensor:
    """The task's loss of each utterance, (B,).

    Raises:
        UserError: the network's output or the loss has another shape.
    """
    if y.shape != (len(targets), task.outputs):
        raise UserError(f"the network gives {tuple(y.shape)} for {len(targets)} utterances: it must be "
                        f"({len(targets)}, {task.outputs}), since the task's outputs = {task.outputs}")
    losses = task.loss(y, targets)
    if losses.shape != (len(targets),):
        raise UserError(f"loss() must give one number per utterance, ({len(targets)},), not {tuple(losses.shape)}: "
                        "reduction='none' in PyTorch's losses")
    return losses


class UtteranceDataset:
    """A batch of cuts to ``{"x": (B, T, bins), "x_lens": (B,), "targets": list, "ids": list}``."""

    def __init__(self, read: Callable[[Any], Tensor], target: Callable[[Any], Any], augment: Any = None, seed: int = 0):
        self.read, self.target, self.augment, self.seed, self.epoch = read, target, augment, seed, 0
        self.targets: dict[str, Any] = {}

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        xs = [self.read(cut) for cut in cuts]
        if self.augment is not None:
            xs = [self.augment(x, item_rng(self.seed, self.epoch, cut.id)) for x, cut in zip(xs, cuts)]
        return {"x": pad_sequence(xs, batch_first=True), "x_lens": torch.tensor([len(x) for x in xs]),
                "targets": [self._target(cut) for cut in cuts], "ids": [cut.id for cut in cuts]}

    def _target(self, cut: Any) -> Any:
        if cut.id not in self.targets:  # computing one may take long: a pitch, say
            value = self.target(cut)
            if not isinstance(value, (str, int, float, list)):
                raise UserError(f"target() must give a number, a string or a list, not {type(value).__name__} (of a "
                                "tensor .item() or .tolist())")
            self.targets[cut.id] = value
        return self.targets[cut.id]


class UtteranceTraining:
    """What the loop asks (see speechlab/training/interface.py)."""

    def __init__(self, task: UtteranceTask, config: Any, data: Path, device: torch.device):
        self.task, self.config, self.data, self.device = task, config, data, device
        self.metric: Metric = task.metrics[0] if task.metrics else METRICS["loss"]
        self.model = build(task, config)
        cuts, reader = read_features(data, config.features, "dev", config.data.on_the_fly)
        self.valid = EpochLoader(UtteranceDataset(CachedFeatures(reader), task.target), cuts, config.data, train=False)
        self.shown = sorted(cut.id for cut in cuts)[:: max(1, len(cuts) // SHOWN)][:SHOWN]

    def loader(self, rank: int = 0, world_size: int = 1, accum: int = 1) -> EpochLoader:
        config = self.config.data
        cuts, reader = read_features(self.data, self.config.features, "train", config.on_the_fly)
        kept = training_cuts(cuts, config, log.info if rank == 0 else None)
        dataset = UtteranceDataset(CachedFeatures(reader), self.task.target, config.augment, self.config.train.seed)
        return EpochLoader(dataset, kept, config, train=True, seed=self.config.train.seed, rank=rank,
                           world_size=world_size, accum=accum)

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.parameters())}

    def loss(self, batch: dict[str, Any], which: str) -> Loss:
        losses = per_utterance(self.task, self.model(batch["x"], batch["x_lens"]).float(), batch["targets"])
        return Loss(losses.sum(), torch.tensor(float(len(losses)), device=losses.device))

    def evaluate(self, model: nn.Module) -> Evaluation:
        losses: list[float] = []
        figures: dict[str, list[float]] = {}
        said: dict[str, tuple[str, str, str]] = {}
        for batch in self.valid.batches():
            batch = to_device(batch, self.device)
            y = model(batch["x"], batch["x_lens"]).float()
            losses += per_utterance(self.task, y, batch["targets"]).tolist()
            for name, ref, row in zip(batch["ids"], batch["targets"], y.cpu()):
                hyp = self.task.answer(row)
                for metric, value in self.task.figures({"id": name, "ref": ref, "hyp": hyp}).items():
                    figures.setdefault(metric.lower(), []).append(value)
                said[name] = (name, text(ref), text(hyp))
        means = {name: float(np.mean(values)) for name, values in figures.items()}
        return Evaluation({"loss": float(np.mean(losses)), **means}, [said[name] for name in self.shown])

    def state(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "features": self.config.features.to_dict()}


class UtteranceModel(Model):
    """A trained network that answers on utterances."""

    def __init__(self, task: UtteranceTask, state: dict[str, Any], device: torch.device):
        self.task, self.device = task, device
        self.config = tasks.from_dict(state["config"], "the checkpoint's config")
        self.contract = FeatureContract.from_dict(state["features"])
        self.network = build(task, self.config)
        self.network.load_state_dict(state["model"])
        self.network.to(device).eval()

    @torch.no_grad()
    def __call__(self, source: Any, rate: int | None = None, method: str | None = None) -> dict[str, Any]:
        """``{"hyp": the answer}`` on a file, or on samples (n,) with their ``rate``."""
        if method not in (None, *self.methods()):
            raise UserError(f"no method '{method}': there are {', '.join(self.methods())}", 2)
        with audio_file(source, rate) as path:
            x = features(path, contract=self.contract)
        if not len(x):
            raise UserError(f"{source if isinstance(source, (str, Path)) else 'the array'} is too short for one frame")
        y = self.network(x[None].to(self.device), torch.tensor([len(x)], device=self.device))
        return {"hyp": self.task.answer(y[0].float().cpu())}

    @torch.no_grad()
    def answers(self, data: Path, split: str, method: str) -> Iterator[dict[str, Any]]:
        cuts, reader = read_features(data, self.contract, split, self.config.data.on_the_fly)
        longest = max(self.config.decode.max_duration, *(c.duration for c in cuts))
        limits = dataclasses.replace(self.config.data, max_duration=longest, augment=None)
        dataset = UtteranceDataset(lambda cut: torch.from_numpy(reader(cut)), self.task.target)
        by_id = {cut.id: cut for cut in cuts}
        for batch in EpochLoader(dataset, cuts, limits, train=False).batches():
            batch = to_device(batch, self.device)
            y = self.network(batch["x"], batch["x_lens"]).float().cpu()
            for name, ref, row in zip(batch["ids"], batch["targets"], y):
                cut = by_id[name]
                yield {"id": name, "ref": ref, "hyp": self.task.answer(row), "seconds": round(cut.duration, 3),
                       "speaker": cut.supervisions[0].speaker, "error": None}


def text(value: Any) -> str:
    """An answer in words."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
