"""Reading what runs leave: a file that is missing, half-written or broken gives what there is of it, no exception."""

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
    """The file's YAML mapping, or {}."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """metrics.jsonl as (step lines, epoch lines), each sorted by step, bad lines left out.

    A run that was killed and went on from a checkpoint may have written some steps twice: the second time counts.
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
    """Steps and values of ``key`` where it is there and finite."""
    pairs = [(int(r["step"]), float(r[key])) for r in records if number(r.get(key))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def read_results(exp: Path) -> list[dict[str, Any]]:
    """The rows of results.json that name their test set, method and metric."""
    rows, named = read_json(exp / "results.json"), ("test_set", "method", "metric")
    return [{**row, **{name: str(row[name]) for name in named}} for row in rows
            if isinstance(row, dict) and row.keys() >= set(named)] if isinstance(rows, list) else []


def own_methods(exp: Path) -> frozenset[str] | None:
    """The methods that are the model's own, as decode/methods.json names them; None (all are) without such a file.

    What results.json has beside them, a bound or a baseline, is not the experiment's.
    """
    methods = read_json(exp / "decode" / "methods.json")
    return frozenset(methods) if isinstance(methods, dict) else None


def metric_of(row: dict[str, Any], own: Sequence[Metric] = ()) -> Metric:
    """The metric of a row of results.json, in the unit that the row says."""
    found = metric.find(row["metric"], own)
    return dataclasses.replace(found, unit=row["unit"]) if isinstance(row.get("unit"), str) else found


def label(found: Metric) -> str:
    """A metric's name for people: ``valid_tone`` is ``tone``."""
    return found.name.removeprefix("valid_")


def unit(found: Metric) -> str:
    """A metric's unit for people: nothing for a plain number."""
    return "" if found.unit == "1" else found.unit


def axis(found: Metric) -> str:
    """What stands beside a metric's axis: ``dB, higher is better``."""
    return ", ".join(part for part in (unit(found), found.arrow) if part)


def told(found: Metric, value: float) -> str:
    """A figure with its unit: ``9.50 %``."""
    return f"{found.show(value)} {unit(found)}".rstrip()


def interval(found: Metric, low: float, high: float) -> str:
    """An interval: ``8.20 - 9.90``; with "to" in the place of the dash where there are signs."""
    return f"{found.show(low)} {'to' if low < 0 else '-'} {found.show(high)}"


def wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows more: else a run's first figures press the rest of it flat."""
    return bool(values) and min(values) > 0 and max(values) > 10 * statistics.median(values)


def read_env(exp: Path) -> dict[str, Any]:
    """env.json's mapping, or {}."""
    env = read_json(exp / "env.json")
    return env if isinstance(env, dict) else {}


def training_seconds(env: dict[str, Any], epochs: list[dict[str, Any]]) -> float | None:
    """Wall-clock seconds of training: env.json's, else the last epoch's of those read from metrics.jsonl; or None."""
    seconds = env.get("wall_seconds")
    return float(seconds) if number(seconds) else max(series(epochs, "seconds")[1], default=None)


def corpus_of(exp: Path) -> str:
    """The corpus's name as env.json, config.yaml or the training's command (``--data data/mini``) tell it, or ''."""
    env = read_env(exp)
    data = read_yaml(exp / "config.yaml").get("data")
    data = data if isinstance(data, dict) else {}
    told = [env.get("corpus"), env.get("data"), data.get("corpus"), data.get("folder"), option(env, "--data")]
    return next((Path(str(name)).name for name in told if name), "")


def option(env: dict[str, Any], name: str) -> str:
    """What followed an option in env.json's command, or ''."""
    try:
        words = shlex.split(str(env.get("command") or ""))
    except ValueError:  # an open quote
        return ""
    return next((value for word, value in zip(words, words[1:]) if word == name), "")


def judged_by(exp: Path, epochs: list[dict[str, Any]]) -> str:
    """The key of the epoch lines that says which epoch is best: as env.json tells it, else the validation set's figure
    that ranks first, else the training loss."""
    told_by_run = read_env(exp).get("metric")
    keys = list(dict.fromkeys(key for record in epochs for key in record))
    if isinstance(told_by_run, str) and (told_by_run in keys or not epochs):
        return told_by_run
    return metric.main((key for key in keys if key.startswith("valid_")), metric.read(exp)) or "train_loss"


def number(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
