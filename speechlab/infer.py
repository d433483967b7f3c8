"""Answers on files: ``python -m speechlab.infer EXP FILE_OR_FOLDER...``. Nothing but the checkpoint is needed.

What is answered, the experiment's task says: a transcript, a class, a voice... A folder is searched with all below it;
``-`` is standard input, and pipes and ``<(command)`` are read too. Output, a line per file in the order given: the
path, a tab, the answer; with --json an object with ``file``, the answer's fields and ``error`` (null, or what is wrong
with the file, which stderr tells too). Exit status: 0, or 1 if a file has an error. ``--help`` with an experiment tells
its methods and the options that are its task's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from speechlab import tasks
from speechlab.data.inputs import STDIN, listed, spooled
from speechlab.errors import UserError, cli
from speechlab.files import written
from speechlab.tasks.command import parse
from speechlab.tasks.interface import Answer


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.infer", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="an experiment's folder, or a checkpoint")
    parser.add_argument("paths", nargs="*", type=given, metavar="FILE",
                        help="files, and folders of them; - is standard input")
    parser.add_argument("--method", help="how to answer (default: the task chooses)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--out", type=Path, help="a file for the output; it is there when all is done "
                        "(pipes and devices are written as it comes)")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an override of the config's section decode (decode.beam=16)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)), help="0 or 1")
    args, task = parse(parser, sys.argv[1:] if argv is None else argv, "infer")
    if task.wants_files and not args.paths:
        parser.error("the following arguments are required: FILE")
    from speechlab.training import distributed

    if args.out is not None and args.out.is_dir():  # before anything is loaded and heard
        raise UserError(f"--out {args.out} is a folder: name a file", 2)
    device = distributed.start(min(args.ngpu, 1)).device
    model = tasks.load(args.exp, args.checkpoint, device, args.set)
    files, bad = listed(args.paths, task.reads, f"{task.reads_what} file")
    for text in bad:
        complain(text)
    failed = False
    with output(args.out) as out, spooled(files) as (there, names):
        for answer in task.infer(model, there, args):
            failed |= write(out, named(answer, names), args.json)
    return 1 if failed or bad else 0


def given(text: str) -> Path:
    """A path of the command line; ``-`` is standard input (a file of that name is ./-)."""
    return STDIN if text == "-" else Path.cwd() / "-" if Path(text) == Path("-") else Path(text)


def named(answer: Answer, names: dict[str, str]) -> Answer:
    """An answer with the names that the user knows in place of those of files for the time being."""
    def say(text: Any) -> Any:
        for path, name in names.items():
            text = text.replace(path, name) if isinstance(text, str) else text
        return text

    if not names:
        return answer
    return Answer({key: say(value) for key, value in answer.record.items()}, say(answer.line),
                  [say(note) for note in answer.notes], say(answer.complaint))


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or what ``--out`` names."""
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")  # hanzi, whatever the locale
        yield sys.stdout
        return
    with written(path) as file:
        yield file


def write(out: TextIO, answer: Answer, as_json: bool) -> bool:
    """Write what was found out about a file; True if it has an error."""
    error = answer.record.get("error")
    if error:
        complain(answer.complaint or f"{answer.record.get('file')}: {error}")
    for text in answer.notes:
        tqdm.write(f"note: {text}", file=sys.stderr)
    if as_json:
        tqdm.write(json.dumps(answer.record, ensure_ascii=False), file=out)
    elif answer.line is not None:
        tqdm.write(answer.line, file=out)
    out.flush()
    return bool(error)


def complain(text: str) -> None:
    """A line on stderr, above a progress bar if there is one."""
    tqdm.write(f"error: {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
