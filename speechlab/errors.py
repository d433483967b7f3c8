"""Errors that a person can mend, and how a command line shows them.

Every entry point is wrapped in :func:`cli`. A :class:`UserError` becomes one line on stderr (what happened, where, what
to do) and an exit status that is not 0. Any other exception is a bug, and its traceback is shown.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something wrong or missing that the user can mend. ``str(error)`` is one line: what, where, what to do."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(" ".join(message.split("\n")))
        self.status = status


_SYSTEM = {  # what stands after the path: these are of the machine and of its user, never a bug
    errno.EROFS: "can't be written: it is on a file system that is mounted read-only; choose another place",
    errno.EACCES: "no permission: choose another place, or have its owner let you (ls -ld)",
    errno.EPERM: "not permitted: choose another place, or have its owner let you (ls -ld)",
    errno.ENOTDIR: "a part of this path is a file, where a folder should be",
    errno.EISDIR: "is a folder, where a file should be",
    errno.EEXIST: "is there already, and is no folder",
    errno.ENAMETOOLONG: "this name is too long for the file system",
    errno.ELOOP: "a link on this path leads back to itself",
    errno.EIO: "the disk can't read or write this (input/output error): look at its state (dmesg)",
    errno.ESTALE: "the network folder went away (stale file handle): run the same command again",
}


def of_the_system(error: OSError) -> str | None:
    """One line on an error of the disk or of permissions, with its path; None for what may as well be a bug."""
    short = error.errno is None and re.search(r"\d+ requested and \d+ written", str(error))  # numpy's tofile
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, look = ("no space in your quota", "quota -s") if error.errno == errno.EDQUOT else ("no space", "df -h")
        return (f"{what} left while writing {_name(error) or 'the output'}: free some disk ({look}) and run the same "
                "command again; what was complete before is kept")
    name = _name(error)
    return f"{name}: {_SYSTEM[error.errno]}" if name and error.errno in _SYSTEM else None


def _name(error: OSError) -> str:
    """The path of an error; that of a file that was written aside (speechlab/files.py) is the one it stands for."""
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, (str, os.PathLike)):  # a descriptor, or nothing
        return ""
    folder, last = os.path.split(os.fspath(name))
    shown = os.path.join(folder, re.sub(r"^\.tmp-\d+-", "", last))
    return " ".join(shown.encode("utf-8", "backslashreplace").decode().split("\n"))


def cli(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a ``main(argv=None)`` so that it returns an exit status, and shows a ``UserError`` as one line.

    The status is 0: done; 1: a failure; 2: wrong usage (as argparse has it); 130: Ctrl-C. A ``UserError`` has its own.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":  # of processes that share a training, only the first says why
                print(f"error: {error}", file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader has closed our output (`... | head`). That is no error; but Python would fail to flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if (said := of_the_system(error)) is None:
                raise
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {said}", file=sys.stderr)
            return 1

    return wrapped
