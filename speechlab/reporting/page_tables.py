"""A report's tables as HTML: the experiments of a recipe, with differences marked; and all results, with intervals."""

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
    """A time in seconds, minutes or hours, whichever is easiest to read."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 \
        else f"{seconds / 3600:.1f} h"


def cell(text: Any, **attributes: Any) -> str:
    """A table's cell. ``kind`` is its class. An attribute that is None is left out."""
    given = {name.replace("_", "-"): value for name, value in attributes.items() if value not in (None, "")}
    if kind := given.pop("kind", ""):
        given["class"] = kind
    return f"<td{''.join(f' {name}={quoted(value)}' for name, value in given.items())}>{esc(text)}</td>"


def quoted(value: Any) -> str:
    """An attribute's value, escaped and in quotes."""
    return f'"{esc(value)}"'


def options(names: Sequence[str]) -> str:
    """The entries of a <select>; the value of each is its number."""
    return "".join(f'<option value="{i}">{esc(name)}</option>' for i, name in enumerate(names))


def _number(value: Any, show: Callable[[float], str], kind: str = "") -> str:
    """A cell with a number; the column is sorted by it. The cell is empty if there is no number."""
    return cell(show(value), kind=f"num {kind}".strip(), data_sort=value) if number(value) else cell("")


def _headed(name: str, found: Metric) -> str:
    """A column's head with its metric's unit: ``test SI-SDR, dB``."""
    return ", ".join(part for part in (name, unit(found)) if part)


