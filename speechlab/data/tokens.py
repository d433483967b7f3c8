"""Tokens: text to integers and back. Index 0 is CTC's blank, index 1 the unknown token.

A recipe's stage 3 makes the list (``tokens.json``): speechlab/tasks/asr/tokens.py.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from speechlab.config import short_hash
from speechlab.data import arpabet, pinyin
from speechlab.data.symbols import KEPT
from speechlab.data.text import has_hanzi
from speechlab.errors import UserError
from speechlab.ranges import within

BLANK, UNKNOWN, SPACE = "<blank>", "<unk>", "▁"
PIECES = ("bpe", "unigram")  # kinds that SentencePiece makes


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """Section ``tokens``: the units that the model writes, and those of a second target that helps it to learn."""

    # char: characters. bpe (Sennrich et al. 2016, arXiv:1508.07909) and unigram (Kudo 2018, arXiv:1804.10959): pieces
    # of words, which SentencePiece chooses.
    kind: Literal["char", "bpe", "unigram"] = "char"
    min_count: int = 1  # characters that the training text has fewer times become <unk>; kind = char only
    # Units of a second CTC target, for a lower block of the encoder (loss.layer). phone (initials and tonal finals) and
    # syllable: of Chinese text, by pypinyin. arpabet: of English text, by the CMU dictionary. "": no second target.
    auxiliary: Literal["", "phone", "syllable", "arpabet"] = ""
    factored: bool = False  # units that share an auxiliary unit share output weights (models/asr.py, FactoredHead)
    vocab_size: int = 0  # number of units, <blank> and <unk> counted; bpe and unigram need it, 0 for char

    def __post_init__(self) -> None:
        within(self, "min_count", least=1)
        within(self, "vocab_size", least=0)
        if self.kind in PIECES and self.vocab_size < 3:
            raise ValueError(f"vocab_size must be given for kind = {self.kind}: how many units, {BLANK} and {UNKNOWN} "
                             "counted (300, say)")
        if self.kind in PIECES and self.min_count != 1:
            raise ValueError(f"min_count is of kind = char: {self.kind} chooses its units by vocab_size")
        if self.kind not in PIECES and self.vocab_size:
            raise ValueError(f"vocab_size is of kind = {' or '.join(PIECES)}: kind = {self.kind} has as many units as "
                             "the text")
        if self.factored and not self.auxiliary:
            raise ValueError("factored needs auxiliary: the parts are auxiliary units")

    def name(self) -> str:
        """The folder's name: kind and four hex digits of what defines the units."""
        defines = dataclasses.asdict(self)
        if not self.vocab_size:  # a later field: folders of configs without it keep their names
            del defines["vocab_size"]
        return f"{self.kind}-{short_hash(defines)}"


_CHARACTER = re.compile(f"{KEPT.pattern}|.", re.DOTALL)  # a kept symbol (<NOISE>) is one


def _characters(text: str) -> list[str]:
    return _CHARACTER.findall(text.replace(" ", SPACE))


SPLIT: dict[str, Callable[[str], list[str]]] = {
    "char": _characters, "phone": pinyin.phones, "syllable": pinyin.syllables, "arpabet": arpabet.phones,
}


