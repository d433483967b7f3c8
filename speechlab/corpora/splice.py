"""Joining recorded syllables into sentences: trim, level, change pitch and rate, cross-fade.

Everything works on mono float32 arrays, shape (samples,), full scale 1.0, and is deterministic for a given ``rng``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

SAMPLE_RATE = 16000
LEVEL_DB = -23.0  # RMS of a levelled syllable, dB re full scale


@dataclass(frozen=True)
class Variation:
    """How much a spoken sentence varies; ranges are uniform, ``+-`` ones around 1 (factors) or 0 (dB)."""

    pitch: float = 0.06  # a sentence's pitch factor, +-
    syllable_pitch: float = 0.03  # a syllable's, +-, on top of the sentence's
    rate: tuple[float, float] = (0.85, 1.2)  # a sentence's rate: above 1 is faster
    syllable_rate: float = 0.05  # a syllable's, +-, on top of the sentence's
    sentence_db: float = 4.0  # a sentence's level, +-
    syllable_db: float = 1.5  # a syllable's, +-
    fade: tuple[float, float] = (0.015, 0.025)  # seconds of cross-fade at a join
    edge: tuple[float, float] = (0.04, 0.12)  # seconds of noise floor before and after the sentence
    pause: tuple[float, float] = (0.10, 0.30)  # seconds where punctuation stood ...
    pause_probability: float = 0.6  # ... and how often there is one
    noise_db: tuple[float, float] = (-66.0, -54.0)  # noise floor, RMS in dB re full scale


@dataclass(frozen=True)
class Syllable:
    """One recorded syllable on its place in a sentence."""

    samples: np.ndarray  # (samples,), trimmed and levelled
    rate: float = 1.0  # above 1: spoken faster than recorded (a neutral tone that was recorded with a full one)
    gain_db: float = 0.0
    pause_after: bool = False  # punctuation follows


def trim(samples: np.ndarray, sample_rate: int = SAMPLE_RATE, below_db: float = 34.0) -> np.ndarray:
    """Cut silence from both ends: 5 ms frames whose energy is more than ``below_db`` under the loudest frame's.

    5 ms are kept on each side, so that a weak initial (f, s) keeps its onset. Silence in, nothing cut out.
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
    """Scale to an RMS of ``level_db`` (dB re full scale), less where the peak would pass ``peak``."""
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
    window = np.hanning(frame + 1)[:-1].astype(np.float32)  # periodic: halves that overlap add up to one
    padded = np.pad(samples, (hop + reach, frame + hop + reach))
    frames = length // hop + 2
    out = np.zeros((frames + 1) * hop, np.float32)
    last = len(padded) - frame - hop  # from here on a frame would have no continuation left
    power = np.concatenate(([0.0], np.cumsum(np.square(padded, dtype=np.float64))))
    weight = 1 / np.sqrt(power[frame:] - power[:-frame] + 1e-6)  # of the frame that begins at each sample
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
    """Multiply all frequencies by ``factor`` by resampling; the duration is divided by it."""
    return soxr.resample(samples, sample_rate * factor, sample_rate, quality="MQ")


def join(pieces: list[np.ndarray], fades: list[int]) -> np.ndarray:
    """Put pieces one after another, overlapping by ``fades[i]`` samples between piece i and i + 1 (equal power).

    A piece shorter than its two fades would be faded twice, so a fade is cut to a third of the shorter neighbour.
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
    """A quarter sine from 0 to 1: with its mirror image, the powers add up to one."""
    return np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(1, length))).astype(np.float32)


def speak(syllables: list[Syllable], rng: np.random.Generator, vary: Variation = Variation()) -> np.ndarray:
    """Speak a sentence: vary each syllable, join them, add pauses and a noise floor. Returns 16 kHz, peak <= 0.95."""

    def around_one(width: float) -> float:
        return 1 + rng.uniform(-width, width)

    sentence_pitch, sentence_rate = around_one(vary.pitch), rng.uniform(*vary.rate)
    pieces: list[np.ndarray] = []
    fades: list[int] = []
    for index, syllable in enumerate(syllables):
        pitch = sentence_pitch * around_one(vary.syllable_pitch)
        rate = sentence_rate * syllable.rate * around_one(vary.syllable_rate)
        gain_db = syllable.gain_db + rng.uniform(-vary.syllable_db, vary.syllable_db)
        # Raising the pitch has already shortened the syllable by `pitch`; WSOLA does the rest of the rate.
        piece = wsola(change_pitch(syllable.samples, pitch), rate / pitch)
        pieces.append(piece * np.float32(10 ** (gain_db / 20)))
        fade = round(SAMPLE_RATE * rng.uniform(*vary.fade))
        fades.append(fade)
        if syllable.pause_after and index + 1 < len(syllables) and rng.random() < vary.pause_probability:
            pieces.append(np.zeros(round(SAMPLE_RATE * rng.uniform(*vary.pause)), np.float32))
            fades.append(fade)
    edges = [np.zeros(round(SAMPLE_RATE * rng.uniform(*vary.edge)), np.float32) for _ in range(2)]
    short = SAMPLE_RATE // 200  # 5 ms: takes a cut edge's click away and leaves a stop's burst
    speech = join([edges[0], *pieces, edges[1]], [short, *fades[: len(pieces) - 1], short])
    speech *= np.float32(10 ** (rng.uniform(-vary.sentence_db, vary.sentence_db) / 20))
    speech += rng.standard_normal(len(speech), dtype=np.float32) * np.float32(10 ** (rng.uniform(*vary.noise_db) / 20))
    return speech * np.float32(min(1.0, 0.95 / float(np.abs(speech).max())))
