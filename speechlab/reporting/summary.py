"""results_table.md and results_table.png: every model x method of a recipe on one page, from exp/*/ alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from speechlab.files import atomic, write_text
from speechlab.reporting.metrics import corpus_of, number, read_env, read_metrics, read_results, training_seconds
from speechlab.reporting.style import BLUE, GREY, RUST, house_style
from speechlab.reporting.table import experiments

HEAD = ["model", "parameters (M)", "training (min)", "corpus", "test set", "method", "CER/WER % (95 % interval)",
        "SER % (95 % interval)", "RTF"]
_RIGHT = [False, True, True, False, False, False, True, True, True]
# What is no model's: its figures are the test set's, whichever experiment's folder they stand in.
_NO_MODEL = ("oracle", "oracle_lm")
_MOST_ROWS = 40  # of a panel: more can't be told apart by looking


@dataclass(frozen=True)
class Figure:
    """A rate in percent with its 95 % interval; ends are None where the list was too short for one."""

    metric: str
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + (f" ({self.low:.2f} - {self.high:.2f})" if self.low is not None else "")


@dataclass(frozen=True)
class Line:
    """One system on one test set: parameters in millions, training in minutes, RTF in seconds a second of audio."""

    model: str
    parameters: float | None
    minutes: float | None
    corpus: str
    test_set: str
    method: str
    error: Figure | None
    syllables: Figure | None
    rtf: float | None
    n_failed: int
    list_hash: str

    @property
    def place(self) -> tuple:
        """By what lines are sorted: corpus, test set, then the fewest errors, those without a figure last."""
        return (self.corpus, self.test_set, self.error is None, self.error.value if self.error else 0.0, self.method,
                self.model)


def build(recipe: Path) -> tuple[list[Line], list[str]]:
    """The table's lines in order, and the names of the experiments that have no results yet.

    The error is WER where words were scored, else CER. An oracle's row, which has no model, is there once a test list.
    """
    lines: list[Line] = []
    without: list[str] = []
    oracles: dict[tuple, Line] = {}
    for exp in experiments(recipe):
        found = _lines(exp)
        if not found:
            without.append(exp.name)
        for line in found:
            if line.method not in _NO_MODEL:
                lines.append(line)
                continue
            value = line.error.value if line.error else None
            key = (line.corpus, line.test_set, line.list_hash, value)
            if key not in oracles or oracles[key].syllables is None:
                oracles[key] = replace(line, model="", parameters=None, minutes=None, rtf=None)
    return sorted([*lines, *oracles.values()], key=lambda line: line.place), without


def markdown(recipe: Path, lines: Sequence[Line], without: Sequence[str] = ()) -> str:
    """The page: a Markdown table whose columns are straight as text too, and notes; no dates, so it can be compared."""
    rows = [HEAD, *(_cells(line) for line in lines)]
    cells = [max(3, *(_width(row[column]) for row in rows)) for column in range(len(HEAD))]
    text = [_row(row, cells) for row in rows]
    text.insert(1, "|" + "|".join("-" * (n + 1) + (":" if right else "-") for n, right in zip(cells, _RIGHT)) + "|")
    notes = ["CER/WER: character or word error rate; SER: tonal syllables; intervals: bootstrap over utterances. "
             "RTF: real-time factor, seconds of computing a second of audio on the machine that decoded.",
             *_warnings(lines)]
    if without:
        notes.append(f"Without results yet: {', '.join(without)}.")
    title = f"# Results of {recipe.resolve().name}"
    made = f"Made by `python -m speechlab.report` from `exp/*/`; the picture is `{_picture(recipe).name}`."
    return "\n".join([title, "", made, "", *text, "", *(f"* {note}" for note in notes)]) + "\n"


def draw(recipe: Path, lines: Sequence[Line]) -> Path | None:
    """Draw ``recipe/results_table.png``: a panel a test set, a dot with its interval a system, the best on top.

    Returns:
        The picture's path; None when there is no figure to draw.

    Raises:
        UserError: when matplotlib is not installed.
    """
    drawn = [line for line in lines if line.error is not None]
    panels = [(key, list(group)) for key, group in groupby(drawn, key=lambda line: (line.corpus, line.test_set))]
    if not panels:
        return None
    heights = [min(len(group), _MOST_ROWS) + 1.5 for _, group in panels]
    with house_style() as pyplot:
        figure, axes = pyplot.subplots(len(panels), figsize=(11, 0.8 + 0.3 * sum(heights)), layout="constrained",
                                       squeeze=False, height_ratios=heights)
        try:
            for panel, ((corpus, test_set), group) in zip(axes[:, 0], panels):
                _panel(panel, ", ".join(name for name in (corpus, test_set) if name), group)
                ends = [f.value if f.high is None else f.high for line in drawn if line.corpus == corpus
                        for f in (line.error, line.syllables) if f]
                panel.set_xlim(0, 1.08 * max(ends) or 1)  # one scale a corpus; room for the numbers
            figure.suptitle(f"{recipe.resolve().name}: error rates with 95 % intervals", fontsize=12)
            with atomic(_picture(recipe)) as aside:
                figure.savefig(aside, dpi=110)
        finally:
            pyplot.close(figure)
    return _picture(recipe)


def write_summary(recipe: Path) -> str:
    """Write ``recipe/results_table.md`` and, where there is a figure, results_table.png; return the table's text."""
    lines, without = build(recipe)
    text = markdown(recipe, lines, without)
    write_text(recipe / "results_table.md", text)
    draw(recipe, lines)
    return text


