"""mistakes.json: what an experiment got wrong, as scoring leaves it and report.html shows it.

The page knows views and no task; a task chooses the view that suits it. The file:

    {"sets": [one object a (test set, method), see below], "media": {key: a data: address}}

Each of ``sets`` has ``test_set``, ``method``, ``view`` and what its view asks for (``?``: may be left out):

    classes   classes, counts (rows: true; both ?), pairs [[ref, hyp, count]], n, errors,
              cards [{id, ref, hyp, prob, prob_ref?, text?, picture?, clip?}]
    aligned   items [{title, pairs [[ref, hyp, differ]], clip?, picture?}]
    trials    target, nontarget (counts), edges (one more than counts), threshold?, det [[false accepts, misses]] in %,
              cards [{id, score, target (true or false), text?, clips? [key, key]}]
    audio     items [{title, text?, figures {name: number}, tracks [{name, clip?, picture?}]}]: also what a task without
              sound shows, with no tracks

``picture``, ``clip`` and ``clips`` are keys of ``media``. :class:`Mistakes` collects all this and holds its size down.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.files import write_text

FILE = "mistakes.json"
VIEWS = ("classes", "aligned", "trials", "audio")
SECONDS = 8.0  # of a clip: enough to hear what went wrong
BYTES = 3_000_000  # of all media of an experiment, as base64; what comes when this is full has no picture or clip
CLIP_RATE = 16000


class Mistakes:
    """Collects the sets of one experiment and writes its mistakes.json."""

    def __init__(self, most: int = BYTES):
        self.sets: list[dict[str, Any]] = []
        self.media: dict[str, str] = {}
        self.room = most

    def add(self, test_set: str, method: str, view: str, **fields: Any) -> None:
        """One (test set, method); ``fields`` are its view's (see above)."""
        if view not in VIEWS:
            raise ValueError(f"view {view!r}: there are {', '.join(VIEWS)}")
        self.sets.append({"test_set": test_set, "method": method, "view": view, **fields})

    def picture(self, key: str, pixels: np.ndarray) -> dict[str, str]:
        """``{"picture": key}`` for uint8 pixels (H, W, 1 or 3), to be put into an item; ``{}``: the file is full."""
        return {"picture": key} if self._keep(key, lambda: png(pixels)) else {}

    def clip(self, key: str, samples: np.ndarray, rate: int) -> dict[str, str]:
        """``{"clip": key}`` for samples (n,) with full scale 1; the first :data:`SECONDS` are kept."""
        return {"clip": key} if len(samples) and self._keep(key, lambda: audio(samples, rate)) else {}

    def sound(self, key: str, samples: np.ndarray, rate: int) -> dict[str, str]:
        """A clip with its spectrogram as the picture."""
        shown = samples[: round(SECONDS * rate)]
        heard = self.clip(f"{key}.clip", samples, rate)
        return {**heard, **(self.picture(f"{key}.png", spectrogram(shown, rate)) if heard else {})}

    def write(self, exp: str | Path) -> None:
        """Write ``exp/mistakes.json``, a line per set."""
        sets = ",\n".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in self.sets)
        media = ",\n".join(f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(address)}"
                           for name, address in self.media.items())
        write_text(Path(exp) / FILE, f'{{"sets": [\n{sets}\n], "media": {{\n{media}\n}}}}\n')

    def _keep(self, key: str, make: Any) -> bool:
        if key not in self.media:
            if self.room <= 0:
                return False
            address = make()
            if len(address) > self.room:
                return False
            self.media[key] = address
            self.room -= len(address)
        return True


def png(pixels: np.ndarray) -> str:
    """A uint8 picture (H, W, 1 or 3) as a ``data:`` address (PNG: ISO/IEC 15948)."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(whole).decode()


def audio(samples: np.ndarray, rate: int) -> str:
    """Samples (n,) with full scale 1 as a ``data:`` address: mono, at most :data:`SECONDS` and :data:`CLIP_RATE` Hz.

    MP3, which every browser plays and which takes a tenth of a WAV's room; WAV where this libsndfile can't write it.
    """
    import soundfile
    import soxr

    x = np.asarray(samples, dtype=np.float32)[: round(SECONDS * rate)]
    if rate > CLIP_RATE:
        x, rate = soxr.resample(x, rate, CLIP_RATE), CLIP_RATE
    peak = float(np.abs(x).max(initial=0.0))
    x = x / peak * 0.99 if peak > 1 else x  # a resampled peak must not be cut off
    made = io.BytesIO()
    form, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() and rate in _MP3_RATES else ("WAV", "wav")
    soundfile.write(made, x, rate, format=form, **({"compression_level": 0.9} if form == "MP3" else {}))
    return f"data:audio/{kind};base64," + base64.b64encode(made.getvalue()).decode()


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def spectrogram(samples: np.ndarray, rate: int, height: int = 96, most: int = 400) -> np.ndarray:
    """Samples (n,) -> a picture (height, width, 1) uint8: frequency upwards to half the rate, time to the right, 60 dB
    from white to black. ``most`` columns at most: more are averaged."""
    window, hop = max(16, round(0.025 * rate)), max(8, round(0.010 * rate))
    x = np.asarray(samples, dtype=np.float64)
    x = np.pad(x, (0, max(0, window - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    power = _means(_means(power, most).T, height)  # (height, columns)
    decibel = 10 * np.log10(power + 1e-12)
    shade = np.clip((decibel - decibel.max() + 60) / 60, 0, 1)
    return (255 * (1 - shade[::-1, :, None])).round().astype(np.uint8)


def _means(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` rows, each the mean of neighbours."""
    if len(rows) <= most:
        return rows
    edges = np.linspace(0, len(rows), most + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(rows)])
    return np.add.reduceat(rows, edges, axis=0) / counts[:, None]


def matrix(values: np.ndarray, scale: int = 3) -> np.ndarray:
    """(rows, columns) of any range -> a picture (H, W, 1) uint8: the largest is black; the first row is on top."""
    span = float(np.max(values)) or 1.0
    shade = (255 * (1 - np.clip(values / span, 0, 1))).round().astype(np.uint8)
    return np.repeat(np.repeat(shade, scale, 0), scale, 1)[:, :, None]


def mosaic(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Grey pictures (H, W, 1) one under the other on white: (H, W) uint8."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        rows += [np.pad(picture[:, :, 0], ((0, 0), (0, width - picture.shape[1])), constant_values=255),
                 np.full((gap, width), 255, np.uint8)]
    return np.concatenate(rows[:-1])
