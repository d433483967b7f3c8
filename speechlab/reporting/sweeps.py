"""sweep_<name>.csv and sweep_<name>.png: compare a sweep's trials, by the files that each trial left."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechlab.files import atomic, write_json, write_text
from speechlab.reporting.metrics import axis, judged_by, number, read_json, read_metrics, read_results, unit, wide
from speechlab.reporting.style import house_style
from speechlab.scoring import metric as measures
from speechlab.scoring.metric import Metric

DONE, FAILED, INTERRUPTED, TO_DO = "done", "failed", "interrupted", "to do"
SEED = "train.seed"  # trials that differ in nothing else are repetitions of one trial
_MOST_BARS, _MOST_COLOURS = 40, 10


@dataclass
class Trial:
    """One experiment of a sweep."""

    name: str
    sets: dict[str, Any]  # the settings that make it differ from the others, by dotted key
    config: str = ""  # the path of its config; "": the recipe's own
    pairs: list[str] = field(default_factory=list)  # all its settings as KEY=VALUE for --set
    exp: Path = Path()
    status: str = TO_DO
    reason: str = ""  # why it failed
    seconds: float = 0.0  # that it took, with data, decoding and scoring


@dataclass(frozen=True)
class Measured:
    """How a trial went: a metric over its epochs."""

    metric: str  # the key of the epoch lines
    kind: Metric  # what it measures
    epochs: list[float]
    values: list[float]  # one per epoch
    best: float | None  # None: there are no values, or nobody has said whether lower is better
    epoch: int | None  # of the best value

    @property
    def shown(self) -> float | None:
        """The value that is drawn and compared: the best one, or the last one if there is no best."""
        return self.best if self.best is not None else self.values[-1] if self.values else None


def note(trial: Trial, sweep: str) -> None:
    """Write how the trial ended into its folder (sweep.json). A trial that failed at once leaves nothing else."""
    write_json(trial.exp / "sweep.json", {
        "sweep": sweep, "trial": trial.name, "sets": trial.sets, "status": trial.status, "reason": trial.reason,
        "seconds": round(trial.seconds, 1)})


def recall(trial: Trial) -> None:
    """Fill in what :func:`note` wrote in an earlier run."""
    known = read_json(trial.exp / "sweep.json")
    if isinstance(known, dict):
        trial.status, trial.reason = str(known.get("status", TO_DO)), str(known.get("reason", ""))
        trial.seconds = float(known["seconds"]) if number(known.get("seconds")) else 0.0


def measure(trial: Trial, metric: str = "") -> Measured:
    """Read a trial's metrics.jsonl. ``metric``: a key of its epoch lines; "": the one that the task judges by."""
    epochs = read_metrics(trial.exp / "metrics.jsonl")[1]
    metric = metric or judged_by(trial.exp, epochs)
    kind = measures.find(metric, measures.read(trial.exp))
    found = [(float(record.get("epoch", place)), float(record[metric])) for place, record in enumerate(epochs, 1)
             if number(record.get(metric))]
    values = [value for _, value in found]
    best = kind.best(values)
    return Measured(metric, kind, [epoch for epoch, _ in found], values, best,
                    None if best is None else int(found[values.index(best)][0]))


def _judge(found: Iterable[Measured], metric: str = "") -> tuple[str, Metric]:
    """The key and the metric by which trials are compared: those of the first trial that has figures."""
    return next(((one.metric, one.kind) for one in found if one.values), (metric, measures.find(metric)))


