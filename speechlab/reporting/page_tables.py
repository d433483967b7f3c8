"""A report's tables as HTML: a recipe's experiments with their differences marked; every result with its interval."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speechlab.reporting.experiment import Experiment, Figure
from speechlab.reporting.metrics import corpus_of, interval, metric_of, number, told, unit
from speechlab.reporting.table import CORE, RUN, build
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric

# -- small parts ----------------------------------------------------------------------------------------------------


def esc(text: Any) -> str:
    """``text`` as HTML."""
    return html.escape(str(text))


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 \
        else f"{seconds / 3600:.1f} h"


def cell(text: Any, **attributes: Any) -> str:
    """A table's cell; ``kind`` is its class, and an attribute that is None is left out."""
    given = {name.replace("_", "-"): value for name, value in attributes.items() if value not in (None, "")}
    if kind := given.pop("kind", ""):
        given["class"] = kind
    return f"<td{''.join(f' {name}={quoted(value)}' for name, value in given.items())}>{esc(text)}</td>"


def quoted(value: Any) -> str:
    """An attribute's value, in its quotes."""
    return f'"{esc(value)}"'


def options(names: Sequence[str]) -> str:
    """The entries of a <select>, by their places."""
    return "".join(f'<option value="{i}">{esc(name)}</option>' for i, name in enumerate(names))


def _number(value: Any, show: Callable[[float], str], kind: str = "") -> str:
    """A cell with a number, by whose value the column is sorted; empty where there is none."""
    return cell(show(value), kind=f"num {kind}".strip(), data_sort=value) if number(value) else cell("")


def _headed(name: str, found: Metric) -> str:
    """A column's head with its metric's unit: ``test SI-SDR, dB``."""
    return ", ".join(part for part in (name, unit(found)) if part)


