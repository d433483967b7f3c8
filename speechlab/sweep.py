"""Several experiments from one file: ``./run.sh --sweep conf/sweep/optimizer.yaml [--nj N]``.

A sweep's file has a ``grid``, or named ``experiments``, or both; or it has ``optuna``. The other keys are optional:

    about: Which optimiser?                      # a line for the picture
    config: conf/mlp.yaml                        # default: --config, or else the recipe's own config
    base: {train.epochs: 10}                     # settings of all trials; --set on the command line goes over them
    metric: valid_error                          # what trials are compared by (default: what the task judges by)
    grid: {optim.name: [sgd, adam], optim.lr: [0.1, 0.01]}       # one trial for every combination
    experiments: {wide: {model.hidden: 512}, small: {config: conf/logistic.yaml}}
    optuna: {trials: 20, minutes: 30, seed: 1, space: {optim.lr: {log: [1e-4, 1e-1]}, model.layers: {int: [1, 3]},
             model.dropout: {uniform: [0, 0.5]}, optim.name: [sgd, adam]}}

Each trial is an experiment of its own, exp/<corpus>_<config>_<sweep>_<trial>. run.sh runs it: so what is done is kept,
and what was interrupted goes on. If a trial fails, its row in the table says why, and the sweep goes on. With --nj N,
N trials run at once, each on its share of the cores.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlab import tasks
from speechlab.config import setting
from speechlab.errors import UserError, cli
from speechlab.reporting import html, sweeps
from speechlab.reporting.sweeps import DONE, FAILED, INTERRUPTED, TO_DO, Trial
from speechlab.reporting.table import write_table
from speechlab.training.sweep_file import Sweep, read

REQUEUE = 85  # exit status of a training that was told to end: it has saved, and shall be started again
BARE = {"force", "dry_run", "help"}  # options of run.sh without a value
FIRST_TRAINING_STAGE = 4  # the same in every recipe; the stages before it make data, which trials share


def options(words: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The options in a command line of run.sh: for each its name, its value, and its words as they stand there."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = "help" if word == "-h" else name.replace("-", "_")
        whole = [word]
        if not equals and name not in BARE and rest:
            value = rest.pop(0)
            whole.append(value)
        found.append((name, value, whole))
    return found


class Recipe:
    """run.sh with the user's options. It is asked what experiment and config they mean, and runs once per trial."""

    def __init__(self, file: Path, caller: Path, command: list[str]):
        self.file, self.caller, self.script = file, caller, command[0]
        self.folder = Path(command[0]).resolve().parent
        self.shown = file.relative_to(self.folder) if file.is_relative_to(self.folder) else file
        self.options = options(command[1:])
        self.given = {name: value for name, value, _ in self.options}
        self.sets = [value for name, value, _ in self.options if name == "set"]
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.nj = max(1, int(self.given.get("nj", 1)))  # without --nj, one trial at a time, on all cores
        self._asked: dict[str, dict[str, Any]] = {}

    def words(self, *without: str) -> list[str]:
        """The user's options again, but not those that ``without`` names."""
        return [word for name, _, whole in self.options if name not in without for word in whole]

    def config(self, path: str) -> str:
        """The absolute path of a config in the sweep's file, which is relative to the recipe's folder."""
        if path and not (self.folder / path).is_file():
            there = sorted(str(found.relative_to(self.folder)) for found in self.folder.glob("conf/*.yaml"))
            raise UserError(f"{self.shown}: no config {path}; there are {', '.join(there)}", 2)
        return str((self.folder / path).resolve()) if path else ""

    def ask(self, config: str) -> dict[str, Any]:
        """What run.sh makes of a config ("": its own): its ``exp``, its ``config``, and the ``options`` that it has.

        Raises:
            UserError: run.sh refuses the user's options; with its own reason.
        """
        if config not in self._asked:
            chosen = ["--config", config] if config else []
            done = subprocess.run(["bash", self.script, *self.words(), *chosen, "--sweep", str(self.file)],
                                  cwd=self.caller, env={**os.environ, "SPEECHLAB_SWEEP_ASKS": "1"},
                                  stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
            if done.returncode:
                raise UserError(reason(done.stderr) or f"{self.script} ended with {done.returncode}", done.returncode)
            self._asked[config] = json.loads(done.stdout[done.stdout.index('{"exp"'):])
        return self._asked[config]

    def command(self, trial: Trial, *more: str) -> list[str]:
        """The command that runs a trial. The user's --set go over the sweep's base, the trial's settings over both."""
        chosen = ["--config", trial.config] if trial.config else []
        several = ["--nj", str(max(1, len(self.cores) // self.nj))] if self.nj > 1 else []
        without = ["tag", "exp", "set", *(["config"] if chosen else []), *(["nj"] if several else [])]
        sets = [word for pair in trial.pairs for word in ("--set", pair)]
        return ["bash", self.script, *self.words(*without), *chosen, *several, "--exp", str(trial.exp), *sets, *more]


def prepare(sweep: Sweep, recipe: Recipe, trials: Sequence[Trial]) -> None:
    """Give each trial its config, settings and folder, and check them by reading its config.

    Raises:
        UserError: for a key or a type that the config does not have; it names the sweep's file and the trial.
    """
    for trial in trials:
        own = {key: value for key, value in trial.sets.items() if key != "config"}
        user = {pair.partition("=")[0] for pair in recipe.sets}
        user |= {"config"} & set(recipe.given)
        if both := sorted(user & set(trial.sets)):
            raise UserError(f"{recipe.shown}: {both[0]} is what the sweep varies: leave it out of the command line", 2)
        named = trial.sets.get("config") or ("" if "config" in recipe.given else sweep.config)
        trial.config = recipe.config(str(named))
        asked = recipe.ask(trial.config)
        if sweep.base and "config" not in asked["options"]:
            raise UserError(f"{recipe.script} has no option --config: it can't take a sweep", 2)
        trial.exp = Path(f"{asked['exp']}_{sweep.name}_{trial.name}")
        trial.pairs = [*(setting(*item) for item in sweep.base.items()), *recipe.sets,
                       *(setting(*item) for item in own.items())]
        path = Path(asked["config"])
        try:
            tasks.at(recipe.folder)
            tasks.load_config(path if path.is_absolute() else recipe.folder / path, trial.pairs)
        except UserError as error:
            raise UserError(f"{recipe.shown}, {trial.name}: {error}", 2) from None


def reason(text: str) -> str:
    """Why a run failed, in one line: the last line with ``error:`` that says more than that a stage failed. If there is
    none: what the last traceback raised, or another last line."""
    lines = [re.sub(r"^\s*\|\s?", "", line).strip() for line in text.splitlines()]
    told = [line for line in lines if line.startswith(("error: ", "run.sh: "))]
    stage = [line for line in told if re.match(r"error: stage \d+: .* failed with status", line)]
    for line in [*reversed([line for line in told if line not in stage]), *_traceback(lines), *reversed(stage),
                 *reversed([line for line in lines if line])]:
        return line.removeprefix("error: ")
    return ""


def _traceback(lines: list[str]) -> list[str]:
    """The line of the last traceback that says what was raised; an empty list if there is none."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1]:] if starts else []
    return [line for line in after if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)][-1:]


class Runner:
    """Runs trials, ``recipe.nj`` at once, and passes signals on to them."""

    def __init__(self, sweep: Sweep, recipe: Recipe, folder: Path):
        self.sweep, self.recipe, self.folder = sweep, recipe, folder
        self.running: dict[int, subprocess.Popen] = {}
        self.stopped = 0  # after a signal: the status to end with
        self.sharing = threading.Lock()  # only one trial at a time makes the data that all trials read
        self.telling = threading.Lock()
        self.ended = 0

    def run(self, source: Iterator[Trial], total: int) -> int:
        """Run the trials of ``source``. Returns 0, or the exit status for a signal that came."""
        self.total, self.begun = total, time.monotonic()
        before = {number: signal.signal(number, self._on_signal)
                  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
                  if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # nohup
        failures: list[BaseException] = []

        def work(place: int) -> None:
            try:
                self._pin(place)
                while not self.stopped:
                    with self.telling:
                        trial = next(source, None)
                    if trial is None:
                        return
                    self._trial(trial)
            except BaseException as error:
                failures.append(error)
                self.stopped = self.stopped or 1

        threads = [threading.Thread(target=work, args=(place,)) for place in range(self.recipe.nj)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # short, because signals are handled only in between
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if failures:
            raise failures[0]
        return self.stopped

    def _pin(self, place: int) -> None:
        """Restrict this thread, and all processes that it starts, to its share of the cores. (A training uses all cores
        that it sees.)"""
        share = len(self.recipe.cores) // self.recipe.nj
        if self.recipe.nj > 1 and share and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.recipe.cores[place * share:(place + 1) * share])

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stopped = self.stopped or (REQUEUE if number == signal.SIGUSR1 else 128 + number)
        for process in list(self.running.values()):
            if process.poll() is None:
                process.send_signal(number)

    def _trial(self, trial: Trial) -> None:
        started = time.monotonic()
        self._say(f"sweep {self.sweep.name}, trial {trial.name}: {' '.join(trial.pairs) or 'as it is'}")
        stage = int(self.recipe.given.get("stage") or 0)
        output, status = "", 0
        if self.recipe.nj > 1 and stage < FIRST_TRAINING_STAGE and "stop_stage" not in self.recipe.given:
            with self.sharing:
                status, output = self._run(trial, "--stop_stage", str(FIRST_TRAINING_STAGE - 1))
        if not status and not self.stopped:
            status, output = self._run(trial)
        elapsed = time.monotonic() - started
        trial.seconds += elapsed
        if status in (REQUEUE, 130) or (status and self.stopped):
            trial.status, trial.reason = INTERRUPTED, "it goes on when the sweep is run again"
            self.stopped = status if status == REQUEUE else self.stopped or status
        elif self.stopped and not output:
            trial.status = TO_DO
        elif status:
            trial.status, trial.reason = FAILED, reason(output) or f"status {status}"
        else:
            trial.status, trial.reason = DONE, ""
        if trial.status == DONE and self.sweep.metric and sweeps.measure(trial, self.sweep.metric).best is None:
            trial.status = FAILED
            trial.reason = f"none of its epochs has a figure {self.sweep.metric} (the sweep's metric)"
        sweeps.note(trial, self.sweep.name)
        with self.telling:
            self.ended += 1
            found = sweeps.measure(trial, self.sweep.metric)
            best = f", {found.metric} {found.best:.4g} (epoch {found.epoch})" if found.best is not None else ""
            left = (time.monotonic() - self.begun) / self.ended * (self.total - self.ended)
            more = f"; about {sweeps.clock(left)} to go" if self.ended < self.total and not self.stopped else ""
            print(f"sweep {self.sweep.name} {self.ended}/{self.total}: {trial.name}: {trial.status}"
                  f"{': ' + trial.reason if trial.reason else ''}{best}, {sweeps.clock(elapsed)}{more}", flush=True)

    def _run(self, trial: Trial, *more: str) -> tuple[int, str]:
        """Run run.sh once; its output is shown and logged. Returns its exit status and the end of its output."""
        threads = {"OMP_NUM_THREADS": str(max(1, len(self.recipe.cores) // self.recipe.nj))}
        env = {**os.environ, "SPEECHLAB_IN_SWEEP": "1", **(threads if self.recipe.nj > 1 else {})}
        log = self.folder / "log" / f"{trial.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        tail: list[str] = []
        with open(log, "w" if not more else "a", encoding="utf-8") as file:
            # It gets a process group of its own: then only _on_signal sends it Ctrl-C, and not the terminal as well.
            process = subprocess.Popen(self.recipe.command(trial, *more), cwd=self.recipe.caller, env=env, text=True,
                                       encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
            self.running[process.pid] = process
            if self.stopped:  # a signal came before the process was known
                process.send_signal(signal.SIGINT)
            for line in process.stdout:
                file.write(line)
                tail = [*tail[-200:], line]
                self._say(f"[{trial.name}] {line}" if self.recipe.nj > 1 else f"  {line}", end="")
            status = process.wait()
            del self.running[process.pid]
        return (128 - status if status < 0 else status), "".join(tail)

    def _say(self, text: str, end: str = "\n") -> None:
        with self.telling:
            print(text, end=end, flush=True)


def run(sweep: Sweep, recipe: Recipe) -> int:
    """Run a sweep (with --dry_run: only show it), and write its table and picture. Returns the exit status."""
    probes = sweep.optuna.probes() if sweep.optuna else sweep.trials
    prepare(sweep, recipe, probes)
    folder = Path(f"{recipe.ask(probes[0].config)['exp']}_{sweep.name}")
    if sweep.optuna:
        sweep.optuna.open(folder / "trials.json", recipe.nj)
        sweep.trials = sweep.optuna.trials
        prepare(sweep, recipe, sweep.trials)
    for trial in sweep.trials:
        sweeps.recall(trial)
    if recipe.given.get("dry_run", "false") != "false":
        for trial in sweep.trials:
            print(f"{trial.status:12} {trial.exp.name}: {' '.join(trial.pairs)}")
        if sweep.optuna:
            print(f"and others as Optuna chooses them, {sweep.optuna.count} in all")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"this sweep is running already ({folder}): wait for it, or use --tag") from None
        runner = Runner(sweep, recipe, folder)

        def source() -> Iterator[Trial]:
            if sweep.optuna is None:
                yield from sweep.trials
                return
            for trial in sweep.optuna.ask():
                prepare(sweep, recipe, [trial])
                yield trial

        total = sweep.optuna.count if sweep.optuna else len(sweep.trials)
        stopped = runner.run(_recorded(source(), sweep, recipe), total)
        if sweep.optuna:
            sweep.optuna.save()
        text = sweeps.write(recipe.folder, sweep.name, sweep.about, sweep.trials, sweep.metric)
        table, page = write_table(recipe.folder), html.write_recipe(recipe.folder)
        print(f"\n{text}\n{recipe.folder / f'sweep_{sweep.name}.csv'}, .png, {table.name}, {page.name}", flush=True)
    failed = [trial for trial in sweep.trials if trial.status == FAILED]
    if stopped:
        print("interrupted: the same command goes on", file=sys.stderr)
        return stopped
    if failed:
        print(f"error: {len(failed)} of {len(sweep.trials)} trials failed: {failed[0].name}: {failed[0].reason}",
              file=sys.stderr)
    return 1 if failed else 0


def _recorded(source: Iterator[Trial], sweep: Sweep, recipe: Recipe) -> Iterator[Trial]:
    """Yield the trials of ``source``. The table is written before each trial, so an interrupted sweep has one too."""
    for trial in source:
        sweeps.write_csv(recipe.folder, sweep.name, sweep.trials, sweep.metric)
        yield trial


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="the sweep's YAML file")
    parser.add_argument("--caller", type=Path, default=Path("."), help="where the user's paths are meant from")
    parser.add_argument("command", nargs="+", metavar="-- RUN.SH OPTION", help="the recipe's run.sh and its options")
    args = parser.parse_args(argv)
    caller = args.caller if args.caller.is_dir() else Path(args.command[0]).parent
    return run(read(args.file), Recipe(args.file.resolve(), caller, args.command))


if __name__ == "__main__":
    raise SystemExit(main())
