"""What the entry points ask of a task. They know no task by name; a task is found by it (``tasks.find``).

A task is a folder of this package, or a module in a recipe's ``local/``, that holds ``TASK``: an object of a class
derived from :class:`Task`. Only :attr:`Task.Config`, :attr:`Task.metrics`, :meth:`Task.trainable` and
:meth:`Task.load` must be written. The other methods have an answer for any task whose items have one reference and one
answer each; a task with more to say overrides them. speechlab/tasks/utterance.py is such a task for "one answer per
utterance", and egs/README.md builds a recipe on it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from speechlab.data.inputs import AUDIO
from speechlab.errors import UserError
from speechlab.progress import progress
from speechlab.scoring import items as answers
from speechlab.scoring.compare import Comparison, compare_values
from speechlab.scoring.metric import Metric
from speechlab.scoring.results import Row, mean_row
from speechlab.scoring.views import Mistakes
from speechlab.tasks.recordings import Recordings
from speechlab.training.interface import Trainable

WORST = 30  # items that the report shows of a test set
HEARD = 8  # of these, the worst ones can be heard


@dataclasses.dataclass
class Scored:
    """What stage 6 writes: the rows of results.json, notes under the table of results.txt, mistakes for the report.

    ``text`` is for a score that is only to be looked at (sclite's, say): it is printed, and no result is written.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    mistakes: Mistakes = dataclasses.field(default_factory=Mistakes)
    text: str = ""


@dataclasses.dataclass
class Answer:
    """What ``infer`` found out about one file.

    record: what ``--json`` prints: ``file``, the answer, ``error`` (null, or what is wrong with the file).
    line: what people are shown; None where there is nothing to show.
    notes: what is worth a line on stderr, and no error.
    complaint: what stderr is told of an error, where that is more than ``record["error"]``.
    """

    record: dict[str, Any]
    line: str | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    complaint: str | None = None


class Model:
    """A trained model that answers: what ``speechlab.load(exp)`` gives."""

    config: Any  # the task's Config that it was trained with
    device: torch.device
    exp: Path | None = None  # the experiment's folder that it was loaded from

    def methods(self) -> dict[str, str]:
        """The ways in which it can answer, each with a few words on it."""
        return {"plain": "the model's answer"}

    def __call__(self, source: Any, rate: int | None = None, **options: Any) -> dict[str, Any]:
        """The answer on a file's path or an array, as ``infer --json`` gives it.

        Args:
            source: a path; or samples (n,), full scale 1, with their ``rate`` in Hz (pixels need none).
            options: what the command line calls ``--method`` and so on.
        Raises:
            UserError: for what can't be used; an array of samples without its rate.
        """
        raise NotImplementedError

    def answers(self, data: Path, split: str, method: str) -> Iterator[dict[str, Any]]:
        """A record for each item of a split, for :meth:`Task.decode`: ``id``, ``ref``, ``hyp``, and what else is known;
        ``error`` says why there is no answer."""
        raise NotImplementedError


class Task:
    """One task: how it is trained, how its model answers, how the answers are judged."""

    name = ""  # set by tasks.find
    about = ""
    Config: type  # a frozen dataclass; its fields are the sections of a config, among them train and optim
    metrics: Sequence[Metric] = ()  # what it judges by; experiments are ranked by the first that an experiment has
    reads: Collection[str] = AUDIO  # what infer takes from a folder, by the names' endings
    reads_what = "audio"
    wants_files = True  # infer needs at least one (a task that speaks from text does not)

    # -- what must be written ---------------------------------------------------------------------------------------

    @abstractmethod
    def trainable(self, config: Any, data: Path, device: torch.device) -> Trainable:
        """What the training loop asks (speechlab/training/interface.py)."""
        raise NotImplementedError

    @abstractmethod
    def load(self, state: dict[str, Any], device: torch.device) -> Model:
        """A checkpoint as a model that answers. ``state`` is what the loop saved: ``model`` (the weights) and all that
        the trainable's ``state()`` gave."""
        raise NotImplementedError

    # -- what may be written ----------------------------------------------------------------------------------------

    def arguments(self, parser: argparse.ArgumentParser, command: str) -> None:
        """Add what ``command`` (decode, score or infer) takes for this task beyond the options that every task has."""

    def methods(self) -> dict[str, str]:
        """The ways in which a model of this task may answer, for ``--help``; what one model can, it says itself."""
        return {}

    def judge(self, record: dict[str, Any]) -> dict[str, float]:
        """The figures of one answer by the metrics' names; a test set's figure is their mean. A wrong answer counts by
        default as an error of 100 %."""
        return {"error": 100.0 * (record["hyp"] != record["ref"])}

    def figures(self, record: dict[str, Any]) -> dict[str, float]:
        """What :meth:`judge` gives, checked.

        Raises:
            UserError: it gives nothing, a name that is none of ``metrics``, or what is no number.
        """
        found, known = self.judge(record), [metric.name for metric in self.metrics]
        if not found or (strange := sorted(set(found) - set(known))):
            raise UserError(f"judge() of the task {self.name} gives {', '.join(strange) if found else 'nothing'}: it "
                            f"must give figures by the names of its metrics ({', '.join(known) or 'it has none'})")
        try:
            return {name: float(value) for name, value in found.items()}
        except (TypeError, ValueError):
            raise UserError(f"judge() of the task {self.name} must give numbers, not {found}") from None

    def decode(self, model: Model, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
        """Answer the test sets: ``exp/decode/<method>/<test_set>/hyp.jsonl``, a line per item.

        Returns:
            The methods with their settings, which become ``exp/decode/methods.json``.
        """
        methods = chosen(model, args.methods)
        for split in test_sets(data, args.sets):
            for method in methods:
                began = time.perf_counter()
                records = list(progress(model.answers(data, split, method), f"{split} {method}"))
                answers.write(exp / "decode" / method / split, records, time.perf_counter() - began, model.device)
        return {method: {} for method in methods}

    def score(self, exp: Path, args: argparse.Namespace) -> Scored:
        """Judge what :meth:`decode` left: for each metric of :meth:`judge` the mean with its interval."""
        found = Scored()
        for (test_set, method), folder in answers.folders(exp).items():
            records = answers.read(folder)
            judged = [(record, self.figures(record)) for record in records if not record.get("error")]
            digest = answers.list_hash_of(records)
            for metric in self.metrics:
                values = [figures[metric.name] for _, figures in judged if metric.name in figures]
                broken = sum(not math.isfinite(value) for value in values)
                values = [value for value in values if math.isfinite(value)]
                failed = len(records) - len(judged) + broken
                found.rows.append(mean_row(test_set, method, metric, values, failed, digest))
                if broken:
                    found.notes.append(f"warning: {test_set} {method}: {metric.name} of {broken} items is no number: "
                                       "they are counted as failed")
            self.show(found.mistakes, test_set, method, judged, exp)
        return found

    def show(self, mistakes: Mistakes, test_set: str, method: str,
             judged: Sequence[tuple[dict[str, Any], dict[str, float]]], exp: Path) -> None:
        """Put the worst answers, by the first metric, into the report (views: speechlab/scoring/views.py); those whose
        recording is found can be heard."""
        first = next((metric for metric in self.metrics if any(metric.name in figures for _, figures in judged)), None)
        if first is None:
            return
        there = [(record, figures) for record, figures in judged if math.isfinite(figures.get(first.name, math.nan))]
        there.sort(key=lambda pair: (-first.rank(pair[1][first.name]), str(pair[0]["id"])))
        recordings, items = Recordings(exp), []
        for place, (record, figures) in enumerate(there[:WORST]):
            name, tracks = str(record["id"]), []
            if place < HEARD and (sound := recordings.read(test_set, name)) is not None:
                tracks.append({"name": "recording", **mistakes.sound(f"{test_set}/{name}", *sound)})
            items.append({"title": name, "text": f"{record['ref']} \N{RIGHTWARDS ARROW} {record['hyp']}", "figures":
                          {name: round(float(value), 6) for name, value in figures.items()}, "tracks": tracks})
        mistakes.add(test_set, method, "audio", items=items)

    def compare(self, a: Path, b: Path, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
        """Is B better than A, or is it noise? By the paired bootstrap over items, for each common method and test set.

        Returns:
            The comparisons, and a line for each pair of lists that can't be compared.
        """
        folders = answers.folders(a), answers.folders(b)
        rows: list[Comparison] = []
        refused: list[str] = []
        for left, right in answers.pairs(*folders, args):
            lists = [{str(r["id"]): r for r in answers.read(some[key])}
                     for some, key in zip(folders, (left, right))]
            if said := answers.differences(*lists):
                refused.append(f"{left[0]} {left[1]}: not one list, not compared: {said}")
                continue
            failed = {name for some in lists for name, record in some.items() if record.get("error")}
            judged = [[self.figures(some[name]) for name in sorted(some) if name not in failed] for some in lists]
            for metric in self.metrics:
                values = [[figures[metric.name] for figures in some if metric.name in figures] for some in judged]
                if values[0] and len(values[0]) == len(values[1]):
                    rows.append(compare_values(*values, metric, left[0], (left[1], right[1]), len(failed),
                                               answers.list_hash_of(lists[0].values())))
        return rows, refused

    def infer(self, model: Model, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[Answer]:
        """An answer for each file, in order."""
        for path in paths:
            try:
                record = {"file": str(path), **model(path, method=args.method), "error": None}
            except UserError as error:
                record = {"file": str(path), "hyp": None, "error": str(error)}
            yield Answer(record, None if record["error"] else f"{path}\t{record['hyp']}")


def chosen(model: Model, names: str) -> list[str]:
    """The methods that a user asked for by ``--methods``; ``all`` are those that the model has."""
    there = model.methods()
    if names == "all":
        return list(there)
    asked = list(dict.fromkeys(names.split()))
    for name in asked:
        if name not in there:
            raise UserError(f"no method '{name}': there are {', '.join(there)}", 2)
    if not asked:
        raise UserError(f"--methods names none of {', '.join(there)}", 2)
    return asked


def test_sets(data: Path, names: str = "") -> list[str]:
    """The test sets that ``--sets`` names, or every ``test*.jsonl.gz`` of the folder ``data``."""
    found = names.split() or sorted(p.name.removesuffix(".jsonl.gz") for p in data.glob("test*.jsonl.gz"))
    if not found:
        raise UserError(f"no test*.jsonl.gz in {data}: run the manifest stage (./run.sh --stage 1)")
    return found
