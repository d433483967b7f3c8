"""Reading the audio of an utterance: the same way for extraction, for training on the fly and for decoding."""

from __future__ import annotations

import os

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples

from speechlab.errors import UserError

_TOLERANCE = 0.025  # seconds by which a file may differ from its manifest, lhotse's own tolerance


def read(cut: Cut) -> tuple[np.ndarray, int]:
    """Read the channels of a cut; :func:`speechlab.features.fbank.extract` mixes them down and resamples them.

    A MonoCut has one channel of its recording, a MultiCut has several. A file is read by soundfile, as stage 1 read it,
    and from the utterance's first sample to its last. ``cut.load_audio()`` takes two to three times as long for a WAV,
    starts sph2pipe for a part of a NIST file, and makes up to half a second of sound that is missing.

    Returns:
        Samples (channels, num_samples) and their sample rate in Hz. The samples of a 16-bit WAV are int16 as they stand
        in the file, all others float32 with full scale 1.
    Raises:
        UserError: naming the file, if it is missing, is no audio, is shorter than the manifest says, or has another
            rate or fewer channels.
    """
    recording = cut.recording if getattr(cut, "has_recording", False) else None
    if recording is None or not hasattr(cut, "channel"):
        raise UserError(f"cut {cut.id}: features are made of cuts with one recording each, not of a "
                        f"{type(cut).__name__}")
    source = recording.sources[0]
    try:
        if source.type == "file" and len(recording.sources) == 1 and not recording.transforms:
            samples = _read_file(source.source, recording, cut.start, cut.duration)
        else:  # lhotse reads other sources, and applies transforms
            samples = recording.load_audio(offset=cut.start, duration=cut.duration)
        return _heard(samples, cut), recording.sampling_rate
    except Exception as error:  # whatever a decoder or lhotse raises, the message must name the file
        what = "no such file" if isinstance(error, FileNotFoundError) else str(error).strip().split("\n")[0][:200]
        raise UserError(f"audio {source.source if source.type != 'memory' else '(in memory)'} of cut {cut.id} can't be "
                        f"read ({type(error).__name__}: {what}): mend it, or make the manifests again "
                        "(stage 1)") from None


def _read_file(path: str, recording: Recording, start: float, duration: float) -> np.ndarray:
    """(all channels, samples) of a file from ``start`` on, both in seconds; ValueError where the manifest is wrong."""
    with soundfile.SoundFile(os.fsencode(path)) as file:
        rate = file.samplerate
        if rate != recording.sampling_rate or abs(file.frames / rate - recording.duration) > _TOLERANCE:
            raise ValueError(f"it has {file.frames} samples at {rate} Hz, and its manifest says "
                             f"{recording.num_samples} at {recording.sampling_rate} Hz")
        pcm = file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16"
        count = compute_num_samples(duration, rate)
        if start:
            file.seek(compute_num_samples(start, rate))
        samples = file.read(count, dtype="int16" if pcm else "float32", always_2d=True)
    if count - len(samples) > _TOLERANCE * rate:
        raise ValueError(f"{len(samples)} of {count} samples are there from {start:g} s on")
    return samples.T


def _heard(samples: np.ndarray, cut: Cut) -> np.ndarray:
    """The cut's own channels of ``samples`` (all channels, n)."""
    there = cut.recording.channel_ids
    wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if len(samples) != len(there) or not set(wanted) <= set(there):
        raise ValueError(f"it has {len(samples)} channels, and its manifest says {there}, of which {wanted} are heard")
    return samples if wanted == there else samples[[there.index(channel) for channel in wanted]]
