"""Stage 1's shared work: what is left out and why, when it fails, what it writes, what a failure keeps."""

import gzip
import hashlib
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
from speechlab.data import forms
from speechlab.data.check import check_audio, check_partner
from speechlab.data.forms import speech
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


def finish(made, out, carries=("text",), **options):
    return speech.finish(made, out, forms.Corpus("fake", carries, **options))


def listed(out):
    """Reasons by id of what was left out, without their details."""
    rows = [line.split("\t") for line in (out / "bad_audio.tsv").read_text().splitlines()[1:]]
    return {row[3]: row[1].rpartition(":")[0] or row[1] for row in rows}


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


@pytest.mark.parametrize("format, subtype, reason", [
    ("AIFF", "PCM_16", "48008 of 96008 bytes"), ("AIFF", "FLOAT", "96008 of 192008 bytes"),
    ("AU", "PCM_16", "48000 of 96000 bytes"), ("AU", "ULAW", "24000 of 48000 bytes"),
    ("NIST", "PCM_16", "24000 of 48000 samples"), ("NIST", "ULAW", "24000 of 48000 samples"),
    ("W64", "PCM_16", "bytes"), ("RF64", "PCM_16", "bytes"), ("VOC", "PCM_16", "than the header promises"),
])
def test_truncated_where_libsndfile_says_nothing(tmp_path, format, subtype, reason):
    """It shortens these to what is there: the header's promise is compared with it, whoever asks for how much."""
    path = tmp_path / "a"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=48000), 16000, format=format, subtype=subtype)
    assert check_audio(path, [(0, 3)]) == [None]
    size = 3 * 16000 // 2 * (2 if subtype == "PCM_16" else 4 if subtype == "FLOAT" else 1)
    path.write_bytes(path.read_bytes()[:-size])
    (found,) = check_audio(path, [(0, 1.0)])
    assert found.startswith("truncated: ") and reason in found


def test_lengths_that_a_pipe_could_not_know(tmp_path):
    """AU's -1, and sox's 0x7f000000 in AIFF: nothing is promised."""
    for format, mark, value in (("AU", b".snd", b"\0\0\0\x18" + b"\xff" * 4), ("AIFF", b"SSND", b"\x7f\0\0\x08")):
        path = tone(tmp_path / format, format=format)
        data = bytearray(path.read_bytes())
        at = data.index(mark) + 4
        data[at:at + len(value)] = value
        path.write_bytes(data)
        assert check_audio(path, [(0, 0.5)]) == [None]


def test_one_channel_is_judged_alone(tmp_path):
    good = 0.1 * np.sin(np.arange(8000) * 0.1)
    soundfile.write(tmp_path / "a.wav", np.stack([good, 0 * good], 1), 16000, subtype="FLOAT")
    assert check_audio(tmp_path / "a.wav", [(0, 0.5, [0]), (0, 0.5, None), (0, 0.5, [0, 1])]) == [None] * 3
    assert check_audio(tmp_path / "a.wav", [(0, 0.5, [1])])[0].startswith("silent")
    assert check_audio(tmp_path / "a.wav", [(0, 0.5, [2])])[0].startswith("channel: there is no channel 2")


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
                    dev0={"text": "it's  fine.", "language": "en"}, test0={"text": "好", "speaker": None})
    summary = finish(splits, tmp_path / "data", nj=2)
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