def clock(seconds: float) -> str:
    """``seconds`` as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def rows(trials: Sequence[Trial], metric: str = "") -> tuple[list[str], list[dict[str, str]]]:
    """The table's columns and rows: trial, status, its settings, the metric's best value, the figures of results.json.

    ``seconds`` is the time of the whole trial, with its data, decoding and scoring.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.sets))
    found = [measure(trial, metric) for trial in trials]
    name = _judge(found, metric)[0]
    figures: dict[str, None] = {}
    made = []
    for trial, one in zip(trials, found):
        results = {"/".join(str(row[key]) for key in ("test_set", "method", "metric")): _short(row.get("value"))
                   for row in read_results(trial.exp)} if trial.status == DONE else {}
        figures.update(dict.fromkeys(results))
        made.append({"trial": trial.name, "status": trial.status, **{key: _cell(trial.sets.get(key)) for key in keys},
                     f"best_{name}": _short(one.best), "best_epoch": str(one.epoch or ""),
                     f"last_{name}": _short(one.values[-1] if one.values else None), **results,
                     "seconds": f"{trial.seconds:.0f}" if trial.seconds else "", "experiment": trial.exp.name,
                     "reason": trial.reason})
    columns = ["trial", "status", *keys, f"best_{name}", "best_epoch", f"last_{name}", *figures, "seconds",
               "experiment", "reason"]
    return columns, [{column: row.get(column, "") for column in columns} for row in made]


def write_csv(recipe: Path, name: str, trials: Sequence[Trial], metric: str = "") -> Path:
    """Write ``recipe/sweep_<name>.csv`` and return its path."""
    columns, made = rows(trials, metric)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    write_text(recipe / f"sweep_{name}.csv", text.getvalue())
    return recipe / f"sweep_{name}.csv"


def write(recipe: Path, name: str, about: str, trials: Sequence[Trial], metric: str = "") -> str:
    """Write the table and the picture. Return a table for the terminal, with the best trial first."""
    write_csv(recipe, name, trials, metric)
    draw(recipe, name, about, trials, metric)
    columns, made = rows(trials, metric)
    key, kind = _judge([measure(trial, metric) for trial in trials], metric)
    best = f"best_{key}"
    made.sort(key=lambda row: (not row[best], kind.rank(float(row[best] or 0))))
    shown = [column for column in columns if column not in ("experiment", "best_epoch", "reason")
             and any(row[column] for row in made)]
    lines = [shown, *([row[column] for column in shown] for row in made)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    repeated = [f"{label}: {key} {statistics.mean(values):.4g}, from {min(values):.4g} to "
                f"{max(values):.4g} over {len(values)} seeds"
                for label, values in _groups_values(trials, metric).items() if len(values) > 1]
    return "\n".join([text, *repeated])


def _groups(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Groups of trials that differ only in their seed, in the order of trials. A group's label is the name of its first
    trial, without the seed."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps({key: value for key, value in trial.sets.items() if key != SEED} if SEED in trial.sets
                         else trial.name, sort_keys=True, default=str)
        found.setdefault(key, []).append(trial)
    return {(members[0].name if len(members) == 1 else _without_seed(members[0])): members
            for members in found.values()}


def _without_seed(trial: Trial) -> str:
    return trial.name.replace(f"seed{trial.sets[SEED]}", "").strip("_").replace("__", "_") or "all"


def _groups_values(trials: Sequence[Trial], metric: str) -> dict[str, list[float]]:
    found = {label: [measure(trial, metric).shown for trial in members] for label, members in _groups(trials).items()}
    return {label: [value for value in values if value is not None] for label, values in found.items()}


def draw(recipe: Path, name: str, about: str, trials: Sequence[Trial], metric: str = "") -> Path | None:
    """Draw ``recipe/sweep_<name>.png``: the metric over epochs, and its best values as bars in the sweep's order.

    Repetitions with other seeds have the same colour: thin curves and a thick one for their mean; dots and a bar for
    their mean. If there are many trials, only the best ones have colours, and the rest are grey.
    """
    groups = {label: [measure(trial, metric) for trial in members] for label, members in _groups(trials).items()}
    failed = {label: next((t.reason for t in members if t.status == FAILED), "")
              for label, members in _groups(trials).items()}
    name_of, kind = _judge(one for found in groups.values() for one in found)
    if not name_of:
        return None
    means = {label: statistics.mean(values) for label, found in groups.items()
             if (values := [one.shown for one in found if one.shown is not None])}
    ranked = sorted(means, key=lambda label: kind.rank(means[label]))
    best = ranked[0] if kind.lower is not None else None
    bars = [label for label in groups if label in set(ranked[:_MOST_BARS]) or label not in means][:_MOST_BARS + 10]
    coloured = [label for label in groups if label in set(ranked[:_MOST_COLOURS])]
    path = recipe / f"sweep_{name}.png"
    with house_style() as pyplot:
        colours = dict(zip(coloured, pyplot.get_cmap("tab10").colors))
        height = max(4.0, 0.32 * len(bars) + 1.6)
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, height), layout="constrained", width_ratios=(3, 2))
        try:
            for label in ranked[::-1]:  # the best ones last, on top of the others
                _curve(left, label, groups[label], colours.get(label))
            _finish_curves(left, f"{name_of}, {axis(kind)}".strip(", "), kind.lower is not False,
                           [value for found in groups.values() for one in found for value in one.values])
            for place, label in enumerate(bars):
                _bar(right, place, [one.shown for one in groups[label] if one.shown is not None], failed[label],
                     colours.get(label), label == best)
            right.set_yticks(range(len(bars)), bars, fontsize=9)
            right.set_ylim(max(len(bars), 6) - 0.4, -0.6)
            right.grid(axis="y", visible=False)
            ends = [0.0, *(one.shown for found in groups.values() for one in found if one.shown is not None)]
            room = 0.2 * (max(ends) - min(ends)) or 1.0  # for the numbers at the bars
            right.set_xlim(min(ends) - (room if min(ends) < 0 else 0), max(ends) + room)
            right.set_xlabel(unit(kind))
            right.set_title(f"{name_of} of the best epoch ({kind.arrow})" if best else f"{name_of} of the last epoch",
                            fontsize=10)
            figure.suptitle(f"{recipe.resolve().name}, sweep {name}" + (f": {about}" if about else ""), fontsize=12)
            with atomic(path) as aside:
                figure.savefig(aside, dpi=110)
        finally:
            pyplot.close(figure)
    return path


