"""Shows the progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def wants_bar() -> bool:
    """True if stderr is a terminal, or if ``SPEECHLAB_PROGRESS=bar`` says that a terminal reads our pipe."""
    chosen = os.environ.get("SPEECHLAB_PROGRESS")
    return chosen == "bar" if chosen else sys.stderr.isatty()


def progress(items: Iterable[T], what: str, total: int | None = None, every: float = 10.0) -> Iterator[T]:
    """Yield ``items`` and show how many are done: by tqdm's bar, or a line every ``every`` seconds and at the end."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if wants_bar():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, dynamic_ncols=True, mininterval=0.5)
        return
    start = last = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= every:
            last = now
            of = f"/{total} ({100 * count / total:.0f} %)" if total else ""
            print(f"{what}: {count}{of}, {now - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{what}: {count} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
