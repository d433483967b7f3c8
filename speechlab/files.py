"""Files written so that each is either whole or not there (a temporary file is written, fsynced and renamed); folders
read with all below them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from speechlab.errors import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to. On success it is fsynced and renamed to ``path``. On any
    exception it is removed, and ``path`` stays as it was. Both may be a file or a folder.

    The temporary name keeps the suffixes (``x.jsonl.gz`` -> ``.tmp-<pid>-x.jsonl.gz``), because some writers choose the
    format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield aside
        if aside.is_file():
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            shutil.rmtree(path)  # os.replace refuses to put a folder over one that is not empty
        os.replace(aside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(path)  # of a write that failed, Python does not say where
        shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[TextIO]:
    """A text file to write UTF-8 to: what a person named for output, whatever it is.

    A regular file is there when it is whole (:func:`atomic`), and where ``path`` is a link, the file that it leads to.
    What is no regular file (a FIFO, a device, ``/dev/stdout``, ``>(command)``) is written through. ``-`` is standard
    output.

    Raises:
        UserError: (status 2) for a folder.
    """
    path = Path(path)
    if (number := _descriptor(path)) is not None:
        sys.stdout.flush()
        with open(os.dup(number), "w", encoding="utf-8") as file:  # not opened by its name: that begins at the start
            yield file
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:  # a link may lead to what is not there yet
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder: name a file", 2)
    if not stat.S_ISREG(mode):
        with open(path, "w", encoding="utf-8") as file:
            yield file
        return
    with atomic(os.path.realpath(path)) as aside, open(aside, "w", encoding="utf-8") as file:
        yield file


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path stands for, as /dev/stdout, /dev/fd/63 or a link to one; else None."""
    name = os.path.abspath(path)
    if str(path) == "-":
        return 1
    for _ in range(40):
        if found := re.fullmatch(rf"/dev/fd/(\d+)|/proc/(?:self|{os.getpid()})/fd/(\d+)|/dev/std(out|err)", name):
            return int(found[1] or found[2]) if found[3] is None else {"out": 1, "err": 2}[found[3]]
        if not os.path.islink(name):
            return None
        name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` atomically."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` atomically as indented UTF-8 JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """The file's JSON value; None if the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def shown(path: str | os.PathLike) -> str:
    """A file's name for output, whatever bytes it is made of: what would break a line or no text at all is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: .ipynb_checkpoints, .DS_Store, what a Mac's zip adds."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__")


@dataclasses.dataclass
class Walked:
    """What is in a folder and all below it: nothing that is not among ``files`` stays unmentioned (:meth:`notes`)."""

    folder: Path
    files: list[Path] = dataclasses.field(default_factory=list)  # and links to files, in order
    hidden: list[Path] = dataclasses.field(default_factory=list)  # files, and folders that were not entered
    dangling: list[Path] = dataclasses.field(default_factory=list)  # links to nothing
    again: list[Path] = dataclasses.field(default_factory=list)  # links to a folder that is read already
    closed: list[Path] = dataclasses.field(default_factory=list)  # folders that may not be read; pipes, devices

    def notes(self) -> list[str]:
        """A line for each kind of what was left out."""
        kinds = ((self.hidden, "hidden files or folders"), (self.dangling, "links to nothing"),
                 (self.again, "links to folders that are read anyway"),
                 (self.closed, "folders that may not be read, or no regular files"))
        return [f"{len(some)} {what} under {shown(self.folder)} (first: {shown(some[0].relative_to(self.folder))}): "
                "left out" for some, what in kinds if some]


def walk(folder: str | Path, known: Iterable[Path] = ()) -> Walked:
    """All files of a folder and of those below it. Links are followed, and a folder is read once, whatever leads to it.

    So a loop of links ends. Of two names of one folder, the one without links wins. No link is followed to a folder
    above ``folder``, nor to one of ``known``, which others read.
    """
    found = Walked(Path(folder))
    seen = {_identity(path) for path in (*known, *found.folder.resolve().parents)} - {_identity(found.folder)}
    now, later = [found.folder], []  # later: folders behind links
    while now or later:
        here = now.pop() if now else later.pop(0)
        if _identity(here) in seen:
            found.again.append(here)
            continue
        seen.add(_identity(here))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except PermissionError:
            found.closed.append(here)
            continue
        for entry in entries:
            path = here / entry.name
            if is_hidden(entry.name):
                found.hidden.append(path)
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:  # nothing is there, or a link to itself
                found.dangling.append(path)
                continue
            if stat.S_ISDIR(mode):
                (later if entry.is_symlink() else now).append(path)
            else:
                (found.files if stat.S_ISREG(mode) else found.closed).append(path)
    for some in (found.files, found.hidden, found.dangling, found.again, found.closed):
        some.sort()
    return found


def _identity(path: Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hex, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
