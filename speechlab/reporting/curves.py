"""curves.png: how a training went, drawn from its metrics.jsonl."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlab.files import atomic
from speechlab.reporting.metrics import axis, judged_by, label, read_metrics, series, wide
from speechlab.reporting.style import BLUE, GREEN, GREY, LIGHT, RUST, VIOLET, house_style
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric

_RAW, _TRAIN, _VALID, _GREY = LIGHT, BLUE, RUST, GREY
_COLOURS = (RUST, BLUE, GREEN, VIOLET, GREY)  # of the metrics in a panel


def smoothed(values: list[float], window: int) -> list[float]:
    """Exponential mean over about ``window`` values, corrected at its start, where it would be too near to zero."""
    decay, total, weight, out = 1 - 1 / max(1, window), 0.0, 0.0, []
    for value in values:
        total = decay * total + (1 - decay) * value if window > 1 else value
        weight = decay * weight + (1 - decay) if window > 1 else 1.0
        out.append(total / weight)
    return out


def draw(exp: Path) -> Path | None:
    """Draw ``exp/curves.png``: loss, validation figures, learning rate and gradient norm over steps.

    Validation figures that have the same unit and direction share a panel. Two spans are shaded: the warm-up; and, in
    validation panels, the phase of the first epochs if the task has noted one (the text ``phase`` in their records).

    Returns:
        The picture's path; None if there is nothing to draw yet.

    Raises:
        UserError: matplotlib is not installed.
    """
    steps, epochs = read_metrics(exp / "metrics.jsonl")
    if not steps and not epochs:
        return None
    groups = _groups(exp, epochs)
    rows = -(-(3 + max(1, len(groups))) // 2)
    with house_style() as pyplot:
        figure, axes = pyplot.subplots(rows, 2, figsize=(12, 3.75 * rows), sharex=True, layout="constrained")
        try:
            panels = list(axes.flat)
            for unused in panels[3 + max(1, len(groups)):]:
                unused.remove()
            loss, *rates, lr, norm = panels[:3 + max(1, len(groups))]
            _loss(loss, steps, epochs)
            for panel, group in itertools.zip_longest(rates, groups, fillvalue=[]):
                _rates(panel, epochs, group)
            _line(lr, *series(steps or epochs, "lr"), "Learning rate", "")
            _norm(norm, steps)
            _warm_up([loss, *rates, lr, norm], lr, steps or epochs)
            for panel in rates:
                _phase(panel, epochs)
            for panel in (lr, norm):
                panel.set_xlabel("optimiser step")
                panel.tick_params(labelbottom=True)
            seconds = max(series(epochs, "seconds")[1], default=0.0)  # since the start of training
            parts = [exp.name, f"{len(epochs)} epochs", f"{max(r['step'] for r in steps + epochs):,} steps"]
            figure.suptitle(", ".join(parts + ([f"{seconds / 60:.0f} min"] if seconds >= 60 else [])), fontsize=12)
            with atomic(exp / "curves.png") as aside:
                figure.savefig(aside, dpi=110)
        finally:
            pyplot.close(figure)
    return exp / "curves.png"


def _groups(exp: Path, epochs: list[dict]) -> list[list[tuple[str, Metric]]]:
    """The groups of figures that each have a validation panel: (key of the epoch lines, metric) pairs, of every
    ``valid_<metric>`` but the loss.

    The figure that epochs are judged by comes first. Metrics with the same unit and direction are one group. A metric
    that nobody has declared is a group of its own. If two figures always add up to 100 % (99.7 % right, 0.3 % wrong),
    only the first is drawn.
    """
    own = metric.read(exp)
    names = {key for record in epochs for key in record if key.startswith("valid_") and key != "valid_loss"}
    main = judged_by(exp, epochs) if epochs else ""
    groups: dict[tuple, list[tuple[str, Metric]]] = {}
    shown: list[str] = []
    for name in sorted(metric.order(sorted(names), own), key=lambda name: name != main):
        found = metric.find(name, own)
        if not series(epochs, name)[1] or any(_turned_over(epochs, name, other) for other in shown):
            continue
        shown.append(name)
        groups.setdefault((found.unit, found.lower) if found.lower is not None else (name,), []).append((name, found))
    return list(groups.values())


def _turned_over(epochs: list[dict], one: str, other: str) -> bool:
    """Whether two figures add up to 100 in every epoch."""
    (x, y), (other_x, other_y) = series(epochs, one), series(epochs, other)
    return x == other_x and all(abs(a + b - 100) < 1e-6 for a, b in zip(y, other_y))


def _loss(panel: Any, steps: list[dict], epochs: list[dict]) -> None:
    """Draw the training loss of each logged step, its smoothed curve, and the validation loss of each epoch."""
    x, y = series(steps, "loss")
    if y:
        panel.plot(x, y, color=_RAW, lw=0.8, label="train, a step")
        panel.plot(x, smoothed(y, len(y) // 40), color=_TRAIN, lw=1.8, label="train, smoothed")
    elif series(epochs, "train_loss")[1]:
        x, y = series(epochs, "train_loss")
        panel.plot(x, y, color=_TRAIN, lw=1.8, label="train, an epoch")
    valid_x, valid = series(epochs, "valid_loss")
    if valid:
        panel.plot(valid_x, valid, color=_VALID, lw=1.8, marker="o", ms=4, label=f"valid (lowest {min(valid):.3g})")
    skipped = len(steps) - len(series(steps, "loss")[1])
    logarithmic = bool(y) and min(y + valid) > 0 and max(y) > 10 * y[-1]
    if logarithmic:
        _logarithmic(panel)  # on a linear axis, the large loss of the first steps would make the rest look flat
    panel.set_title("Loss" + (f" (not finite: {skipped} logged)" if skipped else ""))
    panel.set_ylabel("loss, log scale" if logarithmic else "loss")
    if panel.lines:
        panel.legend(frameon=False, fontsize=9)


def _rates(panel: Any, epochs: list[dict], group: Sequence[tuple[str, Metric]]) -> None:
    """Draw metrics of the same unit and direction. If the direction is known, the best epoch of each has a star."""
    for (name, found), colour in zip(group, itertools.cycle(_COLOURS)):
        x, y = series(epochs, name)
        best = found.best(y)
        panel.plot(x, y, color=colour, marker="o", ms=4, lw=1.8,
                   label=label(found) if best is None else f"{label(found)} (best {found.show(best)})")
        if best is not None:
            panel.plot(x[y.index(best)], best, marker="*", ms=14, color=colour)
    if not group:
        panel.text(0.5, 0.5, "no validation yet", ha="center", transform=panel.transAxes, color=_GREY)
        panel.set_title("Validation")
        return
    panel.legend(frameon=False, fontsize=9)
    panel.set_title("Validation " + ", ".join(label(found) for _, found in group))
    panel.set_ylabel(axis(group[0][1]))
    values = [value for name, _ in group for value in series(epochs, name)[1]]
    if group[0][1].lower:
        if len(group) == 1 and wide(values):
            _logarithmic(panel)  # for a fall such as from 10 % to 0.3 %
        elif group[0][1].unit == "%":
            # An error rate can be above 100 %, but only at the start, where nothing is learnt yet: cut it off.
            panel.set_ylim(0, min(105.0, max(0.1, *(1.1 * value for value in values))))


def _line(panel: Any, x: list[int], y: list[float], title: str, unit: str) -> None:
    panel.plot(x, y, color=_TRAIN, lw=1.8)
    panel.set_title(title + (f" (peak {max(y):.3g})" if y else ""))
    panel.set_ylabel(unit)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if y:
        panel.set_ylim(bottom=0)


def _norm(panel: Any, steps: list[dict]) -> None:
    """Draw the gradient norm before clipping. The axis is logarithmic: what matters is whether it grows by factors."""
    x, y = series(steps, "grad_norm")
    pairs = [(step, value) for step, value in zip(x, y) if value > 0]
    if pairs:
        x, y = [list(column) for column in zip(*pairs)]
        panel.plot(x, y, color=_RAW, lw=0.8)
        panel.plot(x, smoothed(y, len(y) // 40), color=_TRAIN, lw=1.8)
        _logarithmic(panel)
    panel.set_title("Gradient norm" + (f" (median {statistics.median(y):.3g})" if y else ""))
    panel.set_ylabel("norm before clipping, log scale")


def _logarithmic(panel: Any) -> None:
    """Make the axis logarithmic, but write plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _warm_up(panels: Sequence[Any], named: Any, records: list[dict]) -> None:
    """Shade the steps in which the learning rate rises."""
    x, y = series(records, "lr")
    if len(y) > 2 and max(y) > 1.05 * y[0]:
        peak = x[y.index(max(y))]
        for panel in panels:
            panel.axvspan(x[0], peak, color="#f3ecd8", zorder=0, lw=0)
        _name(named, (x[0] + peak) / 2, "warm-up")


def _phase(panel: Any, epochs: list[dict]) -> None:
    """Shade the first epochs if they have a phase (the task names it), as long as it stays the same."""
    phase = epochs[0].get("phase") if epochs else None
    if isinstance(phase, str) and phase:
        *_, last = itertools.takewhile(lambda record: record.get("phase") == phase, epochs)
        panel.axvspan(0, last["step"], color="#e6e6e6", zorder=0, lw=0)
        _name(panel, last["step"] / 2, phase)


def _name(panel: Any, x: float, text: str) -> None:
    """Write a span's name at its bottom."""
    panel.text(x, 0.04, text, ha="center", transform=panel.get_xaxis_transform(), color=_GREY)
