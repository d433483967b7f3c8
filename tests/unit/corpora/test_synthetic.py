"""The made-up corpus: deterministic, speakers and sentences apart, and acoustically what it says it is."""

import numpy as np
import pytest
import soundfile

from speechlab.corpora import synthetic
from speechlab.corpora.voices import NOISES, Track, Voice, impulse_response, noise, seeded, speak
from speechlab.errors import UserError


def make(out, **options):
    return synthetic.prepare(out, out, **{"train": 12, "dev": 4, "test": 4, **options})


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic"), nj=2)


def test_what_it_holds(splits):
    assert {split: len(cuts) for split, cuts in splits.items()} == {"train": 12, "dev": 4, "test": 4}
    speakers = {split: {cut.supervisions[0].speaker for cut in cuts} for split, cuts in splits.items()}
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 10
    texts = {split: {cut.supervisions[0].text for cut in cuts} for split, cuts in splits.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    for cut in (cut for cuts in splits.values() for cut in cuts):
        supervision, audio = cut.supervisions[0], cut.load_audio()
        assert 2 <= len(supervision.text) == len(supervision.pinyin.split()) <= 6
        assert cut.sampling_rate == 16000 and 0.5 < cut.duration < 2.5 and supervision.language == "zh"
        assert audio.shape == (1, cut.num_samples) and 0.1 < np.abs(audio).max() < 1


def test_same_samples_whatever_nj_or_count(splits, tmp_path):
    again = make(tmp_path, nj=1, train=6)
    first = {cut.id: cut for cut in splits["train"]}
    assert len(again["train"]) == 6
    for cut in again["train"]:
        ours = open(cut.recording.sources[0].source, "rb").read()
        assert ours == open(first[cut.id].recording.sources[0].source, "rb").read()
    other = make(tmp_path / "other", train=6, seed=1)
    assert [c.supervisions[0].text for c in other["train"]] != [c.supervisions[0].text for c in again["train"]]


def test_too_few_is_an_error(tmp_path):
    with pytest.raises(UserError, match="train=3 utterances are too few"):
        make(tmp_path, train=3)


def test_fetch_makes_the_folder(tmp_path):
    assert synthetic.fetch(tmp_path) == synthetic.fetch(tmp_path) == tmp_path / "synthetic"
    assert (tmp_path / "synthetic/.complete").exists()  # what stage 0 looks for


@pytest.mark.parametrize("pitch, formants", [(110.0, (700, 1200, 2500)), (125.0, (300, 2200, 2900))])
def test_pitch_and_formants_are_where_they_should_be(pitch, formants):
    voice = Voice(pitch=pitch, tract=1.0, tilt=0.0, breath=0.0)
    sound = speak(voice, Track.line(100, formants), seeded("x")).astype(float)
    assert sound.shape == (16000,) and np.abs(sound).max() == pytest.approx(0.5, abs=1e-3)
    # pitch by autocorrelation, formants as the strongest bins of a smoothed spectrum around them
    middle = sound[4000:12000]
    correlation = np.correlate(middle, middle, "full")[len(middle):]
    assert 16000 / (np.argmax(correlation[80:320]) + 81) == pytest.approx(pitch, rel=0.05)
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16000)) ** 2  # one bin a Hz
    smooth = np.convolve(power, np.hanning(2 * int(pitch)), "same")
    for formant in formants[:2]:
        near = np.arange(formant - 250, formant + 250)
        assert near[np.argmax(smooth[near])] == pytest.approx(formant, abs=pitch)


def test_voices_differ_and_stay():
    assert Voice.of("a") == Voice.of("a") != Voice.of("b")
    voices = [Voice.of(i) for i in range(200)]
    assert 70 < min(v.pitch for v in voices) < 110 and 190 < max(v.pitch for v in voices) < 300
    assert np.corrcoef([v.pitch for v in voices], [v.tract for v in voices])[0, 1] > 0.7


@pytest.mark.parametrize("kind", NOISES)
def test_noise_power(kind):
    sound = noise(kind, 16000, seeded(kind))
    assert sound.shape == (16000,) and np.mean(np.square(sound, dtype=float)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind, slope", [("white", 0), ("pink", -3), ("brown", -6)])
def test_noise_colour(kind, slope):
    power = np.abs(np.fft.rfft(noise(kind, 1 << 17, seeded(1)).astype(float))) ** 2
    band = [10 * np.log10(power[int(f * 8.192):int(2 * f * 8.192)].mean()) for f in (250, 500, 1000, 2000)]
    assert np.diff(band).mean() == pytest.approx(slope, abs=0.4)


def test_impulse_response_decays_as_said():
    response = impulse_response(0.5, seeded("room"), direct_db=3.0).astype(float)
    assert len(response) == 8001 and response[0] == 1
    tail = response[1:] ** 2
    assert 10 * np.log10(1 / tail.sum()) == pytest.approx(3, abs=0.01)
    decay = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum())  # Schroeder's backward integration, T20 (ISO 3382)
    start, end = np.argmax(decay < -5), np.argmax(decay < -25)
    assert 3 * (end - start) / 16000 == pytest.approx(0.5, rel=0.1)


def test_unknown_noise():
    with pytest.raises(ValueError, match="pink"):
        noise("plaid", 10, seeded())


def test_files_are_16_bit_mono(splits):
    header = soundfile.info(next(iter(splits["dev"])).recording.sources[0].source)
    assert (header.samplerate, header.channels, header.subtype) == (16000, 1, "PCM_16")
