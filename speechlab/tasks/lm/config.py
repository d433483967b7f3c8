"""The sections of a language model's config."""

from __future__ import annotations

import dataclasses

from speechlab.config import Component
from speechlab.data.tokens import TokensConfig
from speechlab.ranges import within
from speechlab.training.loop import TrainConfig
from speechlab.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Section ``data``."""

    tokens: int = 4000  # in a batch, padding counted
    max_length: int = 500  # tokens; longer training sentences are left out, and the log says how many
    # Share of the training tokens that become the unknown one, which is seen nowhere else (tokens.min_count: 1) and
    # should have a probability, as should what stands beside it.
    unknown: float = 0.01

    def __post_init__(self) -> None:
        within(self, "tokens", "max_length", least=1)
        within(self, "unknown", least=0, below=1)
        if self.tokens <= self.max_length:
            raise ValueError(f"tokens = {self.tokens} is too few for a sentence of max_length = {self.max_length}")


@dataclasses.dataclass(frozen=True)
class Config:
    """A language model's config. ``model``: tokens (B, U) to logits (B, U, vocab); its size ``vocab`` is injected."""

    task: str
    model: Component
    tokens: TokensConfig = TokensConfig()
    data: TextConfig = TextConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
