"""results_table.md and results_table.png: all models and methods of a recipe on one page, read from exp/*/ alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechlab.files import atomic, write_text
from speechlab.reporting.metrics import (
    axis,
    corpus_of,
    interval,
    metric_of,
    number,
    own_methods,
    read_env,
    read_metrics,
    read_results,
    training_seconds,
    unit,
)
from speechlab.reporting.style import BLUE, GREY, RUST, house_style
from speechlab.reporting.table import experiments
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric

HEAD = ["model", "parameters (M)", "training (min)", "corpus", "test set", "method"]  # a column per metric follows
_RIGHT = [False, True, True, False, False, False]
_MOST_ROWS = 40  # rows of a panel; with more, one could not tell them apart


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval."""

    metric: Metric
    value: float
    low: float | None  # None, as high: the test list was too short for an interval
    high: float | None

    def __str__(self) -> str:
        ends = f" ({interval(self.metric, self.low, self.high)})" if self.low is not None else ""
        return self.metric.show(self.value) + ends


@dataclass(frozen=True)
class Line:
    """One system (a model with a method) on one test set."""

    model: str  # the experiment's name; "" for a bound or a baseline, which depends on the test set alone
    parameters: float | None  # millions
    minutes: float | None  # of training
    corpus: str
    test_set: str
    method: str
    figures: dict[str, Figure]  # by the metric's name
    n_failed: int  # items without an answer, which are not in the figures
    list_hash: str  # tells whether two systems were decoded on the same list

    @property
    def group(self) -> tuple[str, str]:
        """Lines of the same group are compared with each other."""
        return (self.corpus, self.test_set)


@dataclass(frozen=True)
class Table:
    """What results_table.md shows."""

    lines: list[Line] = field(default_factory=list)  # in the order of the table
    metrics: dict[str, Metric] = field(default_factory=dict)  # by name, the first in rank first
    without: list[str] = field(default_factory=list)  # names of experiments that have no results yet


def build(recipe: Path) -> Table:
    """Read the table from exp/*/.

    Lines are sorted by corpus and test set, then by the metric that ranks first there: the best on top, those without
    a figure last. A bound or a baseline has one line per test list.
    """
    found = {exp.name: _lines(exp) for exp in experiments(recipe)}
    own = [measure for exp in experiments(recipe) for measure in metric.read(exp)]
    lines = _once([line for of_one in found.values() for line in of_one])
    kinds = {name: figure.metric for line in lines for name, figure in line.figures.items()}
    metrics = {name: kinds[name] for name in metric.order(kinds, own)}
    mains = {group: _main(members, metrics) for group, members in _grouped(lines).items()}

    def place(line: Line) -> tuple:
        figure = line.figures.get(mains[line.group])
        return (*line.group, figure is None, figure.metric.rank(figure.value) if figure else 0.0, line.method,
                line.model)

    return Table(sorted(lines, key=place), metrics, [name for name, of_one in found.items() if not of_one])


