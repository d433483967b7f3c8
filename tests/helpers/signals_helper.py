"""Signals as a person's shell starts a program with them, whoever has started the tests."""

from __future__ import annotations

import signal


def heard() -> None:
    """For ``preexec_fn``: SIGINT and SIGHUP are not ignored. ``tools/test.sh &`` in a script and nohup ignore one of
    them, all children inherit it, and a shell can't set a trap for a signal that was ignored when it began."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
