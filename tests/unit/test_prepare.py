"""Stage 1's shared work: what is left out and why, when it fails, what it writes, what a failure keeps."""

import gzip
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from speechlab import prepare
from speechlab.corpora.cuts import threaded, utterance
from speechlab.data.check import check_audio
from speechlab.errors import UserError


def tone(path, seconds=0.5, rate=16000, channels=1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.1)
    soundfile.write(path, np.stack([sound] * channels, axis=1), rate, **options)
    return path


def corpus(folder, train=8, dev=2, test=2, **change):
    """Small splits of good audio; ``change`` maps an id to the fields of its utterance that differ."""
    splits = {}
    for split, count in {"train": train, "dev": dev, "test": test}.items():
        cuts = []
        for i in range(count):
            name = f"{split}{i}"
            fields = {"text": "你好", "speaker": f"speaker-{split}", "language": "zh", **change.get(name, {})}
            path = fields.pop("path", None) or tone(folder / f"{name}.wav")
            cuts.append(utterance(name, path, **fields))
        splits[split] = CutSet.from_cuts(cuts)
    return splits


def cut_file(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_truncated_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=48000), 16000)  # noise: no codec makes it tiny
    assert check_audio(path, [(0, 3)]) == [None]
    assert check_audio(cut_file(path), [(0, 3)])[0].startswith("truncated")


def test_each_kind_of_bad_audio(tmp_path):
    good = 0.1 * np.sin(np.arange(8000) * 0.1)
    with_nan, with_inf, offset = good.copy(), good.copy(), np.full(8000, 0.3)
    with_nan[100], with_inf[100] = np.nan, np.inf
    opposite = np.stack([good, -good], axis=1)
    for name, sound in {"nan": with_nan, "inf": with_inf, "offset": offset, "zeros": offset * 0,
                        "opposite": opposite, "none": good[:0], "short": good[:800], "good": good}.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000, subtype="FLOAT")
    (tmp_path / "bytes.wav").write_bytes(b"")
    (tmp_path / "words.wav").write_text("these are no samples")
    (tmp_path / "folder.wav").mkdir()

    def reason(name, seconds=0.5):
        return (check_audio(tmp_path / f"{name}.wav", [(0, seconds)])[0] or "good").split(":")[0]

    expected = {"nan": "NaN", "inf": "NaN", "offset": "silent", "zeros": "silent", "opposite": "silent",
                "none": "empty", "good": "good", "bytes": "empty", "words": "unreadable",
                "folder": "missing", "nowhere": "missing"}
    assert {name: reason(name) for name in expected} == expected
    assert reason("short", 0.05) == "short"
    assert reason("good", 0.7) == "truncated"


def test_parts_of_a_file_are_judged_each(tmp_path):
    sound = np.concatenate([0.1 * np.sin(np.arange(16000) * 0.1), np.zeros(16000)])
    soundfile.write(tmp_path / "a.flac", sound, 16000)
    first, second, third = check_audio(tmp_path / "a.flac", [(0, 1), (1, 1), (1.5, 1)])
    assert first is None and second.startswith("silent") and third.startswith("truncated")


