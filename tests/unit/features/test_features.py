"""Fbank against Kaldi's own code (kaldi-native-fbank), the contract, normalisation, and the extraction stage."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

from speechlab import extract as stage
from speechlab.corpora import cuts as cutting
from speechlab.errors import UserError
from speechlab.features import audio
from speechlab.features.contract import FeatureContract, load_contract, require_same
from speechlab.features.fbank import extract, normalise
from speechlab.features.resample import resample

kaldi = pytest.importorskip("kaldi_native_fbank")
RATE = 16000


def kaldi_fbank(samples: np.ndarray, contract: FeatureContract) -> np.ndarray:
    options = kaldi.FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.dither, frame.snip_edges = contract.sample_rate, 0.0, contract.snip_edges
    frame.window_type, frame.preemph_coeff = contract.window, contract.preemphasis
    frame.frame_length_ms, frame.frame_shift_ms = contract.frame_length_ms, contract.frame_shift_ms
    frame.remove_dc_offset = contract.remove_dc_offset
    mel.num_bins, mel.low_freq, mel.high_freq = contract.num_mel_bins, contract.low_freq, contract.high_freq
    options.use_energy = contract.use_energy
    computer = kaldi.OnlineFbank(options)
    computer.accept_waveform(contract.sample_rate, samples * (32768 if contract.scaling == "int16" else 1))
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def agrees(got: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1e-3, but for the one number in many that Kaldi's own float32 has wrong by more (see exact_fbank)."""
    difference = np.abs(got - wanted)
    assert np.quantile(difference, 0.9999, method="lower") < 1e-3 and difference.max() < 2e-3