def _curve(panel: Any, label: str, found: Sequence[Measured], colour: Any) -> None:
    several = len(found) > 1
    shade, order = colour or "#bbbbbb", 2 if colour else 1
    for one in found:
        panel.plot(one.epochs, one.values, color=shade, lw=0.8 if several or not colour else 1.8, zorder=order,
                   alpha=0.5 if several else 1.0, marker="o" if len(one.values) == 1 else None,
                   label=label if colour and not several else None)
    if several:
        shared = sorted(set.intersection(*(set(one.epochs) for one in found if one.epochs)))
        mean = [statistics.mean(one.values[one.epochs.index(epoch)] for one in found if one.epochs) for epoch in shared]
        panel.plot(shared, mean, color=shade, lw=2, zorder=order, label=label if colour else None)


def _finish_curves(panel: Any, metric: str, falls: bool, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if falls and wide(values):
        panel.set_yscale("log")  # on a linear axis, a trial that diverged would make the others look flat
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
    panel.set_ylabel(metric)
    if panel.get_legend_handles_labels()[0]:
        handles, labels = panel.get_legend_handles_labels()
        panel.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)


def _bar(panel: Any, place: int, values: Sequence[float], failed: str, colour: Any, best: bool) -> None:
    if values:
        mean = statistics.mean(values)
        panel.barh(place, mean, height=0.6, color=colour or "#bbbbbb", alpha=0.85)
        if len(values) > 1:
            panel.plot(values, [place] * len(values), "o", ms=4, color="black", alpha=0.7)
        end, away, side = (max(values), 6, "left") if mean >= 0 else (min(values), -6, "right")
        panel.annotate(f"{mean:.4g}" + (" (failed)" if failed else ""), (end, place), xytext=(away, 0), ha=side,
                       textcoords="offset points", va="center", fontsize=9, fontweight="bold" if best else "normal")
    else:
        text = f"failed: {failed}" if failed else "no figure yet"
        panel.annotate(text if len(text) < 50 else text[:47] + "...", (0, place), xycoords=("axes fraction", "data"),
                       xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color="#a03020")


def _short(value: Any) -> str:
    return f"{value:.5g}" if number(value) else ""


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
