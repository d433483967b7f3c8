"""Reading the audio of an utterance: the same way for extraction, for training on the fly and for decoding."""

from __future__ import annotations

import numpy as np
import soundfile
from lhotse.cut import Cut

from speechlab.errors import UserError


def read(cut: Cut) -> tuple[np.ndarray, int]:
    """Read all channels of a cut; :func:`speechlab.features.fbank.extract` mixes them down and resamples them.

    ``cut.load_audio()`` would give channel 0 of a stereo file, and takes two to three times as long for a WAV.

    Returns:
        Samples (channels, num_samples) and their sample rate in Hz. The samples of a 16-bit WAV are int16 as they stand
        in the file, all others float32 with full scale 1.
    Raises:
        UserError: naming the file, if it is missing, is no audio, or is shorter than the manifest says.
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
            if abs(len(samples) / rate - recording.duration) > 0.025:  # lhotse would mirror up to half a second
                raise ValueError(f"it has {len(samples)} samples at {rate} Hz, and its manifest says "
                                 f"{recording.num_samples} at {recording.sampling_rate} Hz")
        # lhotse reads parts of files, other sources, transforms, and files with a few samples more or less.
        return recording.load_audio(offset=cut.start, duration=cut.duration), recording.sampling_rate
    except Exception as error:  # whatever a decoder or lhotse raises, the message must name the file
        what = "no such file" if isinstance(error, FileNotFoundError) else str(error).strip().split("\n")[0][:200]
        raise UserError(f"audio {source.source if source.type != 'memory' else '(in memory)'} of cut {cut.id} can't be "
                        f"read ({type(error).__name__}: {what}): mend it, or make the manifests again "
                        "(stage 1)") from None