def made(kind: str, seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    """A float32 signal, full scale 1."""
    rng = np.random.default_rng(7)
    t = np.arange(int(seconds * rate)) / rate
    if kind == "noise":
        x = 0.2 * rng.standard_normal(t.size)
    elif kind == "tone":
        x = 0.5 * np.sin(2 * np.pi * 440 * t) + 1e-3 * rng.standard_normal(t.size)
    elif kind == "almost silent":
        # A bit or two on a small offset. (On one a hundred times the signal, Kaldi's own float32 is off by 1e-2.)
        x = (np.round(rng.standard_normal(t.size)) + 4) / 32768
    elif kind == "short":
        return made("noise", 0.03, rate)
    else:  # a pitch that glides, with formants and pauses
        pitch = np.cumsum(2 * np.pi * (130 + 30 * np.sin(4 * t)) / rate)
        x = sum(np.sin(k * pitch) * np.exp(-(((k * 130 - 600) / 700) ** 2)) for k in range(1, 30))
        x = 0.2 * x * (np.sin(9 * t) > -0.5) + 1e-3 * rng.standard_normal(t.size)
    return x.astype(np.float32)


SIGNALS = ("noise", "tone", "almost silent", "short", "speech")
VARIANTS = {
    "default": {}, "snip": {"snip_edges": True}, "float": {"scaling": "float"}, "40 bins": {"num_mel_bins": 40},
    "narrow": {"low_freq": 60.0, "high_freq": -400.0}, "hamming": {"window": "hamming"},
    "hanning": {"window": "hanning"}, "rectangular": {"window": "rectangular"}, "energy": {"use_energy": True},
    "offset": {"remove_dc_offset": False}, "no emphasis": {"preemphasis": 0.0},
    "frames": {"frame_length_ms": 20.0, "frame_shift_ms": 12.5}, "8 kHz": {"sample_rate": 8000, "num_mel_bins": 40},
}


@pytest.mark.parametrize("signal_kind", SIGNALS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_kaldi(signal_kind: str, variant: str) -> None:
    contract = FeatureContract(**VARIANTS[variant])
    samples = made(signal_kind, rate=contract.sample_rate)
    wanted, got = kaldi_fbank(samples, contract), extract(samples, contract.sample_rate, contract)
    assert got.dtype == torch.float32 and got.shape == wanted.shape == (contract.frames(len(samples)), contract.dim)
    agrees(got.numpy(), wanted)


def exact_fbank(samples: np.ndarray) -> np.ndarray:
    """The default contract in float64, frame by frame and as the formulas stand."""
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges, points = np.linspace(mel(20.0), mel(8000.0), 82), mel(np.arange(257) * 31.25)
    filters = [np.interp(points, edges[i:i + 3], [0, 1, 0]) for i in range(80)]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    wave, rows = np.pad(samples.astype(np.float64) * 32768, 400, mode="symmetric"), []
    for i in range((len(samples) + 80) // 160):
        frame = wave[400 - 120 + 160 * i:][:400]
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate((frame[:1], frame[:-1]))) * window
        rows.append(np.log(np.maximum(np.array(filters) @ np.abs(np.fft.rfft(frame, 512)) ** 2, 2.0**-23)))
    return np.array(rows)


@pytest.mark.parametrize("signal_kind", ["noise", "speech"])
def test_half_a_minute(signal_kind: str) -> None:
    samples = made(signal_kind, 30)
    got = extract(samples, RATE, FeatureContract()).numpy()
    np.testing.assert_allclose(got, exact_fbank(samples), atol=1e-4, rtol=0)
    agrees(got, kaldi_fbank(samples, FeatureContract()))


def test_too_short_for_a_frame() -> None:
    assert extract(np.zeros(79, np.float32), RATE, FeatureContract()).shape == (0, 80)
    assert extract(np.zeros(399, np.float32), RATE, FeatureContract(snip_edges=True)).shape == (0, 80)
    assert extract(np.zeros(0, np.float32), 8000, FeatureContract()).shape == (0, 80)


def test_int16_and_channels() -> None:
    left, right = ((made(kind) * 20000).astype(np.int16) for kind in ("noise", "speech"))
    whole = extract(np.stack([left, right]), RATE, FeatureContract())
    by_hand = (left.astype(np.float64) + right) / 2 / 32768
    torch.testing.assert_close(whole, extract(torch.from_numpy(by_hand), RATE, FeatureContract()))
    with pytest.raises(ValueError, match="channels"):
        extract(np.zeros((16000, 2)), RATE, FeatureContract())


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling(rate: int) -> None:
    """A tone below every Nyquist frequency has the same features from every rate, away from the ends and empty bins."""
    def tone(at: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * at) / at)).astype(np.float32)

    wanted = extract(tone(RATE), RATE, FeatureContract())
    got = extract(tone(rate), rate, FeatureContract())
    assert abs(len(got) - len(wanted)) <= 1
    middle, loud = slice(20, 180), wanted.mean(0) > wanted.mean(0).max() - 6
    assert loud.sum() >= 3
    assert (got[middle][:, loud] - wanted[middle][:, loud]).abs().max() < 0.05


def test_dither_only_when_asked_for() -> None:
    samples, contract = made("speech"), FeatureContract(dither=1.0)
    plain = extract(samples, RATE, contract)
    assert torch.equal(plain, extract(samples, RATE, FeatureContract()))
    one, again, two = (extract(samples, RATE, contract, dither_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(one, plain)


def test_not_changed_by_autocast() -> None:
    samples = made("speech")
    plain = extract(samples, RATE, FeatureContract())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extract(samples, RATE, FeatureContract()), plain)


def test_normalise_by_hand_and_padding_invariance() -> None:
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(3, 50, 8)
    lengths = torch.tensor([50, 31, 1])
    got = normalise(x, lengths)
    for row, (utterance, length) in enumerate(zip(x.numpy(), lengths.tolist())):
        part = utterance[:length].astype(np.float64)
        by_hand = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)
        np.testing.assert_allclose(got[row, :length], by_hand, atol=1e-5)
        assert not got[row, length:].any()
        alone = normalise(x[row:row + 1, :length], torch.tensor([length]))
        assert torch.equal(alone[0], got[row, :length])
    longer = normalise(torch.cat([x, torch.full((3, 77, 8), float("nan"))], 1), lengths)
    assert torch.equal(longer[:, :50], got) and not longer[:, 50:].any()


