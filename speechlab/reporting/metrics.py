"""Reads the files that runs leave. If a file is missing, half-written or broken, it gives what there is; no error."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlab.files import read_json
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} if there is none."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of metrics.jsonl as (step lines, epoch lines), both sorted by step. Bad lines are left out.

    A run that was killed and went on from a checkpoint may have written some steps twice. Then the later line counts.
    """
    kinds: dict[str, dict[int, dict[str, Any]]] = {"step": {}, "epoch": {}}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
            kinds[record["kind"]][int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            continue
    return tuple([lines[step] for step in sorted(lines)] for lines in kinds.values())  # type: ignore[return-value]


def series(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of ``key``, from the records in which it is a finite number."""
    pairs = [(int(r["step"]), float(r[key])) for r in records if number(r.get(key))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def read_results(exp: Path) -> list[dict[str, Any]]:
    """The rows of results.json that name their test set, method and metric."""
    rows, named = read_json(exp / "results.json"), ("test_set", "method", "metric")
    return [{**row, **{name: str(row[name]) for name in named}} for row in rows
            if isinstance(row, dict) and row.keys() >= set(named)] if isinstance(rows, list) else []


def own_methods(exp: Path) -> frozenset[str] | None:
    """The model's own methods, which decode/methods.json names. None, if there is no such file: all methods are.

    Other methods in results.json are a bound or a baseline, and not the experiment's.
    """
    methods = read_json(exp / "decode" / "methods.json")
    return frozenset(methods) if isinstance(methods, dict) else None


def metric_of(row: dict[str, Any], own: Sequence[Metric] = ()) -> Metric:
    """The metric of a row of results.json. Its unit is the one that the row says."""
    found = metric.find(row["metric"], own)
    return dataclasses.replace(found, unit=row["unit"]) if isinstance(row.get("unit"), str) else found


def label(found: Metric) -> str:
    """A metric's name for people: ``valid_tone`` is ``tone``."""
    return found.name.removeprefix("valid_")


def unit(found: Metric) -> str:
    """A metric's unit for people; "" for a plain number."""
    return "" if found.unit == "1" else found.unit


def axis(found: Metric) -> str:
    """The text at a metric's axis: ``dB, higher is better``."""
    return ", ".join(part for part in (unit(found), found.arrow) if part)


def told(found: Metric, value: float) -> str:
    """A figure with its unit: ``9.50 %``."""
    return f"{found.show(value)} {unit(found)}".rstrip()


def interval(found: Metric, low: float, high: float) -> str:
    """An interval: ``8.20 - 9.90``. If an end is negative, "to" takes the place of the dash."""
    return f"{found.show(low)} {'to' if low < 0 else '-'} {found.show(high)}"


def wide(values: Sequence[float]) -> bool:
    """True if the values need a logarithmic axis: on a linear one, the first figures of a run would make the rest look
    flat."""
    return bool(values) and min(values) > 0 and max(values) > 10 * statistics.median(values)


def read_env(exp: Path) -> dict[str, Any]:
    """The mapping in env.json; {} if there is none."""
    env = read_json(exp / "env.json")
    return env if isinstance(env, dict) else {}


def training_seconds(env: dict[str, Any], epochs: list[dict[str, Any]]) -> float | None:
    """Wall-clock seconds of training: as env.json says, else as the last line of ``epochs`` says, else None."""
    seconds = env.get("wall_seconds")
    return float(seconds) if number(seconds) else max(series(epochs, "seconds")[1], default=None)


def corpus_of(exp: Path) -> str:
    """The corpus's name, from env.json, config.yaml or the training's command (``--data data/mini``); '' if unknown."""
    env = read_env(exp)
    data = read_yaml(exp / "config.yaml").get("data")
    data = data if isinstance(data, dict) else {}
    told = [env.get("corpus"), env.get("data"), data.get("corpus"), data.get("folder"), option(env, "--data")]
    return next((Path(str(name)).name for name in told if name), "")


def option(env: dict[str, Any], name: str) -> str:
    """The value of an option in the command that env.json has, or ''."""
    try:
        words = shlex.split(str(env.get("command") or ""))
    except ValueError:  # a quote that is not closed
        return ""
    return next((value for word, value in zip(words, words[1:]) if word == name), "")


def judged_by(exp: Path, epochs: list[dict[str, Any]]) -> str:
    """The key of the epoch lines by which the best epoch is chosen: as env.json says, else the first in rank of the
    validation figures, else the training loss."""
    told_by_run = read_env(exp).get("metric")
    keys = list(dict.fromkeys(key for record in epochs for key in record))
    if isinstance(told_by_run, str) and (told_by_run in keys or not epochs):
        return told_by_run
    return metric.main((key for key in keys if key.startswith("valid_")), metric.read(exp)) or "train_loss"


def number(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
