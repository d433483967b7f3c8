"""An experiment as a report tells of it: its figures, its curves thinned out, its mistakes, its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.reporting.metrics import (
    judged_by,
    lower_is_better,
    number,
    read_env,
    read_metrics,
    read_results,
    read_yaml,
    series,
    training_seconds,
)
from speechlab.reporting.mistakes import NO_MODEL, decodings, layers

SPEED = ("RTF",)  # of results.json's metrics, what is no figure of merit


class Experiment:
    """What a page tells of one experiment. ``points``: at most so many of a curve; ``shown``: mistakes."""

    def __init__(self, path: Path, points: int, shown: int, pictures: dict[str, str], with_layers: bool):
        self.path, self.name, self.points = path, path.name, points
        self.steps, self.epochs = read_metrics(path / "metrics.jsonl")
        self.env, self.config = read_env(path), read_yaml(path / "config.yaml")
        self.results = [row for row in read_results(path) if number(row.get("value"))]
        self.metric = judged_by(path, self.epochs) if self.epochs else ""
        values = series(self.epochs, self.metric)[1]
        self.best = (min if lower_is_better(self.metric) else max)(values) if values else None
        self.decoded = decodings(path, shown, pictures)
        self.layers = layers(path) if with_layers else []

    @property
    def rank(self) -> tuple:
        """By what runs are sorted: the best first, those without a figure last."""
        figure = next(iter(self.figures().values()), None)
        value = figure if figure is not None else self.best
        lower = lower_is_better(self.main or self.metric)
        return (value is None, (value if lower else -value) if value is not None else 0.0, self.name)

    @property
    def main(self) -> str:
        """The metric of results.json that counts: an error rate where there is one."""
        names = [str(row["metric"]) for row in self.results if row["metric"] not in SPEED]
        wanted = [*(name for name in ("error", "WER", "CER") if name in names), *names]
        return wanted[0] if wanted else ""

    def figures(self) -> dict[str, float]:
        """``{"test CER": 9.5}``: of each test set, the main metric of the best method."""
        found: dict[str, list[float]] = {}
        for row in self.results:
            if row["metric"] == self.main and row["method"] not in NO_MODEL:
                found.setdefault(f"{row['test_set']} {self.main}", []).append(row["value"])
        return {name: (min if lower_is_better(self.main) else max)(values) for name, values in found.items()}

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of training."""
        return training_seconds(self.env, self.epochs)

    def data(self) -> dict[str, Any]:
        """The experiment's entry in ``runs``."""
        return {"name": self.name, "selected": True, "decoded": self.decoded, "layers": self.layers,
                "axes": {"steps": self._axis(self.steps), "epochs": self._axis(self.epochs)},
                "config": [[key, value] for key, value in _flat(self.config)],
                "environment": [[key, value] for key, value in _flat(self.env)]}

    def _axis(self, records: list[dict[str, Any]]) -> dict[str, list]:
        step = np.array([record["step"] for record in records], dtype=float)
        ends = [0.0, *(float(record["step"]) for record in self.epochs)]
        done = [0.0, *(float(record.get("epoch", place)) for place, record in enumerate(self.epochs, 1))]
        if len(ends) > 1:
            epoch = np.interp(step, ends, done)
            after = step > ends[-1]  # an epoch that is not over yet
            epoch[after] = done[-1] + (step[after] - ends[-1]) / max(ends[-1] - ends[-2], 1.0)
        else:
            epoch = np.array([float(record.get("epoch", 0)) for record in records])
        minutes = [record["seconds"] / 60 if number(record.get("seconds")) else None for record in records]
        return {"step": self.thin(step.tolist()), "epoch": self.thin(epoch.tolist()), "minutes": self.thin(minutes)}

    def thin(self, values: Sequence[float | None]) -> list[float | None]:
        """``values`` as at most ``points`` means of neighbours, with five digits."""
        size = -(-len(values) // self.points)
        groups = [[v for v in values[i:i + size] if v is not None] for i in range(0, len(values), size or 1)]
        return [float(f"{sum(group) / len(group):.5g}") if group else None for group in groups]

    def curve(self, key: str, run: int, axis: str, label: str, colour: int, light: bool = False) -> dict | None:
        """A series of a chart, or None where the experiment has no such figures."""
        records = self.steps if axis == "steps" else self.epochs
        values = [record[key] if number(record.get(key)) else None for record in records]
        if all(value is None for value in values):
            return None
        return {"run": run, "axis": axis, "label": label, "colour": colour, "light": light, "y": self.thin(values)}


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A mapping's leaves as (dotted key, text)."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            rows += _flat(inner, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", inner if isinstance(inner, str) else
                         json.dumps(inner, ensure_ascii=False, default=str)))
    return rows
