"""Score what stage 5 decoded: ``python -m speechlab.score EXP``.

Reads EXP/decode/<method>/<test_set>/hyp.jsonl; writes ref.trn, hyp.trn (for sclite) and worst.txt beside each,
EXP/results.txt, EXP/results.json, EXP/curves.png, and the recipe's params_table.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from speechlab.errors import UserError, cli
from speechlab.files import write_text
from speechlab.reporting.curves import draw
from speechlab.reporting.metrics import read_json, read_yaml
from speechlab.reporting.table import write_table
from speechlab.scoring.results import Row, list_hash, write_results
from speechlab.scoring.wer import METRIC, PROTOCOL, ErrorRate, Item, Unit, error_rate, mostly_hanzi, trn, worst


def read_items(path: Path) -> list[Item]:
    """The lines of a hyp.jsonl.

    Raises:
        UserError: for a broken line, a missing field, an id that comes twice, or an empty file.
    """
    again = "decode again (./run.sh --stage 5)"
    items: dict[str, Item] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                item = Item(str(record["id"]), record["ref"] or "", record["hyp"] or "", record.get("error") or None)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is not an answer ({error!r}): {again}") from None
            if item.id in items:
                raise UserError(f"{path}, line {number}: utterance {item.id} is there twice: {again}")
            items[item.id] = item
    if not items:
        raise UserError(f"{path} is empty: {again}")
    return [items[key] for key in sorted(items)]


def score_folder(folder: Path, units: list[Unit]) -> tuple[list[Row], list[str]]:
    """Score decode/<method>/<test_set>/ and write its trn files and worst.txt; the first unit is the one they are in.

    Returns:
        One row a unit, and a line with substitutions, deletions and insertions for each.
    """
    items = read_items(folder / "hyp.jsonl")
    test_set, method = folder.name, folder.parent.name
    rates = [error_rate(items, unit) for unit in units]
    scored = [item for item in items if item.error is None]
    write_text(folder / "ref.trn", trn([(item.id, item.ref) for item in scored], units[0]))
    write_text(folder / "hyp.trn", trn([(item.id, item.hyp) for item in scored], units[0]))
    failed = [f"{item.id}: {item.error}\n" for item in items if item.error is not None]
    parts = [worst(rates[0]) or "no errors\n", *(["Failed, not scored:\n" + "".join(failed)] if failed else [])]
    write_text(folder / "worst.txt", "\n".join(parts))

    digest = list_hash([(item.id, item.ref) for item in items])
    rows = [
        Row(test_set, method, METRIC[r.unit], _rounded(r.value), _rounded(r.ci_low), _rounded(r.ci_high), "%",
            PROTOCOL[r.unit], r.n, r.n_failed, digest)
        for r in rates
    ]
    return rows, [_note(test_set, method, rate) for rate in rates]


def _note(test_set: str, method: str, rate: ErrorRate) -> str:
    """Which errors a rate is made of."""
    c = rate.counts
    right = sum(utterance.counts.errors == 0 for utterance in rate.utterances)
    return (f"{test_set} {method} {METRIC[rate.unit]}: substitutions {c.substitutions}, deletions {c.deletions}, "
            f"insertions {c.insertions}, of {c.length}; {right} of {rate.n} utterances without an error")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _corpus(exp: Path) -> str:
    """The corpus's name as the experiment tells it, or ''."""
    config = read_yaml(exp / "config.yaml")
    env = read_json(exp / "env.json")
    data = config.get("data")
    told = [env.get(key) if isinstance(env, dict) else None for key in ("corpus", "data")]
    told += [data.get(key) if isinstance(data, dict) else None for key in ("corpus", "folder")]
    return next((Path(str(name)).name for name in told if name), "")


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.score", description="Score what stage 5 decoded.")
    parser.add_argument("exp", type=Path, help="the experiment's folder")
    parser.add_argument("--metric", choices=["auto", "cer", "wer"], default="auto",
                        help="auto: CER when the references are mostly hanzi, else WER and CER (default: auto)")
    parser.add_argument("--corpus", default="", help="the corpus's name, for the head of results.txt")
    args = parser.parse_args(argv)

    found = sorted(path.parent for path in args.exp.glob("decode/*/*/hyp.jsonl"))
    if not found:
        raise UserError(f"no {args.exp}/decode/<method>/<test_set>/hyp.jsonl : run stage 5 (./run.sh --stage 5)")
    units: list[Unit] = ["char"] if args.metric == "cer" else ["word"]
    if args.metric == "auto":
        hanzi = mostly_hanzi(item.ref for folder in found for item in read_items(folder / "hyp.jsonl"))
        units = ["char"] if hanzi else ["word", "char"]

    rows: list[Row] = []
    notes: list[str] = []
    for folder in found:
        folder_rows, folder_notes = score_folder(folder, units)
        rows += folder_rows
        notes += folder_notes
    notes.sort()
    for test_set in sorted({row.test_set for row in rows}):
        if len({row.list_hash for row in rows if row.test_set == test_set}) > 1:
            notes.append(f"warning: {test_set}: the methods were not decoded on one list (see column list); "
                         "their figures can't be compared")
    header = {"experiment": args.exp.resolve().name}
    if corpus := args.corpus or _corpus(args.exp):
        header["corpus"] = corpus
    print(write_results(args.exp, rows, header, notes), end="")
    _report(args.exp.resolve())
    return 0


def _report(exp: Path) -> None:
    """Curves and table; that a picture can't be drawn is no reason to say that scoring failed."""
    try:
        draw(exp)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    if exp.parent.name == "exp":
        write_table(exp.parent.parent)
    else:
        print(f"{exp} is not in a recipe's exp/: params_table.csv is left as it is")


if __name__ == "__main__":
    raise SystemExit(main())
