"""The sections of a recogniser's config."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Literal

from speechlab.config import Component
from speechlab.data.lm import LMConfig
from speechlab.data.speech import DataConfig
from speechlab.data.tokens import TokensConfig
from speechlab.features.contract import FeatureContract
from speechlab.ranges import within
from speechlab.training.loop import TrainConfig
from speechlab.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Section ``loss``: shares of the losses in what is minimised."""

    ctc: float = 1.0  # CTC's share; the rest is the attention decoder's cross-entropy. 1: CTC alone, 0: cross-entropy
    label_smoothing: float = 0.1  # the part of the cross-entropy's target that all tokens get alike
    auxiliary: float = 0.3  # within CTC's share, that of the second CTC loss (over tokens.auxiliary)
    # Weight of the guided attention loss (Tachibana et al. 2018, arXiv 1710.08969) within the decoder's share: two
    # heads of each block after the first are pulled towards the diagonal. 0: no such loss.
    guided: float = 0.0
    guided_width: float = 0.2  # how far from the diagonal a head may look for little, as a part of the utterance (g)
    layer: int = 3  # the encoder block (from 1) that the second loss judges; the blocks above are told what it heard

    def __post_init__(self) -> None:
        within(self, "ctc", "label_smoothing", "auxiliary", least=0, most=1)
        within(self, "layer", least=1)
        within(self, "guided", least=0)
        within(self, "guided_width", above=0, most=10)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Section ``decoder``: an attention decoder over the encoder's output, as wide as it."""

    layers: int = 0  # blocks; 0: no decoder
    heads: int = 4  # attention heads of a block
    hidden: int | None = None  # width of the feed-forward layers (null: four times the encoder's width)
    dropout: float = 0.1  # share of channels that are dropped in training
    # sinusoids: absolute positions, added to the encoder's frames and to the tokens: the attention over the frames
    # then knows where in the utterance a frame lies. none: it looks by content alone (as older models do).
    positions: Literal["none", "sinusoids"] = "none"

    def __post_init__(self) -> None:
        within(self, "layers", least=0)
        within(self, "heads", "hidden", least=1)
        within(self, "dropout", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Section ``decode``. Weights that are left out (null) are tuned on the validation set, never on a test set."""

    beam: int = 8  # hypotheses that the decoder's searches keep
    ctc_beam: int = 64  # prefixes that CTC's searches keep; they cost little
    nbest: int = 16  # hypotheses per utterance that are saved, and rescored
    max_duration: float = 120.0  # seconds of audio in a batch
    ctc_weight: float | None = None  # CTC's share in the method joint, 0 to 1
    lm_weight: float | None = None  # the n-gram's weight in the method ctc_beam_lm
    length_bonus: float | None = None  # what every token adds to a hypothesis's score

    def __post_init__(self) -> None:
        within(self, "beam", "ctc_beam", "nbest", least=1)
        within(self, "max_duration", above=0)
        within(self, "ctc_weight", least=0, most=1)
        within(self, "lm_weight", least=0)
        within(self, "length_bonus")


@dataclasses.dataclass(frozen=True)
class Config:
    """A recogniser's config. ``model`` is the encoder: ``(x, lengths) -> (y, lengths)`` with ``output_size``."""

    task: str
    model: Component
    features: FeatureContract = FeatureContract()
    tokens: TokensConfig = TokensConfig()
    lm: LMConfig = LMConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    decoder: DecoderConfig = DecoderConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self) -> None:
        if self.loss.ctc == 1 and self.decoder.layers:
            raise ValueError("loss.ctc = 1 leaves nothing to the decoder: lower it (0.3), or decoder.layers = 0")
        if self.loss.ctc < 1 and not self.decoder.layers:
            raise ValueError(f"loss.ctc = {self.loss.ctc:g} leaves the rest to a decoder: give decoder.layers, or 1")
        if self.tokens.auxiliary and self.loss.ctc == 0:
            raise ValueError("tokens.auxiliary is a second CTC target, and loss.ctc is 0")
        if self.tokens.auxiliary and not takes_between(self.model.target):
            raise ValueError("tokens.auxiliary judges a block of the encoder, and "
                             f"{self.model.path} lets nobody between its blocks: choose "
                             "speechlab.models.asr:Conformer, or leave tokens.auxiliary out")


def takes_between(encoder: type) -> bool:
    """Whether an encoder's class lets something be done between its blocks: its ``forward`` takes ``between``."""
    forward = getattr(encoder, "forward", None)
    return forward is None or "between" in inspect.signature(forward).parameters
