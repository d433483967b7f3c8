"""Is B better than A, or is it noise? The paired bootstrap compares two systems on the same utterances.

Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation", section 4: utterances
are drawn with replacement, the same ones for both systems, and each draw gives a difference of the error rates. This
assumes that errors in different utterances are independent. With few speakers, the true spread is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from speechlab.scoring.bootstrap import paired
from speechlab.scoring.layout import table
from speechlab.scoring.metric import Metric, declared
from speechlab.scoring.results import list_hash
from speechlab.scoring.wer import METRIC, Item, Unit, error_rate

NOISE = "difference within noise"


@dataclass(frozen=True)
class Comparison:
    """System B against system A on one test list."""

    test_set: str
    method_a: str
    method_b: str
    metric: str
    a: float | None  # error rate, percent
    b: float | None
    difference: float | None  # b - a, percentage points: negative is better
    ci_low: float | None  # 95 % interval of the difference
    ci_high: float | None
    p_improvement: float | None  # share of draws in which B has the lower rate; equal ones count half
    verdict: str  # in words
    protocol: str  # how errors are counted
    n: int  # utterances that were compared
    n_failed: int  # utterances that were not, since one of the systems has no answer
    list_hash: str  # of ids and references


def compare(
    a: Sequence[Item],
    b: Sequence[Item],
    unit: Unit,
    test_set: str = "",
    methods: tuple[str, str] = ("", ""),
    protocol: str = "",
    split: Callable[[Item], tuple[list[str], list[str]]] | None = None,
    resamples: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems' answers to one list; ``split`` as in :func:`speechlab.scoring.wer.error_rate`.

    Raises:
        ValueError: when the lists are not the same (:func:`differences` says how).
    """
    if said := differences(a, b):
        raise ValueError(said)
    failed = {item.id for item in (*a, *b) if item.error is not None}
    rates = [error_rate(sorted((item for item in items if item.id not in failed), key=lambda item: item.id),
                        unit, resamples=0, split=split) for items in (a, b)]
    errors = [[utterance.counts.errors for utterance in rate.utterances] for rate in rates]
    lengths = [utterance.counts.length for utterance in rates[0].utterances]
    low, high, better = paired(*errors, lengths, resamples, seed=seed)
    first, second = rates[0].value, rates[1].value
    difference = None if first is None or second is None else second - first
    interval = (None, None) if low is None or high is None else (100 * low, 100 * high)
    return Comparison(test_set, *methods, METRIC[unit], first, second, difference, *interval, better,
                      verdict(first, second, *interval, declared(METRIC[unit])), protocol, rates[0].n, len(failed),
                      list_hash((item.id, item.ref) for item in a))


def compare_values(a: Sequence[float], b: Sequence[float], metric: Metric, test_set: str, methods: tuple[str, str],
                   n_failed: int, digest: str, protocol: str = "mean over items", resamples: int = 10000,
                   seed: int = 0) -> Comparison:
    """Compare two systems by a figure that each item has, in the same order of items: which mean is better?

    Args:
        metric: says which direction is better. digest: the test list's hash. n_failed: items that were not compared.
    """
    low, high, lower = paired(a, b, None, resamples, seed=seed)
    better = None if lower is None or metric.lower is None else lower if metric.lower else 1 - lower
    first, second = (sum(values) / len(values) for values in (a, b))
    return Comparison(test_set, *methods, metric.name, first, second, second - first, low, high, better,
                      verdict(first, second, low, high, metric), protocol, len(a), n_failed, digest)


def verdict(a: float | None, b: float | None, low: float | None, high: float | None, metric: Metric) -> str:
    """In words: which system is better and by how much, or that the interval of B - A contains zero."""
    if a is None or b is None or low is None or high is None:
        return "too few utterances to tell"
    if low <= 0 <= high:
        return NOISE
    if metric.lower is None:
        return "they differ; nobody has said whether lower or higher is better"
    name = "B" if metric.better(b, a) else "A"
    if metric.unit != "%":
        return f"{name} is better by {metric.show(abs(b - a))}{'' if metric.unit == '1' else ' ' + metric.unit}"
    if not metric.lower:
        return f"{name} is better by {abs(b - a):.2f} points"
    return f"{name} is better by {abs(b - a):.2f} points ({100 * abs(b - a) / max(a, b):.1f} % fewer errors)"


def differences(a: Sequence[Item], b: Sequence[Item], shown: int = 5) -> str:
    """Why two lists can't be compared, with some ids; "" if their ids and references are the same."""
    left, right = ({item.id: item.ref for item in items} for items in (a, b))
    kinds = {
        "only in A": [name for name in left if name not in right],
        "only in B": [name for name in right if name not in left],
        "with another reference": [name for name in left if right.get(name, left[name]) != left[name]],
    }
    return "; ".join(f"{kind}: {', '.join(sorted(names)[:shown])}"
                     + (f" and {len(names) - shown} more" if len(names) > shown else "")
                     for kind, names in kinds.items() if names)


def render(rows: Sequence[Comparison], header: Mapping[str, str]) -> str:
    """A table for people."""
    head = ["test_set", "method", "metric", "A", "B", "B - A", "95 % interval", "P(B better)", "n", "failed", "verdict"]
    body = [
        [r.test_set, r.method_a if r.method_a == r.method_b else f"{r.method_a} : {r.method_b}", r.metric,
         _figure(r.a), _figure(r.b), _figure(r.difference, "+"),
         "-" if r.ci_low is None else f"{_figure(r.ci_low, '+')} .. {_figure(r.ci_high, '+')}",
         "-" if r.p_improvement is None else f"{r.p_improvement:.3f}", str(r.n), str(r.n_failed), r.verdict]
        for r in rows
    ]
    lines = [f"# {key}: {value}" for key, value in header.items()]
    right = [False] * 3 + [True] * 7 + [False]
    return "\n".join([*lines, "", *table(head, body, right)]) + "\n"


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"
