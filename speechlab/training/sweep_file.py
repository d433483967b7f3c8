"""Reads a sweep's file (speechlab/sweep.py tells its form), checks it, and makes the trials that it describes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from speechlab.config import parse_yaml
from speechlab.errors import UserError
from speechlab.reporting.sweeps import Trial
from speechlab.training.tuning import Search

KEYS = ("about", "config", "base", "metric", "grid", "experiments", "optuna")


@dataclasses.dataclass
class Sweep:
    """What a sweep's file says, checked."""

    name: str  # the file's name without its suffix
    about: str  # a line for the picture
    config: str  # a path relative to the recipe; "": --config, or the recipe's own
    base: dict[str, Any]  # settings of all trials, by dotted key
    metric: str  # the key of the epoch lines that trials are compared by; "": what the task judges by
    trials: list[Trial]  # empty if Optuna chooses them
    optuna: Search | None


def read(path: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        UserError: (status 2) the file is not YAML, or has an unknown key, an empty list, or two trials of one name.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not plain YAML: {error}", 2) from None
    if not isinstance(raw, dict) or not {"grid", "experiments", "optuna"} & set(raw):
        raise UserError(f"{path} must be a mapping with grid, experiments or optuna", 2)
    for key in raw:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'; a sweep has {', '.join(KEYS)}", 2)
    for key, kind in (("base", dict), ("grid", dict), ("experiments", dict), ("optuna", dict), ("config", str),
                      ("metric", str), ("about", str)):
        if not isinstance(raw.get(key, kind()), kind):
            raise UserError(f"{path}: '{key}' must be {'a mapping' if kind is dict else 'a text'}", 2)
    if "optuna" in raw and ("grid" in raw or "experiments" in raw):
        raise UserError(f"{path}: optuna stands alone, without grid or experiments", 2)
    trials = [*_grid(raw.get("grid", {}), path), *_experiments(raw.get("experiments", {}), path)]
    names = [trial.name for trial in trials]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two trials would be called '{twice}'", 2)
    found = Search(raw["optuna"], path) if "optuna" in raw else None
    metric = raw.get("metric", "") or (found.metric if found else "")
    return Sweep(path.stem, raw.get("about", ""), raw.get("config", ""), raw.get("base", {}), metric, trials, found)


def _grid(grid: dict[str, Any], path: Path) -> Iterator[Trial]:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid: '{key}' must be a list of values", 2)
    if grid:
        last = [key.rsplit(".", 1)[-1] for key in grid]
        short = {key: name if last.count(name) == 1 else key for key, name in zip(grid, last)}
        for values in itertools.product(*grid.values()):
            yield Trial(slug("_".join(_word(short[key], value) for key, value in zip(grid, values))),
                        dict(zip(grid, values)))


def _experiments(experiments: dict[str, Any], path: Path) -> Iterator[Trial]:
    for name, sets in experiments.items():
        if not isinstance(sets, dict | None):
            raise UserError(f"{path}: experiments: '{name}' must be a mapping of keys to values", 2)
        if slug(str(name)) != str(name):
            raise UserError(f"{path}: experiments: '{name}' can't be a folder's name: letters, digits, . - + _", 2)
        yield Trial(str(name), sets or {})


def _word(key: str, value: Any) -> str:
    """A grid's value as a part of a trial's name: ``sgd``, ``lr0.1``, ``bias-false``, ``MLP``."""
    if isinstance(value, bool) or value is None:
        return f"{key}-{json.dumps(value)}"
    if isinstance(value, str) and not re.fullmatch(r"[\d.eE+-]+", value):  # a number may be text: YAML 1.1 and 1e-3
        return Path(value).stem if value.endswith(".yaml") else value.rpartition(":")[2]
    if isinstance(value, dict):
        return _word(key, str(value["class"])) if "class" in value else "-".join(_word(*item) for item in value.items())
    return key + ("-".join(map(str, value)) if isinstance(value, list) else str(value))


def slug(name: str) -> str:
    """``name`` in letters that a folder's name may have."""
    return re.sub(r"[^\w.+-]+", "-", name)
