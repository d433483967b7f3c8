"""Errors that a person can mend, and how a command line shows them.

Every entry point is wrapped in :func:`cli`. A :class:`UserError` becomes one line on stderr (what happened, where, what
to do) and an exit status that is not 0. Any other exception is a bug, and its traceback is shown.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something wrong or missing that the user can mend. ``str(error)`` is one line: what, where, what to do."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(" ".join(message.split("\n")))
        self.status = status


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
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = error.filename or "the output"
                print(f"error: no space left while writing {where}: free some disk (df -h) and run the same command "
                      "again; what was complete before is kept", file=sys.stderr)
                return 1
            raise

    return wrapped
