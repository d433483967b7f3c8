"""Speech recognition: an encoder trained with CTC over tokens (Graves et al. 2006)."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import Tensor, nn

from speechlab.config import Component, from_dict, to_dict
from speechlab.data.asr import CachedFeatures, DataConfig, EpochLoader, SpeechDataset, read_split
from speechlab.data.tokens import Tokenizer, TokensConfig
from speechlab.decoding import ctc
from speechlab.errors import UserError
from speechlab.features import storage  # noqa: F401  (lhotse then knows how our features are stored)
from speechlab.features.audio import read
from speechlab.features.contract import FeatureContract, load_contract, require_same
from speechlab.features.fbank import extract, normalise
from speechlab.models.asr import CTCModel
from speechlab.training.interface import Evaluation, Loss
from speechlab.training.loop import TrainConfig, to_device
from speechlab.training.optim import OptimConfig

log = logging.getLogger("speechlab")
METHODS = ("ctc_greedy", "ctc_beam")
SHOWN = 4  # validation utterances decoded in samples.md


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Section ``loss``.

    auxiliary: the weight of the second CTC loss, over ``tokens.auxiliary``. layer: the encoder block (from 1) whose
    output it judges, and which tells what it heard to the blocks above.
    """

    auxiliary: float = 0.3
    layer: int = 3


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Section ``decode``: beam: prefixes kept in ``ctc_beam``; max_duration: seconds of audio in a batch."""

    beam: int = 8
    max_duration: float = 120.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A recogniser's config. ``model`` is the encoder: ``(x, lengths) -> (y, lengths)`` with ``output_size``."""

    task: str
    model: Component
    features: FeatureContract = FeatureContract()
    tokens: TokensConfig = TokensConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()


def build_model(config: Config, tokenizer: Tokenizer, auxiliary: Tokenizer | None, parts: Tensor | None) -> CTCModel:
    """The network that a config describes; ``parts`` (vocab, auxiliary units) for a factored head."""
    try:
        encoder = config.model.build(input_size=config.features.dim)
    except (ValueError, TypeError) as error:
        raise UserError(f"model: {error}", 2) from None
    if not hasattr(encoder, "output_size"):
        raise UserError(f"model.class {config.model.path}: an encoder must say its output_size")
    if auxiliary is not None and not 1 <= config.loss.layer <= len(getattr(encoder, "blocks", ())):
        raise UserError(f"loss.layer = {config.loss.layer}: {config.model.path} has no such block to judge", 2)
    return CTCModel(encoder, len(tokenizer), len(auxiliary or ()), config.loss.layer, parts)


def parts_of(tokenizer: Tokenizer, auxiliary: Tokenizer) -> Tensor:
    """(vocab, auxiliary units): 1 where a unit, read alone, has an auxiliary unit in it."""
    parts = torch.zeros(len(tokenizer), len(auxiliary))
    for row, unit in enumerate(tokenizer.units[2:], 2):
        for column in auxiliary.encode(unit):
            if column > 1:  # known
                parts[row, column] = 1.0
    return parts


class FeatureReader:
    """A cut's normalised features, (frames, bins): stored ones, or computed from its audio on the fly."""

    def __init__(self, contract: FeatureContract, stored: bool, dither: bool = False):
        self.contract, self.stored, self.dither = contract, stored, dither

    def __call__(self, cut: Any) -> np.ndarray:
        if self.stored:
            x = torch.from_numpy(np.array(cut.load_features()))
        else:
            seed = zlib.crc32(cut.id.encode()) if self.dither else None  # an utterance's own, so that no order matters
            x = extract(*read(cut), self.contract, seed)
        if self.contract.normalise == "utterance":
            x = normalise(x[None], torch.tensor([len(x)]))[0]
        return x.numpy()


def read_features(data: Path, config: Config, split: str) -> tuple[CutSet, FeatureReader]:
    """A split's cuts and how to read their features: from ``data/<features>/`` or from audio.

    Raises UserError where the stored features were made by another contract.
    """
    stored = not config.data.on_the_fly
    folder = data / config.features.name() if stored else data
    if stored and folder.exists():
        require_same(load_contract(folder), config.features, folder)
    return read_split(folder, split), FeatureReader(config.features, stored, dither=split == "train")


def collapse_loss(log_probs: Tensor, lengths: Tensor, y: Tensor, y_lens: Tensor) -> Loss:
    """CTC's negative log likelihood summed over the batch; counted in tokens.

    An utterance with too few frames for its tokens has no path: it adds nothing (and is counted out by the task).
    """
    total = F.ctc_loss(log_probs.transpose(0, 1), y, lengths, y_lens, reduction="sum", zero_infinity=True)
    return Loss(total, y_lens.sum().to(total))


