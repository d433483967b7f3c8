"""The ARPA format of backoff language models, read as arrays (its description: SRILM's ngram-format(5))."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from speechlab.errors import UserError

_LN10 = math.log(10.0)
_CHUNK = 5_000  # lines read at once: with many more, Python's garbage collector takes half the time


class Section(NamedTuple):
    """The n-grams of one order that are made of units only."""

    ids: np.ndarray  # (n, order)
    log_probs: np.ndarray  # (n,) natural logs
    backoffs: np.ndarray  # (n,) natural logs of the backoff weights
    lines: np.ndarray  # (n,) where they stand in the file, from 1


def read_sections(file: Iterable[bytes], units: Sequence[str], where: str) -> list[Section]:
    """The sections of an ARPA file; n-grams with other words than ``units`` are left out.

    ``<s>`` is id 0 at the beginning of an n-gram, ``</s>`` is id 0 at its end. The file is read as bytes and not as
    text: some units (the ideographic space) are white space to ``str.split``, but not to ARPA.

    Raises:
        UserError: naming the line, for a file that is broken or no ARPA file, or for a model over other units.
    """
    size = len(units)
    begin, unknown = size, size + 1
    index = {unit.encode(): number for number, unit in enumerate(units) if number}
    index |= {b"<s>": begin, b"</s>": 0}
    for name in (b"<unk>", b"<UNK>"):
        index.setdefault(name, unknown)
    lines = _Lines(file)
    counts = _header(lines, where)
    sections = []
    for order, count in enumerate(counts, 1):
        parts = []
        for start in range(0, max(count, 1), _CHUNK):
            some = lines.take(min(_CHUNK, count - start))
            parts.append(_grams(some, lines.number - len(some) + 1, order, index, where))
            if len(some) < min(_CHUNK, count - start):
                raise UserError(f"{where} ends within its {order}-grams: {start + len(some)} of {count} are there; "
                                "the file is cut short")
        ids, log_probs, backoffs, numbers = (np.concatenate(column) for column in zip(*parts))
        _expect(lines, b"\\end\\" if order == len(counts) else b"\\%d-grams:" % (order + 1), where, order, count)
        if order == 1:
            sections.append(_unigrams(ids[:, 0], log_probs, backoffs, numbers, units, where))
            continue
        ids[:, 0] = np.where(ids[:, 0] == begin, 0, np.where(ids[:, 0] == 0, -1, ids[:, 0]))  # </s> begins nothing
        ids[:, 1:-1][ids[:, 1:-1] == 0] = -1
        kept = ((ids >= 0) & (ids < size)).all(1)
        sections.append(Section(ids[kept], log_probs[kept], backoffs[kept], numbers[kept]))
    return sections


class _Lines:
    """An iterator over lines, without the white space around them, that knows the number of the last one."""

    def __init__(self, file: Iterable[bytes]):
        self._file, self.number = iter(file), 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._file)
        self.number += 1
        return line.strip()

    def take(self, count: int) -> list[bytes]:
        """The next ``count`` lines as they are; fewer at the end of the file."""
        lines = list(itertools.islice(self._file, count))
        self.number += len(lines)
        return lines


def _header(lines: _Lines, where: str) -> list[int]:
    """The number of n-grams of each order, read up to the line ``\\1-grams:``."""
    if b"\\data\\" not in lines:  # this reads up to the line
        raise UserError(f"{where} is not an ARPA language model: it has no line \\data\\")
    counts: list[int] = []
    for line in lines:
        if line == b"\\1-grams:" and counts:
            return counts
        if line:
            found = re.fullmatch(rb"ngram\s+%d\s*=\s*(\d+)" % (len(counts) + 1), line)
            if not found or not (counts or int(found[1])):
                raise UserError(f"{where}, line {lines.number}: expected 'ngram {len(counts) + 1}=<count>' before the "
                                f"line \\1-grams:, not {_shown(line)}")
            counts.append(int(found[1]))
    raise UserError(f"{where}, line {lines.number}: it ends before its 1-grams; the file is cut short")


def _expect(lines: _Lines, wanted: bytes, where: str, order: int, count: int) -> None:
    """Read to the next line that is not empty: it must be ``wanted``, the next section's name."""
    line = next((line for line in lines if line), None)
    if line is None:
        raise UserError(f"{where} ends without {wanted.decode()}: the file is cut short")
    if line != wanted:
        raise UserError(f"{where}, line {lines.number}: expected {wanted.decode()} after the {count} {order}-grams "
                        f"that the header counts, not {_shown(line)}")


