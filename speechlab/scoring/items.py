"""Answers as stage 5 leaves them, whatever the task: exp/decode/<method>/<test_set>/hyp.jsonl, a line of JSON per item.

A line has ``id``, ``ref``, ``hyp`` and whatever else the task knows; ``error`` says why there is no answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlab.errors import UserError
from speechlab.files import write_json, write_text
from speechlab.scoring.results import list_hash

FILE = "hyp.jsonl"
_AGAIN = "decode again (./run.sh --stage 5)"
Key = tuple[str, str]  # (test set, method)


def folders(exp: Path, file: str = FILE) -> dict[Key, Path]:
    """(test set, method) -> the folder with its answers, sorted by method.

    Raises:
        UserError: when nothing was decoded.
    """
    found = sorted(path.parent for path in exp.glob(f"decode/*/*/{file}"))
    if not found:
        raise UserError(f"no {exp}/decode/<method>/<test_set>/{file} : run stage 5 (./run.sh --stage 5)")
    return {(folder.name, folder.parent.name): folder for folder in found}


def lines(path: Path, what: str = "an answer") -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered records of a file of JSON lines.

    Raises:
        UserError: for a line that is no JSON object.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise TypeError("no JSON object")
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number} is not {what} ({error!r}): {_AGAIN}") from None
            yield number, record


def read(folder: Path, file: str = FILE) -> list[dict[str, Any]]:
    """The records of a folder, sorted by id.

    Raises:
        UserError: for a broken line, a missing field, an id that comes twice, or an empty file.
    """
    path, found = folder / file, {}
    for number, record in lines(path):
        if lacks := [name for name in ("id", "ref", "hyp") if name not in record]:
            raise UserError(f"{path}, line {number} is not an answer (it has no {lacks[0]}): {_AGAIN}")
        if str(record["id"]) in found:
            raise UserError(f"{path}, line {number}: {record['id']} is there twice: {_AGAIN}")
        found[str(record["id"])] = record
    if not found:
        raise UserError(f"{path} is empty: {_AGAIN}")
    return [found[name] for name in sorted(found)]


def write(folder: Path, records: Sequence[Mapping[str, Any]], seconds: float, device: Any) -> None:
    """Write a folder's hyp.jsonl, sorted by id, and time.json."""
    ordered = sorted(records, key=lambda record: str(record["id"]))
    write_text(folder / FILE, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in ordered))
    write_json(folder / "time.json", {"items": len(ordered), "seconds": seconds, "device": str(device)})


def list_hash_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The hash of a test list: of each record's id and reference."""
    return list_hash((str(record["id"]), str(record["ref"])) for record in records)


def differences(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]], shown: int = 5) -> str:
    """What keeps two lists (by id) from being compared, naming ids; '' when ids and references are the same."""
    kinds = {
        "only in A": [name for name in a if name not in b],
        "only in B": [name for name in b if name not in a],
        "with another reference": [name for name in a if name in b and a[name]["ref"] != b[name]["ref"]],
    }
    return "; ".join(f"{kind}: {', '.join(sorted(names)[:shown])}"
                     + (f" and {len(names) - shown} more" if len(names) > shown else "")
                     for kind, names in kinds.items() if names)


def pairs(a: Iterable[Key], b: Iterable[Key], args: argparse.Namespace) -> list[tuple[Key, Key]]:
    """Which answers of A and B are compared: of one test set (``args.test_set``) and one method, or by ``args.method``
    ``M_A,M_B`` A's and B's own.

    Raises:
        UserError: when nothing is left, with what both have.
    """
    first, _, second = args.method.partition(",")
    found = [(left, right) for left in sorted(a) for right in sorted(b)
             if left[0] == right[0] and args.test_set in ("", left[0])
             and ((left[1], right[1]) == (first, second or first) if args.method else left == right)]
    if not found:
        there = "; ".join(f"{exp} has {', '.join(f'{m} on {t}' for t, m in sorted(keys))}"
                          for exp, keys in zip(args.compare, (a, b)))
        raise UserError(f"nothing to compare: no test set and method of both, as asked: {there}")
    return found