def _lines(exp: Path) -> list[Line]:
    """An experiment's systems, one a test set and method."""
    env = read_env(exp)
    seconds = training_seconds(env, read_metrics(exp / "metrics.jsonl")[1])
    parameters = env["parameters"] / 1e6 if number(env.get("parameters")) else None
    corpus = corpus_of(exp)
    systems: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in read_results(exp):
        systems.setdefault((str(row["test_set"]), str(row["method"])), {})[str(row["metric"])] = row
    lines = []
    for (test_set, method), rows in systems.items():
        main = rows.get("WER") or rows.get("CER") or {}
        rtf = rows.get("RTF", {}).get("value")
        failed = main.get("n_failed")
        lines.append(Line(
            exp.name, parameters, None if seconds is None else seconds / 60, corpus, test_set, method,
            _figure(main), _figure(rows.get("SER", {})), rtf if number(rtf) else None,
            int(failed) if number(failed) else 0, str(main.get("list_hash") or "")))
    return lines


def _figure(row: dict[str, Any]) -> Figure | None:
    if not number(row.get("value")):
        return None
    low, high = row.get("ci_low"), row.get("ci_high")
    ends = (low, high) if number(low) and number(high) else (None, None)
    return Figure(str(row["metric"]), row["value"], *ends)


def _warnings(lines: Sequence[Line]) -> list[str]:
    """What makes figures of one test set incomparable, or incomplete."""
    found = []
    for (corpus, test_set), group in groupby(lines, key=lambda line: (line.corpus, line.test_set)):
        members = list(group)
        name = " ".join(part for part in (corpus, test_set) if part)
        if len({line.list_hash for line in members if line.list_hash}) > 1:
            found.append(f"Warning: {name}: these systems were not decoded on one list, so their figures can't be "
                         "compared (column `list` of each results.txt).")
        found += [f"{name}, {line.model} {line.method}: {line.n_failed} utterances failed and are not in the figures."
                  for line in members if line.n_failed]
    return found


def _cells(line: Line) -> list[str]:
    error = "" if line.error is None else f"{line.error.metric} {line.error}"
    return [_escaped(line.model or "(no model)"), _decimals(line.parameters, 2), _decimals(line.minutes, 1),
            _escaped(line.corpus), _escaped(line.test_set), _escaped(line.method), error,
            "" if line.syllables is None else str(line.syllables), "" if line.rtf is None else _two_digits(line.rtf)]


def _row(row: Sequence[str], cells: Sequence[int]) -> str:
    parts = []
    for text, count, right in zip(row, cells, _RIGHT):
        spaces = " " * (count - _width(text))
        parts.append(spaces + text if right else text + spaces)
    return "| " + " | ".join(parts) + " |"


def _width(text: str) -> int:
    """Cells of a terminal: hanzi take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _decimals(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _picture(recipe: Path) -> Path:
    return recipe / "results_table.png"


def _panel(panel: Any, name: str, lines: list[Line]) -> None:
    """One test set: errors as full dots, syllable errors as empty ones, the best system on top."""
    shown = lines[:_MOST_ROWS]
    for y, line in enumerate(shown):
        colour = BLUE if line.model else GREY
        if line.syllables is not None:
            _dot(panel, line.syllables, y + 0.22, RUST if line.model else GREY, filled=False)
        end = _dot(panel, line.error, y, colour, filled=True)
        panel.annotate(f"{line.error.value:.2f}", (end, y), xytext=(5, 0), textcoords="offset points", va="center",
                       fontsize=8, color=colour)
    panel.set_yticks(range(len(shown)), [f"{line.model or '(no model)'}  {line.method}" for line in shown], fontsize=9)
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    metrics = " and ".join(sorted({line.error.metric for line in shown}))
    syllables = ", empty: SER" if any(line.syllables for line in shown) else ""
    left_out = f" (best {len(shown)} of {len(lines)})" if len(lines) > len(shown) else ""
    panel.set_title(name + left_out, loc="left")
    panel.set_xlabel(f"{metrics} %{syllables}", fontsize=9)


def _dot(panel: Any, figure: Figure, y: float, colour: str, filled: bool) -> float:
    """A dot and its interval; where it ends, on the right."""
    if figure.low is not None:
        panel.plot([figure.low, figure.high], [y, y], color=colour, lw=2 if filled else 1,
                   alpha=0.9 if filled else 0.6, solid_capstyle="butt")
    panel.plot([figure.value], [y], marker="o", ms=6 if filled else 4.5, color=colour, ls="none",
               mfc=colour if filled else "white")
    return figure.value if figure.high is None else figure.high
