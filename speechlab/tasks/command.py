"""Command lines whose options depend on a task: read in two steps, first the experiment, then what its task takes."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from speechlab import tasks
from speechlab.errors import UserError
from speechlab.tasks.interface import Task


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], command: str) -> tuple[argparse.Namespace, Task]:
    """The arguments with those of the experiment's task, and the task.

    The experiment is ``args.exp``, or the first of ``args.compare``. ``--help`` without one shows what every task of
    the package takes.
    """
    exp, checkpoint = _peek(parser, argv)
    if exp is None:
        if {"-h", "--help"} & set(argv):
            for name in tasks.names():
                _describe(parser, tasks.find(name), command)
        parser.parse_args(argv)  # which says what is missing, or shows the help
        parser.error("which experiment?")
    task = _task(exp, checkpoint)
    _describe(parser, task, command)
    args, rest = parser.parse_known_intermixed_args(argv)  # options may stand among the files
    if rest:
        raise UserError(f"{parser.prog} does not take {' '.join(rest)}: the task of {exp} is {task.name}, and --help "
                        "with an experiment shows what it takes", 2)
    return args, task


def _peek(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Path | None, Path | None]:
    """The experiment and ``--checkpoint``, as far as they can be told before the task's options are known.

    Whether a word behind an option that only the task knows is its value or the experiment, nobody can say yet: it is
    taken for the experiment if it looks like one.
    """
    silent = io.StringIO()
    words = [word for word in argv if word not in ("-h", "--help")]
    required = [action for action in parser._actions if action.required]
    for action in required:  # what is missing is said later, with all options known
        action.required = False
    try:
        with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            known, rest = parser.parse_known_args(words)
    except SystemExit:
        return None, None
    finally:
        for action in required:
            action.required = True
    if getattr(known, "compare", None):
        return known.compare[0], None
    unknown = {word for word in rest if word.startswith("-") and "=" not in word}
    positional = {str(word) for word in (known.exp, *(getattr(known, "paths", None) or ()), *rest)}
    for before, word in zip(["", *words], words):
        if word in positional and not word.startswith("-") and (before not in unknown or _is_experiment(Path(word))):
            return Path(word), getattr(known, "checkpoint", None)
    return None, None


def _is_experiment(path: Path) -> bool:
    return path.is_file() or (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()


def _task(exp: Path, checkpoint: Path | None) -> Task:
    if checkpoint is not None or exp.is_file():
        return tasks.find(tasks.read_state(exp, checkpoint)["config"]["task"], str(checkpoint or exp))
    return tasks.of(exp)


def _describe(parser: argparse.ArgumentParser, task: Task, command: str) -> None:
    group = parser.add_argument_group(f"task {task.name}", task.about)
    task.arguments(group, command)  # type: ignore[arg-type]
    if command != "score" and (methods := task.methods()):
        text = "\n".join(f"  {name:12s} {about}" for name, about in methods.items())
        parser.epilog = f"{parser.epilog or ''}\n\nmethods of the task {task.name}:\n{text}".strip()
