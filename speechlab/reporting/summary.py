"""results_table.md and results_table.png: every model x method of a recipe on one page, from exp/*/ alone."""

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

HEAD = ["model", "parameters (M)", "training (min)", "corpus", "test set", "method"]  # then a column for each metric
_RIGHT = [False, True, True, False, False, False]
_MOST_ROWS = 40  # of a panel: more can't be told apart by looking


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; ends are None where the list was too short for one."""

    metric: Metric
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        ends = f" ({interval(self.metric, self.low, self.high)})" if self.low is not None else ""
        return self.metric.show(self.value) + ends


@dataclass(frozen=True)
class Line:
    """One system on one test set: parameters in millions, training in minutes, its figures by their metrics' names.

    ``model`` is "" for what is no model's: a bound or a baseline, whose figures are the test set's.
    """

    model: str
    parameters: float | None
    minutes: float | None
    corpus: str
    test_set: str
    method: str
    figures: dict[str, Figure]
    n_failed: int
    list_hash: str

    @property
    def group(self) -> tuple[str, str]:
        """The lines that are compared with each other share it."""
        return (self.corpus, self.test_set)


@dataclass(frozen=True)
class Table:
    """The lines in order, the metrics by their names (those that rank first stand first), the names of the experiments
    that have no results yet."""

    lines: list[Line] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)


def build(recipe: Path) -> Table:
    """Read the table from exp/*/.

    Lines are sorted by corpus and test set, then by the metric that ranks first there, the best on top and those
    without a figure last. A line that is no model's is there once a test list.
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
    """Lines by corpus and test set, in their order."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return groups


def _main(lines: Sequence[Line], metrics: dict[str, Metric]) -> str:
    """The metric by which ``lines`` are compared: of those that they have, the one that ranks first."""
    return next((name for name, found in metrics.items()
                 if found.merit and any(name in line.figures for line in lines)), "")


def _once(lines: Sequence[Line]) -> list[Line]:
    """``lines`` with those of no model once a test list, whichever experiments' folders they stand in."""
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
    """The page: a Markdown table whose columns are straight as text too, and notes; no dates, so it can be compared."""
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
    """Draw ``recipe/results_table.png``: a panel a test set, a dot with its interval a system, the best on top.

    Returns:
        The picture's path; None when there is no figure to draw.

    Raises:
        UserError: when matplotlib is not installed.
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
    """Write ``recipe/results_table.md`` and, where there is a figure, results_table.png; return the table's text.

    Raises:
        UserError: when matplotlib is not installed; the text is written all the same.
    """
    table, picture = build(recipe), None
    try:
        picture = draw(recipe, table)
    finally:
        text = markdown(recipe, table, picture)
        write_text(recipe / "results_table.md", text)
    return text


def _lines(exp: Path) -> list[Line]:
    """An experiment's systems, one a test set and method."""
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
            figures = {name: figure for name, figure in figures.items() if figure.metric.merit}  # no speed either
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
    """What makes figures of one test set incomparable, or incomplete."""
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
    """Whether any figure (of the metric ``name``) has an interval."""
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
    """Cells of a terminal: hanzi take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _decimals(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _second(main: str, lines: Sequence[Line], table: Table) -> str:
    """Another metric of the main one's unit and direction, which has room in the same panel; "" without one."""
    wanted = table.metrics[main]
    if not unit(wanted) or wanted.lower is None:
        return ""  # plain numbers need not be alike
    return next((name for name, found in table.metrics.items()
                 if name != main and found.merit and (found.unit, found.lower) == (wanted.unit, wanted.lower)
                 and any(name in line.figures for line in lines)), "")


def _ends(lines: Sequence[Line], *names: str) -> tuple[float, float]:
    """One scale for the panels of a corpus: from zero (or below it, where figures are) with room for the numbers."""
    found = [line.figures[name] for line in lines for name in names if name in line.figures]
    values = [0.0, *(end for f in found for end in (f.value, f.low, f.high) if end is not None)]
    room = 0.08 * (max(values) - min(values)) or 1.0
    return min(values) - (room if min(values) < 0 else 0.0), max(values) + room


def _panel(panel: Any, name: str, main: str, second: str, lines: list[Line]) -> None:
    """One test set: the main metric as full dots, another as empty ones, the best system on top."""
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
    """A dot and its interval; where it ends, on the right."""
    if figure.low is not None:
        panel.plot([figure.low, figure.high], [y, y], color=colour, lw=2 if filled else 1,
                   alpha=0.9 if filled else 0.6, solid_capstyle="butt")
    panel.plot([figure.value], [y], marker="o", ms=6 if filled else 4.5, color=colour, ls="none",
               mfc=colour if filled else "white")
    return figure.value if figure.high is None else figure.high
