"""A sweep that searches: Optuna proposes each trial from the results of those before (section ``optuna``).

What was tried is kept in a file of our own, and Optuna's study is built from it anew for every proposal, with a seed of
the trial's number: an interrupted search goes on as if nothing had been, and needs no database.
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
    """Section ``optuna`` of a sweep's file.

    space: ``{log: [a, b]}``, ``{uniform: [a, b]}`` numbers; ``{int: [a, b]}``, ``{logint: [a, b]}`` whole ones, both
    ends included; ``[x, y]`` or ``{choice: [x, y]}`` one of these. trials, minutes: at most so many, and none is begun
    after so much time of computing (0: no limit); one of the two must be given. metric: of the best epoch. direction:
    minimize or maximize (default: what the metric says, and minimize where it says nothing).
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
        """How many trials there will be, as far as one can tell."""
        return self.limit or len(self.trials)

    @property
    def direction(self) -> str:
        """As the sweep's file says; else as the metric says, which a trial's task may have declared, or even chosen."""
        kinds = (found.kind for trial in self.trials if (found := measure(trial, self.metric)).values)
        kind = next(kinds, metric.find(self.metric))
        return self.told or ("minimize" if kind.lower is not False else "maximize")

    def _value(self, trial: Trial) -> float | None:
        """A trial's figure: the best of its epochs, in the search's direction."""
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
                return kinds.CategoricalDistribution([json.dumps(end) for end in ends])  # of any type, as text
            low, high = (float(end) for end in ends)  # YAML 1.1 reads 1e-4 as text
            if kind in ("int", "logint"):
                return kinds.IntDistribution(int(low), int(high), log=kind == "logint")
            return kinds.FloatDistribution(low, high, log=kind == "log")
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: optuna: space: '{key}' must be {{log: [1e-4, 1e-1]}} or the like: {error}", 2) \
                from None

    def probes(self) -> list[Trial]:
        """Trials at the space's ends and with each choice: to see that the config takes them, not to be run."""
        values = {key: [json.loads(choice) for choice in kind.choices] if hasattr(kind, "choices")
                  else [kind.low, kind.high] for key, kind in self.distributions.items()}
        count = max(len(found) for found in values.values())
        return [Trial(f"probe-{i}", {key: found[min(i, len(found) - 1)] for key, found in values.items()})
                for i in range(count)]

    def open(self, file: Path, nj: int) -> None:
        """Go on with the trials that ``file`` knows.

        Raises:
            UserError: where they were chosen from another space.
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
        """Write down what was tried."""
        trials = [{"name": trial.name, "params": trial.sets, "status": trial.status, "reason": trial.reason,
                   "value": self._value(trial), "seconds": round(trial.seconds, 1)}
                  for trial in self.trials]
        write_json(self.file, {"space": self._plain(), "trials": trials})

    def ask(self) -> Iterator[Trial]:
        """The known trials (run.sh passes over what is done), then new ones until the budget is spent."""
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
        """Four digits are enough to find a place again; a choice as what it stands for."""
        kind = self.distributions[key]
        if hasattr(kind, "choices"):
            return json.loads(value)
        return value if isinstance(value, int) else min(max(float(f"{value:.4g}"), kind.low), kind.high)
