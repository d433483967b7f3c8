"""The stages that run.sh declares: they are read and checked here, and --help is made from them."""

from __future__ import annotations

import os
import re
import shlex

FLAGS = {"--gpu", "--ddp", "--train", "--array"}
LISTS = {"--in", "--out"}
BARE_OPTIONS = {"force", "dry_run", "help"}


class Stop(Exception):
    """Ends this run with a message of one line. ``status``: the exit status (2: wrong usage, 1: anything else)."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean X?"`` with the nearest of ``known``, or ``""`` if none is near."""
    import difflib

    found = difflib.get_close_matches(word, known, 1)
    return f": did you mean {found[0]}?" if found else ""


class Stage:
    """One stage, as a ``stage`` line of run.sh declares it: number, title, flags, inputs, outputs and command."""

    def __init__(self, words: list[str], downloads: str):
        where = f"stage {' '.join(words[:2])}"
        if len(words) < 2 or not words[0].isdigit():
            raise Stop(f"{where}: it begins with a number and a title", 2)
        self.number, self.title = int(words[0]), words[1]
        self.flags: set[str] = set()
        self.lists: dict[str, list[str]] = {"--in": [], "--out": [], "--conf": []}
        rest = words[2:]
        if "--" not in rest or rest[-1] == "--":
            raise Stop(f"{where}: there must be '-- command' at its end", 2)
        cut = rest.index("--")
        self.command = rest[cut + 1:]
        into: list[str] | None = None
        for word in rest[:cut]:
            if word in FLAGS:
                self.flags.add(word)
                into = None
            elif word in self.lists:
                into = self.lists[word]
            elif word.startswith("--") or into is None:
                raise Stop(f"{where}: unknown '{word}'{nearest(word, [*FLAGS, *self.lists])}", 2)
            elif not word:
                raise Stop(f"{where}: an empty path", 2)
            else:
                into.append(word)
        self.inputs, self.outputs = self.lists["--in"], self.lists["--out"]
        self.conf = [section for words in self.lists["--conf"] for section in words.split(",")]
        if not self.outputs:
            raise Stop(f"{where}: it needs --out, by which one sees that it is done", 2)
        self.gpu, self.ddp, self.train = ("--gpu" in self.flags, "--ddp" in self.flags, "--train" in self.flags)
        self.array = "--array" in self.flags
        self.name = f"stage {self.number}"
        slug = re.sub(r"\W+", "_", self.title.lower()).strip("_")
        self.folder = _folder(self.outputs[0])
        self.lock_folders = sorted({_desk(_folder(path), downloads) for path in self.outputs})
        desk = _desk(self.folder, downloads)
        self.record_path = os.path.join(desk, ".stages", f"{self.number}_{slug}.json")
        self.log_path = os.path.join(desk, "log", f"{self.number}_{slug}.log")


def _folder(output: str) -> str:
    """The folder that a stage writes: the one that its output is in. For a training this is the experiment, not its
    folder ``checkpoints``."""
    folder = os.path.dirname(output) or "."
    return os.path.dirname(folder) or "." if os.path.basename(folder) == "checkpoints" else folder


def _desk(folder: str, downloads: str) -> str:
    """The folder for the lock, record and log of a stage that writes ``folder``. It is ``folder`` itself, but for a
    corpus in ``downloads`` it is ``downloads/.runs/<corpus>``: the fetch renames a new folder to the corpus's name, so
    nothing may be there before."""
    inside = folder == downloads or folder.startswith(downloads + "/")
    return os.path.normpath(os.path.join(downloads, ".runs", os.path.relpath(folder, downloads))) if inside else folder


