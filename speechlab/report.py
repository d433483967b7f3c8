"""Rebuild a recipe's pictures and tables: ``python -m speechlab.report egs/aishell_asr``.

It draws exp/*/curves.png, and writes params_table.csv (all settings), results_table.md and results_table.png (all
results), exp/*/report.html (one experiment) and report.html (all experiments).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechlab.errors import UserError, cli
from speechlab.files import write_text
from speechlab.reporting import html
from speechlab.reporting.curves import draw
from speechlab.reporting.summary import write_summary
from speechlab.reporting.table import experiments, write_table


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.report", description=__doc__.split(":")[0])
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("."), help="a recipe's folder (default: here)")
    args = parser.parse_args(argv)
    folders = experiments(args.recipe)
    if not folders:
        raise UserError(f"no experiment in {args.recipe / 'exp'}: is {args.recipe} a recipe, and was it run?")
    for folder in folders:
        print(draw(folder) or f"{folder}: no metrics.jsonl with anything to draw")
        write_text(folder / "report.html", html.experiment_page(folder))
    print(f"{write_table(args.recipe)}: {len(folders)} experiments")
    print(html.write_recipe(args.recipe))
    text = write_summary(args.recipe)
    print(f"{args.recipe / 'results_table.md'}:\n\n{text}", end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