def test_symbols_are_left_out_or_kept_and_counted(tmp_path, capsys):
    change = {"train0": {"text": "<NOISE> hello [laughter] world {noise}", "language": "en"},
              "train1": {"text": "好(hesitation)的"}, "train2": {"text": "<noise>"}, "dev0": {"text": "<foo> 好"}}
    out = tmp_path / "out"
    summary = finish(corpus(tmp_path, **change), out)
    train = {cut.id: cut.supervisions[0].text for cut in CutSet.from_file(out / "train.jsonl.gz")}
    assert (train["train0"], train["train1"]) == ("HELLO WORLD", "好的") and "train2" not in train
    assert listed(out) == {"train2": "text"} and "non-speech symbols" in (out / "bad_audio.tsv").read_text()
    assert summary["train"]["symbols"] == {"<HESITATION>": 1, "<LAUGHTER>": 1, "<NOISE>": 3}
    assert summary["dev"]["symbols"] == summary["test"]["symbols"] == {}
    assert json.loads((out / "summary.json").read_text()) == summary
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[-1] == "symbols" and [line.split()[-1] for line in lines[1:4]] == ["5", "0", "0"]
    assert lines[4].startswith("symbols left out (") and lines[4].endswith(": <NOISE> 3, <HESITATION> 1, <LAUGHTER> 1")
    assert "note: <foo> (1 times) in transcripts are read as words" in said.err and "nlsyms=FILE" in said.err

    own = tmp_path / "nlsyms.txt"
    own.write_text("<foo>\n")
    summary = finish(corpus(tmp_path, **change), out, options={"symbols": "keep", "nlsyms": str(own)})
    kept = {cut.id: cut.supervisions[0].text for split in ("train", "dev")
            for cut in CutSet.from_file(out / f"{split}.jsonl.gz")}
    assert (kept["train0"], kept["train2"]) == ("<NOISE> HELLO <LAUGHTER> WORLD <NOISE>", "<NOISE>")
    assert kept["dev0"] == "<FOO>好" and summary["dev"]["symbols"] == {"<FOO>": 1}
    said = capsys.readouterr()
    assert "symbols kept as tokens: <NOISE> 3" in said.out and "read as words" not in said.err


def test_any_number_of_utterances_without_words_is_left_out(tmp_path, capsys):
    noise = {f"train{i}": {"text": "[noise]"} for i in range(10)}
    assert finish(corpus(tmp_path, train=20, **noise), tmp_path / "out")["train"]["left_out"] == 10
    assert "10 of 20 utterances of train can't be used" in capsys.readouterr().err
    with pytest.raises(UserError, match="20 of 20"):
        finish(corpus(tmp_path, train=20, **{f"train{i}": {"text": "[noise]"} for i in range(20)}), tmp_path / "out")


def test_nothing_to_count_is_no_key(tmp_path, capsys):
    summary = finish(corpus(tmp_path), tmp_path / "out", options={"symbols": "keep"})
    assert all("symbols" not in row for row in summary.values()) and "symbols" not in capsys.readouterr().out