def test_a_wav_from_a_pipe_is_not_truncated(tmp_path):
    path = tone(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"  # the size of the data, which a writer into a pipe could not know
    path.write_bytes(data)
    assert check_audio(path, [(0, 0.5)]) == [None]


def test_what_is_written(tmp_path):
    stereo = tone(tmp_path / "stereo.ogg", rate=22050, channels=2)
    splits = corpus(tmp_path / "audio", train0={"path": stereo, "text": "“你 好”，ａ!", "pinyin": "ni3 hao3"},
                    dev0={"text": "it's  fine.", "language": "en"}, test0={"text": None, "speaker": None})
    summary = prepare.finish(splits, tmp_path / "data", nj=2)
    train = CutSet.from_file(tmp_path / "data/train.jsonl.gz").to_eager()
    changed = train["train0"].supervisions[0]
    assert (changed.text, changed.raw_text, changed.pinyin) == ("你好A", "“你 好”，ａ!", "ni3 hao3")
    assert train["train1"].supervisions[0].custom is None
    dev = CutSet.from_file(tmp_path / "data/dev.jsonl.gz").to_eager()
    assert dev["dev0"].supervisions[0].text == "IT'S FINE"
    row = summary["train"]
    assert (row["cuts"], row["seconds"], row["speakers"]) == (8, 4.0, 1)
    assert (row["resampled"], row["mixed_down"], row["left_out"], row["normalised"]) == (1, 1, 0, 1)
    assert summary["test"]["speakers"] == 1 and json.loads((tmp_path / "data/summary.json").read_text()) == summary
    assert (tmp_path / "data/bad_audio.tsv").read_text() == "path\treason\tsplit\tid\n"


def test_same_bytes_again_and_paths_that_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = corpus(tmp_path / "audio")
    for cut in splits["train"]:
        cut.recording.sources[0].source = f"audio/{cut.id}.wav"
    prepare.finish(splits, tmp_path / "one", nj=1)
    prepare.finish(corpus(tmp_path / "audio"), tmp_path / "two", nj=2)
    for name in ("train.jsonl.gz", "dev.jsonl.gz", "test.jsonl.gz", "summary.json", "bad_audio.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert f'"{tmp_path}/audio/train0.wav"' in gzip.open(tmp_path / "one/train.jsonl.gz", "rt").read()


def test_a_few_bad_ones_are_left_out_and_listed(tmp_path, capsys):
    splits = corpus(tmp_path, train0={"text": "。。。"})
    cut_file(tmp_path / "train1.wav")
    (tmp_path / "dev1.wav").write_bytes(b"")
    summary = prepare.finish(splits, tmp_path / "data")
    assert {split: row["left_out"] for split, row in summary.items()} == {"train": 2, "dev": 1, "test": 0}
    rows = [line.split("\t") for line in (tmp_path / "data/bad_audio.tsv").read_text().splitlines()]
    assert [(row[0].rsplit("/")[-1], row[1].split(":")[0], *row[2:]) for row in rows[1:]] == [
        ("train0.wav", "text", "train", "train0"), ("train1.wav", "truncated", "train", "train1"),
        ("dev1.wav", "empty", "dev", "dev1")]
    kept = CutSet.from_file(tmp_path / "data/train.jsonl.gz")
    assert [cut.id for cut in kept] == [f"train{i}" for i in range(2, 8)]
    assert "2 of 8 utterances of train" in capsys.readouterr().err


def test_too_much_bad_fails_and_keeps_what_was_there(tmp_path):
    out = tmp_path / "data"
    prepare.finish(corpus(tmp_path / "good"), out)
    before = {path.name: path.read_bytes() for path in out.glob("*.gz")}
    splits = corpus(tmp_path / "bad", train=20)
    for i in range(6):
        (tmp_path / f"bad/train{i}.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"6 of 20 utterances of train .*empty.*bad_audio\.tsv"):
        prepare.finish(splits, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.gz")} == before
    assert len((out / "bad_audio.tsv").read_text().splitlines()) == 7
    assert not list(out.glob(".tmp*"))


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "data"
    prepare.finish(corpus(tmp_path / "good"), out)
    before = {path.name: path.read_bytes() for path in out.glob("*.gz")}
    splits = corpus(tmp_path / "good", train=9)

    def breaks(cut):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(next(iter(splits["test"]))), "to_dict", breaks)
    with pytest.raises(OSError):
        prepare.finish(splits, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.gz")} == before and not list(out.glob(".tmp*"))


def test_a_split_that_is_no_more_goes(tmp_path):
    splits = corpus(tmp_path)
    prepare.finish({**splits, "test_b": corpus(tmp_path / "b", train=0, dev=0, test=2)["test"].modify_ids(
        lambda name: "b" + name)}, tmp_path / "data")
    assert (tmp_path / "data/test_b.jsonl.gz").exists()
    prepare.finish(splits, tmp_path / "data")
    assert not (tmp_path / "data/test_b.jsonl.gz").exists() and (tmp_path / "data/test.jsonl.gz").exists()


def test_speakers_apart(tmp_path):
    splits = corpus(tmp_path, test1={"speaker": "speaker-train"})
    with pytest.raises(UserError, match="speaker speaker-train is in test and train"):
        prepare.finish(splits, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    prepare.finish(splits, tmp_path / "data", shared_speakers=True)


@pytest.mark.parametrize("change, message", [
    (lambda s: {"train": s["train"], "test": s["test"]}, "train, dev and test"),
    (lambda s: {**s, "extra": s["dev"]}, "train, dev and test"),
    (lambda s: {**s, "dev": CutSet.from_cuts([])}, "dev has no utterances"),
    (lambda s: {**s, "test_b": s["test"]}, "two utterances are named test0"),
])
def test_splits_that_can_not_be(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        prepare.finish(change(corpus(tmp_path)), tmp_path / "data")


def fake_corpus(monkeypatch, made, **attributes):
    """Register a corpus named fake, whose prepare() has the options number and really."""
    from speechlab import corpora

    def prepare_fake(folder, out, nj=1, number: int = 3, really: bool = False):
        made.update(folder=folder, out=out, nj=nj, number=number, really=really)
        return corpus(out / "wav")

    module = types.SimpleNamespace(prepare=prepare_fake, **attributes)
    monkeypatch.setattr(corpora, "load", lambda name: module)


def test_command_line(tmp_path, monkeypatch, capsys):
    made = {}
    fake_corpus(monkeypatch, made)
    monkeypatch.setenv("SPEECHLAB_DOWNLOADS", str(tmp_path / "loads"))
    command = ["fake", "--to", str(tmp_path / "data")]
    assert prepare.main(command) == 1
    assert "python -m speechlab.corpora fake --to" in capsys.readouterr().err
    (tmp_path / "loads/fake").mkdir(parents=True)
    command += ["--nj", "2", "--split_by", "speaker", "--option", "number=7", "--option", "really=yes"]
    assert prepare.main(command) == 0
    assert made == {"folder": tmp_path / "loads/fake", "out": tmp_path / "data", "nj": 2, "number": 7, "really": True}
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["train", "8"], ["dev", "2"], ["test", "2"]]


@pytest.mark.parametrize("extra, message", [
    (["--option", "numbre=7"], "fake has no option numbre: fake's options are number, really"),
    (["--option", "number=x"], "number must be int"),
    (["--option", "really=maybe"], "really must be bool"),
    (["--option", "number"], "not KEY=VALUE"),
])
def test_wrong_options(tmp_path, monkeypatch, capsys, extra, message):
    fake_corpus(monkeypatch, {})
    assert prepare.main(["fake", "--from", str(tmp_path), "--to", str(tmp_path / "data"), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_threads_keep_order_and_stop_at_an_error():
    assert list(threaded(lambda x: x * x, range(20), 4)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(threaded(lambda x: 1 // x, [2, 1, 0, 3], 2))


def test_help_needs_neither_torch_nor_lhotse():
    code = "import sys, speechlab.prepare as p; p.main(['--help'])"
    check = "import atexit, sys; atexit.register(lambda: print(sorted({'torch', 'lhotse'} & set(sys.modules)))); "
    shown = subprocess.run([sys.executable, "-c", check + code], capture_output=True, text=True, check=True).stdout
    assert "--nj" in shown and shown.splitlines()[-1] == "[]"
