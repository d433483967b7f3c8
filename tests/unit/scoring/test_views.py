"""mistakes.json: what is put in can be seen and heard again, and the file stays small."""

import base64
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechlab.scoring import views
from speechlab.scoring.views import Mistakes

RATE = 16000


def tone(seconds, hz=1000.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def opened(address):
    return io.BytesIO(base64.b64decode(address.partition(",")[2]))


def test_a_picture_comes_back_pixel_for_pixel():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        pixels = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        back = np.asarray(Image.open(opened(views.png(pixels))))
        assert np.array_equal(back.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 24414])
def test_a_clip_is_the_sound(rate):
    samples, found = soundfile.read(opened(views.audio(tone(1.0, 440.0, rate), rate)))
    assert found in (min(rate, 16000), rate) and len(samples) / found == pytest.approx(1.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() * found / len(samples) == pytest.approx(440.0, abs=5.0)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


def test_a_loud_clip_is_not_cut_off_and_a_long_one_is_short():
    samples, _ = soundfile.read(opened(views.audio(4 * tone(1.0), RATE)))
    steady = samples[4000:12000]
    # A sine's crest factor is the root of 2; one that is cut off has less.
    assert np.abs(steady).max() / np.sqrt((steady**2).mean()) == pytest.approx(2**0.5, rel=0.05)
    samples, rate = soundfile.read(opened(views.audio(tone(30.0), RATE)))
    assert len(samples) / rate == pytest.approx(views.SECONDS, abs=0.2)


def test_a_spectrogram_shows_the_tone_where_it_is():
    picture = views.spectrogram(tone(1.0, 2000.0), RATE, height=80)
    assert picture.shape[0] == 80 and picture.shape[2] == 1 and 90 < picture.shape[1] <= 100
    row = picture[:, picture.shape[1] // 2, 0].argmin()  # the darkest
    assert (80 - row - 0.5) / 80 * RATE / 2 == pytest.approx(2000.0, abs=120.0)
    assert views.spectrogram(tone(60.0), RATE).shape[1] == 400
    assert views.spectrogram(np.zeros(3), RATE).dtype == np.uint8


def test_the_file_is_bounded(tmp_path):
    found = Mistakes(most=30_000)
    kept = [found.sound(f"u{i}", tone(3.0, 300 + 50 * i), RATE) for i in range(20)]
    assert kept[0].keys() == {"clip", "picture"} and kept[-1] == {}
    found.add("test", "ctc", "aligned", items=[{"title": f"u{i}", "pairs": [], **one} for i, one in enumerate(kept)])
    found.write(tmp_path)
    text = (tmp_path / views.FILE).read_text()
    read = json.loads(text)
    assert sum(map(len, read["media"].values())) <= 30_000 and len(read["sets"][0]["items"]) == 20
    assert {value for one in kept for value in one.values()} == set(read["media"])
    with pytest.raises(ValueError, match="there are classes, aligned, trials, audio"):
        found.add("test", "ctc", "pie")


def test_a_matrix_as_a_picture():
    picture = views.matrix(np.eye(3), scale=2)
    assert picture.shape == (6, 6, 1) and picture[0, 0, 0] == 0 and picture[0, 2, 0] == 255
    page = views.mosaic([picture, picture[:, :4]], gap=1)
    assert page.shape == (13, 6) and (page[6] == 255).all() and (page[7:13, 4:] == 255).all()