def _table(head: str, rows: Iterable[str], name: str = "") -> str:
    """A table in its own box, which scrolls."""
    return (f'<div class="scroll"{f" id={quoted(name)}" if name else ""}><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


# -- the experiments of a recipe ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the experiments' table. ``down``: the first click on its head puts the largest on top."""

    head: str
    cell: Callable[[Experiment], str]
    numeric: bool = False
    down: bool = False


def experiments_table(recipe: Path, runs: Sequence[Experiment], drawn: Sequence[int]) -> str:
    """A recipe's experiments: figures, and each setting in which they differ, marked where it is not the best run's.

    Before each stands the box by which page.js shows its curves; ``drawn`` are those of the boxes that are ticked.
    """
    settings = _settings(recipe)
    columns = [Column("experiment", _name), *_figure_columns(runs), *_epoch_columns(runs), *_size_columns(),
               *_status_columns(settings), *_setting_columns(settings, runs)]
    rows = [f'<tr data-run="{i}">{_box(i, one, i in drawn)}{"".join(column.cell(one) for column in columns)}</tr>'
            for i, one in enumerate(runs)]
    return _controls(runs) + _table("<th></th>" + "".join(map(_head, columns)), rows, name="runs")


def _head(column: Column) -> str:
    """A column's head, whose button sorts by it."""
    first = ' data-first="down"' if column.down else ""
    return f'<th{" class=num" if column.numeric else ""}><button type="button"{first}>{esc(column.head)}</button></th>'


def _box(place: int, one: Experiment, ticked: bool) -> str:
    """The box that shows an experiment's curves, and their colour."""
    return (f'<td><label><input type="checkbox" value="{place}" aria-label={quoted("show " + one.name)}'
            f'{" checked" if ticked else ""}> <span class="swatch" data-colour="{place}"></span></label></td>')


def _name(one: Experiment) -> str:
    """An experiment's name, which leads to its own page."""
    link = quote(f"exp/{one.name}/report.html")
    return (f'<td class="name" data-sort={quoted(one.name)}><a href={quoted(link)}>'
            f"{esc(one.name).replace('_', '_<wbr>')}</a></td>")


def _figure_columns(runs: Sequence[Experiment]) -> list[Column]:
    """The main metric on each test set, the best in bold."""
    figures = {figure.title: figure.metric for one in runs for figure in one.figures}
    return [_figure_column(title, judge, runs) for title, judge in figures.items()]


def _figure_column(title: str, judge: Metric, runs: Sequence[Experiment]) -> Column:
    def of(one: Experiment) -> Figure | None:
        return next((figure for figure in one.figures if figure.title == title), None)

    def shown(one: Experiment) -> str:
        figure = of(one)
        return _number(figure and figure.value, judge.show, "best" if figure and figure.value == best else "")

    best = judge.best(figure.value for one in runs if (figure := of(one)))
    return Column(_headed(title, judge), shown, numeric=True, down=judge.lower is False)


def _epoch_columns(runs: Sequence[Experiment]) -> list[Column]:
    """The best epoch's figure, a column for each metric by which experiments choose it."""
    judges = {one.metric: one.find(one.metric) for one in runs if one.best is not None}
    return [Column(_headed(f"best {name}", judge), _epoch_cell(name, judge), numeric=True, down=judge.lower is False)
            for name, judge in judges.items()]


def _epoch_cell(name: str, judge: Metric) -> Callable[[Experiment], str]:
    return lambda one: _number(one.best if one.metric == name else None, judge.show)


def _size_columns() -> list[Column]:
    """What an experiment costs: parameters and time."""
    return [Column("parameters", lambda one: _number(one.env.get("parameters"), "{:,.0f}".format), numeric=True),
            Column("training", lambda one: _number(one.seconds or None, duration), numeric=True)]


@dataclass(frozen=True)
class _Settings:
    """What params_table.csv tells of each experiment, and which of its columns are settings."""

    keys: list[str]
    rows: dict[str, dict[str, str]]
    status: bool


def _settings(recipe: Path) -> _Settings:
    columns, rows = build(recipe)
    keys = ["corpus", *CORE[1:6], *(key for key in columns[columns.index(RUN[-1]) + 1:] if key != "status")]
    return _Settings(keys, {row["experiment"]: {**row, "corpus": corpus_of(recipe / "exp" / row["experiment"])}
                            for row in rows}, "status" in columns)


def _status_columns(settings: _Settings) -> list[Column]:
    """How a sweep's trials ended, where there were sweeps."""
    def shown(one: Experiment) -> str:
        status = settings.rows[one.name]["status"]
        return cell(status, kind="" if status in ("", "done") else "failed")

    return [Column("status", shown)] if settings.status else []


def _setting_columns(settings: _Settings, runs: Sequence[Experiment]) -> list[Column]:
    """The settings in which experiments differ. That a corpus is not known is no difference."""
    def differs(key: str) -> bool:
        return len({row[key] for row in settings.rows.values() if row[key] or key != "corpus"}) > 1

    return [Column(key, _setting_cell(key, settings, runs[0])) for key in settings.keys if differs(key)]


def _setting_cell(key: str, settings: _Settings, best: Experiment) -> Callable[[Experiment], str]:
    """The cell of a setting, marked where it is another than the best run's."""
    def shown(one: Experiment) -> str:
        value = settings.rows[one.name][key]
        kind = "diff" if value != settings.rows[best.name][key] else ""
        return cell(value.rpartition(":")[2] if key == "model" else value, data_key=key, title=value, kind=kind)

    return shown


def _controls(runs: Sequence[Experiment]) -> str:
    """Which curves are drawn, and from which experiment differences are marked."""
    choices = "".join(f'<button type="button" data-select="{value}">{text}</button> '
                      for value, text in (("best", "best 5"), ("all", "all"), ("none", "none")))
    return (f'<div class="controls"><span>Curves of {choices}</span><label>Mark what differs from '
            f'<select id="baseline">{options([one.name for one in runs])}</select></label></div>')


# -- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A row of an experiment's results.json."""

    experiment: Experiment
    row: dict[str, Any]
    metric: Metric

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of its interval."""
        low, high = self.row.get("ci_low"), self.row.get("ci_high")
        return (low, high) if number(low) and number(high) else None


def results_table(runs: Sequence[Experiment]) -> str:
    """Every figure with its interval as a bar; the bars of one test set and metric share a scale.

    Of several experiments, only what they are compared by is shown: their own methods' main metric.
    """
    found = _results(runs)
    scales = _scales(found)
    several = len(runs) > 1
    names = ["test set", *(["experiment"] if several else []), "method", "metric", "value", "95 % interval", "",
             "items", "protocol"]
    head = "".join(f'<th{" class=num" * (name in ("value", "95 % interval", "items"))}>{name}</th>' for name in names)
    return _table(head, [_result_row(one, scales[_shared(one)], several) for one in found])


def _results(runs: Sequence[Experiment]) -> list[Result]:
    """The rows, by test set and metric (the main one first), the best on top."""
    found = [Result(one, row, metric_of(row, one.measures)) for one in runs for row in one.results
             if len(runs) == 1 or (row["metric"] == one.main and one.owns(row["method"]))]
    own = [measure for one in runs for measure in one.measures]
    order = metric.order((one.row["metric"] for one in found), own)
    return sorted(found, key=lambda one: (
        one.row["test_set"], order.index(one.row["metric"]), one.metric.rank(one.row["value"])))


def _shared(one: Result) -> tuple[str, str]:
    """What the results of one scale have in common."""
    return (one.row["test_set"], one.row["metric"])


def _scales(found: Sequence[Result]) -> dict[tuple[str, str], tuple[float, float]]:
    """The ends of each scale: it holds zero, every value and every interval, and so negative dB too."""
    scales: dict[tuple[str, str], tuple[float, float]] = {}
    for one in found:
        low, high = scales.get(_shared(one), (0.0, 0.0))
        values = (one.row["value"], *(one.ends or ()))
        scales[_shared(one)] = (min(low, *values), max(high, *values))
    return scales


def _result_row(one: Result, scale: tuple[float, float], several: bool) -> str:
    row = one.row
    told_by = [row["test_set"], *([one.experiment.name] if several else []), row["method"], row["metric"]]
    ends = interval(one.metric, *one.ends) if one.ends else ""
    cells = [*map(cell, told_by), cell(told(one.metric, row["value"]), kind="num"), cell(ends, kind="num"),
             f"<td>{_bar(one, *scale)}</td>", cell(_items(row), kind="num"), cell(row.get("protocol") or "")]
    return f"<tr>{''.join(cells)}</tr>"


def _items(row: dict[str, Any]) -> str:
    return f"{row.get('n', '')}" + (f", {row['n_failed']} failed" if row.get("n_failed") else "")


def _bar(one: Result, low: float, high: float) -> str:
    """A figure on its scale: a mark at the value, a bar over the interval, a line at zero where values are below."""
    def place(value: float) -> float:
        return 100 * (value - low) / ((high - low) or 1.0)

    parts = [f'<u style="left:{place(0):.1f}%"></u>'] if low < 0 else []
    if one.ends:
        left, right = map(place, one.ends)
        parts.append(f'<i style="left:{left:.1f}%;width:{max(0.5, right - left):.1f}%"></i>')
    return f'<div class="bar">{"".join(parts)}<b style="left:{place(one.row["value"]):.1f}%"></b></div>'
