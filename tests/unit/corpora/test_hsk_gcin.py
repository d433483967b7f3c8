"""The default Mandarin corpus: pinyin to syllable folders, splits, and joining syllables."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechlab.corpora import hsk_gcin, splice
from speechlab.errors import UserError

RATE = splice.SAMPLE_RATE


def tone(hertz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch_of(samples: np.ndarray) -> float:
    """The strongest frequency, Hz, by the spectrum of the middle."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 18))
    return float(spectrum.argmax() * RATE / (1 << 18))


# --- pinyin

TABLE = """
    ma1 ㄇㄚ   hao3 ㄏㄠ3  de5 ㄉㄜ1   zhi1 ㄓ    shi4 ㄕ4    ci2 ㄘ2   ri4 ㄖ4    er2 ㄦ2   r5 ㄦ1   a5 ㄚ1
    nü3 ㄋㄩ3  nv3 ㄋㄩ3   lu:4 ㄌㄩ4  lve4 ㄌㄩㄝ4  ju2 ㄐㄩ2   quan2 ㄑㄩㄢ2  xue2 ㄒㄩㄝ2  xiong2 ㄒㄩㄥ2
    yu3 ㄩ3    yuan2 ㄩㄢ2  yun4 ㄩㄣ4  yong4 ㄩㄥ4  you3 ㄧㄡ3  liu4 ㄌㄧㄡ4  yi1 ㄧ  ying2 ㄧㄥ2  xie4 ㄒㄧㄝ4
    wu3 ㄨ3    wei4 ㄨㄟ4  gui4 ㄍㄨㄟ4  wen2 ㄨㄣ2  lun4 ㄌㄨㄣ4  weng1 ㄨㄥ  dong1 ㄉㄨㄥ  bo1 ㄅㄛ  guo2 ㄍㄨㄛ2
    Bei3 ㄅㄟ3""".split()


@pytest.mark.parametrize("pinyin, folder", list(zip(TABLE[::2], TABLE[1::2])))
def test_pinyin_to_folder(pinyin, folder):
    """Against the standard table of the two alphabets, written out by hand."""
    assert hsk_gcin.folder_of(*hsk_gcin.zhuyin(pinyin)) == folder


@pytest.mark.parametrize("wrong", ["ma", "ma6", "5", "", "m4a"])
def test_what_is_not_numbered_pinyin(wrong):
    with pytest.raises(ValueError):
        hsk_gcin.zhuyin(wrong)


def test_neutral_tones():
    there = {"ㄉㄜ1", "ㄗ3", "ㄗ4", "ㄕ2", "ㄦ2"}
    assert hsk_gcin.spoken_as("de5", "的", there) == ("ㄉㄜ1", False)  # recorded
    assert hsk_gcin.spoken_as("zi5", "子", there) == ("ㄗ3", True)  # the character's own tone is the third
    assert hsk_gcin.spoken_as("shi5", "识", there) == ("ㄕ2", True)
    assert hsk_gcin.spoken_as("r5", "儿", there) == ("ㄦ2", True)
    assert hsk_gcin.spoken_as("zi5", "子", {"ㄗ4"}) == ("ㄗ4", True)  # not recorded either: any
    assert hsk_gcin.spoken_as("zi3", "子", {"ㄗ4"}) is None  # but a full tone is never replaced


# --- sentences

def entry(number: int, chinese: str, pinyin: str) -> dict:
    return {"id": f"hsk1-{number:04}", "hsk_level": 1, "chinese": chinese, "pinyin_numbered": pinyin}


def test_sentences_read(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps([
        entry(1, "妈妈，你好！", "ma1 ma5 ni3 hao3"), entry(2, "妈妈你好", "ma1 ma5 ni3 hao3"),  # the same text
        entry(3, "你好A", "ni3 hao3 A1"), entry(4, "你好", "ni3"), entry(5, "好３", "hao3 san1"),
        entry(6, "绿", "lv4"), entry(7, "好，好，好", "hao3 hao3 hao3"), entry(8, "……", "")]), encoding="utf-8")
    found = hsk_gcin.read_sentences(path, {"ㄇㄚ", "ㄋㄧ3", "ㄏㄠ3"})
    assert [s.text for s in found] == ["妈妈你好", "好好好"]  # not hanzi, not aligned or not speakable: left out
    assert found[0].pinyin == "ma1 ma5 ni3 hao3" and found[0].pauses == {1, 3} and found[1].pauses == {0, 1}
    assert found[0].spoken == (("ㄇㄚ", False), ("ㄇㄚ", True), ("ㄋㄧ3", False), ("ㄏㄠ3", False))


