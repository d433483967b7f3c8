"""Arrays that a person hands to a model."""

import numpy as np
import pytest
import soundfile
import torch

from speechlab.data.inputs import audio_file
from speechlab.errors import UserError

TONE = 0.5 * np.sin(np.arange(1600) / 5)


@pytest.mark.parametrize("samples", [
    TONE, TONE.astype("f4"), TONE[None], np.stack([TONE, TONE]), (TONE * 2 ** 15).astype("i2"),
    (TONE * 2 ** 31).astype("i4"), torch.tensor(TONE, requires_grad=True), list(TONE)])
def test_what_is_taken(samples):
    with audio_file(samples, 16000) as path:
        found, rate = soundfile.read(path, always_2d=True)
    assert rate == 16000 and np.abs(found[:, 0] - TONE).max() < 1e-4


def test_bfloat16():
    with audio_file(torch.tensor(TONE).bfloat16(), 16000) as path:
        assert np.abs(soundfile.read(path)[0] - TONE).max() < 0.01


@pytest.mark.parametrize("samples,rate,said", [
    (TONE[:, None], 16000, "transpose"), (np.stack([TONE, TONE], 1), 16000, "transpose"),
    ((TONE * 2 ** 15).astype("i8"), 16000, "full scale"), ((TONE * 127 + 127).astype("u1"), 16000, "zero"),
    (TONE * np.nan, 16000, "NaN"), (TONE.astype("c8"), 16000, "real"), (TONE > 0, 16000, "real"),
    (TONE, 0, "0 Hz"), (TONE, -1, "-1 Hz"), (TONE, 10 ** 10, "Hz"), (TONE, "16k", "16k"), (TONE, None, "sample rate")])
def test_what_is_refused(samples, rate, said):
    with pytest.raises(UserError, match=said), audio_file(samples, rate):
        pass