def test_contract_name_and_mismatch() -> None:
    contract = FeatureContract()
    assert contract.name().startswith("fbank80-") and len(contract.name()) == len("fbank80-3f2a")
    assert FeatureContract(dither=1.0, normalise="none").name() == contract.name()
    assert FeatureContract(low_freq=20).name() == contract.name()
    assert FeatureContract(num_mel_bins=40).name().startswith("fbank40-")
    names = {FeatureContract(**change).name() for change in VARIANTS.values()}
    assert len(names) == len(VARIANTS)
    assert FeatureContract.from_dict(contract.to_dict()) == contract
    require_same(FeatureContract(dither=1.0, normalise="none"), contract, "here")
    with pytest.raises(UserError, match=r"data/x: features.low_freq is 20.0, but 60.0 is wanted"):
        require_same(contract, FeatureContract(low_freq=60.0, window="hamming"), "data/x")
    with pytest.raises(UserError, match="normalise is 'none'"):
        require_same(FeatureContract(normalise="none"), contract, "a model", normalise=True)
    with pytest.raises(UserError, match="'bins'"):
        FeatureContract.from_dict({"bins": 3})


@pytest.mark.parametrize("values", [{"num_mel_bins": 0}, {"low_freq": 9000.0}, {"window": "hann"}, {"log_floor": 0.0},
                                    {"frame_shift_ms": 30.0}, {"scaling": "int8"}, {"dither": -1.0}])
