"""Reading an utterance's audio: one way for extraction, training on the fly and decoding."""

from __future__ import annotations

import numpy as np
import soundfile
from lhotse.cut import Cut

from speechlab.errors import UserError


def read(cut: Cut) -> tuple[np.ndarray, int]:
    """All channels of a cut's recording, which :func:`speechlab.features.fbank.extract` mixes down and resamples.

    Returns:
        samples (channels, num_samples), float32 with full scale 1 or (16-bit WAV) int16 as it stands in the file, and
        their sample rate in Hz. ``cut.load_audio()`` would give channel 0 of a stereo file, and takes two to three
        times as long for a WAV.
    Raises:
        UserError: the file is missing, is no audio, or is shorter than the manifest says; names the file.
    """
    recording = cut.recording if getattr(cut, "has_recording", False) else None
    if recording is None or not hasattr(cut, "channel"):
        raise UserError(f"cut {cut.id}: features are made of cuts with one recording each, not of a "
                        f"{type(cut).__name__}")
    source = recording.sources[0]
    try:
        whole = cut.start == 0 and cut.duration == recording.duration and not recording.transforms
        if whole and source.type == "file" and len(recording.sources) == 1:
            with soundfile.SoundFile(source.source) as file:
                pcm = file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16"
                samples, rate = file.read(dtype="int16" if pcm else "float32", always_2d=True), file.samplerate
            if len(samples) == recording.num_samples and rate == recording.sampling_rate:
                return samples.T, rate
            if abs(len(samples) / rate - recording.duration) > 0.025:  # lhotse would fill up half a second by mirroring
                raise ValueError(f"it has {len(samples)} samples at {rate} Hz, and its manifest says "
                                 f"{recording.num_samples} at {recording.sampling_rate} Hz")
        # Parts of files, other sources, transforms, and a few samples more or less than the manifest says.
        return recording.load_audio(offset=cut.start, duration=cut.duration), recording.sampling_rate
    except Exception as error:  # whatever a decoder or lhotse raises, the reader wants to know which file it was
        what = "no such file" if isinstance(error, FileNotFoundError) else str(error).strip().split("\n")[0][:200]
        raise UserError(f"audio {source.source if source.type != 'memory' else '(in memory)'} of cut {cut.id} can't be "
                        f"read ({type(error).__name__}: {what}): mend it, or make the manifests again "
                        "(stage 1)") from None