def some(count: int) -> list[hsk_gcin.Sentence]:
    return [hsk_gcin.Sentence(f"hsk1-{i:04}", chr(0x4E00 + i), "ma1", 1, (("ㄇㄚ", False),), frozenset())
            for i in range(count)]


def test_splits():
    splits = hsk_gcin.split_sentences(some(500), test=60, dev=40)
    texts = {split: [s.text for s, _ in pairs] for split, pairs in splits.items()}
    assert {k: len(v) for k, v in texts.items()} == {"train": 400, "dev": 40, "test_voice3": 60, "test_voice5": 60}
    assert texts["test_voice3"] == texts["test_voice5"]
    once = texts["train"] + texts["dev"] + texts["test_voice3"]
    assert sorted(once) == sorted(s.text for s in some(500))  # each sentence in exactly one of them
    for split, voices in {"train": (200, 200), "dev": (20, 20), "test_voice3": (60, 0), "test_voice5": (0, 60)}.items():
        assert tuple(sum(v == voice for _, v in splits[split]) for voice in "35") == voices
    assert hsk_gcin.split_sentences(some(500)[::-1], test=60, dev=40) == splits  # the order they come in is nothing
    with pytest.raises(UserError, match="only 5 sentences"):
        hsk_gcin.split_sentences(some(5), test=60, dev=40)


# --- joining

def test_trim_keeps_what_sounds_and_5_ms():
    quiet = np.full(1600, 1e-5, np.float32)
    trimmed = splice.trim(np.concatenate([quiet, tone(200, 0.2), quiet]))
    assert 0.2 <= len(trimmed) / RATE <= 0.2 + 0.011
    assert len(splice.trim(np.zeros(100, np.float32))) == 100 and len(splice.trim(np.zeros(0, np.float32))) == 0


def test_level():
    levelled = splice.level(tone(200, 0.5) * 0.01)
    assert 20 * np.log10(np.sqrt(np.mean(levelled.astype(np.float64) ** 2))) == pytest.approx(splice.LEVEL_DB, abs=0.01)
    click = np.zeros(16000, np.float32)
    click[5] = 0.5
    assert np.abs(splice.level(click)).max() == pytest.approx(0.9)
    assert not splice.level(np.zeros(100, np.float32)).any()


@pytest.mark.parametrize("rate", [0.7, 0.85, 1.0, 1.2, 1.8])
def test_wsola_changes_the_duration_and_neither_pitch_nor_level(rate):
    source = tone(210, 0.8)
    out = splice.wsola(source, rate)
    assert len(out) == round(len(source) / rate)
    assert pitch_of(out) == pytest.approx(210, abs=2)
    inner = out[400:-800]  # the ends fade
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(np.sqrt(np.mean(source**2)), rel=0.03)
    assert np.abs(np.diff(inner)).max() < 1.2 * np.abs(np.diff(source)).max()  # periods meet: no clicks


@pytest.mark.parametrize("length", [0, 1, 50, 399, 400, 600, 1000])
def test_wsola_on_what_is_very_short(length):
    out = splice.wsola(np.ones(length, np.float32), 1.3)
    assert np.isfinite(out).all() and len(out) <= length


@pytest.mark.parametrize("factor", [0.92, 1.09])
def test_pitch(factor):
    out = splice.change_pitch(tone(300, 1.0), factor)
    assert pitch_of(out) == pytest.approx(300 * factor, abs=1.5)
    assert len(out) == pytest.approx(RATE / factor, abs=2)


def test_join_overlaps_and_does_not_click():
    a, b = tone(150, 0.3), tone(230, 0.3)[52:]  # begins at a trough, where a is at zero
    out = splice.join([a, b], [320])
    assert len(out) == len(a) + len(b) - 320
    assert np.abs(np.diff(out)).max() < 1.3 * max(np.abs(np.diff(a)).max(), np.abs(np.diff(b)).max())
    hard = np.concatenate([a, b])
    assert np.abs(np.diff(hard)).max() > 5 * np.abs(np.diff(out)).max()  # which a join without a fade does
    assert np.array_equal(out[:1000], a[:1000]) and np.array_equal(out[-1000:], b[-1000:])
    assert len(splice.join([a, np.zeros(9, np.float32), b], [320, 320])) == len(a) + len(b) + 9 - 6
    assert len(splice.join([], [])) == 0 and np.array_equal(splice.join([a], []), a)


