"""A second opinion: NIST's sclite on the trn files that we write, beside our own counts.

Both align reference and hypothesis by dynamic programming, but with different weights. Ours counts each substitution,
deletion and insertion as 1 (Levenshtein), which gives the smallest possible number of errors. sclite weighs a
substitution 4, and a deletion or an insertion 3. So they may choose different alignments with the same number of errors
(S for one is D and I for the other). And sclite prefers three deletions and three insertions (18) to five substitutions
(20): ``1 2 3 4 5`` against ``4 5 6 7 8`` is 5 errors for us and 6 for sclite. Its total is never lower than ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import astuple
from pathlib import Path

from speechlab.errors import UserError
from speechlab.scoring.layout import table
from speechlab.scoring.wer import METRIC, Counts, ErrorRate, trn_id

INSTALL = "sclite is not installed (Debian, Ubuntu: apt-get install sctk; else build https://github.com/usnistgov/SCTK)"
EXPLAINED = """\
S and D + I may differ with equal totals: alignments that are equally good tie. sclite's total may be the higher: it
weighs S 4 and D, I 3 each, so it may prefer more errors of the cheaper kind; ours are the fewest (all weigh 1)."""
_UTTERANCE = re.compile(r"^id: \((.*)\)\s*\nScores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", re.MULTILINE)


def program() -> list[str] | None:
    """The command that starts sclite; None if it is not installed. Debian has it as ``sctk sclite``."""
    if found := shutil.which("sclite"):
        return [found]
    return [found, "sclite"] if (found := shutil.which("sctk")) else None


def count(ref: Path, hyp: Path) -> dict[str, Counts]:
    """sclite's counts for each utterance, by the id in the trn files.

    Raises:
        UserError: if sclite is not installed or can't read the files.
    """
    command = program()
    if command is None:
        raise UserError(INSTALL)
    options = ["-r", str(ref.resolve()), "trn", "-h", str(hyp.resolve()), "trn", "-i", "rm", "-e", "utf-8", "-s",
               "-o", "pralign", "stdout"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, encoding="utf-8", errors="replace")
    found = {}
    for name, *numbers in _UTTERANCE.findall(done.stdout):
        correct, substitutions, deletions, insertions = map(int, numbers)
        found[name] = Counts(substitutions, deletions, insertions, correct + substitutions + deletions)
    if done.returncode or not found:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"sclite failed on {hyp} (status {done.returncode}): {said}")
    return found


def beside(folder: Path, rate: ErrorRate) -> tuple[list[list[str]], list[str]]:
    """Our counts and sclite's on the trn files in ``folder``.

    Returns:
        Two rows for a table (test set, method, metric, who, counts, rate), and a line for each utterance with different
        totals, or that only one of both counted.
    """
    theirs = count(folder / "ref.trn", folder / "hyp.trn")
    ours = {trn_id(utterance.item.id): utterance.counts for utterance in rate.utterances}
    total = Counts(*(map(sum, zip(*map(astuple, theirs.values())))))
    name = [folder.name, folder.parent.name, METRIC[rate.unit]]
    rows = [[*name, who, *_cells(counts, len(of))] for who, counts, of in
            (("ours", rate.counts, ours), ("sclite", total, theirs))]
    where = f"{folder.name} {folder.parent.name}"
    lines = [f"{where}: {key} is only in {'ours' if key in ours else 'sclite'}" for key in sorted(ours.keys() ^ theirs)]
    for key in sorted(ours.keys() & theirs):
        if ours[key].errors != theirs[key].errors:
            lines.append(f"{where}: {key}: ours {_kinds(ours[key])}, sclite {_kinds(theirs[key])}")
    moved = sum(ours[k] != theirs[k] and ours[k].errors == theirs[k].errors for k in ours.keys() & theirs)
    if moved:
        lines.append(f"{where}: {moved} utterances of {len(ours)} with the same total and other S, D, I (ties)")
    return rows, lines


def render(rows: list[list[str]], lines: list[str]) -> str:
    """Our counts and sclite's in a table, the differences, and why there may be some."""
    head = ["test_set", "method", "metric", "by", "utterances", "units", "correct", "S", "D", "I", "errors", "rate %"]
    return "\n".join([*table(head, rows, [False] * 4 + [True] * 8), "", *(lines or ["no utterance differs"]), "",
                      EXPLAINED]) + "\n"


def _cells(c: Counts, utterances: int) -> list[str]:
    correct = c.length - c.substitutions - c.deletions
    figures = [utterances, c.length, correct, c.substitutions, c.deletions, c.insertions, c.errors]
    return [*map(str, figures), "-" if c.rate is None else f"{c.rate:.2f}"]


def _kinds(c: Counts) -> str:
    return f"S {c.substitutions} D {c.deletions} I {c.insertions}"
