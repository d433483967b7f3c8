"""Writes to stdout. If the reader goes away (``./run.sh | head``), the work does not stop."""

from __future__ import annotations

import os
import sys


def forward(data: bytes) -> None:
    """Write ``data`` at once. After the first write that nobody reads, all output is thrown away."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Otherwise Python would try to write the rest again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print one line."""
    forward((text + "\n").encode("utf-8", "surrogateescape"))
