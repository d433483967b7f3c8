"""Speech-like sound made by code: voices, formant tracks, noises, impulse responses. numpy only, seeded, no files.

This is a source-filter synthesiser in the frequency domain, a much simplified form of Klatt 1980, "Software for a
cascade/parallel formant synthesizer". It adds up the harmonics of the voice's pitch, weighed by the resonances of the
formants at each moment, and hiss for the consonants. It does not sound like a person. But it has what a recogniser, a
speaker verifier, an enhancer and a vocoder learn from: formants, pitch, voicing, a speaker. All sounds are float32 in
[-1, 1].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

SAMPLE_RATE = 16000
FRAME_RATE = 100  # rows of a track per second
_BANDWIDTHS = np.array([80.0, 110.0, 160.0, 250.0])  # Hz, of F1..F4 (Klatt 1980, table II, rounded)
_F4 = 3500.0
NOISES = ("white", "pink", "brown", "hum", "clicks")


def seeded(*names: object) -> np.random.Generator:
    """A random generator that depends on ``names`` alone: the same on every machine, whatever was drawn before."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class Voice:
    """A speaker: ``pitch`` in Hz, ``tract`` (a factor of the formants), ``tilt`` (dB per octave), ``breath`` (0-1)."""

    pitch: float
    tract: float
    tilt: float
    breath: float

    @classmethod
    def of(cls, speaker: object) -> Voice:
        """The voice of a speaker's name. A high voice tends to have a short vocal tract, as among people."""
        rng = seeded("voice", speaker)
        height = rng.uniform()
        return cls(
            pitch=float(95 * 2 ** (1.2 * height + 0.1 * rng.normal())),
            tract=float(0.92 + 0.17 * height + 0.025 * rng.normal()),
            tilt=float(rng.uniform(-9, -5)),
            breath=float(rng.uniform(0.01, 0.06)),
        )


@dataclass(frozen=True)
class Track:
    """What is said, whoever says it: a row every 10 ms.

    formants: (T, 3), Hz, of a voice whose ``tract`` is 1.
    voiced: (T,), loudness of the voice, 0 to 1.
    pitch: (T,), a factor of the voice's own pitch.
    hiss: (T,), loudness of the hiss, 0 to 1.
    centre: (T,), Hz, middle frequency of the hiss.
    """

    formants: np.ndarray
    voiced: np.ndarray
    pitch: np.ndarray
    hiss: np.ndarray
    centre: np.ndarray

    def __len__(self) -> int:
        return len(self.voiced)

    @classmethod
    def line(cls, frames: int, start: tuple[float, ...], end: tuple[float, ...] | None = None, voiced: float = 1.0,
             pitch: tuple[float, ...] = (1.0,), hiss: float = 0.0, centre: float = 3000.0) -> Track:
        """A track of ``frames`` rows. The formants glide from ``start`` to ``end`` (Hz; None: they stay at ``start``),
        the pitch goes through the values ``pitch`` (factors)."""
        at = np.linspace(0, 1, frames)[:, None]
        low, high = np.array(start, float), np.array(end or start, float)
        contour = np.interp(at[:, 0], np.linspace(0, 1, len(pitch)), pitch)
        return cls(low + (high - low) * at, np.full(frames, voiced), contour, np.full(frames, hiss),
                   np.full(frames, centre))

    @classmethod
    def join(cls, parts: list[Track], smooth: int = 5) -> Track:
        """The tracks one after the other. Formants and pitch change over ``smooth`` rows, since a tongue can't jump;
        loudness changes over 3 rows."""
        whole = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)}
        for name, width in (("formants", smooth), ("pitch", smooth), ("voiced", 3), ("hiss", 3)):
            whole[name] = _smooth(whole[name], width)
        return cls(**whole)


