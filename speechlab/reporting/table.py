"""params_table.csv: one row per experiment. It is always made anew from all of exp/*/, so it agrees with them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

from speechlab.files import write_text
from speechlab.reporting.metrics import (
    number,
    read_env,
    read_json,
    read_metrics,
    read_results,
    read_yaml,
    series,
    training_seconds,
)

# The first columns of every recipe's table. The figures of results.json come after last_loss.
CORE = ["experiment", "model", "optimiser", "learning_rate", "batch", "epochs", "first_loss", "last_loss"]
RUN = ["grad_norm", "parameters", "wall_time", "memory_gb", "device", "gpus", "torch", "engine"]
MARKS = ("config.yaml", "env.json", "metrics.jsonl", "results.json", "sweep.json")
# Config keys that need no column of their own: a core column shows them.
_SHOWN = {"model.class", "optim.name", "optim.lr", "data.max_duration"}
_GRAD_NORM_STEPS = 100


def experiments(recipe: Path) -> list[Path]:
    """The experiments of a recipe: the folders exp/*/ that hold a file which a run leaves."""
    return sorted(path for path in (recipe / "exp").glob("*") if any((path / mark).is_file() for mark in MARKS))


def build(recipe: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The table's columns and rows.

    An experiment that is broken or half-way has a row with what there is. Columns that don't explain themselves:

    * ``batch``: seconds of audio, or images.
    * ``epochs``: how many were trained.
    * ``first_loss``: of the first step that was logged. ``last_loss``: the mean of the last epoch.
    * ``grad_norm``: the median over the last steps that were logged.
    * ``wall_time``: of training, h:mm:ss.
    * ``memory_gb``: peak memory in GB, summed over the processes of the training.
    * ``gpus``: how many PyTorch saw on the machine (0: it could use none). ``torch``: its version.
    * ``engine``: the container engine, or ``none``.
    """
    folders = experiments(recipe)
    configs = {path: _flat(read_yaml(path / "config.yaml")) for path in folders}
    rows = []
    figures: dict[str, None] = {}  # an ordered set
    for path in folders:
        row, found = _row(path, configs[path])
        figures.update(dict.fromkeys(sorted(found)))
        rows.append({**row, **found})
    known = [config for config in configs.values() if config]
    keys = dict.fromkeys(key for config in known for key in config if key not in _SHOWN)
    different = [key for key in keys if len({_text(config.get(key)) for config in known}) > 1]
    for path, row in zip(folders, rows):
        row.update({key: _text(configs[path].get(key)) for key in different})
    status = ["status"] if any("status" in row for row in rows) else []  # only if there were sweeps
    columns = [*CORE, *sorted(figures), *RUN, *status, *different]
    return columns, [{column: row.get(column, "") for column in columns} for row in rows]


def write_table(recipe: Path) -> Path:
    """Write ``recipe/params_table.csv`` (UTF-8, RFC 4180) and return its path."""
    columns, rows = build(recipe)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(recipe / "params_table.csv", text.getvalue())
    return recipe / "params_table.csv"


def _row(path: Path, config: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """An experiment's core columns and its figures."""
    steps, epochs = read_metrics(path / "metrics.jsonl")
    env = read_env(path)
    losses, means = series(steps, "loss")[1], series(epochs, "train_loss")[1]
    norms = series(steps, "grad_norm")[1][-_GRAD_NORM_STEPS:]
    seconds = training_seconds(env, epochs)
    row = {
        "experiment": path.name,
        "model": _text(config.get("model.class")),
        "optimiser": _text(config.get("optim.name")),
        "learning_rate": _text(config.get("optim.lr")),
        "batch": _text(config.get("data.max_duration", config.get("data.batch_size"))),
        "epochs": str(len(epochs)) if epochs or steps else "",
        "first_loss": _short((losses or means or [None])[0]),
        "last_loss": _short((means or losses or [None])[-1]),
        "grad_norm": _short(statistics.median(norms) if norms else None),
        "parameters": _text(env.get("parameters")),
        "wall_time": f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}" if seconds else "",
        "memory_gb": _short(env.get("memory_sum_gb")),
        "device": _text(env.get("device")),
        "gpus": _text(env.get("gpus")),
        "torch": _text(versions.get("torch") if isinstance(versions := env.get("versions"), dict) else None),
        "engine": _text(env.get("engine") or env.get("container")),
    }
    if status := sweep_status(path):
        row["status"] = status
    return row, {
        "/".join(str(result[key]) for key in ("test_set", "method", "metric")): _short(result.get("value"))
        for result in read_results(path)
    }


def sweep_status(exp: Path) -> str:
    """How a sweep's trial ended, with the reason (``failed: ...``); "" for an experiment that belongs to no sweep.

    If its results are newer than that note, a person has run it again by hand: it is done.
    """
    known = read_json(exp / "sweep.json")
    if not isinstance(known, dict):
        return ""
    try:
        if (exp / "results.json").stat().st_mtime > (exp / "sweep.json").stat().st_mtime:
            return "done"
    except OSError:
        pass
    return ": ".join(str(known[key]) for key in ("status", "reason") if known.get(key))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _text(value: Any) -> str:
    """A cell's text: "" for None, strings and numbers as they are, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Any) -> str:
    """A measured figure with four significant digits."""
    return f"{value:.4g}" if number(value) else ""