def test_a_sentence():
    syllables = [splice.Syllable(splice.level(tone(hertz, 0.3))) for hertz in (150, 200, 250, 300)]
    plain = splice.Variation(pitch=0, syllable_pitch=0, rate=(1, 1), syllable_rate=0, edge=(0.1, 0.1),
                             fade=(0.02, 0.02))
    out = splice.speak(syllables, np.random.default_rng(1), plain)
    assert len(out) / RATE == pytest.approx(4 * 0.3 - 3 * 0.02 + 2 * 0.1 - 2 * 0.005, abs=0.002)
    assert np.abs(out).max() <= 0.95 and np.count_nonzero(out == 0) < len(out) / 100  # silence isn't digital zero
    pause = [splice.Syllable(syllables[0].samples, pause_after=True), syllables[1]]
    sure = dataclasses.replace(plain, pause=(0.2, 0.2), pause_probability=1)
    out = splice.speak(pause, np.random.default_rng(1), sure)
    assert len(out) / RATE == pytest.approx(2 * 0.3 + 0.2 - 2 * 0.02 + 2 * 0.1 - 2 * 0.005, abs=0.002)
    fast, slow = (splice.speak([splice.Syllable(s.samples, rate=rate) for s in syllables], np.random.default_rng(1))
                  for rate in (1.5, 0.8))
    assert len(fast) < 0.65 * len(slow)


# --- the whole corpus, in small

@pytest.fixture
def corpus(tmp_path):
    """30 sentences over ten made syllables in the layout that fetch leaves."""
    folder = tmp_path / "raw"
    rng = np.random.default_rng(0)
    syllables = {"ma1": "ㄇㄚ", "ni3": "ㄋㄧ3", "hao3": "ㄏㄠ3", "de5": "ㄉㄜ1", "shi4": "ㄕ4"}
    for index, name in enumerate(syllables.values()):
        for voice in "35":
            (folder / "ogg" / name).mkdir(parents=True, exist_ok=True)
            sound = tone(100 + 30 * index + 80 * (voice == "5"), 0.3, 44100) + 0.03  # and an offset, as voice 3 has
            soundfile.write(folder / "ogg" / name / f"{voice}.ogg", sound, 44100)
    (folder / "ogg" / "ㄌㄩ4").mkdir()
    soundfile.write(folder / "ogg" / "ㄌㄩ4" / "3.ogg", tone(100, 0.3, 44100), 44100)  # voice 5 can't
    pinyin, hanzi = list(syllables), "妈你好的是"
    texts = {tuple(rng.integers(0, 5, 6)) for _ in range(30)}
    entries = [entry(i, "".join(hanzi[c] for c in t) + "。", " ".join(pinyin[c] for c in t))
               for i, t in enumerate(sorted(texts))]
    (folder / "sentences.json").write_text(json.dumps([*entries, entry(99, "绿", "lv4")]), encoding="utf-8")
    return folder


def test_prepare(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(hsk_gcin.split_sentences, "__defaults__", (6, 4))
    splits = hsk_gcin.prepare(corpus, tmp_path / "one", nj=1)
    assert {k: len(v) for k, v in splits.items()} == {"train": 20, "dev": 4, "test_voice3": 6, "test_voice5": 6}
    for split, cuts in splits.items():
        for cut in cuts:
            (supervision,) = cut.supervisions
            audio = cut.load_audio()
            assert audio.shape == (1, cut.num_samples) and cut.sampling_rate == RATE
            assert supervision.language == "zh" and supervision.hsk_level == 1
            assert len(supervision.text) == len(supervision.pinyin.split()) == 6
            assert supervision.speaker in ("gcin3", "gcin5") and supervision.speaker[-1] in cut.id[-1]
            assert split[:10] != "test_voice" or supervision.speaker == f"gcin{split[-1]}"
            assert abs(audio.mean()) < 1e-3 and 0.8 < cut.duration < 3
    again = hsk_gcin.prepare(corpus, tmp_path / "two", nj=2)
    for split, cuts in splits.items():  # the same samples whatever nj is
        assert all(np.array_equal(a.load_audio(), b.load_audio()) for a, b in zip(cuts, again[split]))
    test = [cuts.subset(first=1)[0].load_audio() for cuts in (splits["test_voice3"], splits["test_voice5"])]
    assert test[0].shape != test[1].shape  # two voices don't share their dice


def test_what_is_missing_or_broken_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(hsk_gcin.split_sentences, "__defaults__", (6, 4))
    (corpus / "ogg" / "ㄇㄚ" / "3.ogg").write_bytes(b"OggS cut")
    with pytest.raises(UserError, match="3.ogg can't be read"):
        hsk_gcin.prepare(corpus, tmp_path / "out")
    (corpus / "sentences.json").unlink()
    with pytest.raises(UserError, match="sentences.json is missing"):
        hsk_gcin.prepare(corpus, tmp_path / "out")


def test_looking_at_the_corpora_is_light():
    """Fetching needs neither torch nor lhotse, which take seconds to import."""
    code = ("import sys, speechlab.corpora as c; [c.load(n) for n in ('hsk_gcin', 'an4')];"
            "sys.exit(', '.join({'torch', 'lhotse'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
