"""Character and word error rates by jiwer, with intervals, counts per utterance, alignments, and trn files for sclite.

CER counts characters without spaces. So it is the same number for texts with and without spaces, and the same that
sclite gives on the trn files, where each character is a word. MER, the mixed error rate of code-switching, counts each
hanzi, and each word of what is written otherwise: 我用PYTHON写 has four units.

Non-speech symbols that a corpus has kept (``<NOISE>``: speechlab/data/symbols.py) are left out of both texts: whether a
cough was written down is no question of recognition, and figures stay comparable with those of others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from speechlab.scoring.bootstrap import interval
from speechlab.scoring.layout import pad, width

Unit = Literal["char", "word", "mixed", "syllable"]
METRIC = {"char": "CER", "word": "WER", "mixed": "MER", "syllable": "SER"}
PROTOCOL = {"char": "CER jiwer, no spaces", "word": "WER jiwer", "mixed": "MER jiwer, hanzi and words"}

_SYMBOL = re.compile(r"<[^<>\s]+>")  # as speechlab/data/symbols.py writes those that are kept
_HANZI = "〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_MIXED = re.compile(rf"[{_HANZI}]|[^\s{_HANZI}]+")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff]")

# sclite reads these as markup. Reference and hypothesis are changed in the same way, so that no count changes.
_TRN_MARKUP = str.maketrans("(){};@", "（）｛｝；＠")


@dataclass(frozen=True)
class Item:
    """One utterance of a test list."""

    id: str
    ref: str  # the reference: what was said
    hyp: str = ""  # the hypothesis: what the recogniser answered
    error: str | None = None  # why there is no answer
    pinyin: str = ""  # true readings of the reference, numbered syllables with spaces between; "" if they are not known


@dataclass(frozen=True)
class Counts:
    """The errors in one utterance or in a list."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0  # units in the reference

    @property
    def errors(self) -> int:
        """Errors of all three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per reference unit, in percent; None if the reference is empty."""
        return 100 * self.errors / self.length if self.length else None


@dataclass(frozen=True)
class Aligned:
    """One scored utterance."""

    item: Item
    counts: Counts
    pairs: list[tuple[str | None, str | None]]  # (reference unit, hypothesis unit); None where one side has nothing


@dataclass(frozen=True)
class ErrorRate:
    """The error rate of a test list."""

    unit: Unit
    value: float | None  # percent
    ci_low: float | None  # 95 % bootstrap interval over utterances, in percent
    ci_high: float | None
    counts: Counts
    n: int  # scored utterances
    n_failed: int  # utterances without an answer, which are not scored
    utterances: list[Aligned]


def units(text: str, unit: Unit) -> list[str]:
    """The units of ``text`` that are compared: characters without spaces, words, or hanzi and words (``mixed``).

    Kept non-speech symbols are none.
    """
    if unit == "syllable":
        raise ValueError("a text alone has no syllables: a reader is needed (speechlab/scoring/syllables.py)")
    text = _SYMBOL.sub(" ", text)
    if unit == "mixed":
        return _MIXED.findall(text)
    return text.split() if unit == "word" else list("".join(text.split()))


def is_hanzi(character: str) -> bool:
    """True for a Chinese character (CJK ideographs of any Unicode block; 〇 is one)."""
    return ("㐀" <= character <= "鿿" or "豈" <= character <= "﫿" or "\U00020000" <= character <= "\U000323af"
            or character == "〇")


def mostly_hanzi(texts: Iterable[str]) -> bool:
    """True if more than half of all characters, without spaces, are Chinese characters."""
    total = hanzi = 0
    for text in texts:
        characters = units(text, "char")
        total += len(characters)
        hanzi += sum(map(is_hanzi, characters))
    return hanzi * 2 > total


def code_switched(texts: Iterable[str], least: float = 0.1) -> bool:
    """True if, of hanzi and words of other scripts (numbers are neither), each kind is at least a share of ``least``.

    One in ten: an English word has four to five letters, so a third of the characters that CER counts are then letters,
    and CER is no more about hanzi. Corpora of code-switching have more (a sixth and up), Chinese ones with a brand or
    an OK here and there have less. Kana are no words, since nobody writes spaces between Japanese ones.
    """
    hanzi = words = 0
    for text in texts:
        for unit in units(text, "mixed"):
            if is_hanzi(unit[0]):
                hanzi += 1
            else:
                words += any(map(str.isalpha, unit)) and not _KANA.search(unit)
    return min(hanzi, words) > 0 and min(hanzi, words) >= least * (hanzi + words)


