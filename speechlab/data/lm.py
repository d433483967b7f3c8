"""An n-gram language model's section of a config, and its estimate from transcripts and other text.

A recipe's stage 3 makes the model: speechlab/tasks/asr/ngram.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

from speechlab.config import short_hash
from speechlab.data.text import normalise
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.ngram import NGram
from speechlab.errors import UserError


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Section ``lm``.

    order: 4 is a 4-gram. distinct: a sentence counts once, however many times it was recorded: in read speech that is
    how many people were given it to read, and says nothing of the language (conversations want false). own_weight:
    beside more text (``--text``), which is larger and of other kinds, a transcript counts so many times.
    """

    order: int = 3
    distinct: bool = True
    own_weight: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 10:
            raise ValueError(f"order is {self.order}; it must be 1 to 10")
        if not 0 < self.own_weight < float("inf"):
            raise ValueError(f"own_weight is {self.own_weight:g}; it must be over 0")

    def name(self) -> str:
        """The folder's name: four hex digits of what defines the model, apart from its texts and units."""
        return f"lm-{short_hash(dataclasses.asdict(self))}"


def estimate(texts: Iterable[str], tokenizer: Tokenizer, config: LMConfig, more_text: Path | None = None,
             language: str | None = None) -> NGram:
    """The model of training transcripts, and of a file of more, whose lines are normalised as transcripts are."""
    sentences = list(dict.fromkeys(texts) if config.distinct else texts)
    more = _read(more_text, language) if more_text else []
    if config.distinct:
        more = list(dict.fromkeys(more))
    units = [[tokenizer.units[i] for i in tokenizer.encode(text)] for text in [*sentences, *more]]
    weights = itertools.chain([config.own_weight if more else 1] * len(sentences), itertools.repeat(1, len(more)))
    return NGram(units, config.order, weights, vocabulary=tokenizer.units[2:])


def _read(path: Path, language: str | None) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"--text: no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--text: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    found = [text for text in (normalise(line, language) for line in lines) if text]
    if not found:
        raise UserError(f"--text: nothing is said in {path}")
    return found
