"""A report's tables as HTML: a recipe's experiments with their differences marked; every result with its interval."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speechlab.reporting.experiment import SPEED, Experiment
from speechlab.reporting.metrics import corpus_of, lower_is_better, number
from speechlab.reporting.mistakes import NO_MODEL
from speechlab.reporting.table import CORE, RUN, build


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


def experiments_table(recipe: Path, runs: Sequence[Experiment], drawn: Sequence[int]) -> str:
    """A recipe's experiments: figures, and each setting in which they differ, marked where it is not the best run's.

    Before each stands the box by which page.js shows its curves; ``drawn`` are those of the boxes that are ticked.
    """
    columns, rows = build(recipe)
    by_name = {row["experiment"]: {**row, "corpus": corpus_of(recipe / "exp" / row["experiment"])} for row in rows}
    keys = ["corpus", *CORE[1:6], *(key for key in columns[columns.index(RUN[-1]) + 1:] if key != "status")]
    settings = [key for key in keys if len({row[key] for row in by_name.values() if row[key] or key != "corpus"}) > 1]
    figures = list(dict.fromkeys(name for one in runs for name in one.figures()))
    top = {name: (min if lower_is_better(name) else max)(one.figures()[name] for one in runs if name in one.figures())
           for name in figures}
    metrics = list(dict.fromkeys(one.metric for one in runs if one.metric))
    status = ["status"] if "status" in columns else []
    numbers = [*figures, *(f"best {metric}" for metric in metrics), "parameters", "training"]
    lines = []
    for i, one in enumerate(runs):
        row = by_name[one.name]
        ticked = " checked" if i in drawn else ""
        cells = [f'<td><label><input type="checkbox" value="{i}" aria-label={quoted("show " + one.name)}{ticked}> '
                 f'<span class="swatch" data-colour="{i}"></span></label></td>',
                 f'<td class="name" data-sort={quoted(one.name)}><a href={quoted(_link(one))}>'
                 f"{esc(one.name).replace('_', '_<wbr>')}</a></td>"]
        cells += [_number(one.figures().get(name), ".2f", "best" if one.figures().get(name) == top[name] else "")
                  for name in figures]
        cells += [_number(one.best if one.metric == metric else None, ".4g") for metric in metrics]
        cells += [_number(one.env.get("parameters"), ",.0f"),
                  cell(duration(one.seconds) if one.seconds else "", kind="num", data_sort=one.seconds),
                  *(cell(row[key], kind="" if row[key] in ("", "done") else "failed") for key in status)]
        best = by_name[runs[0].name]
        cells += [cell(row[key].rpartition(":")[2] if key == "model" else row[key], data_key=key, title=row[key],
                       kind="diff" if row[key] != best[key] else "") for key in settings]
        lines.append(f'<tr data-run="{i}">{"".join(cells)}</tr>')
    buttons = [(name, f'<button type="button">{esc(name)}</button>') for name in
               ("experiment", *numbers, *status, *settings)]
    head = "".join(f'<th{" class=num" if name in numbers else ""}>{button}</th>' for name, button in buttons)
    choices = "".join(f'<button type="button" data-select="{value}">{text}</button> '
                      for value, text in (("best", "best 5"), ("all", "all"), ("none", "none")))
    controls = (f'<div class="controls"><span>Curves of {choices}</span><label>Mark what differs from '
                f'<select id="baseline">{options([one.name for one in runs])}</select></label></div>')
    return (f'{controls}<div class="scroll" id="runs"><table><thead><tr><th></th>{head}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def _link(one: Experiment) -> str:
    return quote(f"exp/{one.name}/report.html")


def _number(value: Any, form: str, kind: str = "") -> str:
    return cell(format(value, form), kind=f"num {kind}".strip(), data_sort=value) if number(value) else cell("")


def results_table(runs: Sequence[Experiment]) -> str:
    """Every figure with its interval as a bar; the bars of one test set and metric share a scale."""
    found = [(row, one) for one in runs for row in one.results]
    if len(runs) > 1:  # there, only what they are compared by
        found = [(row, one) for row, one in found if row["metric"] == one.main and row["method"] not in NO_MODEL]
    tops: dict[tuple[str, str], float] = {}
    for row, _ in found:
        key = (row["test_set"], row["metric"])
        tops[key] = max(tops.get(key, 0.0), row["ci_high"] if number(row.get("ci_high")) else row["value"])
    found.sort(key=lambda pair: (pair[0]["test_set"], pair[0]["metric"] in SPEED, pair[0]["metric"],
                                 pair[0]["value"] if lower_is_better(pair[0]["metric"]) else -pair[0]["value"]))
    names = ["test set", *(["experiment"] if len(runs) > 1 else []), "method", "metric", "value", "95 % interval", "",
             "items", "protocol"]
    lines = []
    for row, one in found:
        low, high, top = row.get("ci_low"), row.get("ci_high"), tops[row["test_set"], row["metric"]] or 1.0
        interval = number(low) and number(high)
        unit = " %" if row.get("unit") == "%" else ""
        bar = (f'<i style="left:{100 * low / top:.1f}%;width:{max(0.5, 100 * (high - low) / top):.1f}%"></i>'
               if interval else "")
        digits = f"{row['value']:.2f}" if unit else f"{row['value']:.3g}"
        failed = f"{row.get('n', '')}" + (f", {row['n_failed']} failed" if row.get("n_failed") else "")
        cells = [row["test_set"], *([one.name] if len(runs) > 1 else []), row["method"], row["metric"]]
        lines.append("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in cells)
                     + f'<td class="num">{digits}{unit}</td><td class="num">'
                     + (f"{low:.2f} - {high:.2f}" if interval else "") + '</td><td><div class="bar">' + bar
                     + f'<b style="left:{100 * row["value"] / top:.1f}%"></b></div></td>'
                     + f'<td class="num">{esc(failed)}</td><td>{esc(row.get("protocol") or "")}</td></tr>')
    head = "".join(f'<th{" class=num" * (name in ("value", "95 % interval", "items"))}>{name}</th>' for name in names)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