def error_rate(
    items: Sequence[Item],
    unit: Unit,
    resamples: int = 2000,
    seed: int = 0,
    split: Callable[[Item], tuple[list[str], list[str]]] | None = None,
) -> ErrorRate:
    """Score a test list.

    An empty hypothesis counts as deletions of the whole reference. An empty reference adds insertions and no length.
    Items with ``error`` are left out and counted in ``n_failed``.

    Args:
        items: the list.
        unit: ``char`` for CER, ``word`` for WER, ``mixed`` for MER, ``syllable`` for SER.
        resamples: bootstrap draws.
        seed: of the bootstrap.
        split: gives the units of an item's reference and hypothesis, without spaces in a unit; needed for syllables.
    """
    split = split or (lambda item: (units(item.ref, unit), units(item.hyp, unit)))
    scored = [item for item in items if item.error is None]
    utterances: list[Aligned] = []
    if scored:
        # Characters are given as words, since jiwer's process_characters counts the spaces between words, too.
        refs, hyps = zip(*map(split, scored))
        out = jiwer.process_words([" ".join(ref) for ref in refs], [" ".join(hyp) for hyp in hyps])
        utterances = [_aligned(*parts) for parts in zip(scored, out.references, out.hypotheses, out.alignments)]
    counts = [utterance.counts for utterance in utterances]
    total = Counts(*(sum(getattr(c, name) for c in counts) for name in Counts.__dataclass_fields__))
    low, high = interval([c.errors for c in counts], [c.length for c in counts], resamples, seed=seed)
    percent = (None, None) if low is None else (100 * low, 100 * high)
    return ErrorRate(unit, total.rate, *percent, total, len(scored), len(items) - len(scored), utterances)


def _aligned(item: Item, ref: list[str], hyp: list[str], chunks: list) -> Aligned:
    """The counts and pairs of an utterance, from the chunks of jiwer's alignment."""
    pairs: list[tuple[str | None, str | None]] = []
    found = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in chunks:
        left = ref[chunk.ref_start_idx : chunk.ref_end_idx] if chunk.type != "insert" else []
        right = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx] if chunk.type != "delete" else []
        size = max(len(left), len(right))
        found[chunk.type] += size
        pairs += zip(left or [None] * size, right or [None] * size)
    return Aligned(item, Counts(found["substitute"], found["delete"], found["insert"], len(ref)), pairs)


def alignment(utterance: Aligned, columns: int = 100) -> str:
    """Lines with reference, hypothesis and kinds of errors (S, D, I) under each other, ``columns`` cells wide."""
    blocks: list[list[str]] = [["REF", "HYP", "   "]]
    for ref, hyp in utterance.pairs:
        kind = "I" if ref is None else "D" if hyp is None else "S" if ref != hyp else ""
        cells = max(width(ref or ""), width(hyp or ""))
        if width(blocks[-1][0]) + 1 + cells > columns and len(blocks[-1][0]) > 3:
            blocks.append(["REF", "HYP", "   "])
        for line, text in enumerate((ref or "*" * cells, hyp or "*" * cells, kind)):
            blocks[-1][line] += " " + pad(text, cells)
    return "\n".join(line.rstrip() for block in blocks for line in block if line.strip())


def worst_of(rate: ErrorRate, count: int) -> list[Aligned]:
    """The ``count`` utterances with the most errors; of equals, the shorter first."""
    chosen = [u for u in rate.utterances if u.counts.errors]
    chosen.sort(key=lambda u: (-u.counts.errors, u.counts.length, u.item.id))
    return chosen[:count]


def worst(rate: ErrorRate, count: int = 20) -> str:
    """The ``count`` utterances with the most errors (of equals, the shorter first), aligned; '' without any error."""
    texts = []
    for place, utterance in enumerate(worst_of(rate, count), 1):
        c = utterance.counts
        percent = "no reference" if c.rate is None else f"{METRIC[rate.unit]} {c.rate:.1f} %"
        kinds = f"S {c.substitutions}  D {c.deletions}  I {c.insertions}  of {c.length}"
        texts.append(f"{place}. {utterance.item.id}  {percent}  {kinds}\n{alignment(utterance)}\n")
    return "\n".join(texts)


def trn(items: Iterable[tuple[str, str]], unit: Unit) -> str:
    """NIST's trn format of items (id, text): per line the units with spaces between, and the id in brackets.

    Brackets, braces and the like are written full-width, since sclite reads them as markup; spaces in an id become
    underscores. Give sclite ``-s`` (otherwise it ignores case) and ``-e utf-8``.
    """
    return "".join(
        " ".join([*units(text.translate(_TRN_MARKUP), unit), f"({trn_id(name)})"]) + "\n" for name, text in items
    )


def trn_id(name: str) -> str:
    """An utterance's id as :func:`trn` writes it."""
    return "_".join(name.split()).translate(_TRN_MARKUP)
