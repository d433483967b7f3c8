"""Audio files of any length, read in pieces: an hour of audio needs no more memory than a minute."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from speechlab.data.check import SILENCE, check_audio

GAP = 0.2  # seconds of digital silence that end a piece
_READ = 1 << 14  # samples decoded at once; where a file is broken, the whole block is lost
_QUIET = 0.1  # seconds over which loudness is measured to find where to cut


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a file."""

    start: float  # seconds from the file's beginning
    samples: np.ndarray  # (n,) float64 with full scale 1, channels averaged
    rate: int  # Hz
    last: bool  # the file ends with it

    @property
    def end(self) -> float:
        """Seconds from the file's beginning."""
        return self.start + len(self.samples) / self.rate


def examine(path: str | Path) -> tuple[float, str | None]:
    """A file's length in seconds, and the reason why it can't be used, or only in part (check_audio's); else None."""
    path = Path(path)
    if path.suffix.lower() == ".raw":
        return 0.0, "unreadable: headerless samples, whose rate nobody knows; make a WAV of it"
    try:
        seconds = soundfile.info(os.fsencode(path)).duration
    except (soundfile.SoundFileError, OSError):
        seconds = 0.0  # the check says why
    return seconds, check_audio(path, [(0.0, seconds)])[0]


def pieces(path: str | Path, chunk: float, overlap: float, cut: bool) -> Iterator[Piece]:
    """A file's samples as pieces of at most ``chunk`` seconds.

    Args:
        path: what soundfile reads. Where it can't be decoded further, it ends.
        overlap: seconds that neighbours share; or with ``cut``, in which a piece ends at the quietest point and none
            is shared. Digital silence ends a piece, too, and lies between two.
    """
    with soundfile.SoundFile(os.fsencode(path)) as file:
        rate = file.samplerate
        size, shared, gap = round(chunk * rate), round(overlap * rate), max(1, round(GAP * rate))
        held, first, last = np.zeros(0), 0, False  # first: the file's sample that held begins with
        while not last:
            held = np.concatenate([held, _read(file, size + gap - len(held))])
            ended = len(held) <= size
            end, on = _bounds(held, size, shared, gap, rate, cut)
            last = ended and on == end == len(held)
            if end or last:
                yield Piece(first / rate, held[:end], rate, last)
            held, first = held[on:], first + on


def _bounds(held: np.ndarray, size: int, shared: int, gap: int, rate: int, cut: bool) -> tuple[int, int]:
    """Where the piece that begins ``held`` (n,) ends, and where the next one begins, both in samples.

    Args:
        held: the file's next samples, size + gap of them; fewer where the file ends.
        size, shared, gap: samples of a chunk, of the overlap, and of digital silence that ends a piece.
        rate, cut: as in :func:`pieces`.
    """
    silence = _silence(held, gap)
    if silence and silence[0] <= size:
        end, on = silence
        # Silence that reaches the end of what is held may go on: keep so much of it that it is found again.
        return end, size if on == size + gap else on
    if len(held) <= size:  # the file ends
        return len(held), len(held)
    if cut:
        quiet = size - shared + quietest(held[size - shared:size], rate)
        return quiet, quiet
    return size, size - shared


def _silence(samples: np.ndarray, least: int) -> tuple[int, int] | None:
    """Begin and end of the first run of at least ``least`` samples (n,) that never leave +-SILENCE."""
    silent = np.concatenate([[False], np.abs(samples) < SILENCE, [False]])
    begins, ends = np.flatnonzero(np.diff(silent.astype(np.int8))).reshape(-1, 2).T
    long = np.flatnonzero(ends - begins >= least)
    return (int(begins[long[0]]), int(ends[long[0]])) if len(long) else None


def _read(file: soundfile.SoundFile, count: int) -> np.ndarray:
    """The next ``count`` samples, fewer where the file ends, float64, channels averaged."""
    parts = [np.zeros(0)]
    while count > 0:
        try:
            block = file.read(min(count, _READ), dtype="float32", always_2d=True)
        except soundfile.SoundFileError:  # the rest is broken: who examined the file knows
            break
        if not len(block):
            break
        parts.append(block.astype(np.float64).mean(axis=1))
        count -= len(block)
    return np.concatenate(parts)


def quietest(samples: np.ndarray, rate: int) -> int:
    """The sample in the middle of the quietest tenth of a second of ``samples`` (n,); of equal ones, the middle one."""
    width = min(len(samples), max(1, round(_QUIET * rate)))
    if not width:
        return 0
    sums = np.concatenate([[0.0], np.cumsum(samples**2)])
    energy = sums[width:] - sums[:-width]
    best = np.flatnonzero(energy <= energy.min() + width * SILENCE**2)
    return int(best[len(best) // 2]) + width // 2