def speak(voice: Voice, track: Track, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """``track`` in this ``voice``: (samples,) float32 with a peak of 0.5, ``len(track) / 100`` s at ``rate`` Hz."""
    samples = len(track) * rate // FRAME_RATE
    frame_time, time = np.arange(len(track)) / FRAME_RATE, np.arange(samples) / rate
    wobble = _smooth(rng.normal(0, 0.02, len(track)), 7)  # no one holds a pitch exactly
    pitch = np.interp(time, frame_time, voice.pitch * track.pitch * (1 + wobble))
    angle = 2 * np.pi * np.cumsum(pitch) / rate

    formants = np.concatenate([track.formants * voice.tract, np.full((len(track), 1), _F4 * voice.tract)], axis=1)
    k = np.arange(1, int(min(rate / 2, 5000) / pitch.max()) + 1)
    gains = _resonance(voice.pitch * track.pitch[:, None] * k, formants) * 10 ** (voice.tilt * np.log2(k) / 20)
    gains *= track.voiced[:, None]
    out, before, sine, twice_cosine = np.zeros(samples), np.zeros(samples), np.sin(angle), 2 * np.cos(angle)
    for gain in gains.T:
        out += np.interp(time, frame_time, gain) * sine
        before, sine = sine, twice_cosine * sine - before  # sin((k+1)x) = 2 cos(x) sin(kx) - sin((k-1)x): cheap

    bins = np.fft.rfftfreq(2 * rate // FRAME_RATE, 1 / rate)
    whisper = _resonance(np.broadcast_to(bins, (len(track), len(bins))), formants) * voice.breath
    centre, width = (track.centre * voice.tract)[:, None], 0.15 * track.centre[:, None] + 250
    hiss = np.exp(-0.5 * ((bins - centre) / width) ** 2)
    out += _shaped_noise(whisper * track.voiced[:, None] + hiss * track.hiss[:, None] * 3, samples, rng)
    return (0.5 * out / max(np.abs(out).max(), 1e-9)).astype(np.float32)


def noise(kind: str, samples: int, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Noise of a ``kind``: white, pink (-3 dB per octave), brown (-6 dB per octave), hum (50 Hz) or clicks.

    Returns (samples,) float32 with a mean power of 0.01 (-20 dBFS). Raises a ValueError for another kind.
    """
    if kind not in NOISES:
        raise ValueError(f"no noise {kind!r}: there are {', '.join(NOISES)}")
    if kind == "hum":
        time = np.arange(samples) / rate
        out = sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6.28)) / k for k in range(1, 12))
    elif kind == "clicks":
        impulses = (rng.uniform(size=samples) < 8 / rate) * rng.normal(1, 0.3, samples)
        impulses[rng.integers(samples)] += 1  # at least one
        ring = np.exp(-np.arange(rate // 20) / (0.004 * rate)) * rng.normal(size=rate // 20)
        out = np.convolve(impulses, ring)[:samples]
    else:
        slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
        frequency = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20.0)  # below 20 Hz nothing is heard: no more power
        out = np.fft.irfft(np.fft.rfft(rng.normal(size=samples)) * frequency**-slope, samples)
    return (0.1 * out / max(np.sqrt(np.mean(np.square(out))), 1e-9)).astype(np.float32)


def impulse_response(rt60: float, rng: np.random.Generator, direct_db: float = 0.0,
                     rate: int = SAMPLE_RATE) -> np.ndarray:
    """The impulse response of a room by Polack's statistical model (1988): the direct path, then noise that decays by
    60 dB in ``rt60`` seconds. ``direct_db`` is the energy of the direct path over that of the noise, in dB.

    Returns (rt60 * rate + 1,) float32. The direct path (1.0) is at sample 0, so a reverberated signal stays aligned
    with the dry one.
    """
    tail = rng.normal(size=int(rt60 * rate)) * 10 ** (-3 * np.arange(int(rt60 * rate)) / (rt60 * rate))
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2))
    return np.concatenate([[1.0], tail]).astype(np.float32)


def _resonance(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Gain (T, K) of the formants (T, 4) at the frequencies (T, K): parallel resonances, the lower ones stronger."""
    distance = (frequency[:, :, None] - formants[:, None, :]) / (_BANDWIDTHS / 2)
    return (np.array([1.0, 0.7, 0.35, 0.15]) / np.sqrt(1 + distance**2)).sum(-1)


def _shaped_noise(gain: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """White noise (samples,) with the spectrum ``gain`` (T, bins) in each frame of 20 ms; frames overlap by half."""
    length = 2 * (gain.shape[1] - 1)
    window = np.hanning(length + 1)[:-1]
    frames = np.fft.irfft(np.fft.rfft(rng.normal(size=(len(gain), length))) * gain) * window
    out = np.zeros(len(gain) * length // 2 + length)
    for index, frame in enumerate(frames):
        out[index * length // 2 : index * length // 2 + length] += frame
    return 0.1 * out[:samples]


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Moving average of ``width`` rows over the first axis; the first and last rows are repeated beyond the ends."""
    padded = np.pad(values, [(width // 2, width - 1 - width // 2)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).mean(-1)
