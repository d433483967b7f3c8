"""The config's section for an n-gram language model, and how the model is estimated from transcripts and other text.

A recipe's stage 3 makes the model: speechlab/tasks/asr/ngram.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

from speechlab.config import short_hash
from speechlab.data.symbols import KEEP, KEPT, LEAVE_OUT, Symbols
from speechlab.data.text import normalise
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.ngram import NGram
from speechlab.errors import UserError
from speechlab.ranges import within


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Section ``lm``: the n-gram language model that the recogniser's beam search weighs."""

    order: int = 3  # length of the longest n-grams in tokens: 4 is a 4-gram model
    # Count each sentence once. In read speech, how often a sentence was recorded says only how many people were given
    # it to read. Set it to false for conversations, where frequent sentences really are frequent.
    distinct: bool = True
    # How many times a transcript counts where there is more text (--text): that text is larger, but of another kind.
    own_weight: float = 10.0

    def __post_init__(self) -> None:
        within(self, "order", least=1, most=10)
        within(self, "own_weight", above=0)

    def name(self) -> str:
        """The folder's name: ``lm-`` and four hex digits of these settings (not of the texts and units)."""
        return f"lm-{short_hash(dataclasses.asdict(self))}"


def estimate(texts: Iterable[str], tokenizer: Tokenizer, config: LMConfig, more_text: Path | None = None,
             language: str | None = None) -> NGram:
    """Estimate the model.

    Args:
        texts: the training transcripts, normalised.
        tokenizer: splits text into the tokens of the model.
        config: the section ``lm``.
        more_text: a file of more text (UTF-8, one sentence per line), which is normalised as transcripts are:
            non-speech symbols are left out of it unless the transcripts have kept theirs.
        language: of that file (``zh``, ``en``...).
    Raises:
        UserError: ``more_text`` is missing, not UTF-8, or without words.
    """
    sentences = list(dict.fromkeys(texts) if config.distinct else texts)
    kept = any(map(KEPT.search, sentences))
    more = _read(more_text, language, KEEP if kept else LEAVE_OUT) if more_text else []
    if config.distinct:
        more = list(dict.fromkeys(more))
    units = [[tokenizer.units[i] for i in tokenizer.encode(text)] for text in [*sentences, *more]]
    weights = itertools.chain([config.own_weight if more else 1] * len(sentences), itertools.repeat(1, len(more)))
    return NGram(units, config.order, weights, vocabulary=tokenizer.units[2:])


def _read(path: Path, language: str | None, symbols: Symbols) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"--text: no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--text: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    found = [text for text in (normalise(line, language, symbols) for line in lines) if text]
    if not found:
        raise UserError(f"--text: nothing is said in {path}")
    return found