def _table(head: str, rows: Iterable[str], name: str = "") -> str:
    """A table in a box that scrolls."""
    return (f'<div class="scroll"{f" id={quoted(name)}" if name else ""}><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


# -- the experiments of a recipe ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the experiments' table."""

    head: str
    cell: Callable[[Experiment], str]  # an experiment's cell as HTML
    numeric: bool = False
    down: bool = False  # the first click on the head puts the largest value on top


def experiments_table(recipe: Path, runs: Sequence[Experiment], drawn: Sequence[int]) -> str:
    """The table of a recipe's experiments: their figures, and each setting in which they differ. A setting is marked if
    it differs from the best run's.

    Each row begins with a box: page.js shows the curves of the experiments whose boxes are ticked. ``drawn``: the
    numbers of those that are ticked when the page opens.
    """
    settings = _settings(recipe)
    columns = [Column("experiment", _name), *_figure_columns(runs), *_epoch_columns(runs), *_size_columns(),
               *_status_columns(settings), *_setting_columns(settings, runs)]
    rows = [f'<tr data-run="{i}">{_box(i, one, i in drawn)}{"".join(column.cell(one) for column in columns)}</tr>'
            for i, one in enumerate(runs)]
    return _controls(runs) + _table("<th></th>" + "".join(map(_head, columns)), rows, name="runs")


def _head(column: Column) -> str:
    """A column's head, with a button that sorts the table by this column."""
    first = ' data-first="down"' if column.down else ""
    return f'<th{" class=num" if column.numeric else ""}><button type="button"{first}>{esc(column.head)}</button></th>'


def _box(place: int, one: Experiment, ticked: bool) -> str:
    """The cell with the box that shows an experiment's curves, and with their colour."""
    return (f'<td><label><input type="checkbox" value="{place}" aria-label={quoted("show " + one.name)}'
            f'{" checked" if ticked else ""}> <span class="swatch" data-colour="{place}"></span></label></td>')


def _name(one: Experiment) -> str:
    """The cell with an experiment's name, a link to its own page."""
    link = quote(f"exp/{one.name}/report.html")
    return (f'<td class="name" data-sort={quoted(one.name)}><a href={quoted(link)}>'
            f"{esc(one.name).replace('_', '_<wbr>')}</a></td>")


def _figure_columns(runs: Sequence[Experiment]) -> list[Column]:
    """A column per test set with the main metric, the best figure in bold."""
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
    """The figure of the best epoch. There is a column for each metric by which experiments choose their best epoch."""
    judges = {one.metric: one.find(one.metric) for one in runs if one.best is not None}
    return [Column(_headed(f"best {name}", judge), _epoch_cell(name, judge), numeric=True, down=judge.lower is False)
            for name, judge in judges.items()]


def _epoch_cell(name: str, judge: Metric) -> Callable[[Experiment], str]:
    return lambda one: _number(one.best if one.metric == name else None, judge.show)


def _size_columns() -> list[Column]:
    """Columns of what an experiment costs: parameters and training time."""
    return [Column("parameters", lambda one: _number(one.env.get("parameters"), "{:,.0f}".format), numeric=True),
            Column("training", lambda one: _number(one.seconds or None, duration), numeric=True)]


@dataclass(frozen=True)
class _Settings:
    """What params_table.csv says."""

    keys: list[str]  # its columns that are settings
    rows: dict[str, dict[str, str]]  # its row for each experiment
    status: bool  # it has a column status: there were sweeps


def _settings(recipe: Path) -> _Settings:
    columns, rows = build(recipe)
    keys = ["corpus", *CORE[1:6], *(key for key in columns[columns.index(RUN[-1]) + 1:] if key != "status")]
    return _Settings(keys, {row["experiment"]: {**row, "corpus": corpus_of(recipe / "exp" / row["experiment"])}
                            for row in rows}, "status" in columns)


def _status_columns(settings: _Settings) -> list[Column]:
    """A column of how a sweep's trials ended, if there were sweeps."""
    def shown(one: Experiment) -> str:
        status = settings.rows[one.name]["status"]
        return cell(status, kind="" if status in ("", "done") else "failed")

    return [Column("status", shown)] if settings.status else []


def _setting_columns(settings: _Settings, runs: Sequence[Experiment]) -> list[Column]:
    """A column for each setting in which experiments differ. An unknown corpus is no difference."""
    def differs(key: str) -> bool:
        return len({row[key] for row in settings.rows.values() if row[key] or key != "corpus"}) > 1

    return [Column(key, _setting_cell(key, settings, runs[0])) for key in settings.keys if differs(key)]


def _setting_cell(key: str, settings: _Settings, best: Experiment) -> Callable[[Experiment], str]:
    """The cell of a setting, marked if it differs from the best run's."""
    def shown(one: Experiment) -> str:
        value = settings.rows[one.name][key]
        kind = "diff" if value != settings.rows[best.name][key] else ""
        return cell(value.rpartition(":")[2] if key == "model" else value, data_key=key, title=value, kind=kind)

    return shown


def _controls(runs: Sequence[Experiment]) -> str:
    """The controls above the table: whose curves are drawn, and with which experiment the others are compared."""
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
        """The two ends of its interval; None if it has none."""
        low, high = self.row.get("ci_low"), self.row.get("ci_high")
        return (low, high) if number(low) and number(high) else None


def results_table(runs: Sequence[Experiment]) -> str:
    """The table of all figures, each with its interval as a bar. The bars of a test set and metric share a scale.

    For several experiments, only the main metric of their own methods is shown: they are compared by this.
    """
    found = _results(runs)
    scales = _scales(found)
    several = len(runs) > 1
    names = ["test set", *(["experiment"] if several else []), "method", "metric", "value", "95 % interval", "",
             "items", "protocol"]
    head = "".join(f'<th{" class=num" * (name in ("value", "95 % interval", "items"))}>{name}</th>' for name in names)
    return _table(head, [_result_row(one, scales[_shared(one)], several) for one in found])


def _results(runs: Sequence[Experiment]) -> list[Result]:
    """The rows, sorted by test set and metric (the main metric first); of these, the best is on top."""
    found = [Result(one, row, metric_of(row, one.measures)) for one in runs for row in one.results
             if len(runs) == 1 or (row["metric"] == one.main and one.owns(row["method"]))]
    own = [measure for one in runs for measure in one.measures]
    order = metric.order((one.row["metric"] for one in found), own)
    return sorted(found, key=lambda one: (
        one.row["test_set"], order.index(one.row["metric"]), one.metric.rank(one.row["value"])))


def _shared(one: Result) -> tuple[str, str]:
    """The test set and metric of a result: results that agree in both share a scale."""
    return (one.row["test_set"], one.row["metric"])


def _scales(found: Sequence[Result]) -> dict[tuple[str, str], tuple[float, float]]:
    """The two ends of each scale. It contains zero, all values (which may be negative, as dB) and all intervals."""
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
    """A figure on its scale: a mark at the value, a bar over the interval; a line at zero if the scale goes below."""
    def place(value: float) -> float:
        return 100 * (value - low) / ((high - low) or 1.0)

    parts = [f'<u style="left:{place(0):.1f}%"></u>'] if low < 0 else []
    if one.ends:
        left, right = map(place, one.ends)
        parts.append(f'<i style="left:{left:.1f}%;width:{max(0.5, right - left):.1f}%"></i>')
    return f'<div class="bar">{"".join(parts)}<b style="left:{place(one.row["value"]):.1f}%"></b></div>'
