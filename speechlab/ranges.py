"""Ranges of numbers in a config's sections: one that is out of its range is an error that names its key."""

from __future__ import annotations

import math
from typing import Any

SEEDS = 2**62  # torch takes 64 bits with a sign, and processes add their number


def within(section: Any, *names: str, least: float | None = None, above: float | None = None,
           most: float | None = None, below: float | None = None) -> None:
    """Raise ValueError, beginning with the name, unless the fields ``names`` of ``section`` are finite and in range.

    A field that is None is left out (it stands for a default), and of a tuple each number must be in range.

    Args:
        least, most: the ends of the range, which are in it. above, below: ends that are not.
    """
    ends = {"at least": least, "above": above, "at most": most, "below": below}
    said = " and ".join(f"{words} {end:g}" for words, end in ends.items() if end is not None)
    for name in names:
        value = getattr(section, name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if number is None:
                continue
            if not math.isfinite(number):
                raise ValueError(f"{name} = {number} must be a finite number")
            if (least is not None and number < least) or (above is not None and number <= above) \
                    or (most is not None and number > most) or (below is not None and number >= below):
                shown = f"{number:g}" if isinstance(number, float) else number
                raise ValueError(f"{name} = {shown} must be {said}")
