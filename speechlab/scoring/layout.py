"""Plain-text columns that stay straight with hanzi, which take two cells of a terminal, among Latin letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def width(text: str) -> int:
    """Terminal cells that ``text`` takes: 2 per wide character, 0 per combining or invisible one (UAX #11)."""
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)


def pad(text: str, cells: int, right: bool = False) -> str:
    """``text`` with spaces after it (before it if ``right``) to fill ``cells``."""
    spaces = " " * max(0, cells - width(text))
    return spaces + text if right else text + spaces


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """The lines of an aligned table with a rule under its head; ``right`` marks columns that are aligned right."""
    cells = [max(width(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(pad(*item) for item in zip(row, cells, right)).rstrip() for row in [head, *rows]]
    return [lines[0], "  ".join("-" * count for count in cells), *lines[1:]]