class Plan:
    """All that run.sh gave us.

    Its words are records ``kind count word...``. The kinds are ``value name text``; ``option name default help`` (those
    before the record ``own`` belong to every recipe); ``arguments ...`` (as the user typed them); ``sets ...``; and
    ``stage ...``.
    """

    script = "run.sh"

    def __init__(self, words: list[str]):
        self.values: dict[str, str] = {}
        self.common: dict[str, tuple[str, str]] = {}
        self.own: dict[str, tuple[str, str]] = {}
        self.arguments: list[str] = []
        self.sets: list[str] = []
        self.stages: list[Stage] = []
        self.python = ""  # "" until it is chosen
        self.remark = ""  # what to say about it, once; "": nothing
        position, options = 0, self.common
        while position < len(words):
            kind, count = words[position], int(words[position + 1])
            record = words[position + 2:position + 2 + count]
            position += 2 + count
            if kind == "value":
                self.values[record[0]] = record[1]
                if record[0] == "run":
                    Plan.script = os.path.basename(record[1])
            elif kind == "own":
                options = self.own
            elif kind == "option":
                name, default, text = record
                (self.common if name in self.common else options)[name] = (default, text)
            elif kind == "arguments":
                self.arguments = record
            elif kind == "sets":
                self.sets = record
            else:
                self.stages.append(Stage(record, self.values["downloads"]))
        numbers = [stage.number for stage in self.stages]
        if numbers != sorted(numbers):
            raise Stop(f"the stages are not in order: {numbers}", 2)
        records = [stage.record_path for stage in self.stages]
        for stage, record in zip(self.stages, records):
            if records.count(record) > 1:
                raise Stop(f"two stages {stage.number} are called '{stage.title}'", 2)

    def flag(self, name: str) -> bool:
        return self.values.get(name) == "true"

    def selected(self) -> list[Stage]:
        """The stages from --stage to --stop_stage. It is an error if there are none. But a recipe need not have all
        numbers (they mean the same in all recipes), and --stop_stage may be too high (Kaldi's users type 100)."""
        if not self.stages:
            raise Stop("there are no stages", 2)
        numbers = sorted({stage.number for stage in self.stages})
        first = int(self.values["stage"] or 0)
        last = int(self.values["stop_stage"] or numbers[-1])
        there = f"the stages are {', '.join(map(str, numbers))}"
        if first > numbers[-1]:
            raise Stop(f"there is no stage {first}: {there}", 2)
        selected = [stage for stage in self.stages if first <= stage.number <= last]
        if not selected:
            raise Stop(f"there is nothing from --stage {first} to --stop_stage {last}: {there}", 2)
        return selected

    def command_line(self, *more: str, drop: tuple[str, ...] = ()) -> str:
        """The user's command line again, for copy and paste: without the options in ``drop``, and with ``more``."""
        words, rest = [self.values["run"]], list(self.arguments)
        while rest:
            word = rest.pop(0)
            name, equals, _ = word[2:].replace("-", "_").partition("=")
            whole = [word] if equals or name in BARE_OPTIONS else [word, rest.pop(0)]
            if name not in {"stage", "stop_stage", "dry_run", "force", *drop}:
                words += whole
        return shlex.join([*words, *more])

    def maker(self, path: str) -> Stage | None:
        """The stage that makes ``path``: an output of it, or what lies in or beside one, or a pattern for one."""
        fixed = path.partition("*")[0]
        for good in (lambda out: out == path, lambda out: path.startswith(out + "/"),
                     lambda out: fixed != path and out.startswith(fixed),
                     lambda out: os.path.dirname(out) == os.path.dirname(path)):
            for stage in self.stages:
                if any(good(out) for out in stage.outputs):
                    return stage
        return None


def help_text(plan: Plan) -> str:
    """The text of ``--help``: the title (from run.sh's first comment), the options and the stages."""
    title = ""
    with open(os.path.join(plan.values["recipe"], plan.values["script"]), encoding="utf-8") as file:
        for line in file:
            if line.startswith("#") and not line.startswith("#!"):
                title = line.lstrip("# ").strip()
                break
    lines = [title, "", f"Usage: {plan.values['run']} [--name value ...]"]
    for head, options in (("Options", plan.own), ("Options that every recipe has", plan.common)):
        if options:
            lines += ["", head]
        width = max([len(name) for name in options] + [0]) + 2
        for name, (default, text) in options.items():
            shown = f" [{default}]" if default and name not in BARE_OPTIONS and name != "stage" else ""
            lines.append(f"  --{name:<{width}}{text}{shown}")
    lines += ["", "Stages (what is done is passed over; --stage N enters N and does it and those after it again)"]
    for stage in plan.stages:
        lines.append(f"  {stage.number}  {stage.title}" + ("  (on the GPUs of --ngpu)" if stage.gpu else "")
                     + ("  (under Slurm: an array of --nj tasks)" if stage.array else ""))
        for what, paths in (("reads", stage.inputs), ("makes", stage.outputs)):
            for path in paths:
                lines.append(f"       {what} {short(path, plan)}")
    return "\n".join(lines) + "\n"


def short(path: str, plan: Plan) -> str:
    """``path`` as a person in the recipe's folder would write it."""
    repo = plan.values["repo"]
    return os.path.relpath(path, plan.values["recipe"]) if path.startswith(repo + "/") else path
