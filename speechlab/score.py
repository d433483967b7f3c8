"""Score what stage 5 decoded: ``python -m speechlab.score EXP``.

Reads EXP/decode/<method>/<test_set>/hyp.jsonl (and time.json, for the speed); writes ref.trn, hyp.trn (for sclite) and
worst.txt beside each, EXP/results.txt, EXP/results.json, EXP/curves.png, and the recipe's params_table.csv. Of images
it reads pred.jsonl, and writes confusion.json and worst.txt beside it.

``python -m speechlab.score --compare EXP_A EXP_B`` tells whether B is better than A, or whether it is noise.
``python -m speechlab.score EXP --sclite`` shows NIST sclite's counts beside ours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from speechlab.data import pinyin
from speechlab.errors import UserError, cli
from speechlab.files import write_json, write_text
from speechlab.reporting import html
from speechlab.reporting.curves import draw
from speechlab.reporting.metrics import corpus_of, read_json
from speechlab.reporting.table import write_table
from speechlab.scoring import accuracy, compare, sclite
from speechlab.scoring.answers import folders, read_items, read_speed, share_pinyin
from speechlab.scoring.results import RTF, Row, list_hash, write_results
from speechlab.scoring.syllables import Syllables
from speechlab.scoring.wer import METRIC, PROTOCOL, ErrorRate, Item, Unit, error_rate, mostly_hanzi, trn, worst

_UNITS: dict[str, list[Unit]] = {"cer": ["char"], "wer": ["word"], "ser": ["syllable"]}
# What auto means. The first unit is the one that the trn files are in.
_HANZI: list[Unit] = ["char", "syllable"]
_OTHERS: list[Unit] = ["word", "char"]


def units_of(metric: str, references: Iterable[str]) -> list[Unit]:
    """The units that ``--metric`` asks for; of ``auto``, those of the references' script.

    Raises:
        UserError: for ``ser`` without pypinyin (``auto`` goes without it then, and says so).
    """
    readable = importlib.util.find_spec("pypinyin") is not None
    if metric == "auto" and not mostly_hanzi(references):
        return _OTHERS
    if metric in ("auto", "ser") and not readable:
        if metric == "ser":
            raise UserError("SER needs pypinyin: pip install pypinyin")
        print("warning: no SER (tonal syllables): it needs pypinyin", file=sys.stderr)
        return ["char"]
    return _HANZI if metric == "auto" else _UNITS[metric]


def judge(unit: Unit, items: Sequence[Item]) -> tuple[Callable[[Item], tuple[list[str], list[str]]] | None, str]:
    """How texts are split into ``unit`` (None: by their own characters or words), and the protocol's text."""
    if unit != "syllable":
        return None, PROTOCOL[unit]
    syllables = Syllables(pinyin.syllables, f"pypinyin {importlib.metadata.version('pypinyin')}")
    return syllables.split, syllables.protocol(items)


def score_folder(folder: Path, items: list[Item], units: list[Unit]) -> tuple[list[Row], list[str]]:
    """Score decode/<method>/<test_set>/ and write its trn files and worst.txt, which are in the first unit's words or
    characters.

    Returns:
        One row a unit and one of the speed where it is known, and a line of substitutions, deletions and insertions
        for each unit.
    """
    test_set, method = folder.name, folder.parent.name
    judged = [(*judge(unit, items), unit) for unit in units]
    rates = [(error_rate(items, unit, split=split), protocol) for split, protocol, unit in judged]
    _write_trn(folder, items, units[0])
    failed = [f"{item.id}: {item.error}\n" for item in items if item.error is not None]
    parts = [worst(rates[0][0]) or "no errors\n", *(["Failed, not scored:\n" + "".join(failed)] if failed else [])]
    write_text(folder / "worst.txt", "\n".join(parts))

    digest = list_hash([(item.id, item.ref) for item in items])
    rows = [
        Row(test_set, method, METRIC[r.unit], _rounded(r.value), _rounded(r.ci_low), _rounded(r.ci_high), "%",
            protocol, r.n, r.n_failed, digest)
        for r, protocol in rates
    ]
    if speed := read_speed(folder):
        threads = f", {speed.threads} thread{'s' * (speed.threads != 1)}" if speed.threads else ""
        rows.append(Row(test_set, method, RTF, float(f"{speed.real_time_factor:.4g}"), None, None, "1",
                        f"{speed.device}{threads}", len(items), 0, digest))
    return rows, [_note(test_set, method, rate) for rate, _ in rates]


