"""A sweep that searches (section ``optuna``): Optuna proposes each trial from the results of the trials before it.

There is no database. A file of our own keeps what was tried. For every proposal, Optuna's study is made again from this
file, with a seed that depends on the trial's number. So an interrupted search goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlab.errors import UserError
from speechlab.files import read_json, write_json
from speechlab.reporting.metrics import number
from speechlab.reporting.sweeps import DONE, Trial, measure
from speechlab.scoring import metric

KEYS = ("trials", "minutes", "metric", "direction", "space", "seed")
KINDS = ("log", "uniform", "int", "logint", "choice")


def package() -> Any:
    """Optuna, or a UserError that says how to get it."""
    try:
        import optuna
    except ImportError:
        raise UserError("a sweep with optuna needs that package: pip install 'optuna==5.0.0' (the extra `sweep` of "
                        "setup.py), or name the values in a grid") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """Section ``optuna`` of a sweep's file. Its keys are:

    * ``space``: for each setting, where to search. ``{uniform: [a, b]}`` and ``{log: [a, b]}`` are numbers between two
      ends, drawn evenly or on a logarithmic scale. ``{int: [a, b]}`` and ``{logint: [a, b]}`` are the same for whole
      numbers, both ends included. ``[x, y]`` or ``{choice: [x, y]}`` is one of a list.
    * ``trials``: the largest number of trials (0: no limit).
    * ``minutes``: no trial is begun after so many minutes of running trials (0: no limit); of N trials that run at once
      (--nj N), a minute counts once. One of ``trials`` and ``minutes`` must be given.
    * ``seed``: for Optuna's random numbers.
    * ``metric``: the key of the epoch lines whose best value counts (default: what the task judges by).
    * ``direction``: minimize or maximize (default: as the metric says; minimize if it does not say).
    """

    def __init__(self, raw: dict[str, Any], where: Path):
        for key in raw:
            if key not in KEYS:
                raise UserError(f"{where}: optuna: unknown key '{key}'; there are {', '.join(KEYS)}", 2)
        for key in ("trials", "minutes", "seed"):
            if not number(raw.get(key, 0)) or raw.get(key, 0) < 0:
                raise UserError(f"{where}: optuna: {key} must be a number, not {raw[key]!r}", 2)
        self.limit, self.minutes, self.seed = int(raw.get("trials", 0)), raw.get("minutes", 0), int(raw.get("seed", 1))
        if not self.limit and not self.minutes:
            raise UserError(f"{where}: optuna needs trials or minutes, or both", 2)
        self.metric = str(raw.get("metric", ""))
        self.told = raw.get("direction")
        if self.told not in (None, "minimize", "maximize"):
            raise UserError(f"{where}: optuna: direction must be minimize or maximize, not {self.told!r}", 2)
        self.space = raw.get("space")
        if not isinstance(self.space, dict) or not self.space:
            raise UserError(f"{where}: optuna needs a space: keys with what they may be", 2)
        self.optuna = package()
        self.distributions = {key: self._distribution(key, value, where) for key, value in self.space.items()}
        self.trials: list[Trial] = []
        self.file, self.nj = Path(), 1

    @property
    def count(self) -> int:
        """How many trials there will be: at most ``trials``; if there is no limit, as many as there are now."""
        return self.limit or len(self.trials)

    @property
    def direction(self) -> str:
        """``minimize`` or ``maximize``: as the sweep's file says, or else as the metric says. A trial's task may have
        declared the metric, or even chosen it."""
        kinds = (found.kind for trial in self.trials if (found := measure(trial, self.metric)).values)
        kind = next(kinds, metric.find(self.metric))
        return self.told or ("minimize" if kind.lower is not False else "maximize")

    def _value(self, trial: Trial) -> float | None:
        """A trial's value: that of its best epoch, in the search's direction; None if it has none."""
        values = measure(trial, self.metric).values
        return (min if self.direction == "minimize" else max)(values, default=None)

    def _distribution(self, key: str, value: Any, where: Path) -> Any:
        kind, ends = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("choice", value)
        kinds = self.optuna.distributions
        try:
            if kind not in KINDS or not isinstance(ends, list):
                raise ValueError(f"one of {', '.join(KINDS)}, with a list")
            if kind == "choice":
                if not ends:
                    raise ValueError("a list with something in it")
                return kinds.CategoricalDistribution([json.dumps(end) for end in ends])  # as JSON: values of any type
            low, high = (float(end) for end in ends)  # float(), because YAML 1.1 reads 1e-4 as text
            if kind in ("int", "logint"):
                return kinds.IntDistribution(int(low), int(high), log=kind == "logint")
            return kinds.FloatDistribution(low, high, log=kind == "log")
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: optuna: space: '{key}' must be {{log: [1e-4, 1e-1]}} or the like: {error}", 2) \
                from None

    def probes(self) -> list[Trial]:
        """Trials with the ends of the space and with each choice. They are never run: with them one can check that the
        config accepts these values."""
        values = {key: [json.loads(choice) for choice in kind.choices] if hasattr(kind, "choices")
                  else [kind.low, kind.high] for key, kind in self.distributions.items()}
        count = max(len(found) for found in values.values())
        return [Trial(f"probe-{i}", {key: found[min(i, len(found) - 1)] for key, found in values.items()})
                for i in range(count)]

    def open(self, file: Path, nj: int) -> None:
        """Read the trials of an earlier run from ``file``, and go on with them.

        Raises:
            UserError: they were chosen from another space.
        """
        self.file, self.nj = file, nj
        known = read_json(file)
        if not isinstance(known, dict):
            return
        if known.get("space") != self._plain():
            raise UserError(f"{file}: its trials were chosen from another space: use --tag NAME for a new sweep, or "
                            "remove that file")
        self.trials = [Trial(str(item["name"]), item["params"]) for item in known.get("trials", [])]

    def _plain(self) -> Any:
        return json.loads(json.dumps(self.space))

    def save(self) -> None:
        """Write the trials to the file."""
        trials = [{"name": trial.name, "params": trial.sets, "status": trial.status, "reason": trial.reason,
                   "value": self._value(trial), "seconds": round(trial.seconds, 1)}
                  for trial in self.trials]
        write_json(self.file, {"space": self._plain(), "trials": trials})

    def ask(self) -> Iterator[Trial]:
        """Yield the known trials (run.sh does nothing for those that are done), then new ones up to the limits."""
        yield from list(self.trials)
        while not self.limit or len(self.trials) < self.limit:
            if self.minutes and sum(trial.seconds for trial in self.trials) > 60 * self.minutes * self.nj:
                return
            trial = Trial(f"{len(self.trials):03d}", self._propose(len(self.trials)))
            self.trials.append(trial)
            self.save()
            yield trial

    def _propose(self, place: int) -> dict[str, Any]:
        optuna = self.optuna
        sampler = optuna.samplers.TPESampler(seed=self.seed * 1_000_003 + place)
        study = optuna.create_study(direction=self.direction, sampler=sampler)
        for trial in self.trials:
            best = self._value(trial)
            done = trial.status == DONE and best is not None and math.isfinite(best)
            params = {key: json.dumps(value) if hasattr(self.distributions[key], "choices") else value
                      for key, value in trial.sets.items()}
            study.add_trial(optuna.trial.create_trial(
                params=params, distributions=self.distributions, value=best if done else None,
                state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.FAIL))
        found = study.ask(self.distributions).params
        return {key: self._rounded(key, value) for key, value in found.items()}

    def _rounded(self, key: str, value: Any) -> Any:
        """A number with four digits, which are exact enough; a choice as the value that it stands for."""
        kind = self.distributions[key]
        if hasattr(kind, "choices"):
            return json.loads(value)
        return value if isinstance(value, int) else min(max(float(f"{value:.4g}"), kind.low), kind.high)
