"""Writing audio that a corpus module makes or converts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile


def write_flac(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write mono ``samples`` (float in [-1, 1] or int16), shape (samples,), as 16-bit flac; makes the folder.

    The file is encoded in memory first: libsndfile does not tell why a write to disk failed, and a person must be told
    that the disk is full.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, format="FLAC", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.getbuffer())
