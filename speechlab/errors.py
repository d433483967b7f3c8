"""Errors a person can mend, and the one way a command line shows them.

Every entry point is wrapped in :func:`cli`: a :class:`UserError` becomes one line on stderr (what happened, where,
what to do) and a non-zero exit status; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake or a lack that the user can mend; ``str(error)`` is one line: what, where, what to do."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(" ".join(message.split("\n")))
        self.status = status


def cli(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a ``main(argv=None)`` so that it returns an exit status and shows a user's error as one line.

    Statuses: 0 done, 1 a failure, 2 wrong usage (argparse's own), 130 Ctrl-C; a ``UserError`` carries its own.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":  # processes that share a training stop for one reason: say it once
                print(f"error: {error}", file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # `... | head` closed our output: not an error, but Python would complain again while it flushes at exit.
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