def _write_trn(folder: Path, items: list[Item], unit: Unit) -> None:
    """ref.trn and hyp.trn of what was answered; syllables are written as the characters they were read from."""
    scored = [item for item in items if item.error is None]
    unit = "char" if unit == "syllable" else unit
    write_text(folder / "ref.trn", trn([(item.id, item.ref) for item in scored], unit))
    write_text(folder / "hyp.trn", trn([(item.id, item.hyp) for item in scored], unit))


def _note(test_set: str, method: str, rate: ErrorRate) -> str:
    """Which errors a rate is made of."""
    c = rate.counts
    right = sum(utterance.counts.errors == 0 for utterance in rate.utterances)
    return (f"{test_set} {method} {METRIC[rate.unit]}: substitutions {c.substitutions}, deletions {c.deletions}, "
            f"insertions {c.insertions}, of {c.length}; {right} of {rate.n} utterances without an error")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _answers(exp: Path) -> dict[tuple[str, str], list[Item]]:
    """(test set, method) -> its items, with true readings shared between the methods of a test set."""
    found = {key: read_items(folder / "hyp.jsonl") for key, folder in folders(exp).items()}
    for test_set in {key[0] for key in found}:
        keys = [key for key in found if key[0] == test_set]
        found.update(zip(keys, share_pinyin([found[key] for key in keys])))
    return found


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.score", description="Score what stage 5 decoded.")
    parser.add_argument("exp", type=Path, nargs="?", help="the experiment's folder")
    parser.add_argument("--metric", choices=["auto", *_UNITS], default="auto",
                        help="auto: CER and SER (tonal syllables) when the references are mostly hanzi, else WER and "
                             "CER (default: auto)")
    parser.add_argument("--corpus", default="", help="the corpus's name, for the head of results.txt")
    parser.add_argument("--sclite", action="store_true", help="show NIST sclite's counts beside ours, write no results")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("EXP_A", "EXP_B"),
                        help="compare two experiments by the paired bootstrap")
    parser.add_argument("--method", default="", metavar="M|M_A,M_B",
                        help="with --compare: this method only; or A's and B's own (default: each that both have)")
    parser.add_argument("--test_set", default="", help="with --compare: this test set only (default: each)")
    parser.add_argument("--json", action="store_true", help="with --compare: JSON for programs")
    args = parser.parse_args(argv)
    if (args.exp is None) == (args.compare is None):
        parser.error("one experiment, or --compare EXP_A EXP_B")
    if args.compare is None and (args.method or args.test_set or args.json):
        parser.error("--method, --test_set and --json belong to --compare")
    if args.compare and args.sclite:
        parser.error("--sclite takes one experiment")
    if args.compare:
        return _compare(*args.compare, args.metric, args.method, args.test_set, args.json)
    return _sclite(args.exp, args.metric) if args.sclite else _score(args.exp, args.metric, args.corpus)


def _score(exp: Path, metric: str, corpus: str) -> int:
    if images := accuracy.folders(exp):
        return _write(exp, corpus, *_score_images(images))
    places, answers = folders(exp), _answers(exp)
    units = units_of(metric, (item.ref for items in answers.values() for item in items))
    rows: list[Row] = []
    notes: list[str] = []
    for key, folder in places.items():
        folder_rows, folder_notes = score_folder(folder, answers[key], units)
        rows += folder_rows
        notes += folder_notes
    return _write(exp, corpus, rows, notes)


def _score_images(places: dict[tuple[str, str], Path]) -> tuple[list[Row], list[str]]:
    """Rows and notes of a classifier's answers; writes confusion.json and worst.txt beside them."""
    rows: list[Row] = []
    notes: list[str] = []
    for (test_set, method), folder in places.items():
        found = accuracy.read_predictions(folder / "pred.jsonl")
        rows += accuracy.rows(test_set, method, found)
        notes.append(accuracy.note(test_set, method, found))
        classes, counts = accuracy.confusion(found, read_json(folder / "classes.json") or ())
        write_json(folder / "confusion.json", {"classes": classes, "counts": counts})
        write_text(folder / "worst.txt", accuracy.worst(found))
    return rows, notes


