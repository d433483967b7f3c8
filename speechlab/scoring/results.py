"""The results writer of every recipe: ``results.txt`` for people and diff, ``results.json``, the same for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speechlab.files import write_json, write_text
from speechlab.scoring.layout import table

RTF = "RTF"  # the metric of a speed: seconds of computing a second of audio


@dataclass(frozen=True)
class Row:
    """One figure. ``unit`` is ``%`` for rates, else the measure's own (``dB``, ``MOS``, ``1``); None is "no figure".

    ``protocol`` names metric and implementation (``CER jiwer``, ``minDCF p=0.01``, ``PESQ wb 16k``); ``n`` items were
    scored and ``n_failed`` could not be, which is never a score of 0.
    """

    test_set: str
    method: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    protocol: str
    n: int
    n_failed: int
    list_hash: str


def list_hash(items: Iterable[tuple[str, str]]) -> str:
    """A short SHA-256 of a test list's (id, reference) pairs in any order: equal hashes, comparable figures."""
    digest = hashlib.sha256()
    for name, reference in sorted(items):
        digest.update(f"{name}\t{reference}\n".encode())
    return digest.hexdigest()[:12]


def render(rows: Sequence[Row], header: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """The text of results.txt: ``# key: value`` lines, a table of results sorted by test set, metric and method, then
    ``notes``, then a table of speeds (rows with metric :data:`RTF`).

    It holds no date and no hour, so that two runs with the same figures give the same file. Speeds are measured anew
    with each decoding, and no two are alike: they have two significant digits and stand last, so that ``diff`` of two
    runs that answered alike shows these lines at most, and scoring again changes nothing.
    """
    speeds = [row for row in rows if row.metric == RTF]
    rows = [row for row in rows if row.metric != RTF]
    head = ["test_set", "method", "metric", "value", "95 % interval", "unit", "n", "failed", "list", "protocol"]
    right = [False, False, False, True, True, False, True, True, False, False]
    body = [
        [r.test_set, r.method, r.metric, _figure(r.value), _interval(r), r.unit,
         str(r.n), str(r.n_failed), r.list_hash, r.protocol]
        for r in _ordered(rows)
    ]
    lines = [f"# {key}: {value}" for key, value in header.items()]
    if rows or not speeds:
        lines += [*([""] if lines else []), *table(head, body, right)]
    lines += [*([""] if notes else []), *notes]
    if speeds:
        measured = [[r.test_set, r.method, _speed(r.value), r.protocol] for r in _ordered(speeds)]
        head = ["test_set", "method", "real-time factor", "measured on"]
        lines += [*([""] if lines else []), *table(head, measured, [False, False, True, False])]
    return "\n".join(lines) + "\n"


def write_results(folder: str | Path, rows: Sequence[Row], header: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """Write ``folder/results.txt`` and ``folder/results.json`` (a list of rows); return the text."""
    text = render(rows, header, notes)
    write_json(Path(folder) / "results.json", [asdict(row) for row in _ordered(rows)])
    write_text(Path(folder) / "results.txt", text)
    return text


def _ordered(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.test_set, row.metric, row.method))


def _figure(value: float | None) -> str:
    """Two decimals for rates and the like, more where they would all be zeros."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4f}"


def _speed(value: float | None) -> str:
    """Two significant digits."""
    return "-" if value is None else f"{float(f'{value:.2g}'):g}"


def _interval(row: Row) -> str:
    if row.ci_low is None or row.ci_high is None:
        return "-"
    return f"{_figure(row.ci_low)} - {_figure(row.ci_high)}"