def _grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """The lines of each corpus and test set, in the same order."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return groups


def _main(lines: Sequence[Line], metrics: dict[str, Metric]) -> str:
    """The name of the metric by which ``lines`` are compared: of those that they have, the first in rank."""
    return next((name for name, found in metrics.items()
                 if found.merit and any(name in line.figures for line in lines)), "")


def _once(lines: Sequence[Line]) -> list[Line]:
    """``lines``, but a bound or a baseline only once per test list, even if it is in the folders of several
    experiments."""
    kept = [line for line in lines if line.model]
    others: dict[tuple, Line] = {}
    for line in lines:
        if not line.model:
            first = next(iter(line.figures.values()), None)
            key = (*line.group, line.method, line.list_hash, first and first.value)
            if key not in others or len(others[key].figures) < len(line.figures):
                others[key] = line
    return [*kept, *others.values()]


def markdown(recipe: Path, table: Table, picture: Path | None = None) -> str:
    """The page: a Markdown table (its columns are aligned in the text, too) and notes. It has no dates, so that pages
    can be compared."""
    rows = [[*HEAD, *(_head(name, table) for name in table.metrics)], *(_cells(line, table) for line in table.lines)]
    right = [*_RIGHT, *(True for _ in table.metrics)]
    cells = [max(3, *(_width(row[column]) for row in rows)) for column in range(len(right))]
    text = [_row(row, cells, right) for row in rows]
    text.insert(1, "|" + "|".join("-" * (n + 1) + (":" if r else "-") for n, r in zip(cells, right)) + "|")
    notes = [*(_about(name, found) for name, found in table.metrics.items() if found.about or found.arrow),
             *(["In brackets: 95 % intervals over the items of the test list."] if _with_ends(table) else []),
             *_warnings(table.lines)]
    if table.without:
        notes.append(f"Without results yet: {', '.join(table.without)}.")
    title = f"# Results of {recipe.resolve().name}"
    made = "Made by `python -m speechlab.report` from `exp/*/`" + (f"; the picture is `{picture.name}`." if picture
                                                                   else ".")
    return "\n".join([title, "", made, "", *text, *([""] if notes else []), *(f"* {note}" for note in notes)]) + "\n"


def draw(recipe: Path, table: Table) -> Path | None:
    """Draw ``recipe/results_table.png``: one panel per test set, one dot with its interval per system, the best on top.

    Returns:
        The picture's path; None if there is no figure to draw.

    Raises:
        UserError: matplotlib is not installed.
    """
    groups = {group: (main, [line for line in lines if main in line.figures])
              for group, lines in _grouped(table.lines).items() if (main := _main(lines, table.metrics))}
    if not groups:
        return None
    heights = [min(len(lines), _MOST_ROWS) + 1.5 for _, lines in groups.values()]
    with house_style() as pyplot:
        figure, axes = pyplot.subplots(len(groups), figsize=(11, 0.8 + 0.3 * sum(heights)), layout="constrained",
                                       squeeze=False, height_ratios=heights)
        try:
            for panel, (group, (main, lines)) in zip(axes[:, 0], groups.items()):
                second = _second(main, lines, table)
                _panel(panel, ", ".join(name for name in group if name), main, second, lines)
                panel.set_xlim(*_ends([line for (corpus, _), (its, members) in groups.items() for line in members
                                       if (corpus, its) == (group[0], main)], main, second))
            figure.suptitle(f"{recipe.resolve().name}: results with 95 % intervals", fontsize=12)
            with atomic(recipe / "results_table.png") as aside:
                figure.savefig(aside, dpi=110)
        finally:
            pyplot.close(figure)
    return recipe / "results_table.png"


def write_summary(recipe: Path) -> str:
    """Write ``recipe/results_table.md`` and, if there is a figure, results_table.png. Return the table's text.

    Raises:
        UserError: matplotlib is not installed. The text is written even then.
    """
    table, picture = build(recipe), None
    try:
        picture = draw(recipe, table)
    finally:
        text = markdown(recipe, table, picture)
        write_text(recipe / "results_table.md", text)
    return text


def _lines(exp: Path) -> list[Line]:
    """An experiment's systems: one line per test set and method."""
    env, own, methods = read_env(exp), metric.read(exp), own_methods(exp)
    seconds = training_seconds(env, read_metrics(exp / "metrics.jsonl")[1])
    parameters = env["parameters"] / 1e6 if number(env.get("parameters")) else None
    corpus = corpus_of(exp)
    systems: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in read_results(exp):
        systems.setdefault((row["test_set"], row["method"]), {})[row["metric"]] = row
    lines = []
    for (test_set, method), rows in systems.items():
        names = metric.order(rows, own)
        figures = {name: figure for name in names if (figure := _figure(rows[name], own))}
        first = rows[names[0]]
        failed = first.get("n_failed")
        line = Line(exp.name, parameters, None if seconds is None else seconds / 60, corpus, test_set, method, figures,
                    int(failed) if number(failed) else 0, str(first.get("list_hash") or ""))
        if methods is not None and method not in methods:
            # A bound or a baseline has no speed (nor another metric that is not of merit).
            figures = {name: figure for name, figure in figures.items() if figure.metric.merit}
            line = replace(line, model="", parameters=None, minutes=None, figures=figures)
        lines.append(line)
    return lines


def _figure(row: dict[str, Any], own: Sequence[Metric]) -> Figure | None:
    if not number(row.get("value")):
        return None
    low, high = row.get("ci_low"), row.get("ci_high")
    ends = (low, high) if number(low) and number(high) else (None, None)
    return Figure(metric_of(row, own), row["value"], *ends)


def _warnings(lines: Sequence[Line]) -> list[str]:
    """Notes about figures of a test set that can't be compared, or are incomplete."""
    found = []
    for group, members in _grouped(lines).items():
        name = " ".join(part for part in group if part)
        if len({line.list_hash for line in members if line.list_hash}) > 1:
            found.append(f"Warning: {name}: these systems were not decoded on one list, so their figures can't be "
                         "compared (column `list` of each results.txt).")
        found += [f"{name}, {line.model or '(no model)'} {line.method}: {line.n_failed} items failed and are not in "
                  "the figures." for line in members if line.n_failed]
    return found


