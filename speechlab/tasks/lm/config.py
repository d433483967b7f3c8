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
    """Section ``data``: how batches are made."""

    tokens: int = 4000  # tokens per batch, padding counted; this bounds memory
    max_length: int = 500  # tokens; longer training sentences are left out, and the log says how many
    # Share of training tokens that are replaced by the unknown token. With tokens.min_count: 1 the training text has no
    # unknown tokens, and the model would not learn how likely they are, nor what follows them.
    unknown: float = 0.01

    def __post_init__(self) -> None:
        within(self, "tokens", "max_length", least=1)
        within(self, "unknown", least=0, below=1)
        if self.tokens <= self.max_length:
            raise ValueError(f"tokens = {self.tokens} is too few for a sentence of max_length = {self.max_length}")


@dataclasses.dataclass(frozen=True)
class Config:
    """A language model's config. ``model`` maps tokens (B, U) to logits (B, U, vocab). Its argument ``vocab`` comes
    from the token list, not from the config."""

    task: str
    model: Component
    tokens: TokensConfig = TokensConfig()
    data: TextConfig = TextConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
