"""The field's metrics, each with its unit and its direction: the one place that says whether lower or higher is better.

Rows of results, epochs, curves, tables, sweeps, comparisons and the training loop ask here. A task may bring metrics of
its own (``Task.metrics``, speechlab/tasks/interface.py); they are written to the experiment (:data:`FILE`), where
whoever only reads files finds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechlab.errors import UserError
from speechlab.files import read_json, write_json

FILE = "measures.json"  # in an experiment's folder: the metrics that its task judges by, the most important one first


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of merit (or, with ``merit=False``, a figure that ranks nothing: a speed).

    Args:
        name: as results name it (``CER``). An epoch's record calls it ``valid_cer``: :func:`key` makes both alike.
        unit: ``%``, ``dB``, ``s``...; ``1`` for a plain number.
        lower: True if lower is better, False if higher is, None if nobody has said.
        decimals: that people are shown.
        about: what it is, in a few words.
        merit: False for what experiments are not ranked by.
    """

    name: str
    unit: str = "1"
    lower: bool | None = True
    decimals: int = 2
    about: str = ""
    merit: bool = True

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is better than ``b``; never, where no direction is known."""
        return self.lower is not None and (a < b if self.lower else a > b)

    def best(self, values: Iterable[float]) -> float | None:
        """The best of ``values``; None without any, or without a direction."""
        found = list(values)
        if not found or self.lower is None:
            return None
        return min(found) if self.lower else max(found)

    def rank(self, value: float) -> float:
        """A number by which sorting puts the best value first; the same for all where no direction is known."""
        return 0.0 if self.lower is None else value if self.lower else -value

    def show(self, value: float | None) -> str:
        """``value`` for people: with its decimals, and with more where they would all be zeros."""
        if value is None:
            return "-"
        digits = self.decimals if value == 0 or abs(value) >= 10 ** (1 - self.decimals) else self.decimals + 2
        return f"{value:.{digits}f}"

    @property
    def arrow(self) -> str:
        """``lower is better`` or ``higher is better``; empty where no direction is known."""
        return {True: "lower is better", False: "higher is better", None: ""}[self.lower]


def key(name: str) -> str:
    """What a metric is found by: ``valid_si_sdr``, ``SI-SDR`` and ``si-sdr`` are one."""
    return "".join(c for c in name.lower().removeprefix("valid_") if c.isalnum())


# In the order in which they rank: where an experiment has several and its task has not said, the first one counts.
_FIELD = (
    Metric("error", "%", about="share of items with a wrong answer"),
    Metric("WER", "%", about="word error rate"),
    Metric("CER", "%", about="character error rate"),
    Metric("MER", "%", about="mixed error rate: characters of hanzi, words of the rest"),
    Metric("PER", "%", about="phone error rate"),
    Metric("SER", "%", about="tonal syllable error rate"),
    Metric("EER", "%", about="equal error rate"),
    Metric("minDCF", decimals=3, about="smallest normalised detection cost"),
    Metric("actDCF", decimals=3, about="normalised detection cost at the chosen threshold"),
    Metric("Cllr", decimals=3, about="cost of the log-likelihood ratio (calibration)"),
    Metric("PESQ", "MOS", False, about="perceptual evaluation of speech quality"),
    Metric("SI-SDR", "dB", False, about="scale-invariant signal-to-distortion ratio"),
    Metric("SI-SDRi", "dB", False, about="improvement of SI-SDR"),
    Metric("SDR", "dB", False, about="signal-to-distortion ratio"),
    Metric("STOI", "1", False, 3, "short-time objective intelligibility"),
    Metric("ESTOI", "1", False, 3, "extended short-time objective intelligibility"),
    Metric("SNR", "dB", False, about="signal-to-noise ratio"),
    Metric("segSNR", "dB", False, about="segmental signal-to-noise ratio"),
    Metric("CSIG", "MOS", False, about="composite measure of the signal's distortion"),
    Metric("CBAK", "MOS", False, about="composite measure of the background"),
    Metric("COVL", "MOS", False, about="composite measure of overall quality"),
    Metric("DNSMOS", "MOS", False, about="predicted mean opinion score"),
    Metric("DNSMOS SIG", "MOS", False), Metric("DNSMOS BAK", "MOS", False), Metric("DNSMOS OVRL", "MOS", False),
    Metric("DistillMOS", "MOS", False, about="predicted mean opinion score"),
    Metric("UTMOS", "MOS", False, about="predicted mean opinion score"),
    Metric("MOS", "MOS", False, about="mean opinion score"),
    Metric("MCD", "dB", about="mel-cepstral distortion"),
    Metric("logF0RMSE", "1", True, 3, "root mean square error of log-F0"),
    Metric("VUV", "%", about="frames that are voiced in one and unvoiced in the other"),
    Metric("SECS", "1", False, 3, "speaker embedding cosine similarity"),
    Metric("accuracy", "%", False, about="share of items with the right answer"),
    Metric("precision", "%", False), Metric("recall", "%", False), Metric("F1", "%", False),
    Metric("AUC", "1", False, 3, "area under the ROC curve"), Metric("mAP", "%", False),
    Metric("miss", "%", about="share of the targets that were missed"),
    Metric("false alarms", "per hour", about="false alarms per hour"),
    Metric("BLEU", "1", False), Metric("correlation", "1", False, 3),
    Metric("MAE", decimals=3, about="mean absolute error"), Metric("RMSE", decimals=3, about="root mean square error"),
    Metric("perplexity", about="of a token"),
    Metric("loss", decimals=4), Metric("train_loss", decimals=4),
    Metric("RTF", "1", True, 4, "real-time factor: seconds of computing per second of audio", merit=False),
)
METRICS = {key(metric.name): metric for metric in _FIELD}
RTF = METRICS["rtf"].name


def find(name: str, own: Sequence[Metric] = ()) -> Metric:
    """The metric called ``name``: of ``own`` (a task's) first, else the field's.

    A name that nobody has declared gives a metric without a direction: it is shown, and ranks nothing.
    """
    declared = {key(metric.name): metric for metric in own}
    return declared.get(key(name)) or METRICS.get(key(name)) or Metric(name, lower=None, decimals=4)


def declared(name: str) -> Metric:
    """The field's metric called ``name``, for a task to list. UserError if the field has none: make a Metric then."""
    if key(name) not in METRICS:
        raise UserError(f"no metric is called '{name}': give Metric('{name}', unit, lower=True or False)")
    return METRICS[key(name)]


def order(names: Iterable[str], own: Sequence[Metric] = ()) -> list[str]:
    """``names``, each once, the one that ranks first: in the order of ``own``, then in the field's, then those that
    nobody has declared, then what is no figure of merit."""
    places = {key(metric.name): place for place, metric in reversed(list(enumerate((*own, *_FIELD))))}
    return sorted(dict.fromkeys(names), key=lambda name: (
        not find(name, own).merit, places.get(key(name), len(own) + len(_FIELD))))


def main(names: Iterable[str], own: Sequence[Metric] = ()) -> str:
    """Which of ``names`` experiments are ranked by: the first of :func:`order`; ``""`` where none ranks anything."""
    return next((name for name in order(names, own) if find(name, own).merit), "")


def write(exp: str | Path, metrics: Sequence[Metric]) -> None:
    """Note in an experiment's folder what its task judges by."""
    write_json(Path(exp) / FILE, [dataclasses.asdict(metric) for metric in metrics])


def read(exp: str | Path) -> tuple[Metric, ...]:
    """What :func:`write` noted; empty where there is nothing, or nothing that can be read."""
    found = read_json(Path(exp) / FILE)
    names = {field.name for field in dataclasses.fields(Metric)}
    try:
        read = tuple(Metric(**{name: item[name] for name in names & item.keys()}) for item in found or ())
    except (TypeError, AttributeError):
        return ()
    return read if all(_sound(metric) for metric in read) else ()


def _sound(metric: Metric) -> bool:
    """Whether a metric that was read from a file has the types that it says."""
    return (isinstance(metric.name, str) and isinstance(metric.unit, str) and isinstance(metric.about, str)
            and metric.lower in (True, False, None) and type(metric.decimals) is int and 0 <= metric.decimals < 20)
