"""Joining recorded syllables into sentences: trim, level, change pitch and rate, cross-fade.

All functions work on mono float32 arrays, shape (samples,), full scale 1.0. The same ``rng`` gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

SAMPLE_RATE = 16000
LEVEL_DB = -23.0  # RMS of a levelled syllable, dB re full scale


@dataclass(frozen=True)
class Variation:
    """How much a spoken sentence varies. All values are drawn uniformly: from a range (low, high), or from +- a number
    around 1 (a factor) or around 0 (dB)."""

    pitch: float = 0.06  # +-, factor of a sentence's pitch
    syllable_pitch: float = 0.03  # +-, factor of a syllable's pitch, on top of the sentence's
    rate: tuple[float, float] = (0.85, 1.2)  # factor of a sentence's rate; above 1 is faster
    syllable_rate: float = 0.05  # +-, factor of a syllable's rate, on top of the sentence's
    sentence_db: float = 4.0  # +-, dB of a sentence's level
    syllable_db: float = 1.5  # +-, dB of a syllable's level, on top of the sentence's
    fade: tuple[float, float] = (0.015, 0.025)  # seconds of cross-fade where two syllables join
    edge: tuple[float, float] = (0.04, 0.12)  # seconds of background noise before and after the sentence
    pause: tuple[float, float] = (0.10, 0.30)  # seconds of a pause at punctuation
    pause_probability: float = 0.6  # how often punctuation makes a pause
    noise_db: tuple[float, float] = (-66.0, -54.0)  # level (RMS) of the background noise, dB re full scale


@dataclass(frozen=True)
class Syllable:
    """One recorded syllable at its place in a sentence."""

    samples: np.ndarray  # (samples,), trimmed and levelled
    rate: float = 1.0  # above 1: faster than recorded (for a neutral tone that is made from a full tone)
    gain_db: float = 0.0
    pause_after: bool = False  # punctuation follows


def trim(samples: np.ndarray, sample_rate: int = SAMPLE_RATE, below_db: float = 34.0) -> np.ndarray:
    """Cut silence from both ends. Silence is a frame of 5 ms whose energy is more than ``below_db`` under that of the
    loudest frame.

    5 ms of silence stay at each end, so that a weak initial (f, s) keeps its onset. If all is silence, nothing is cut.
    """
    frame = sample_rate // 200
    count = len(samples) // frame
    if not count:
        return samples
    energy = np.square(samples[: count * frame].reshape(count, frame)).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-below_db / 10))
    if not len(loud):
        return samples
    return samples[max(0, loud[0] - 1) * frame : (loud[-1] + 2) * frame]


def level(samples: np.ndarray, level_db: float = LEVEL_DB, peak: float = 0.9) -> np.ndarray:
    """Scale to an RMS of ``level_db`` (dB re full scale), or to less if the peak would be above ``peak``."""
    rms = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    if rms < 1e-7:
        return samples
    return samples * np.float32(min(10 ** (level_db / 20) / rms, peak / float(np.abs(samples).max())))


def wsola(samples: np.ndarray, rate: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Change the duration to ``len(samples) / rate`` and keep the pitch.

    WSOLA: output frames (25 ms Hann windows, half overlapping) are taken from around ``rate`` times their own time,
    each shifted by up to 6 ms to where it best continues the frame before it, so that pitch periods stay whole.
    W. Verhelst and M. Roelands, "An overlap-add technique based on waveform similarity (WSOLA) for high quality
    time-scale modification of speech", ICASSP 1993.
    """
    hop = sample_rate // 80
    frame, reach = 2 * hop, sample_rate * 6 // 1000
    length = max(1, round(len(samples) / rate))
    if abs(rate - 1) < 1e-3 or len(samples) < frame + 2 * reach:
        return samples
    window = np.hanning(frame + 1)[:-1].astype(np.float32)  # periodic: overlapping halves add up to one
    padded = np.pad(samples, (hop + reach, frame + hop + reach))
    frames = length // hop + 2
    out = np.zeros((frames + 1) * hop, np.float32)
    last = len(padded) - frame - hop  # a frame after this one would have no continuation
    power = np.concatenate(([0.0], np.cumsum(np.square(padded, dtype=np.float64))))
    weight = 1 / np.sqrt(power[frame:] - power[:-frame] + 1e-6)  # one for each frame: it may begin at any sample
    at = reach
    for index in range(frames):
        if index:
            wanted = padded[at + hop : at + hop + frame]
            low = min(round(index * hop * rate), last - 2 * reach)
            likeness = np.correlate(padded[low : low + frame + 2 * reach], wanted, "valid")
            at = low + int((likeness * weight[low : low + len(likeness)]).argmax())
        out[index * hop : index * hop + frame] += window * padded[at : at + frame]
    return out[hop : hop + length]


