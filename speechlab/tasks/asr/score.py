"""Scores a recogniser: CER and SER of Chinese, WER and CER of other languages, MER of texts that mix both; the worst
utterances to see and hear.

It reads EXP/decode/<method>/<test_set>/hyp.jsonl (and time.json, for the speed). It writes ref.trn and hyp.trn (for
sclite) and worst.txt into the same folder.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from speechlab.data import pinyin
from speechlab.errors import UserError
from speechlab.files import write_text
from speechlab.scoring import compare as comparing
from speechlab.scoring import sclite
from speechlab.scoring.answers import folders, read_items, read_speed, share_pinyin
from speechlab.scoring.items import Key, pairs
from speechlab.scoring.results import RTF, Row, list_hash
from speechlab.scoring.syllables import Syllables
from speechlab.scoring.views import Mistakes
from speechlab.scoring.wer import (
    METRIC,
    PROTOCOL,
    Aligned,
    ErrorRate,
    Item,
    Unit,
    code_switched,
    error_rate,
    mostly_hanzi,
    trn,
    worst,
    worst_of,
)
from speechlab.tasks.interface import Scored
from speechlab.tasks.recordings import Recordings

UNITS: dict[str, list[Unit]] = {"cer": ["char"], "wer": ["word"], "mer": ["mixed"], "ser": ["syllable"]}
# The units that auto chooses. The trn files are in the first one.
_HANZI: list[Unit] = ["char", "syllable"]
_OTHERS: list[Unit] = ["word", "char"]
SHOWN = 60  # utterances in the report, per test set and method
HEARD = 8  # of these, so many (the worst) can be heard


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``score`` for this task."""
    parser.add_argument("--metric", choices=["auto", *UNITS], default="auto",
                        help="auto: CER and SER (tonal syllables) when the references are mostly hanzi, else WER and "
                             "CER; first MER (mixed: hanzi, and words of the rest) when at least a tenth of these is "
                             "hanzi and a tenth words (default: auto)")
    parser.add_argument("--sclite", action="store_true", help="show NIST sclite's counts beside ours, write no results")


def score(exp: Path, args: argparse.Namespace) -> Scored:
    """Score all that was decoded: rows, notes and mistakes. With ``--sclite``, also a text with its counts and ours."""
    if args.sclite:
        return Scored(text=beside_sclite(exp, args.metric))
    places, answers = folders(exp), all_answers(exp)
    units = units_of(args.metric, (item.ref for items in answers.values() for item in items))
    found, recordings = Scored(), Recordings(exp)
    best: dict[str, list[tuple[float, str]]] = {}
    rates: dict[Key, ErrorRate] = {}
    for key, folder in places.items():
        rows, notes, rates[key] = score_folder(folder, answers[key], units)
        found.rows += rows
        found.notes += notes
        best.setdefault(key[0], []).append((rates[key].value or 0.0, key[1]))
    for test_set in sorted(best):  # the best method first: if the page has no room for all sounds, it keeps those
        for _, method in sorted(best[test_set]):
            show(found.mistakes, test_set, method, rates[test_set, method], recordings)
    return found


def units_of(metric: str, references: Iterable[str]) -> list[Unit]:
    """The units for ``--metric``. For ``auto`` they depend on the script or scripts of the references.

    Raises:
        UserError: ``ser`` without the package pypinyin. (``auto`` then leaves syllables out, and says so.)
    """
    readable = importlib.util.find_spec("pypinyin") is not None
    if metric == "ser" and not readable:
        raise UserError("SER needs pypinyin: pip install pypinyin")
    if metric != "auto":
        return UNITS[metric]
    references = list(references)
    both = code_switched(references)
    if not mostly_hanzi(references):
        return ["mixed", "char"] if both else _OTHERS  # between hanzi are no spaces: of both, WER means nothing
    if not readable:
        print("warning: no SER (tonal syllables): it needs pypinyin", file=sys.stderr)
    return [*(["mixed"] if both else []), *(_HANZI if readable else ["char"])]


def judge(unit: Unit, items: Sequence[Item]) -> tuple[Callable[[Item], tuple[list[str], list[str]]] | None, str]:
    """The function that splits an item's texts into ``unit`` (None: into their own characters or words), and a text
    that says how it is counted."""
    if unit != "syllable":
        return None, PROTOCOL[unit]
    syllables = Syllables(pinyin.syllables, f"pypinyin {importlib.metadata.version('pypinyin')}")
    return syllables.split, syllables.protocol(items)


