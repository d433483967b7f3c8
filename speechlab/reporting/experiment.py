"""What a report shows of an experiment: its figures, its curves with fewer points, its mistakes, its settings."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.reporting import mistakes
from speechlab.reporting.metrics import (
    judged_by,
    metric_of,
    number,
    own_methods,
    read_env,
    read_metrics,
    read_results,
    read_yaml,
    series,
    training_seconds,
)
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric

_PICTURE_BYTES = 1_500_000  # bytes in a page for the pictures that the task drew after epochs


@dataclass(frozen=True)
class Figure:
    """An experiment's result on a test set: its main metric, of the best of its own methods."""

    title: str  # "test PESQ"
    metric: Metric
    value: float


class Experiment:
    """What a page shows of one experiment.

    Args:
        path: the experiment's folder.
        points: the largest number of points of a curve.
        shown: the largest number of mistakes per test set and method.
        with_pictures: read the pictures that the task drew after epochs.
    """

    def __init__(self, path: Path, points: int, shown: int, with_pictures: bool):
        self.path, self.name, self.points = path, path.name, points
        self.steps, self.epochs = read_metrics(path / "metrics.jsonl")
        self.env, self.config = read_env(path), read_yaml(path / "config.yaml")
        self.measures, self.methods = metric.read(path), own_methods(path)
        self.results = [row for row in read_results(path) if number(row.get("value"))]
        self.metric = judged_by(path, self.epochs) if self.epochs else ""
        self.best = self.find(self.metric).best(series(self.epochs, self.metric)[1])
        self.figures = self._figures()
        self.decoded = self._mistakes(shown)
        self.pictures = epoch_pictures(path) if with_pictures else []

    def find(self, name: str) -> Metric:
        """The metric called ``name``: as this experiment's task declares it, else as speechlab knows it."""
        return metric.find(name, self.measures)

    def owns(self, method: str) -> bool:
        """True if a method's answers are this model's; False for a bound or a baseline that was scored with it."""
        return self.methods is None or method in self.methods

    @property
    def main(self) -> str:
        """The main metric of results.json; "" if there is none."""
        return metric.main((row["metric"] for row in self.results if self.owns(row["method"])), self.measures)

    @property
    def rank(self) -> tuple:
        """The key to sort runs by: the best first; those without a figure, or without a direction, last."""
        judge, value = self.find(self.metric), self.best
        if self.figures:
            judge, value = self.figures[0].metric, self.figures[0].value
        ranked = value is not None and judge.lower is not None
        return (not ranked, judge.rank(value) if ranked else 0.0, self.name)

    def _figures(self) -> list[Figure]:
        """One figure per test set, in the order of results.json. If there are several methods and the metric has no
        direction, no method is the best, and there is no figure."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.results:
            if row["metric"] == self.main and self.owns(row["method"]):
                found.setdefault(row["test_set"], []).append(row)
        figures = []
        for test_set, rows in found.items():
            judge, values = metric_of(rows[0], self.measures), [row["value"] for row in rows]
            value = values[0] if len(values) == 1 else judge.best(values)
            if value is not None:
                figures.append(Figure(f"{test_set} {self.main}", judge, value))
        return figures

    def _mistakes(self, shown: int) -> list[dict[str, Any]]:
        """The sets of mistakes.json, sorted by test set; for each test set, the best method is first."""
        judge = self.find(self.main)
        ranks = {(row["test_set"], row["method"]): judge.rank(row["value"]) for row in self.results
                 if row["metric"] == self.main}
        found = [one for one in mistakes.read(self.path, shown, self.measures) if self.owns(one["method"])]
        return sorted(found, key=lambda one: (
            one["test_set"], ranks.get((one["test_set"], one["method"]), float("inf"))))

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of training."""
        return training_seconds(self.env, self.epochs)

    def data(self) -> dict[str, Any]:
        """The experiment's entry in ``runs``."""
        return {"name": self.name, "selected": True, "decoded": self.decoded, "pictures": self.pictures,
                "axes": {"steps": self._axis(self.steps), "epochs": self._axis(self.epochs)},
                "config": [[key, value] for key, value in _flat(self.config)],
                "environment": [[key, value] for key, value in _flat(self.env)]}

    def _axis(self, records: list[dict[str, Any]]) -> dict[str, list]:
        step = np.array([record["step"] for record in records], dtype=float)
        ends = [0.0, *(float(record["step"]) for record in self.epochs)]
        done = [0.0, *(float(record.get("epoch", place)) for place, record in enumerate(self.epochs, 1))]
        if len(ends) > 1:
            epoch = np.interp(step, ends, done)
            after = step > ends[-1]  # steps of an epoch that has not ended yet
            epoch[after] = done[-1] + (step[after] - ends[-1]) / max(ends[-1] - ends[-2], 1.0)
        else:
            epoch = np.array([float(record.get("epoch", 0)) for record in records])
        minutes = [record["seconds"] / 60 if number(record.get("seconds")) else None for record in records]
        return {"step": self.thin(step.tolist()), "epoch": self.thin(epoch.tolist()), "minutes": self.thin(minutes)}

    def thin(self, values: Sequence[float | None]) -> list[float | None]:
        """At most ``points`` values: each is the mean of some neighbours in ``values``, with five digits."""
        size = -(-len(values) // self.points)
        groups = [[v for v in values[i:i + size] if v is not None] for i in range(0, len(values), size or 1)]
        return [float(f"{sum(group) / len(group):.5g}") if group else None for group in groups]

    def curve(self, key: str, run: int, axis: str, label: str, colour: int, light: bool = False) -> dict | None:
        """A series of a chart; None if the experiment has no figures of the name ``key``."""
        records = self.steps if axis == "steps" else self.epochs
        values = [record[key] if number(record.get(key)) else None for record in records]
        if all(value is None for value in values):
            return None
        return {"run": run, "axis": axis, "label": label, "colour": colour, "light": light, "y": self.thin(values)}


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The values of a nested mapping as (dotted key, text) pairs."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            rows += _flat(inner, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", inner if isinstance(inner, str) else
                         json.dumps(inner, ensure_ascii=False, default=str)))
    return rows


def epoch_pictures(exp: Path, most: int = 8) -> list[dict[str, Any]]:
    """The pictures that the task drew after epochs (exp/<name>/epoch-NN.png). For each name: ``name``, ``caption``
    and ``epochs``, a list of [number, address]. These are the first, the last and some between, as many as a page has
    room for."""
    found, room = [], _PICTURE_BYTES
    for folder in sorted({path.parent for path in exp.glob("*/epoch-*.png")}):
        files = sorted((int(match[1]), path) for path in folder.glob("epoch-*.png")
                       if (match := re.fullmatch(r"epoch-(\d+)\.png", path.name)))
        if not files:
            continue
        largest = max(1, max(path.stat().st_size for _, path in files))
        count = max(1, min(most, len(files), room // largest))
        chosen = sorted({round(place) for place in np.linspace(len(files) - 1, 0, count)})
        epochs = [[files[i][0], "data:image/png;base64," + base64.b64encode(files[i][1].read_bytes()).decode()]
                  for i in chosen]
        room -= sum(files[i][1].stat().st_size for i in chosen)
        found.append({"name": folder.name, "caption": _caption(folder), "epochs": epochs})
    return found


def _caption(folder: Path) -> str:
    """How to read the pictures of a folder, where the task has said it."""
    try:
        return (folder / "caption.txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
