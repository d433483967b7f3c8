"""Writing files so that each is either whole or not there: a temporary file is written, fsynced and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
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


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hex, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