def score_folder(folder: Path, items: list[Item], units: list[Unit]) -> tuple[list[Row], list[str], ErrorRate]:
    """Score decode/<method>/<test_set>/, and write its trn files and worst.txt (in the first of ``units``: words,
    characters, or hanzi and words).

    Returns:
        One row per unit, and one for the speed if it is known; one line per unit with its substitutions, deletions and
        insertions; the error rate in the first unit, with the aligned utterances.
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
    return rows, [_note(test_set, method, rate) for rate, _ in rates], rates[0][0]


def _write_trn(folder: Path, items: list[Item], unit: Unit) -> None:
    """Write ref.trn and hyp.trn of the utterances that have an answer. Syllables are written as their characters."""
    scored = [item for item in items if item.error is None]
    unit = "char" if unit == "syllable" else unit
    write_text(folder / "ref.trn", trn([(item.id, item.ref) for item in scored], unit))
    write_text(folder / "hyp.trn", trn([(item.id, item.hyp) for item in scored], unit))


def _note(test_set: str, method: str, rate: ErrorRate) -> str:
    """A line that says how many substitutions, deletions and insertions there are."""
    c = rate.counts
    right = sum(utterance.counts.errors == 0 for utterance in rate.utterances)
    return (f"{test_set} {method} {METRIC[rate.unit]}: substitutions {c.substitutions}, deletions {c.deletions}, "
            f"insertions {c.insertions}, of {c.length}; {right} of {rate.n} utterances without an error")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def all_answers(exp: Path) -> dict[Key, list[Item]]:
    """{(test set, method): its items}. All methods of a test set share the true readings."""
    found = {key: read_items(folder / "hyp.jsonl") for key, folder in folders(exp).items()}
    for test_set in {key[0] for key in found}:
        keys = [key for key in found if key[0] == test_set]
        found.update(zip(keys, share_pinyin([found[key] for key in keys])))
    return found


# -- what the report shows --------------------------------------------------------------------------------------------


def show(mistakes: Mistakes, test_set: str, method: str, rate: ErrorRate, recordings: Recordings) -> None:
    """Add the worst utterances, aligned, to ``mistakes``; the very worst with sound and spectrogram."""
    items = []
    for place, utterance in enumerate(worst_of(rate, SHOWN)):
        item = {"title": _title(utterance, rate.unit), "pairs": [[ref or "", hyp or "", ref != hyp]
                                                                 for ref, hyp in utterance.pairs]}
        if place < HEARD and (sound := recordings.read(test_set, utterance.item.id)) is not None:
            item |= mistakes.sound(f"{test_set}/{utterance.item.id}", *sound)
        items.append(item)
    mistakes.add(test_set, method, "aligned", items=items)


def _title(utterance: Aligned, unit: Unit) -> str:
    c = utterance.counts
    percent = "no reference" if c.rate is None else f"{METRIC[unit]} {c.rate:.1f} %"
    return f"{utterance.item.id} {percent} S {c.substitutions} D {c.deletions} I {c.insertions} of {c.length}"


# -- comparing two experiments, and our counts with sclite's ----------------------------------------------------------


def compare(a: Path, b: Path, args: argparse.Namespace) -> tuple[list[comparing.Comparison], list[str]]:
    """Compare B with A for each (test set, method) that both have, by the paired bootstrap over utterances (Bisani &
    Ney 2004)."""
    if args.sclite:
        raise UserError("--sclite takes one experiment", 2)
    answers_a, answers_b = all_answers(a), all_answers(b)
    # As scoring A does it: a test set alone could be of one script.
    asked = units_of(args.metric, (item.ref for items in answers_a.values() for item in items))
    rows: list[comparing.Comparison] = []
    refused: list[str] = []
    for left, right in pairs(answers_a, answers_b, args):
        items_a, items_b = share_pinyin([answers_a[left], answers_b[right]])
        if said := comparing.differences(items_a, items_b):
            refused.append(f"{left[0]} {left[1]}: not one list, not compared: {said}")
            continue
        for unit in asked:
            split, protocol = judge(unit, items_a)
            rows.append(comparing.compare(items_a, items_b, unit, left[0], (left[1], right[1]), protocol, split))
    return rows, refused


def beside_sclite(exp: Path, metric: str) -> str:
    """A text with our counts and sclite's. The trn files are written again first, so that they fit this decoding."""
    if sclite.program() is None:
        raise UserError(sclite.INSTALL)
    if metric == "ser":
        raise UserError("--sclite counts words, characters, or both (mer): sclite knows no syllables", 2)
    places, answers = folders(exp), all_answers(exp)
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
    return sclite.render(rows, lines)
