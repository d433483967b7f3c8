"""Scores a classifier of images: accuracy and error, the confusion matrix, and pictures of the surest mistakes.

Reads EXP/decode/<method>/<test_set>/pred.jsonl; writes confusion.json and worst.txt beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from speechlab.errors import UserError
from speechlab.files import read_json, write_json, write_text
from speechlab.scoring import accuracy
from speechlab.scoring.compare import Comparison
from speechlab.scoring.items import Key, folders, pairs
from speechlab.scoring.views import Mistakes
from speechlab.tasks.interface import Scored

FILE = "pred.jsonl"
SHOWN = 120  # mistakes in the report, per test set and method


def score(exp: Path, args: argparse.Namespace) -> Scored:
    """Score all predictions: the rows, notes and mistakes of every test set and method."""
    found = Scored()
    for (test_set, method), folder in folders(exp, FILE).items():
        predictions = accuracy.read_predictions(folder / FILE)
        found.rows += accuracy.rows(test_set, method, predictions)
        found.notes.append(accuracy.note(test_set, method, predictions))
        classes, counts = accuracy.confusion(predictions, read_json(folder / "classes.json") or ())
        write_json(folder / "confusion.json", {"classes": classes, "counts": counts})
        write_text(folder / "worst.txt", accuracy.worst(predictions))
        show(found.mistakes, test_set, method, predictions, (classes, counts), images_of(exp, test_set))
    return found


def show(mistakes: Mistakes, test_set: str, method: str, predictions: Sequence[accuracy.Prediction],
         confusion: tuple[list[str], list[list[int]]], images: np.ndarray | None) -> None:
    """Add the mistakes that the network was surest of, with their pictures, to ``mistakes``."""
    wrong = accuracy.mistakes(predictions)
    cards = []
    for one in wrong[:SHOWN]:
        card = {"id": one.id, "ref": one.ref, "hyp": one.hyp, "prob": one.prob, "prob_ref": one.prob_ref}
        if images is not None and 0 <= one.index < len(images):
            card |= mistakes.picture(f"{test_set}-{one.index}", np.asarray(images[one.index]))
        cards.append(card)
    mistakes.add(test_set, method, "classes", classes=confusion[0], counts=confusion[1],
                 pairs=accuracy.confused(predictions), n=len(predictions), errors=len(wrong), cards=cards)


def images_of(exp: Path, split: str) -> np.ndarray | None:
    """The images of a split, (N, H, W, C) uint8, from the pack that the training read; None if it is gone."""
    env = read_json(exp / "env.json")
    data = str(env.get("data") or "") if isinstance(env, Mapping) else ""
    for place in (exp.resolve().parent.parent / data, Path(data)) if data else ():
        try:
            found = np.load(place / f"{split}.images.npy", mmap_mode="r")
        except (OSError, ValueError):
            continue
        if found.ndim == 4 and found.dtype == np.uint8 and found.shape[3] in (1, 3):
            return found
    return None


def compare(a: Path, b: Path, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Compare B's error with A's for each (test set, method) that both have."""
    lists: list[dict[Key, list[accuracy.Prediction]]] = [
        {key: accuracy.read_predictions(folder / FILE) for key, folder in folders(exp, FILE).items()} for exp in (a, b)]
    rows: list[Comparison] = []
    refused: list[str] = []
    for left, right in pairs(*lists, args):
        try:
            rows.append(accuracy.compared(lists[0][left], lists[1][right], left[0], (left[1], right[1])))
        except ValueError as error:
            refused.append(f"{left[0]} {left[1]}: not one list, not compared: {error}")
    if not rows:
        raise UserError(" | ".join(refused))
    return rows, refused
