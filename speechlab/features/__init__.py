"""Features: one definition each, shared by extraction, training, decoding and inference.

``speechlab.features("a.wav")`` computes those of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechlab import callable_module

if TYPE_CHECKING:
    from torch import Tensor

    from speechlab.features.contract import FeatureContract


def features(source: Any, rate: int | None = None, contract: FeatureContract | None = None) -> Tensor:
    """The features of an audio file, or of samples: what stage 2 stores, and what a network hears.

    Args:
        source: a file's path (whatever soundfile reads; channels are averaged, other rates resampled), or samples (n,)
            or (channels, n): float with full scale 1, or int16.
        rate: of samples, in Hz; a file says its own.
        contract: which features (default: Kaldi's log mel filter banks with 80 bins at 16 kHz). A config's section
            ``features`` and a model's ``contract`` are such.
    Returns:
        (frames, bins) float32, normalised where the contract says so.
    Raises:
        UserError: no such file, no audio, samples without their rate.
    """
    import os

    import numpy as np
    import soundfile
    import torch

    from speechlab.errors import UserError
    from speechlab.features.contract import FeatureContract
    from speechlab.features.fbank import extract, normalise

    contract = contract or FeatureContract()
    if hasattr(source, "__fspath__") or isinstance(source, str):
        if rate is not None:
            raise UserError("a file says its own sample rate: leave rate out")
        try:
            samples, rate = soundfile.read(os.fsencode(source), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise UserError(f"{source} can't be read as audio: {error}") from None
        samples = samples.T
    elif rate is None:
        raise UserError("samples need their sample rate: speechlab.features(samples, rate=16000)")
    else:
        samples = source if torch.is_tensor(source) else np.asarray(source)
    try:
        x = extract(samples, int(rate), contract)
    except (TypeError, ValueError) as error:  # of samples' shape or type, or of a rate that is no number
        raise UserError(str(error)) from None
    return normalise(x[None], torch.tensor([len(x)]))[0] if contract.normalise == "utterance" and len(x) else x


callable_module(__name__, features)