def _with_ends(table: Table, name: str = "") -> bool:
    """True if any figure (of the metric ``name``, if given) has an interval."""
    return any(figure.low is not None for line in table.lines for metric_name, figure in line.figures.items()
               if name in ("", metric_name))


def _head(name: str, table: Table) -> str:
    """A column's head: ``SI-SDR dB (95 % interval)``."""
    parts = [name, unit(table.metrics[name]), "(95 % interval)" if _with_ends(table, name) else ""]
    return _escaped(" ".join(part for part in parts if part))


def _about(name: str, found: Metric) -> str:
    """A note that explains a metric: ``EER: equal error rate; lower is better.``"""
    return f"{name}: {'; '.join(part for part in (found.about, found.arrow) if part)}."


def _cells(line: Line, table: Table) -> list[str]:
    figures = [str(line.figures[name]) if name in line.figures else "" for name in table.metrics]
    return [_escaped(line.model or "(no model)"), _decimals(line.parameters, 2), _decimals(line.minutes, 1),
            _escaped(line.corpus), _escaped(line.test_set), _escaped(line.method), *figures]


def _row(row: Sequence[str], cells: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for text, count, to_the_right in zip(row, cells, right):
        spaces = " " * (count - _width(text))
        parts.append(spaces + text if to_the_right else text + spaces)
    return "| " + " | ".join(parts) + " |"


def _width(text: str) -> int:
    """The width of a text in cells of a terminal: a hanzi takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _decimals(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _second(main: str, lines: Sequence[Line], table: Table) -> str:
    """The name of another metric that can share the panel: it has the main metric's unit and direction. "" if there is
    none."""
    wanted = table.metrics[main]
    if not unit(wanted) or wanted.lower is None:
        return ""  # plain numbers may mean different things
    return next((name for name, found in table.metrics.items()
                 if name != main and found.merit and (found.unit, found.lower) == (wanted.unit, wanted.lower)
                 and any(name in line.figures for line in lines)), "")


def _ends(lines: Sequence[Line], *names: str) -> tuple[float, float]:
    """One scale for all panels of a corpus. It begins at zero, or at the lowest figure if that is below, and leaves
    room for the numbers."""
    found = [line.figures[name] for line in lines for name in names if name in line.figures]
    values = [0.0, *(end for f in found for end in (f.value, f.low, f.high) if end is not None)]
    room = 0.08 * (max(values) - min(values)) or 1.0
    return min(values) - (room if min(values) < 0 else 0.0), max(values) + room


def _panel(panel: Any, name: str, main: str, second: str, lines: list[Line]) -> None:
    """Draw the panel of a test set: the main metric as full dots, the second one as empty dots, the best system on
    top."""
    shown = lines[:_MOST_ROWS]
    for y, line in enumerate(shown):
        figure, colour = line.figures[main], BLUE if line.model else GREY
        if second in line.figures:
            _dot(panel, line.figures[second], y + 0.22, RUST if line.model else GREY, filled=False)
        end = _dot(panel, figure, y, colour, filled=True)
        panel.annotate(figure.metric.show(figure.value), (end, y), xytext=(5, 0), textcoords="offset points",
                       va="center", fontsize=8, color=colour)
    panel.set_yticks(range(len(shown)), [f"{line.model or '(no model)'}  {line.method}" for line in shown], fontsize=9)
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    kind = lines[0].figures[main].metric
    best = "best " if kind.lower is not None else ""
    panel.set_title(name + (f" ({best}{len(shown)} of {len(lines)})" if len(lines) > len(shown) else ""), loc="left")
    panel.set_xlabel(", ".join([f"{main} {axis(kind)}".rstrip(), *([f"empty: {second}"] if second else [])]),
                     fontsize=9)


def _dot(panel: Any, figure: Figure, y: float, colour: str, filled: bool) -> float:
    """Draw a dot and its interval. Returns where they end on the right."""
    if figure.low is not None:
        panel.plot([figure.low, figure.high], [y, y], color=colour, lw=2 if filled else 1,
                   alpha=0.9 if filled else 0.6, solid_capstyle="butt")
    panel.plot([figure.value], [y], marker="o", ms=6 if filled else 4.5, color=colour, ls="none",
               mfc=colour if filled else "white")
    return figure.value if figure.high is None else figure.high