def _grams(lines: list[bytes], first: int, order: int, index: dict[bytes, int], where: str) -> tuple[np.ndarray, ...]:
    """Read the lines of a section.

    Returns:
        ids (n, order), -1 for words that are no units; natural logs of the probabilities (n,) and of the backoff
        weights (n,); line numbers (n,).
    """
    rows = [line.split() for line in lines]
    for short in [n for n, row in enumerate(rows) if len(row) != order + 2]:  # a backoff weight is optional
        if len(rows[short]) != order + 1:
            raise UserError(f"{where}, line {first + short}: expected a log probability, {order} words and perhaps a "
                            f"backoff weight, not {_shown(b' '.join(rows[short]))}")
        rows[short].append(b"0")
    columns = list(zip(*rows)) or [()] * (order + 2)
    ids = np.empty((len(rows), order), np.int64)
    for number, words in enumerate(columns[1:-1]):
        ids[:, number] = np.fromiter(map(index.get, words, itertools.repeat(-1)), np.int64, len(rows))
    values = []
    for what, highest, cells in (("the log10 of a probability", 0.0, columns[0]),
                                 ("a backoff weight", sys.float_info.max, columns[-1])):
        try:
            column = np.fromiter(map(float, cells), np.float64, len(rows))
        except ValueError:
            column = np.array([_number(cell) for cell in cells])
        bad = ~(column <= highest)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(f"{where}, line {first + row}: {_shown(cells[row])} is not {what}")
        values.append(np.maximum(column, -99.0) * _LN10)
    return ids, *values, first + np.arange(len(rows))


def _shown(text: bytes) -> str:
    """The first 60 characters of a line, in quotes, for a message."""
    text = text.decode(errors="replace")
    return f"'{text[:60]}...'" if len(text) > 60 else f"'{text}'" if text else "an empty line"


def _number(cell: bytes) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _unigrams(ids: np.ndarray, log_probs: np.ndarray, backoffs: np.ndarray, numbers: np.ndarray, units: Sequence[str],
              where: str) -> Section:
    """One row per unit, in the order of ids: row 0 has the probability of ``</s>`` and the backoff of ``<s>``."""
    size = len(units)
    begin, unknown = size, size + 1
    floor = log_probs[log_probs > -99.0 * _LN10].min(initial=0.0)
    known = np.zeros(size + 2, bool)
    known[ids[ids >= 0]] = True
    if 2 * known[1:size].sum() < size - 1:
        raise UserError(f"{where} is a language model over other units: it has {known[1:size].sum()} of the "
                        f"recogniser's {size - 1} (a model over words for a recogniser of characters?)")
    column, weight = np.full(size + 2, floor), np.zeros(size + 2)
    column[ids[ids >= 0]], weight[ids[ids >= 0]] = log_probs[ids >= 0], backoffs[ids >= 0]
    # Units that the file lacks get the probability of <unk>, which is mostly a unit of the recogniser, too.
    missing = next((n for n in (units.index("<unk>") if "<unk>" in units else unknown, unknown) if known[n]), None)
    column[:size][~known[:size]] = floor if missing is None else column[missing]
    weight[0] = weight[begin]
    return Section(np.arange(size)[:, None], column[:size], weight[:size], np.zeros(size, np.int64))
