"""curves.png: how a training went, at a glance, from its metrics.jsonl."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from speechlab.files import atomic
from speechlab.reporting.metrics import read_metrics, series
from speechlab.reporting.style import BLUE, GREEN, GREY, LIGHT, RUST, VIOLET, house_style

_RAW, _TRAIN, _VALID, _GREY = LIGHT, BLUE, RUST, GREY
# CTC first learns to answer blank everywhere: all characters are then deleted, and the error rate stands near 100 %.
_ALL_BLANK = 97.0


def smoothed(values: list[float], window: int) -> list[float]:
    """Exponential mean over about ``window`` values, without the pull towards zero at its start."""
    decay, total, weight, out = 1 - 1 / max(1, window), 0.0, 0.0, []
    for value in values:
        total = decay * total + (1 - decay) * value if window > 1 else value
        weight = decay * weight + (1 - decay) if window > 1 else 1.0
        out.append(total / weight)
    return out


def draw(exp: Path) -> Path | None:
    """Draw ``exp/curves.png``: loss, validation rates, learning rate and gradient norm over steps.

    Warm-up is shaded, and in the panel of an error rate the time when the model answers nothing but blank.

    Returns:
        The picture's path; None when there is nothing to draw yet.

    Raises:
        UserError: when matplotlib is not installed.
    """
    steps, epochs = read_metrics(exp / "metrics.jsonl")
    if not steps and not epochs:
        return None
    with house_style() as pyplot:
        figure, ((loss, rate), (lr, norm)) = pyplot.subplots(2, 2, figsize=(12, 7.5), sharex=True, layout="constrained")
        try:
            _loss(loss, steps, epochs)
            _rates(rate, epochs)
            _line(lr, *series(steps or epochs, "lr"), "Learning rate", "")
            _norm(norm, steps)
            _phases([loss, rate, lr, norm], steps, epochs)
            for panel in (lr, norm):
                panel.set_xlabel("optimiser step")
            seconds = max(series(epochs, "seconds")[1], default=0.0)  # since the training began
            parts = [exp.name, f"{len(epochs)} epochs", f"{max(r['step'] for r in steps + epochs):,} steps"]
            figure.suptitle(", ".join(parts + ([f"{seconds / 60:.0f} min"] if seconds >= 60 else [])), fontsize=12)
            with atomic(exp / "curves.png") as aside:
                figure.savefig(aside, dpi=110)
        finally:
            pyplot.close(figure)
    return exp / "curves.png"


def _loss(panel: Any, steps: list[dict], epochs: list[dict]) -> None:
    """Training loss of each logged step and its smooth course, and validation loss of each epoch."""
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
        _logarithmic(panel)  # else its first steps would press the rest of the training flat
    panel.set_title("Loss" + (f" (not finite: {skipped} logged)" if skipped else ""))
    panel.set_ylabel("loss, log scale" if logarithmic else "loss")
    if panel.lines:
        panel.legend(frameon=False, fontsize=9)


def _rates(panel: Any, epochs: list[dict]) -> None:
    """Every ``valid_<metric>`` but the loss; the best epoch of each is named."""
    names = sorted({key for record in epochs for key in record if key.startswith("valid_") and key != "valid_loss"})
    if "valid_error" in names and "valid_accuracy" in names:
        names.remove("valid_accuracy")  # the same, turned over: 0.3 % wrong is seen better than 99.7 % right
    error_rates = True
    for name, colour in zip(names, (_VALID, _TRAIN, GREEN, VIOLET, _GREY)):
        x, y = series(epochs, name)
        if not y:
            continue
        label = name.removeprefix("valid_").upper()
        lower = label in ("CER", "WER", "PER", "EER", "ERROR") or label.endswith("ER")
        error_rates &= lower
        best = min(y) if lower or label == "PERPLEXITY" else max(y)
        panel.plot(x, y, color=colour, marker="o", ms=4, lw=1.8, label=f"{label} (best {best:.4g})")
        panel.plot(x[y.index(best)], best, marker="*", ms=14, color=colour)
    if not panel.lines:
        panel.text(0.5, 0.5, "no validation yet", ha="center", transform=panel.transAxes, color=_GREY)
    else:
        panel.legend(frameon=False, fontsize=9)
        if names == ["valid_error"]:
            y = series(epochs, "valid_error")[1]
            if min(y) > 0 and max(y) > 10 * min(y):
                _logarithmic(panel)  # from 10 % to 0.3 %
            else:
                panel.set_ylim(0, max(max(y) * 1.1, 0.1))
        elif error_rates:
            panel.set_ylim(0, 105)  # insertions can take a rate over 100 %, but only while there is nothing to see
    shown = [name.removeprefix("valid_").upper() for name in names]
    panel.set_title("Validation " + ", ".join(shown) if shown else "Validation")
    panel.set_ylabel("%" if error_rates else "")


def _line(panel: Any, x: list[int], y: list[float], title: str, unit: str) -> None:
    panel.plot(x, y, color=_TRAIN, lw=1.8)
    panel.set_title(title + (f" (peak {max(y):.3g})" if y else ""))
    panel.set_ylabel(unit)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if y:
        panel.set_ylim(bottom=0)


def _norm(panel: Any, steps: list[dict]) -> None:
    """Gradient norm before clipping, on a logarithmic axis: what matters is whether it grows by factors."""
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
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _phases(panels: list[Any], steps: list[dict], epochs: list[dict]) -> None:
    """Shade warm-up everywhere and the all-blank time in the validation panel, each with its name."""
    x, y = series(steps or epochs, "lr")
    if len(y) > 2 and max(y) > 1.05 * y[0]:
        peak = x[y.index(max(y))]
        for panel in panels:
            panel.axvspan(x[0], peak, color="#f3ecd8", zorder=0, lw=0)
        _name(panels[2], (x[0] + peak) / 2, "warm-up")
    x, y = series(epochs, "valid_cer")
    blank = 0
    while blank < len(y) and y[blank] >= _ALL_BLANK:
        blank += 1
    if blank:
        panels[1].axvspan(0, x[blank - 1], color="#e6e6e6", zorder=0, lw=0)
        _name(panels[1], x[blank - 1] / 2, "all blank")


def _name(panel: Any, x: float, text: str) -> None:
    """Write a phase's name at its foot."""
    panel.text(x, 0.04, text, ha="center", transform=panel.get_xaxis_transform(), color=_GREY)
