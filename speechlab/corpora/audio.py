"""Writing audio that a corpus module makes or converts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile


def below_full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples that 16 bits can hold: integers and what keeps to [-1, 1] as they are, else all of them made quieter.

    Where floats go above full scale, or a resampled peak does, 16 bits would cut the peaks off: a distortion that
    nobody hears of. The result is another array only where something was scaled.
    """
    if not np.issubdtype(samples.dtype, np.floating) or not samples.size:
        return samples
    peak = float(np.abs(samples).max())
    return samples * samples.dtype.type(32767 / 32768 / peak) if 1 < peak < np.inf else samples


def write_flac(path: Path, samples: np.ndarray, rate: int) -> bool:
    """Write ``samples`` (n,) or (n, channels) as 16-bit flac; makes the folder.

    samples: int16, or float with full scale 1; what goes above it is scaled down as a whole, and True is returned.

    The file is encoded in memory first: libsndfile does not tell why a write to disk failed, and a person must be told
    that the disk is full.
    """
    given, samples = samples, below_full_scale(samples)
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, format="FLAC", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.getbuffer())
    return samples is not given
