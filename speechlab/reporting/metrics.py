"""Reading what runs leave: a file that is missing, half-written or broken gives what there is of it, no exception."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The file's JSON, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
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
    rows = read_json(exp / "results.json")
    named = {"test_set", "method", "metric"}
    return [r for r in rows if isinstance(r, dict) and named <= r.keys()] if isinstance(rows, list) else []


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
    told = [env.get("corpus"), env.get("data"), data.get("corpus"), data.get("folder"), _option(env, "--data")]
    return next((Path(str(name)).name for name in told if name), "")


def _option(env: dict[str, Any], name: str) -> str:
    """What followed an option in env.json's command, or ''."""
    try:
        words = shlex.split(str(env.get("command") or ""))
    except ValueError:  # an open quote
        return ""
    return next((value for word, value in zip(words, words[1:]) if word == name), "")


def option(env: dict[str, Any], name: str) -> str:
    """What followed an option in env.json's command, or ''."""
    return _option(env, name)


def judged_by(exp: Path, epochs: list[dict[str, Any]]) -> str:
    """The key of the epoch lines that says which epoch is best: as env.json tells it, else the first that is there of
    an error rate, another figure of the validation set, or the training loss."""
    told = read_env(exp).get("metric")
    keys = list(dict.fromkeys(key for record in epochs for key in record))
    if isinstance(told, str) and (told in keys or not epochs):
        return told
    valid = [key for key in keys if key.startswith("valid_")]
    rates = [key for key in valid if key != "valid_loss"]
    return next(iter([*(key for key in rates if lower_is_better(key)), *rates, *valid, "train_loss"]))


def lower_is_better(name: str) -> bool:
    """Whether a metric is an error or a loss, and not a quality, by its name."""
    return not any(word in name.lower() for word in ("acc", "bleu", "f1", "snr", "sdr", "pesq", "stoi", "mos", "corr"))


def number(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