def _write(exp: Path, corpus: str, rows: list[Row], notes: list[str]) -> int:
    """Write the results, and draw what goes with them."""
    notes.sort()
    for test_set in sorted({row.test_set for row in rows}):
        if len({row.list_hash for row in rows if row.test_set == test_set}) > 1:
            notes.append(f"warning: {test_set}: the methods were not decoded on one list (see column list); "
                         "their figures can't be compared")
    header = {"experiment": exp.resolve().name}
    if corpus := corpus or corpus_of(exp):
        header["corpus"] = corpus
    print(write_results(exp, rows, header, notes), end="")
    _report(exp.resolve())
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
    html.write(exp)


def _sclite(exp: Path, metric: str) -> int:
    """Our counts beside sclite's. The trn files are written anew, so that they are this decoding's."""
    if accuracy.folders(exp):
        raise UserError(f"--sclite is for speech: {exp} classifies images", 2)
    if sclite.program() is None:
        raise UserError(sclite.INSTALL)
    if metric == "ser":
        raise UserError("--sclite counts words or characters: sclite knows no syllables", 2)
    places, answers = folders(exp), _answers(exp)
    unit = units_of(metric, (item.ref for items in answers.values() for item in items))[0]
    rows: list[list[str]] = []
    lines: list[str] = []
    for key, folder in sorted(places.items()):
        rate = error_rate(answers[key], unit)
        if not rate.n:
            lines.append(f"{folder.name} {folder.parent.name}: every utterance failed, there is nothing to count")
            continue
        _write_trn(folder, answers[key], unit)
        found_rows, found_lines = sclite.beside(folder, rate)
        rows += found_rows
        lines += found_lines
    print(sclite.render(rows, lines), end="")
    return 0


def _comparable(exp: Path) -> dict[tuple[str, str], list]:
    """(test set, method) -> an experiment's answers, of speech or of images."""
    if images := accuracy.folders(exp):
        return {key: accuracy.read_predictions(folder / "pred.jsonl") for key, folder in images.items()}
    return _answers(exp)


def _compare(a: Path, b: Path, metric: str, method: str, test_set: str, as_json: bool) -> int:
    """Print whether B is better than A on each common (test set, method)."""
    answers_a, answers_b = _comparable(a), _comparable(b)
    first, _, second = method.partition(",")
    pairs = [(left, right) for left in sorted(answers_a) for right in sorted(answers_b)
             if left[0] == right[0] and test_set in ("", left[0])
             and ((left[1], right[1]) == (first, second or first) if method else left == right)]
    if not pairs:
        there = "; ".join(f"{exp} has {', '.join(f'{m} on {t}' for t, m in sorted(answers))}"
                          for exp, answers in ((a, answers_a), (b, answers_b)))
        raise UserError(f"nothing to compare: no test set and method of both, as asked: {there}")
    rows: list[compare.Comparison] = []
    refused: list[str] = []
    for left, right in pairs:
        images = [isinstance(some[0], accuracy.Prediction) for some in (answers_a[left], answers_b[right])]
        if images[0] != images[1]:
            refused.append(f"{left[0]}: one experiment recognises speech, the other images")
            continue
        if images[0]:
            try:
                rows.append(accuracy.compared(answers_a[left], answers_b[right], left[0], (left[1], right[1])))
            except ValueError as error:
                refused.append(f"{left[0]} {left[1]}: not one list, not compared: {error}")
            continue
        items_a, items_b = share_pinyin([answers_a[left], answers_b[right]])
        if said := compare.differences(items_a, items_b):
            refused.append(f"{left[0]} {left[1]}: not one list, not compared: {said}")
            continue
        for unit in units_of(metric, (item.ref for item in items_a)):
            split, protocol = judge(unit, items_a)
            rows.append(compare.compare(items_a, items_b, unit, left[0], (left[1], right[1]), protocol, split))
    if not rows:
        raise UserError(" | ".join(refused))
    if as_json:
        print(json.dumps({"A": str(a), "B": str(b), "rows": [asdict(row) for row in rows], "refused": refused},
                         ensure_ascii=False, indent=1))
    else:
        header = {"A": str(a), "B": str(b), "how": "paired bootstrap over utterances, 10,000 draws (Bisani & Ney 2004)"}
        print(compare.render(rows, header), end="")
        print("".join(f"{line}\n" for line in refused), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