def test_impossible_contracts_name_the_field(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        FeatureContract(**values)


def test_too_many_bins() -> None:
    with pytest.raises(UserError, match="num_mel_bins"):
        extract(made("noise"), RATE, FeatureContract(num_mel_bins=200))


def test_contract_needs_no_torch() -> None:
    code = "import sys, speechlab.features.contract; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the stage

def corpus(folder: Path, count: int = 7, rate: int = RATE, channels: int = 1, kind: str = "wav") -> Path:
    """``folder`` with train and dev manifests over made audio."""
    rng = np.random.default_rng(1)
    (folder / "audio").mkdir(parents=True)
    cuts = []
    for i in range(count):
        samples = 0.1 * rng.standard_normal((int(rate * rng.uniform(0.2, 0.6)), channels))
        path = folder / "audio" / f"语音 {i}.{kind}"
        soundfile.write(path, samples, rate)
        recording = Recording.from_file(path, recording_id=f"u{i}")
        said = SupervisionSegment(f"u{i}", f"u{i}", 0.0, recording.duration, text="你好", custom={"pinyin": "ni3 hao3"})
        cuts.append(MonoCut(f"u{i}", 0.0, recording.duration, 0, supervisions=[said], recording=recording)
                    if channels == 1 else MultiCut(f"u{i}", 0.0, recording.duration, list(range(channels)),
                                                   supervisions=[said], recording=recording))
    CutSet.from_cuts(cuts[:-2]).to_file(folder / "train.jsonl.gz")
    CutSet.from_cuts(cuts[-2:]).to_file(folder / "dev.jsonl.gz")
    return folder


def stored(folder: Path, split: str = "train") -> dict[str, np.ndarray]:
    return {cut.id: cut.load_features() for cut in CutSet.from_file(folder / f"{split}.jsonl.gz")}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PART", 2)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_stage_stores_what_extract_gives(tmp_path: Path, small_parts: None, kind: str) -> None:
    data = corpus(tmp_path / "data", kind=kind)
    counts = stage.extract_folder(data, tmp_path / "one", FeatureContract(), nj=1)
    stage.extract_folder(data, tmp_path / "two", FeatureContract(), nj=2)
    assert counts["train"]["cuts"] == 5 and counts["dev"]["cuts"] == 2
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert list(one) == list(two) == [f"u{i}" for i in range(5)]
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
        samples, rate = soundfile.read(data / "audio" / f"语音 {name[1:]}.{kind}", dtype="float32")
        np.testing.assert_array_equal(one[name], extract(samples, rate, FeatureContract()).numpy())
    cut = next(iter(CutSet.from_file(tmp_path / "one" / "train.jsonl.gz")))
    assert cut.supervisions[0].text == "你好" and cut.supervisions[0].pinyin == "ni3 hao3"
    assert cut.num_frames == cut.features.num_frames == len(one["u0"])
    part = cut.truncate(offset=0.05, duration=0.1).load_features()
    np.testing.assert_array_equal(part, one["u0"][5:15])
    assert load_contract(tmp_path / "one") == FeatureContract()
    assert not list((tmp_path / "one").rglob(".tmp*")) and not list((tmp_path / "one" / "train").glob("*.gz"))


def test_shards_make_the_same_files(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cmd.sh --array has it: 0/N, then 1/N ... N/N side by side, then all; another N goes on with what there is."""
    data, one, two = corpus(tmp_path / "data"), tmp_path / "one", tmp_path / "two"
    counts = stage.extract_folder(data, one, FeatureContract(), nj=1)
    with pytest.raises(UserError, match="0/N comes before"):
        stage.extract_folder(data, two, FeatureContract(), shard=(1, 3))
    stage.extract_folder(data, two, FeatureContract(), shard=(0, 3))
    assert not list(two.rglob("*.ark"))
    (two / "train" / ".tmp-1-0002.ark").touch()  # what a shard beside this one is writing
    made = [stage.extract_folder(data, two, FeatureContract(), shard=(index, 3)) for index in (3, 1)]
    assert (two / "train" / ".tmp-1-0002.ark").exists() and not (two / "contract.json").exists()
    assert [sum(c["cuts"] for c in of.values()) for of in made] == [2, 3]  # parts: dev 2; train 2, 2, 1
    done = {path: path.stat().st_mtime_ns for path in two.rglob("0*.ark")}
    stage.extract_folder(data, two, FeatureContract(), shard=(0, 5))
    for index in range(1, 6):
        stage.extract_folder(data, two, FeatureContract(), shard=(index, 5))
    monkeypatch.setattr(stage, "_do_part", None)  # nothing is left to do
    assert stage.extract_folder(data, two, FeatureContract()) == counts
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in names:
        assert _readable(one / name).replace(str(one), "") == _readable(two / name).replace(str(two), ""), name


def _readable(path: Path) -> str:
    """A file's bytes as text to compare, a .gz's content."""
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("latin-1")


@pytest.mark.parametrize("text", ["3", "4/3", "0/0", "a/b", "-1/2"])
def test_wrong_shards(tmp_path: Path, capsys: pytest.CaptureFixture, text: str) -> None:
    assert stage.main(["c.yaml", "--data", str(tmp_path), "--to", str(tmp_path), f"--shard={text}"]) == 2
    assert f"--shard {text}" in capsys.readouterr().err


def test_archives_are_kaldis(tmp_path: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    stage.extract_folder(corpus(tmp_path / "data"), tmp_path / "out", FeatureContract(), nj=1)
    ours = stored(tmp_path / "out")
    theirs = dict(kaldiio.load_ark(str(tmp_path / "out" / "train" / "0000.ark")))
    assert list(theirs) == list(ours)
    for name, matrix in theirs.items():
        np.testing.assert_array_equal(matrix, ours[name])


def test_resampled_and_mixed_down(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data", rate=44100, channels=2)
    counts = stage.extract_folder(data, tmp_path / "out", FeatureContract(), nj=1)
    assert counts["train"]["resampled"] == counts["train"]["mixed_down"] == 5
    for cut in CutSet.from_file(tmp_path / "out" / "train.jsonl.gz"):
        samples, rate = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        direct = extract(samples.mean(1), rate, FeatureContract())
        np.testing.assert_allclose(cut.load_features()[:-3], direct[:cut.num_frames - 3], atol=1e-3)
        assert cut.sampling_rate == RATE and cut.num_frames == cut.features.num_frames
        again, rate = audio.read(cut)  # the stored manifest's audio, for training on the fly: the same features
        assert rate == 44100 and again.shape[0] == 2
        np.testing.assert_array_equal(extract(again, rate, FeatureContract()), cut.load_features())


def test_one_resampler_of_any_rate_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a tone's samples, at odd rates too, and lhotse's (with gigabytes of a table) is never asked."""
    def never(*_: object) -> None:
        raise AssertionError("this would make a table")

    monkeypatch.setattr("lhotse.augmentation.torchaudio.get_or_create_resampler", never)
    for rate in (8000, 11025, 24414, 44100, 44101, 48000):
        def tone(at: int) -> np.ndarray:
            return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(at) / at)

        got = resample(tone(rate), rate, RATE)
        assert got.dtype == np.float32 and len(got) == RATE
        np.testing.assert_allclose(got[500:-500], tone(RATE)[500:-500], atol=2e-4)
        assert len(extract(tone(rate), rate, FeatureContract())) == 100
    both = resample(np.stack([tone(48000), -tone(48000)]), 48000, RATE)
    assert both.shape == (2, RATE) and np.array_equal(both[0], got) and np.array_equal(both[1], -got)


def test_a_part_is_read_as_the_whole_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first sample to its last, of any format, of NIST without sph2pipe, and at another rate."""
    monkeypatch.setenv("PATH", str(tmp_path))  # no sph2pipe anywhere
    sound = 0.1 * np.random.default_rng(0).standard_normal((8000, 2))
    for name, how, kind in (("a.wav", {}, np.int16), ("a.flac", {}, np.float32),
                            ("a.sph", {"format": "NIST"}, np.float32),
                            ("u.sph", {"format": "NIST", "subtype": "ULAW"}, np.float32)):
        soundfile.write(tmp_path / name, sound, 8000, **how)
        recording = cutting.utterance("a", tmp_path / name).recording
        whole, rate = audio.read(cutting.part("a", recording, 0.0, 1.0))
        assert rate == 8000 and whole.shape == (2, 8000) and whole.dtype == kind
        one, rate = audio.read(cutting.part("b", recording, 0.1, 0.50006, channel=1))  # 4000.48 samples
        assert rate == 8000 and np.array_equal(one, whole[1:, 800:4800])
        last, _ = audio.read(cutting.part("c", recording, 0.75, 0.25))
        assert np.array_equal(last, whole[:, 6000:])
        with pytest.raises(UserError, match="2000 of 2400 samples are there from 0.75 s on"):
            audio.read(cutting.part("d", recording, 0.75, 0.3))


def test_segments_of_a_nist_file_through_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture) -> None:
    """8 kHz, two channels, the second one heard: stage 2 takes what stage 1 took."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sound = 0.1 * np.random.default_rng(0).standard_normal((8000, 2))
    soundfile.write(tmp_path / "a.sph", sound, 8000, format="NIST")
    recording = cutting.utterance("a", tmp_path / "a.sph").recording
    cut = cutting.part("b", recording, 0.25, 0.5, channel=1, text="b")
    CutSet.from_cuts([cut]).to_file(tmp_path / "train.jsonl.gz")
    config = tmp_path / "c.yaml"
    config.write_text("task: asr\nmodel: {class: 'speechlab.models.asr:Conformer'}\n")
    assert stage.main([str(config), "--data", str(tmp_path), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "1 utterances of train are one channel each of several" in said
    samples = soundfile.read(tmp_path / "a.sph", dtype="float32")[0]
    wanted = extract(samples[2000:6000, 1], 8000, FeatureContract())
    np.testing.assert_array_equal(stored(tmp_path / "out")["b"], wanted)


def test_goes_on_after_an_interruption(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    real, done = stage._do_part, []

    def failing(job: stage.Job) -> tuple:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job[1])
        return real(job)

    monkeypatch.setattr(stage, "_do_part", failing)
    with pytest.raises(KeyboardInterrupt):
        stage.extract_folder(data, out, FeatureContract(), nj=1)
    assert not list(out.glob("*.jsonl.gz"))
    with pytest.raises(UserError, match="not complete"):
        load_contract(out)
    kept = {ark: ark.stat().st_mtime_ns for ark in done}
    monkeypatch.setattr(stage, "_do_part", real)
    counts = stage.extract_folder(data, out, FeatureContract(), nj=2)
    assert "going on" in capsys.readouterr().err
    assert {ark: ark.stat().st_mtime_ns for ark in kept} == kept
    assert counts["train"]["cuts"] == 5 and len(stored(out)) == 5 and len(stored(out, "dev")) == 2
    # Other manifests: what was kept is of no use, and a split that is no more goes.
    (out / "contract.json").unlink()
    CutSet.from_cuts(list(CutSet.from_file(data / "train.jsonl.gz"))[:3]).to_file(data / "train.jsonl.gz")
    (data / "dev.jsonl.gz").unlink()
    assert stage.extract_folder(data, out, FeatureContract(), nj=1)["train"]["cuts"] == 3
    assert sorted(p.name for p in out.iterdir()) == ["contract.json", "train", "train.jsonl.gz"]


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 on the stage leaves no process behind and no manifest; the next run makes all of it."""
    data, out = corpus(tmp_path / "data", count=12), tmp_path / "out"
    code = ("import sys, time, pathlib\nfrom speechlab import extract as s\nfrom speechlab.features.contract import *\n"
            "s.PART = 2\nslow = s.audio.read\ndef read(cut):\n    time.sleep(0.4); return slow(cut)\n"
            "s.audio.read = read\ns.extract_folder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), "
            "FeatureContract(), nj=2)")
    process = subprocess.Popen([sys.executable, "-c", code, str(data), str(out)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("*/0000.jsonl.gz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("*.jsonl.gz")) and not (out / "contract.json").exists()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlived their parent")
    assert stage.extract_folder(data, out, FeatureContract(), nj=1)["train"]["cuts"] == 10
    assert len(stored(out)) == 10 and not list(out.rglob(".tmp*"))


@pytest.mark.parametrize("nj", [1, 2])
@pytest.mark.parametrize("damage", ["missing", "truncated", "no audio", "nan"])
def test_bad_audio_is_named(tmp_path: Path, small_parts: None, damage: str, nj: int) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    path = data / "audio" / "语音 3.wav"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "no audio":
        path.write_text("not a sound")
    else:
        soundfile.write(path, np.full(soundfile.info(path).frames, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(UserError) as caught:
        stage.extract_folder(data, out, FeatureContract(), nj=nj)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (out / "contract.json").exists() and not list(out.glob("*.jsonl.gz"))


def test_bad_manifests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 1"):
        stage.extract_folder(tmp_path, tmp_path / "out", FeatureContract())
    data = corpus(tmp_path / "data")
    whole = (data / "train.jsonl.gz").read_bytes()
    (data / "train.jsonl.gz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="train.jsonl.gz can't be read"):
        stage.extract_folder(data, tmp_path / "out", FeatureContract())
    (data / "train.jsonl.gz").write_bytes(gzip.compress(b'{"type": "MonoCut", "id": "x"}\n'))
    with pytest.raises(UserError, match="no cut"):
        stage.extract_folder(data, tmp_path / "out", FeatureContract())


def test_damaged_storage_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage.extract_folder(corpus(tmp_path / "data"), out, FeatureContract())
    ark = out / "train" / "0000.ark"
    ark.write_bytes(ark.read_bytes()[:-1000])
    with pytest.raises(Exception, match="no whole matrix"):
        stored(out)
    ark.unlink()
    with pytest.raises(Exception, match="no stored features"):
        stored(out)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    config = tmp_path / "conf.yaml"
    config.write_text("task: asr\nmodel:\n  class: speechlab.models.asr:Conformer\nfeatures:\n  num_mel_bins: 40\n")
    argv = [str(config), "--data", str(data), "--to", str(out), "--nj", "1"]
    assert stage.main([*argv, "--set", "features.window=hamming"]) == 0
    assert "fbank40-" in capsys.readouterr().out
    assert load_contract(out) == FeatureContract(num_mel_bins=40, window="hamming")
    assert json.loads((out / "contract.json").read_text())["splits"]["train"]["cuts"] == 5
    assert stage.main([*argv, "--set", "features.window=hann"]) != 0
    assert "features.window" in capsys.readouterr().err
    assert load_contract(out).window == "hamming"