def change_pitch(samples: np.ndarray, factor: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Multiply all frequencies by ``factor``, by resampling. This divides the duration by ``factor``."""
    return soxr.resample(samples, sample_rate * factor, sample_rate, quality="MQ")


def join(pieces: list[np.ndarray], fades: list[int]) -> np.ndarray:
    """Join pieces with cross-fades of equal power: pieces i and i + 1 overlap by ``fades[i]`` samples.

    A fade is at most a third of the shorter of its two pieces. Otherwise both fades of a short piece could overlap.
    """
    if not pieces:
        return np.zeros(0, np.float32)
    fades = [max(0, min(f, len(a) // 3, len(b) // 3)) for f, a, b in zip(fades, pieces, pieces[1:])]
    out = np.zeros(sum(map(len, pieces)) - sum(fades), np.float32)
    at = 0
    for index, piece in enumerate(pieces):
        piece = piece.astype(np.float32)  # a copy: the caller's stays as it was
        if index:
            at -= fades[index - 1]
            piece[: fades[index - 1]] *= _rise(fades[index - 1])
        if index < len(fades):
            piece[len(piece) - fades[index] :] *= _rise(fades[index])[::-1]
        out[at : at + len(piece)] += piece
        at += len(piece)
    return out


def _rise(length: int) -> np.ndarray:
    """A quarter of a sine, from 0 to 1. Its power and that of its mirror image add up to one."""
    return np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(1, length))).astype(np.float32)


def speak(syllables: list[Syllable], rng: np.random.Generator, vary: Variation = Variation()) -> np.ndarray:
    """Speak a sentence: vary each syllable, join them, add pauses and background noise.

    Returns (samples,) at 16 kHz with a peak of at most 0.95.
    """

    def around_one(width: float) -> float:
        return 1 + rng.uniform(-width, width)

    sentence_pitch, sentence_rate = around_one(vary.pitch), rng.uniform(*vary.rate)
    pieces: list[np.ndarray] = []
    fades: list[int] = []
    for index, syllable in enumerate(syllables):
        pitch = sentence_pitch * around_one(vary.syllable_pitch)
        rate = sentence_rate * syllable.rate * around_one(vary.syllable_rate)
        gain_db = syllable.gain_db + rng.uniform(-vary.syllable_db, vary.syllable_db)
        # Changing the pitch has already divided the duration by `pitch`; WSOLA does what is left of the rate.
        piece = wsola(change_pitch(syllable.samples, pitch), rate / pitch)
        pieces.append(piece * np.float32(10 ** (gain_db / 20)))
        fade = round(SAMPLE_RATE * rng.uniform(*vary.fade))
        fades.append(fade)
        if syllable.pause_after and index + 1 < len(syllables) and rng.random() < vary.pause_probability:
            pieces.append(np.zeros(round(SAMPLE_RATE * rng.uniform(*vary.pause)), np.float32))
            fades.append(fade)
    edges = [np.zeros(round(SAMPLE_RATE * rng.uniform(*vary.edge)), np.float32) for _ in range(2)]
    short = SAMPLE_RATE // 200  # a fade of 5 ms removes the click of a cut edge, but leaves the burst of a stop
    speech = join([edges[0], *pieces, edges[1]], [short, *fades[: len(pieces) - 1], short])
    speech *= np.float32(10 ** (rng.uniform(-vary.sentence_db, vary.sentence_db) / 20))
    speech += rng.standard_normal(len(speech), dtype=np.float32) * np.float32(10 ** (rng.uniform(*vary.noise_db) / 20))
    return speech * np.float32(min(1.0, 0.95 / float(np.abs(speech).max())))