class Tokenizer:
    """Turns text into numbers of units and back. In characters and pieces, ``▁`` stands for a space between words.

    Args:
        units: every unit once; ``<blank>`` and ``<unk>`` come first.
        kind: a key of :data:`SPLIT`, or one of :data:`PIECES`.
        model: SentencePiece's model as base64, for the kinds in :data:`PIECES`. So tokens.json and checkpoints need no
            other file.
    Raises:
        UserError: for units that begin otherwise or repeat, an unknown kind, or a model that has other units.
    """

    def __init__(self, units: Sequence[str], kind: str = "char", model: str = ""):
        if list(units[:2]) != [BLANK, UNKNOWN] or len(set(units)) != len(units):
            raise UserError(f"a token list must begin with {BLANK}, {UNKNOWN} and name each unit once")
        if kind not in (*SPLIT, *PIECES):
            raise UserError(f"a token list of kind '{kind}': there are {', '.join((*SPLIT, *PIECES))}")
        self.units, self.kind, self.model = list(units), kind, model
        self._index = {unit: i for i, unit in enumerate(self.units)}
        self._pieces = _processor(model, self.units) if kind in PIECES else None

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "char", min_count: int = 1, vocab_size: int = 0) -> Tokenizer:
        """Choose the units of ``texts``: all that occur ``min_count`` times, the most frequent first; for the kinds in
        :data:`PIECES`, the ``vocab_size`` pieces that SentencePiece chooses.

        Raises:
            UserError: the texts are empty, or ``vocab_size`` is too large or too small for them.
        """
        if kind in PIECES:
            model = _train_pieces(list(texts), kind, vocab_size)
            processor = _sentencepiece(kind).SentencePieceProcessor(model_proto=model)
            units = [processor.id_to_piece(i) for i in range(len(processor))]
            return cls(units, kind, base64.b64encode(model).decode())
        counts = Counter(unit for text in texts for unit in SPLIT[kind](text))
        counts.pop(UNKNOWN, None)  # stands for words that the dictionary does not have
        units = sorted((u for u, n in counts.items() if n >= min_count), key=lambda u: (-counts[u], u))
        if not units:
            raise UserError(_EMPTY)
        return cls([BLANK, UNKNOWN, *units], kind)

    @classmethod
    def load(cls, folder: str | Path, part: str = "main") -> Tokenizer:
        """Read ``tokens.json`` from a folder: its part ``main``, or ``auxiliary``. UserError if it can't be read."""
        path = Path(folder) / "tokens.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8"))[part])
        except FileNotFoundError:
            raise UserError(f"no {path}: run the recipe's token stage (--stage 3)") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not a token list: delete it and run --stage 3") from None

    def encode(self, text: str) -> list[int]:
        """Text to token indices; a unit that is not in the list becomes the unknown token (1)."""
        if self._pieces is not None:
            return self._pieces.encode(text)
        return [self._index.get(unit, 1) for unit in SPLIT[self.kind](text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Token indices to text; blank and unknown write nothing."""
        units = [self.units[i] for i in ids if i > 1]
        if self.kind in ("char", *PIECES):
            return "".join(units).replace(SPACE, " ").strip()
        return " ".join(units)

    def state(self) -> dict[str, Any]:
        """The constructor's arguments as plain types, for tokens.json and checkpoints."""
        return {"kind": self.kind, "units": self.units, **({"model": self.model} if self.model else {})}


_EMPTY = "the training text is empty: there is nothing to make tokens of"


def _sentencepiece(kind: str) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise UserError(f"tokens.kind = {kind} needs the Python package sentencepiece: tools/setup.sh installs it") \
            from None
    return sentencepiece


def _processor(model: str, units: list[str]) -> Any:
    """SentencePiece's processor for a base64 model. UserError unless the model has exactly these units."""
    sentencepiece = _sentencepiece("bpe or unigram")
    try:
        found = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(model, validate=True))
        pieces = [found.id_to_piece(i) for i in range(len(found))]
    except (binascii.Error, RuntimeError):
        pieces = []
    if pieces != units:
        raise UserError("the SentencePiece model of the token list is damaged or another list's: delete tokens.json "
                        "and run --stage 3")
    return found


def _train_pieces(texts: list[str], kind: str, vocab_size: int) -> bytes:
    """Train a SentencePiece model that numbers units as we do: 0 is blank, 1 is unknown, no sentence boundaries.

    The same texts give the same model on every machine: all lines are used in the given order, on one thread, and
    SentencePiece does not normalise text again (:mod:`speechlab.data.text` has done so). A ``▁`` is put before a line's
    first word, so that a word has the same pieces at the beginning of a line as inside it. Text with hanzi has no
    spaces between words, and gets no such ``▁``. A kept symbol (``<NOISE>``) is a piece of its own.
    """
    sentencepiece = _sentencepiece(kind)
    if not any(text.strip() for text in texts):
        raise UserError(_EMPTY)
    made = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=made, model_type=kind, vocab_size=vocab_size,
            pad_id=0, pad_piece=BLANK, unk_id=1, unk_piece=UNKNOWN, bos_id=-1, eos_id=-1,
            character_coverage=1.0, normalization_rule_name="identity",
            add_dummy_prefix=not any(map(has_hanzi, texts)), num_threads=1, input_sentence_size=0,
            user_defined_symbols=sorted({symbol for text in texts for symbol in KEPT.findall(text)}),
            shuffle_input_sentence=False, max_sentence_length=max(4192, *(len(text.encode()) + 1 for text in texts)),
            minloglevel=3)
    except RuntimeError as error:
        most = re.search(r"value <= (\d+)", str(error))
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if most:
            raise UserError(f"tokens.vocab_size = {vocab_size} is more than this training text has {kind} units for: "
                            f"the largest possible is {most[1]}") from None
        if least:
            raise UserError(f"tokens.vocab_size = {vocab_size} is too small for the characters of this training text: "
                            f"the smallest possible is {least[1]}") from None
        raise UserError(f"SentencePiece made no {kind} units of the training text: {error}") from None
    return made.getvalue()
