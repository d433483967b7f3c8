"""What the run shows at its end: the first paragraph of results.txt, and the path of the report."""

from __future__ import annotations

import itertools
import os

from stagelib.plan import Plan, Stage
from stagelib.terminal import say

RESULTS, REPORT = "results.txt", "report.html"
MOST_LINES = 20


def answer(last: Stage, plan: Plan) -> None:
    """Show it, if ``last`` (the last stage that was asked for) makes results.txt."""
    for path in last.outputs:
        if os.path.basename(path) == RESULTS:
            for line in opening(path):
                say(line)
            report = os.path.join(os.path.dirname(path), REPORT)
            if os.path.exists(report):
                whole = os.path.normpath(os.path.join(plan.values["recipe"], report))
                here = plan.values["caller"] + os.sep  # where the user typed, who opens it from there
                say(f"report: {whole[len(here):] if whole.startswith(here) else whole}")


def opening(path: str) -> list[str]:
    """The lines of results.txt before the first empty line. No lines if the file can't be read, or is of an earlier
    version (then it begins with the experiment's name as a comment)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = list(itertools.takewhile(str.strip, itertools.islice(file, MOST_LINES)))
    except OSError:
        return []
    return [] if lines and lines[0].startswith("#") else [line.rstrip("\n") for line in lines]
