"""Score what stage 5 left: ``python -m speechlab.score EXP``.

Reads EXP/decode/<method>/<test_set>/ and writes EXP/results.txt (the answer first), EXP/results.json,
EXP/mistakes.json (for the report), EXP/curves.png, EXP/report.html and the recipe's params_table.csv. What a figure
is, the experiment's task says.

``python -m speechlab.score --compare EXP_A EXP_B`` tells whether B is better than A, or whether it is noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from speechlab import tasks
from speechlab.errors import UserError, cli
from speechlab.files import read_json
from speechlab.reporting import html
from speechlab.reporting.curves import draw
from speechlab.reporting.metrics import corpus_of
from speechlab.reporting.table import write_table
from speechlab.scoring import compare, metric
from speechlab.scoring.results import write_results
from speechlab.tasks.command import parse
from speechlab.tasks.interface import Scored, Task


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.score", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, nargs="?", help="the experiment's folder")
    parser.add_argument("--corpus", default="", help="the corpus's name, for the head of results.txt")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("EXP_A", "EXP_B"),
                        help="compare two experiments by the paired bootstrap")
    parser.add_argument("--method", default="", metavar="M|M_A,M_B",
                        help="with --compare: this method only; or A's and B's own (default: each that both have)")
    parser.add_argument("--test_set", default="", help="with --compare: this test set only (default: each)")
    parser.add_argument("--json", action="store_true", help="with --compare: JSON for programs")
    args, task = parse(parser, sys.argv[1:] if argv is None else argv, "score")
    if (args.exp is None) == (args.compare is None):
        parser.error("one experiment, or --compare EXP_A EXP_B")
    if args.compare is None and (args.method or args.test_set or args.json):
        parser.error("--method, --test_set and --json belong to --compare")
    if args.compare:
        return compare_experiments(task, *args.compare, args)
    found = task.score(args.exp, args)
    if found.text:
        print(found.text, end="")
        return 0
    write(args.exp, args.corpus, found, task)
    return 0


def write(exp: Path, corpus: str, found: Scored, task: Task) -> None:
    """Write the results, and draw what goes with them."""
    notes = sorted(found.notes)
    for test_set in sorted({row.test_set for row in found.rows}):
        if len({row.list_hash for row in found.rows if row.test_set == test_set}) > 1:
            notes.append(f"warning: {test_set}: the methods were not decoded on one list (see column list); "
                         "their figures can't be compared")
    header = {"experiment": exp.resolve().name}
    if corpus := corpus or corpus_of(exp):
        header["corpus"] = corpus
    methods = read_json(exp / "decode" / "methods.json")
    metric.write(exp, task.metrics)
    found.mistakes.write(exp)
    print(write_results(exp, found.rows, header, notes, task.metrics, methods if isinstance(methods, dict) else None),
          end="")
    report(exp.resolve())


def report(exp: Path) -> None:
    """Curves and table; that a picture can't be drawn is no reason to say that scoring failed."""
    try:
        draw(exp)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    if exp.parent.name == "exp":
        write_table(exp.parent.parent)
    else:
        print(f"{exp} is not in a recipe's exp/: params_table.csv is left as it is")
    html.write(exp)


def compare_experiments(task: Task, a: Path, b: Path, args: argparse.Namespace) -> int:
    """Print whether B is better than A on each common (test set, method)."""
    other = tasks.of(b)
    if other.name != task.name:
        raise UserError(f"{a} is an experiment of the task {task.name}, {b} of {other.name}: they can't be compared", 2)
    rows, refused = task.compare(a, b, args)
    if not rows:
        raise UserError(" | ".join(refused) or "nothing to compare")
    if args.json:
        print(json.dumps({"A": str(a), "B": str(b), "rows": [asdict(row) for row in rows], "refused": refused},
                         ensure_ascii=False, indent=1))
    else:
        header = {"A": str(a), "B": str(b), "how": "paired bootstrap over items, 10,000 draws (Bisani & Ney 2004)"}
        print(compare.render(rows, header), end="")
        print("".join(f"{line}\n" for line in refused), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
