"""The results writer of every recipe: ``results.txt`` for people and diff, ``results.json``, the same for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speechlab.files import write_json, write_text
from speechlab.scoring import metric as metrics
from speechlab.scoring.bootstrap import interval
from speechlab.scoring.layout import table
from speechlab.scoring.metric import RTF, Metric

__all__ = ["RTF", "Row", "list_hash", "mean_row", "render", "write_results"]


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


def mean_row(test_set: str, method: str, metric: Metric, values: Sequence[float], n_failed: int, digest: str,
             protocol: str = "mean over items") -> Row:
    """The mean of a figure that each item has, with its bootstrap interval over the items; without
    items there is no figure (None)."""
    low, high = interval(values)
    mean = round(sum(values) / len(values), 4) if values else None
    ends = (None if end is None else round(end, 4) for end in (low, high))
    return Row(test_set, method, metric.name, mean, *ends, metric.unit, protocol, len(values), n_failed,
               digest)


def render(rows: Sequence[Row], header: Mapping[str, str], notes: Sequence[str] = (), own: Sequence[Metric] = (),
           methods: Collection[str] | None = None) -> str:
    """The text of results.txt, in four parts with an empty line between them:

    1. The answer: a line per test set with its best method and that method's main figure with its interval.
    2. ``# key: value`` lines, and a row per (test set, method) with its metrics side by side, the best method first.
    3. The details: a row per figure, sorted by test set, metric and method, then ``notes``.
    4. Speeds (rows whose metric ranks nothing, :data:`RTF`).

    It holds no date and no hour, so that two runs with the same figures give the same file. Speeds are measured anew
    with each decoding, and no two are alike: they have two significant digits and stand last, so that ``diff`` of two
    runs that answered alike shows these lines at most, and scoring again changes nothing.

    Args:
        own: the task's metrics, the most important one first (else the field's own order counts).
        methods: the experiment's own methods; others (an oracle, a baseline) are never its best (default: all are).
    """
    speeds = [row for row in rows if not metrics.find(row.metric, own).merit]
    rows = [row for row in rows if metrics.find(row.metric, own).merit]
    main = metrics.main(dict.fromkeys(row.metric for row in rows if row.value is not None), own)
    best = _best(rows, own, methods)
    parts = [best] if best else []
    about = [f"# {key}: {value}" for key, value in header.items()]
    side = [*([""] if about else []), *_side_by_side(rows, main, own, methods)] if rows else []
    if about or side:
        parts.append([*about, *side])
    if rows or not speeds:
        parts.append(_details(rows, own))
    if notes:
        parts.append(list(notes))
    if speeds:
        measured = [[r.test_set, r.method, _speed(r.value), r.protocol] for r in _ordered(speeds)]
        head = ["test_set", "method", "real-time factor", "measured on"]
        parts.append(table(head, measured, [False, False, True, False]))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _best(rows: Sequence[Row], own: Sequence[Metric], methods: Collection[str] | None) -> list[str]:
    """Of each test set the best of the experiment's own methods by the metric that counts there; the first by name of
    equals. By a metric without a direction none of several is the best, and the line says so."""
    lines = []
    for test_set in sorted({row.test_set for row in rows}):
        there = [row for row in _ordered(rows) if row.test_set == test_set and row.value is not None
                 and (methods is None or row.method in methods)]
        main = metrics.main(dict.fromkeys(row.metric for row in there), own)
        there, judge = [row for row in there if row.metric == main], metrics.find(main, own)
        if not there:
            failed = [row.n_failed for row in rows if row.test_set == test_set
                      and (methods is None or row.method in methods)]
            if failed and min(failed):
                lines.append(f"{test_set}: no figure, {max(failed)} failed")
            continue
        if len(there) > 1 and judge.lower is None:
            lines.append(f"{test_set}: {len(there)} methods, and nobody has said whether a high {main} is good or bad")
            continue
        best = min(there, key=lambda row: (row.value != row.value, judge.rank(row.value)))  # NaN: last
        ends = f" ({_interval(best, judge)})" if best.ci_low is not None else ""
        failed = f", {best.n_failed} of {best.n + best.n_failed} failed" if best.n_failed else ""
        unit = "" if best.unit == "1" else f" {best.unit}"
        lines.append(f"{test_set}: {best.method}, {main} {judge.show(best.value)}{unit}{ends}{failed}")
    return lines


def _side_by_side(rows: Sequence[Row], main: str, own: Sequence[Metric], methods: Collection[str] | None) -> list[str]:
    """A table with a row per (test set, method), the best one of each test set first, those of others last."""
    there = dict.fromkeys(row.metric for row in _ordered(rows))
    columns = [main, *(name for name in there if name != main)] if main else list(there)
    cells = {(row.test_set, row.method, row.metric): row for row in rows}
    units = {row.metric: "" if row.unit == "1" else f" {row.unit}" for row in rows}

    def place(key: tuple[str, str]) -> tuple:
        row = cells.get((*key, main))
        value = row.value if row else None
        foreign = methods is not None and key[1] not in methods
        return key[0], foreign, value is None, metrics.find(main, own).rank(value) if value is not None else 0.0, key[1]

    shows = {name: metrics.find(name, own).show for name in columns}
    body = [[*key, *(shows[name](cells[(*key, name)].value) if (*key, name) in cells else "" for name in columns)]
            for key in sorted({(row.test_set, row.method) for row in rows}, key=place)]
    head = ["test_set", "method", *(f"{name}{units[name]}" for name in columns)]
    return table(head, body, [False, False, *[True] * len(columns)])


def _details(rows: Sequence[Row], own: Sequence[Metric]) -> list[str]:
    head = ["test_set", "method", "metric", "value", "95 % interval", "unit", "n", "failed", "list", "protocol"]
    right = [False, False, False, True, True, False, True, True, False, False]
    body = [
        [r.test_set, r.method, r.metric, metrics.find(r.metric, own).show(r.value),
         _interval(r, metrics.find(r.metric, own)), r.unit, str(r.n), str(r.n_failed), r.list_hash, r.protocol]
        for r in _ordered(rows)
    ]
    return table(head, body, right)


def write_results(folder: str | Path, rows: Sequence[Row], header: Mapping[str, str], notes: Sequence[str] = (),
                  own: Sequence[Metric] = (), methods: Collection[str] | None = None) -> str:
    """Write ``folder/results.txt`` and ``folder/results.json`` (a list of rows); return the text."""
    text = render(rows, header, notes, own, methods)
    write_json(Path(folder) / "results.json", [asdict(row) for row in _ordered(rows)])
    write_text(Path(folder) / "results.txt", text)
    return text


def _ordered(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.test_set, row.metric, row.method))


def _speed(value: float | None) -> str:
    """Two significant digits."""
    return "-" if value is None else f"{float(f'{value:.2g}'):g}"


def _interval(row: Row, metric: Metric) -> str:
    if row.ci_low is None or row.ci_high is None:
        return "-"
    return f"{metric.show(row.ci_low)} {'to' if row.ci_low < 0 else '-'} {metric.show(row.ci_high)}"
