"""Accuracy and error of a classifier from what stage 5 left: pred.jsonl with a line an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechlab.errors import UserError
from speechlab.scoring.bootstrap import interval
from speechlab.scoring.compare import Comparison, compare
from speechlab.scoring.layout import table
from speechlab.scoring.results import Row, list_hash
from speechlab.scoring.wer import Item

PROTOCOL = "top-1"
_AGAIN = "predict again (./run.sh --stage 5)"
_SHOWN = 50  # of the worst mistakes


@dataclass(frozen=True)
class Prediction:
    """An answer: the image's name and number in the split, the true class and the answer by name, and the probability
    that the network gave to both."""

    id: str
    index: int
    ref: str
    hyp: str
    prob: float
    prob_ref: float


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a pred.jsonl in the split's order.

    Raises:
        UserError: for a broken line, a missing field, an image that comes twice, or an empty file.
    """
    found: dict[str, Prediction] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                one = Prediction(str(record["id"]), int(record["index"]), str(record["ref"]), str(record["hyp"]),
                                 float(record["prob"]), float(record["prob_ref"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is not a prediction ({error!r}): {_AGAIN}") from None
            if one.id in found:
                raise UserError(f"{path}, line {number}: image {one.id} is there twice: {_AGAIN}")
            found[one.id] = one
    if not found:
        raise UserError(f"{path} is empty: {_AGAIN}")
    return sorted(found.values(), key=lambda one: one.index)


def exact(count: int, n: int) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a share of which ``count`` in ``n`` were seen, 0 or all of them (Clopper and Pearson 1934):
    a bootstrap of items that are all alike would claim certainty."""
    if n < 2:
        return None, None
    gap = 1 - 0.025 ** (1 / n)
    return (0.0, gap) if count == 0 else (1 - gap, 1.0)


def rows(test_set: str, method: str, predictions: Sequence[Prediction]) -> list[Row]:
    """Accuracy and error in percent, each with its bootstrap interval over the images."""
    wrong = np.array([one.ref != one.hyp for one in predictions], dtype=float)
    low, high = interval(wrong) if 0 < wrong.sum() < len(wrong) else exact(int(wrong.sum()), len(wrong))
    digest = list_hash((one.id, one.ref) for one in predictions)

    def row(metric: str, value: float, ends: tuple[float | None, float | None]) -> Row:
        low, high = (None if end is None else round(100 * end, 4) for end in ends)
        return Row(test_set, method, metric, round(100 * value, 4), low, high, "%", PROTOCOL, len(wrong), 0, digest)

    error = float(wrong.mean())
    turned = (None, None) if low is None or high is None else (1 - high, 1 - low)
    return [row("accuracy", 1 - error, turned), row("error", error, (low, high))]


def confusion(predictions: Sequence[Prediction], classes: Sequence[str] = ()) -> tuple[list[str], list[list[int]]]:
    """(classes, counts): ``counts[i][j]`` images of class i were taken for class j.

    Args:
        classes: their order; without it, all that come, sorted.
    """
    there = {name for one in predictions for name in (one.ref, one.hyp)}
    names = [*classes, *sorted(there - set(classes))]
    place = {name: i for i, name in enumerate(names)}
    counts = [[0] * len(names) for _ in names]
    for one in predictions:
        counts[place[one.ref]][place[one.hyp]] += 1
    return names, counts


def mistakes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The wrong ones, those that the network was surest of first."""
    return sorted((one for one in predictions if one.ref != one.hyp), key=lambda one: (-one.prob, one.index))


def confused(predictions: Sequence[Prediction], count: int = 12) -> list[list]:
    """[class, what it was taken for, how often], the most frequent first."""
    pairs = Counter((one.ref, one.hyp) for one in mistakes(predictions))
    return [[*pair, times] for pair, times in pairs.most_common(count)]


def worst(predictions: Sequence[Prediction], shown: int = _SHOWN) -> str:
    """worst.txt: the mistakes that the network was surest of, then which classes are taken for which."""
    wrong = mistakes(predictions)
    if not wrong:
        return "no errors\n"
    body = [[one.id, one.ref, one.hyp, f"{one.prob:.4f}", f"{one.prob_ref:.4f}"] for one in wrong[:shown]]
    head = ["image", "is", "taken for", "sure by", "truth had"]
    lines = [f"{len(wrong)} of {len(predictions)} wrong; the surest mistakes first:", "",
             *table(head, body, [False, False, False, True, True])]
    counted = [[ref, hyp, str(count)] for ref, hyp, count in confused(predictions, 20)]
    lines += ["", "what is taken for what:", "", *table(["is", "taken for", "times"], counted, [False, False, True])]
    return "\n".join(lines) + "\n"


def note(test_set: str, method: str, predictions: Sequence[Prediction]) -> str:
    """A line for results.txt: the class with the most errors."""
    wrong = Counter(one.ref for one in predictions if one.ref != one.hyp)
    if not wrong:
        return f"{test_set} {method}: no errors"
    (name, count), of = wrong.most_common(1)[0], Counter(one.ref for one in predictions)
    return (f"{test_set} {method}: {sum(wrong.values())} of {len(predictions)} wrong; most often {name}: {count} of "
            f"{of[name]}")


def compared(a: Sequence[Prediction], b: Sequence[Prediction], test_set: str, methods: tuple[str, str]) -> Comparison:
    """Is the error of B lower than A's, or is it noise? (paired bootstrap; ValueError where the lists differ)"""
    items = [[Item(one.id, one.ref, one.hyp) for one in some] for some in (a, b)]
    found = compare(*items, "word", test_set, methods, PROTOCOL, split=lambda item: ([item.ref], [item.hyp]))
    return replace(found, metric="error")