class AsrTask:
    """Training and judging a recogniser on ``data/<corpus>`` (see speechlab/training/interface.py)."""

    metric = "cer"

    def __init__(self, config: Config, data: Path, device: torch.device, seed: int | None = None):
        self.config, self.data, self.device = config, data, device
        tokens = data / config.tokens.name()
        self.tokenizer = Tokenizer.load(tokens)
        self.auxiliary = Tokenizer.load(tokens, "auxiliary") if config.tokens.auxiliary else None
        parts = parts_of(self.tokenizer, self.auxiliary) if config.tokens.factored else None
        self.model: nn.Module = build_model(config, self.tokenizer, self.auxiliary, parts)
        self.seed = config.train.seed if seed is None else seed
        cuts, reader = read_features(data, config, "dev")
        self.valid = EpochLoader(SpeechDataset(CachedFeatures(reader), self.tokenizer), cuts, config.data, train=False)
        self.shown = sorted(cut.id for cut in cuts)[:: max(1, len(cuts) // SHOWN)][:SHOWN]
        self.texts = {cut.id: cut.supervisions[0].text for cut in cuts}

    def loader(self, rank: int = 0, world_size: int = 1, accum: int = 1) -> EpochLoader:
        """Training batches for one of ``world_size`` processes, ``accum`` to a step of all of them."""
        config = self.config.data
        cuts, reader = read_features(self.data, self.config, "train")
        kept = cuts.filter(lambda c: config.min_seconds <= c.duration <= config.max_seconds).to_eager()
        if not len(kept):
            raise UserError(f"no training utterance is between data.min_seconds = {config.min_seconds:g} and "
                            f"data.max_seconds = {config.max_seconds:g} long")
        if rank == 0:
            log.info("training on %d utterances, %.2f h (%d of other lengths left out)", len(kept),
                     sum(c.duration for c in kept) / 3600, len(cuts) - len(kept))
        dataset = SpeechDataset(CachedFeatures(reader), self.tokenizer, config.augment, self.seed, self.auxiliary)
        return EpochLoader(dataset, kept, config, train=True, seed=self.seed, rank=rank, world_size=world_size,
                           accum=accum)

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.parameters())}

    def loss(self, batch: dict[str, Any], which: str) -> Loss:
        log_probs, lengths, low, low_lengths = self.model.forward_both(batch["x"], batch["x_lens"])
        main = collapse_loss(log_probs, lengths, batch["y"], batch["y_lens"])
        if low is None:
            return main
        auxiliary = collapse_loss(low, low_lengths, batch["z"], batch["z_lens"])
        share = self.config.loss.auxiliary
        return Loss((1 - share) * main.total + share * auxiliary.total * main.count / auxiliary.count, main.count)

    def evaluate(self, model: nn.Module) -> Evaluation:
        total = count = 0.0
        hyps: dict[str, str] = {}
        for batch in self.valid.batches():
            batch = to_device(batch, self.device)
            log_probs, lengths = model(batch["x"], batch["x_lens"])
            loss = collapse_loss(log_probs, lengths, batch["y"], batch["y_lens"])
            total, count = total + float(loss.total), count + float(loss.count)
            for name, hyp in zip(batch["ids"], ctc.greedy(log_probs, lengths), strict=True):
                hyps[name] = self.tokenizer.decode(hyp.tokens)
        refs = [" ".join(self.texts[n].replace(" ", "")) for n in hyps]
        found = jiwer.process_words(refs, [" ".join(h.replace(" ", "")) for h in hyps.values()])
        samples = [(n, self.texts[n], hyps[n]) for n in self.shown if n in hyps]
        return Evaluation({"loss": total / max(count, 1), "cer": 100 * found.wer}, samples)

    def state(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "features": self.config.features.to_dict(),
                "tokens": self.tokenizer.state(), "auxiliary": self.auxiliary.state() if self.auxiliary else None}


class Recogniser:
    """A trained model with all that it needs, from a checkpoint alone."""

    def __init__(self, state: dict[str, Any], device: torch.device):
        self.config: Config = from_dict(state["config"], "the checkpoint's config")
        self.contract = FeatureContract.from_dict(state["features"])
        self.tokenizer = Tokenizer(**state["tokens"])
        self.auxiliary = Tokenizer(**state["auxiliary"]) if state.get("auxiliary") else None
        self.device = device
        parts = state["model"].get("head.parts")
        self.model = build_model(self.config, self.tokenizer, self.auxiliary, parts).to(device).eval()
        self.model.load_state_dict(state["model"])

    def batches(self, data: Path, split: str) -> tuple[CutSet, Iterator[dict[str, Any]]]:
        """A split's cuts, and its batches of (ids, log-posteriors, lengths); features must match the checkpoint's."""
        config = dataclasses.replace(self.config, features=self.contract)
        cuts, reader = read_features(data, config, split)
        longest = max(config.decode.max_duration, *(c.duration for c in cuts))
        limits = dataclasses.replace(config.data, max_duration=longest, augment=None)
        loader = EpochLoader(SpeechDataset(reader_tensor(reader), self.tokenizer), cuts, limits, train=False)
        return cuts, loader.batches()

    @torch.no_grad()
    def posteriors(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(B, T', vocab) log-posteriors and (B,) lengths, on the CPU."""
        batch = to_device(batch, self.device)
        log_probs, lengths = self.model(batch["x"], batch["x_lens"])
        return log_probs.cpu(), lengths.cpu()

    def search(self, log_probs: Tensor, lengths: Tensor, method: str) -> list[ctc.Hypothesis]:
        """Hypotheses by one of :data:`METHODS`."""
        if method == "ctc_greedy":
            return ctc.greedy(log_probs, lengths)
        if method == "ctc_beam":
            return ctc.prefix_beam(log_probs, lengths, beam=self.config.decode.beam)
        raise UserError(f"no search method '{method}': there are {', '.join(METHODS)}", 2)


def reader_tensor(reader: FeatureReader) -> Any:
    """The reader as the dataset wants it."""
    return lambda cut: torch.from_numpy(reader(cut))