def test_same_bytes_again_and_paths_that_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = corpus(tmp_path / "audio")
    for cut in splits["train"]:
        cut.recording.sources[0].source = f"audio/{cut.id}.wav"
    finish(splits, tmp_path / "one", nj=1)
    finish(corpus(tmp_path / "audio"), tmp_path / "two", nj=2)
    for name in ("train.jsonl.gz", "dev.jsonl.gz", "test.jsonl.gz", "summary.json", "bad_audio.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert f'"{tmp_path}/audio/train0.wav"' in gzip.open(tmp_path / "one/train.jsonl.gz", "rt").read()


def test_a_few_bad_ones_are_left_out_and_listed(tmp_path, capsys):
    splits = corpus(tmp_path, train0={"text": "。。。"})
    cut_file(tmp_path / "train1.wav")
    (tmp_path / "dev1.wav").write_bytes(b"")
    summary = finish(splits, tmp_path / "data")
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
    finish(corpus(tmp_path / "good"), out)
    before = {path.name: path.read_bytes() for path in out.glob("*.gz")}
    splits = corpus(tmp_path / "bad", train=20)
    for i in range(6):
        (tmp_path / f"bad/train{i}.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"6 of 20 utterances of train .*empty.*bad_audio\.tsv"):
        finish(splits, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.gz")} == before
    assert len((out / "bad_audio.tsv").read_text().splitlines()) == 7
    assert not list(out.glob(".tmp*"))


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "data"
    finish(corpus(tmp_path / "good"), out)
    before = {path.name: path.read_bytes() for path in out.glob("*.gz")}
    splits = corpus(tmp_path / "good", train=9)

    def breaks(cut):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(next(iter(splits["test"]))), "to_dict", breaks)
    with pytest.raises(OSError):
        finish(splits, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.gz")} == before and not list(out.glob(".tmp*"))


def test_a_split_that_is_no_more_goes(tmp_path):
    splits = corpus(tmp_path)
    finish({**splits, "test_b": corpus(tmp_path / "b", train=0, dev=0, test=2)["test"].modify_ids(
        lambda name: "b" + name)}, tmp_path / "data")
    assert (tmp_path / "data/test_b.jsonl.gz").exists()
    finish(splits, tmp_path / "data")
    assert not (tmp_path / "data/test_b.jsonl.gz").exists() and (tmp_path / "data/test.jsonl.gz").exists()


def test_speakers_apart(tmp_path):
    splits = corpus(tmp_path, test1={"speaker": "speaker-train"})
    with pytest.raises(UserError, match="speaker speaker-train is in test and train"):
        finish(splits, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    finish(splits, tmp_path / "data", shared_speakers=True)


@pytest.mark.parametrize("change, message", [
    (lambda s: {"train": s["train"], "test": s["test"]}, "train, dev and test"),
    (lambda s: {**s, "extra": s["dev"]}, "train, dev and test"),
    (lambda s: {**s, "dev": CutSet.from_cuts([])}, "dev has no utterances"),
    (lambda s: {**s, "test_b": s["test"]}, "two utterances are named test0"),
])
def test_splits_that_can_not_be(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        finish(change(corpus(tmp_path)), tmp_path / "data")


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
    (["--option", "symbols=both"], "symbols=both: it must be leave_out or keep"),
    (["--option", "nlsyms=/no/such/file"], "nlsyms=/no/such/file can't be read"),
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


# --- forms, and what items carry


def test_the_same_manifests_as_ever(tmp_path):
    """To the byte, but for the folder: sums of what commit 762fed5 wrote, before there were forms."""
    (tmp_path / "raw").mkdir()
    counts = [f"--option={split}={count}" for split, count in {"train": 24, "dev": 6, "test": 6}.items()]
    assert prepare.main(["synthetic", "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "data"), *counts]) == 0
    sums = {}
    for path in sorted((tmp_path / "data").glob("*.*")):
        content = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        sums[path.name] = hashlib.sha256(content.replace(str(tmp_path).encode(), b"ROOT")).hexdigest()[:16]
    assert sums == {"train.jsonl.gz": "a301fcce47a0c35f", "dev.jsonl.gz": "ee0c55ed974d1fdf",
                    "test.jsonl.gz": "ea045e712d232804", "summary.json": "4dd2f1ffbe4c1184",
                    "bad_audio.tsv": "6b9b4320b475a39d"}


def test_forms_are_found_by_name(tmp_path, monkeypatch):
    assert forms.names() == ["images", "speech"]
    assert forms.find("speech") is speech and speech.CARRIES == ("text",) and forms.find("images").CARRIES == ("label",)
    with pytest.raises(UserError, match="no form of data is called 'image': did you mean images"):
        forms.find("image")
    with pytest.raises(UserError, match="there is no local/form.py here"):
        forms.find("local.form")
    local = types.ModuleType("local.half")
    local.CARRIES = ()
    monkeypatch.setitem(sys.modules, "local", types.ModuleType("local"))
    monkeypatch.setitem(sys.modules, "local.half", local)
    with pytest.raises(UserError, match="local/half.py has no finish"):
        forms.find("local.half")


def test_a_recipes_own_form(tmp_path):
    """A corpus and its form in a recipe's local/, as the recipe's stage 1 runs them."""
    (tmp_path / "local").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "local/pitch.py").write_text(
        "ABOUT = LICENSE = 'mine'\nFORM = 'local.curves'\nfetch = None\n"
        "def prepare(folder, out, nj=1, count: int = 2):\n    return list(range(count))\n")
    (tmp_path / "local/curves.py").write_text(
        "CARRIES = ('curve',)\n"
        "def finish(made, out, corpus):\n"
        "    (out / 'curves.txt').write_text(f'{made} {corpus.name} {corpus.carries}')\n")
    command = [sys.executable, "-m", "speechlab.prepare", "local.pitch", "--from", "raw", "--to", "data"]
    subprocess.run([*command, "--option", "count=3"], cwd=tmp_path, check=True)
    assert (tmp_path / "data/curves.txt").read_text() == "[0, 1, 2] local.pitch ('curve',)"


def test_another_forms_data_is_refused(tmp_path, monkeypatch, capsys):
    fake_corpus(monkeypatch, {})
    module = types.SimpleNamespace(prepare=lambda folder, out, nj=1: ({"train": ()}, ["a"]))
    monkeypatch.setattr("speechlab.corpora.load", lambda name: module)
    assert prepare.main(["fake", "--from", str(tmp_path), "--to", str(tmp_path / "data")]) == 1
    assert "must return {split: CutSet}, and returned a tuple" in capsys.readouterr().err


def test_only_what_is_carried_is_asked_for(tmp_path):
    change = {"train0": {"text": "。"}, "train1": {"text": None}, "train2": {"speaker": None}, "train3": {"label": ""},
              "train4": {"mood": "glad"}}
    audio = tmp_path / "audio"

    def left_out(*carries, **more):
        labels = {f"{split}{i}": {"label": "yes"} for split, n in (("train", 8), ("dev", 2), ("test", 2))
                  for i in range(n)}
        fields = {name: {**labels.get(name, {}), **change.get(name, {}), **more.get(name, {})} for name in labels}
        finish(corpus(audio, **fields), tmp_path / "data", carries)
        return listed(tmp_path / "data")

    assert left_out("text") == {"train0": "text", "train1": "text"}
    assert left_out("label") == {"train3": "label"}
    assert left_out("speaker") == {"train2": "speaker"}
    assert left_out("label", "speaker") == {"train2": "speaker", "train3": "label"}
    assert left_out("text", "label") == {"train0": "text", "train1": "text", "train3": "label"}
    moods = {f"{split}{i}": {"mood": "sad"} for split, n in (("train", 7), ("dev", 2), ("test", 2)) for i in range(n)}
    assert left_out("mood", **{**moods, "train4": {}}) == {"train7": "mood"}, "a recipe's own word"


def test_silence_is_a_class_and_no_transcript(tmp_path):
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, np.zeros(8000), 16000)
    labels = {f"{split}{i}": {"label": "no"} for split, n in (("train", 8), ("dev", 2), ("test", 2)) for i in range(n)}
    labels["train7"] = {"label": "silence", "path": quiet}
    labels["train6"] = {"label": "silence", "path": cut_file(tone(tmp_path / "cut.wav"))}
    summary = finish(corpus(tmp_path / "audio", **labels), tmp_path / "data", ("label",))
    assert listed(tmp_path / "data") == {"train6": "truncated"}
    assert CutSet.from_file(tmp_path / "data/train.jsonl.gz").to_eager()["train7"].supervisions[0].label == "silence"
    assert [summary["train"][key] for key in ("classes", "least_per_class", "most_per_class")] == [2, 1, 6]
    assert [summary["dev"][key] for key in ("classes", "least_per_class", "most_per_class")] == [1, 0, 2]
    summary = finish(corpus(tmp_path / "audio", **labels), tmp_path / "data", ("text",))
    assert listed(tmp_path / "data") == {"train6": "truncated", "train7": "silent"}
    assert "classes" not in summary["train"]


def test_classes_in_the_table(tmp_path, capsys):
    labels = {f"{split}{i}": {"label": "ab"[i % 2]} for split, n in (("train", 8), ("dev", 2), ("test", 2))
              for i in range(n)}
    finish(corpus(tmp_path / "audio", **labels), tmp_path / "data", ("label",))
    heading, train, *_ = capsys.readouterr().out.splitlines()
    assert heading.endswith("left out  classes  least per class  most per class")
    assert train.split() == ["train", "8", "0.001", "1", "0", "0", "0", "2", "4", "4"]


def test_a_class_without_training(tmp_path):
    labels = {f"{split}{i}": {"label": "yes"} for split, n in (("train", 8), ("dev", 2), ("test", 2)) for i in range(n)}
    labels["dev1"] = labels["test0"] = {"label": "no"}
    with pytest.raises(UserError, match="class 'no' has utterances in dev and test, but none in train"):
        finish(corpus(tmp_path / "audio", **labels), tmp_path / "data", ("label",))
    assert not (tmp_path / "data/train.jsonl.gz").exists()


def test_a_partner(tmp_path):
    def reason(seconds=0.5, rate=16000, part=(0, 0.5), **tones):
        return check_partner(tone(tmp_path / "p.wav", seconds, rate, **tones), 16000, 0.5, part)

    assert reason() is None and reason(0.524) is None and reason(0.476) is None
    assert reason(0.53) == "it is 0.030 s longer" and reason(0.47) == "it is 0.030 s shorter"
    assert reason(rate=8000) == "its sample rate is 8000 Hz, not 16000"
    assert reason(part=(0.2, 0.3)) is None and reason(part=(0.45, 0.05)).startswith("short")
    assert check_partner(tmp_path / "nowhere.wav", 16000, 0.5, (0, 0.5)) == "missing"
    (tmp_path / "p.wav").write_text("no samples")
    assert check_partner(tmp_path / "p.wav", 16000, 0.5, (0, 0.5)).startswith("unreadable")


def test_clean_partners(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, long, slow = tone(tmp_path / "c.wav"), tone(tmp_path / "l.wav", 0.6), tone(tmp_path / "s.wav", rate=8000)
    quiet = tmp_path / "q.wav"
    soundfile.write(quiet, np.zeros(8000), 16000)
    fields = {f"{split}{i}": {"clean": "c.wav"} for split, n in (("train", 8), ("dev", 2), ("test", 2))
              for i in range(n)}
    for i, path in enumerate((long, slow, quiet, tmp_path / "gone.wav", None)):
        fields[f"train{i}"] = {"clean": str(path)} if path else {}
    finish(corpus(tmp_path / "audio", **fields), tmp_path / "data", ("clean",))
    assert listed(tmp_path / "data") == {"train0": "clean", "train1": "clean", "train2": "clean: silent",
                                         "train3": "clean", "train4": "clean"}
    text = (tmp_path / "data/bad_audio.tsv").read_text()
    for reason in ("clean: it is 0.100 s longer", "not 16000", "clean: missing", "clean: none is given"):
        assert reason in text
    kept = CutSet.from_file(tmp_path / "data/train.jsonl.gz").to_eager()
    assert [cut.id for cut in kept] == ["train5", "train6", "train7"]
    assert {cut.supervisions[0].clean for cut in kept} == {str(good)}, "absolute"


@pytest.mark.parametrize("given, wants, message", [
    (None, ("label", "speaker"), None), ("label", ("label",), None), ("speaker, label", ("speaker", "label"), None),
    ("text", None, "carries label, speaker, and no text"), ("label,,x", None, "words separated by commas")])
def test_what_may_be_asked_for(given, wants, message):
    if message is None:
        assert prepare.parse_carry("fake", given, ("label", "speaker"), False) == wants
    else:
        with pytest.raises(UserError, match=message):
            prepare.parse_carry("fake", given, ("label", "speaker"), False)
    assert prepare.parse_carry("fake", "text,mood", ("label",), True) == ("text", "mood")


def test_what_a_corpus_carries(tmp_path, monkeypatch, capsys):
    asked = []
    fields = {f"{split}{i}": {"text": None, "label": "yes"} for split, n in (("train", 8), ("dev", 2), ("test", 2))
              for i in range(n)}

    def prepare_fake(folder, out, nj=1, carry=()):
        asked.append(carry)
        return corpus(tmp_path / "audio", **fields)

    module = types.SimpleNamespace(prepare=prepare_fake, CARRIES=("label",))
    monkeypatch.setattr("speechlab.corpora.load", lambda name: module)
    command = ["fake", "--from", str(tmp_path), "--to", str(tmp_path / "data")]
    assert prepare.main(command) == 0 and asked == [("label",)]
    assert prepare.main([*command, "--carry", "speaker,label"]) == 0 and asked[1:] == [("speaker", "label")]
    assert prepare.main([*command, "--carry", "text"]) == 1
    assert "text: none is given" in capsys.readouterr().err
    assert prepare.main([*command, "--option", "carry=label"]) == 2, "it is no option of the corpus"


def test_a_word_is_no_tuple_of_words(monkeypatch):
    from speechlab import corpora

    module = types.SimpleNamespace(fetch=None, prepare=None, CARRIES="label")
    monkeypatch.setattr(corpora.importlib, "import_module", lambda name: module)
    with pytest.raises(UserError, match=r'CARRIES must be a tuple of words: \("label",\)'):
        corpora.load("synthetic")
