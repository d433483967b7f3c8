"""What the run says on stdout. A reader that goes away (``./run.sh | head``) does not stop the work."""

from __future__ import annotations

import os
import sys


def forward(data: bytes) -> None:
    """Write ``data`` at once; from the first write that nobody reads on, to nowhere."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python would try the unwritten rest again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print one line."""
    forward((text + "\n").encode("utf-8", "surrogateescape"))
