"""The feature contract: one frozen record of everything that decides which number stands at a frame and bin.

It is the section ``features:`` of a config, it lies beside stored features as ``contract.json``, and every checkpoint
carries one, so that inference builds the front end that training had. There is no torch here: resolving a config is
fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from speechlab.errors import UserError
from speechlab.ranges import within

FILE = "contract.json"
KALDI_EPSILON = 2.0**-23  # Kaldi floors energies at float32's machine epsilon before the logarithm
_NOT_STORED = ("dither", "normalise")  # applied when a batch is made, so they leave stored numbers as they are


@dataclasses.dataclass(frozen=True)
class FeatureContract:
    """Section ``features``: log mel filter banks as Kaldi's ``compute-fbank-feats`` makes them.

    Names and defaults are Kaldi's, except where a comment says so.
    """

    kind: Literal["fbank"] = "fbank"
    sample_rate: int = 16000  # Hz; audio at another rate is resampled to it
    frame_length_ms: float = 25.0  # milliseconds of signal in a frame
    frame_shift_ms: float = 10.0  # milliseconds from one frame to the next
    num_mel_bins: int = 80  # filters, so numbers per frame; 80 as in ESPnet and icefall (Kaldi: 23)
    low_freq: float = 20.0  # Hz: lower edge of the lowest filter
    high_freq: float = 0.0  # Hz: upper edge of the highest filter; 0: half the sample rate; negative: so far below it
    window: Literal["povey", "hanning", "hamming", "blackman", "rectangular"] = "povey"  # fades a frame out at its ends
    preemphasis: float = 0.97  # share of the sample before that is subtracted from each sample: raises high frequencies
    remove_dc_offset: bool = True  # subtract the mean of each frame
    use_energy: bool = False  # put the frame's log energy in front of the bins, as one number more
    log_floor: float = KALDI_EPSILON  # smaller energies are raised to it before the logarithm
    scaling: Literal["int16", "float"] = "int16"  # full scale of amplitudes: 32768 (Kaldi) or 1
    # Standard deviation of noise that is added to the scaled amplitudes, only where training computes features on the
    # fly: stored features and inference have none (Kaldi: 1.0).
    dither: float = 0.0
    # True keeps only frames that lie whole in the signal (Kaldi). False centres a frame on every shift and mirrors the
    # signal at its ends (icefall): lhotse counts frames as duration / shift, and refuses the two fewer that True gives.
    snip_edges: bool = False
    # utterance: mean 0 and variance 1 for each utterance and bin, computed on batches and never stored (Kaldi: none).
    normalise: Literal["utterance", "none"] = "utterance"

    def __post_init__(self) -> None:
        """Check the values: ValueError, beginning with the field's name, for one that is impossible."""
        for name in ("kind", "window", "scaling", "normalise"):
            allowed = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        within(self, "num_mel_bins", least=1, most=4096)
        within(self, "sample_rate", least=1000, most=1_000_000)
        within(self, "frame_length_ms", "frame_shift_ms", above=0, most=10_000)
        within(self, "low_freq", "dither", least=0)
        within(self, "high_freq")
        within(self, "preemphasis", least=0, most=1)
        within(self, "log_floor", above=0)
        if not 1 <= self.shift_samples <= self.length_samples:
            raise ValueError(f"frame_shift_ms must be above 0 and at most frame_length_ms ({self.frame_length_ms}), "
                             f"not {self.frame_shift_ms}")
        nyquist = self.sample_rate / 2
        if not 0 <= self.low_freq < self.top_freq <= nyquist:
            raise ValueError(f"low_freq and high_freq must give a band within 0 to {nyquist:g} Hz, "
                             f"not {self.low_freq:g} to {self.top_freq:g}")

    @property
    def length_samples(self) -> int:
        """A frame's length in samples (Kaldi cuts the fraction off)."""
        return int(self.sample_rate * 0.001 * self.frame_length_ms)

    @property
    def shift_samples(self) -> int:
        """The distance between frames in samples."""
        return int(self.sample_rate * 0.001 * self.frame_shift_ms)

    @property
    def top_freq(self) -> float:
        """The upper edge of the highest mel bin, Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def dim(self) -> int:
        """Numbers per frame: the mel bins, and the log energy before them if ``use_energy``."""
        return self.num_mel_bins + int(self.use_energy)

    def frames(self, samples: int) -> int:
        """How many frames ``samples`` samples at ``sample_rate`` make."""
        if self.snip_edges:
            return 0 if samples < self.length_samples else 1 + (samples - self.length_samples) // self.shift_samples
        return (samples + self.shift_samples // 2) // self.shift_samples

    def name(self) -> str:
        """A name for a folder, ``fbank80-3f2a``: kind, bins, and a hash of all fields that change stored numbers."""
        stored = {name: value for name, value in self.to_dict().items() if name not in _NOT_STORED}
        return f"{self.kind}{self.num_mel_bins}-{hashlib.sha256(json.dumps(stored).encode()).hexdigest()[:4]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field, for JSON, YAML and checkpoints."""
        # A float field given as a whole number (20 for 20.0) is the same contract: it must have the same name.
        return {f.name: float(getattr(self, f.name)) if f.type == "float" else getattr(self, f.name)
                for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the feature contract") -> FeatureContract:
        """Read what :meth:`to_dict` wrote; UserError, naming ``where``, for a field that is unknown or impossible."""
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"{where} has a field '{unknown[0]}' that this version does not know (it knows "
                            f"{', '.join(known)}): it was written by another version; make the features again")
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: {error}") from None


def require_same(stored: FeatureContract, wanted: FeatureContract, where: str | Path, normalise: bool = False) -> None:
    """Raise UserError naming the first field in which ``stored``, found at ``where``, differs from ``wanted``.

    The fields that change stored numbers are compared. ``normalise=True`` compares that field too, for two models, or
    for a model and the front end before it. ``dither`` belongs to one training and is never compared.
    """
    mine, theirs = wanted.to_dict(), stored.to_dict()
    for field in mine:
        if field in _NOT_STORED and not (normalise and field == "normalise"):
            continue
        if theirs[field] != mine[field]:
            raise UserError(f"{where}: features.{field} is {theirs[field]!r}, but {mine[field]!r} is wanted: make the "
                            f"features again (stage 2), or set features.{field} to {theirs[field]!r}")


def load_contract(folder: str | Path) -> FeatureContract:
    """The contract of the features in ``folder``; UserError if it has none, since their extraction never ended."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return FeatureContract.from_dict(values["features"], str(path))
    except FileNotFoundError:
        raise UserError(f"no {path}: the features are not there or not complete; stage 2 makes them") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read: remove it and make the features again (stage 2)") from None
