"""Kaldi data directories: what is written is what Kaldi wants and comes back the same; what is read is not executed."""

import json
import os
import random
import subprocess

import kaldiio
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, SupervisionSegment

from speechlab import corpora, prepare
from speechlab.corpora import kaldi as incoming
from speechlab.corpora.audio import write_flac
from speechlab.corpora.cuts import utterance
from speechlab.data import kaldi as outgoing
from speechlab.data.check import check_audio
from speechlab.data.manifests import read_cuts, write_splits
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError
from speechlab.extract import extract_folder
from speechlab.features import audio
from speechlab.features.contract import FeatureContract
from speechlab.files import write_json


def noise(path, rate=16000, channels=1, seconds=0.5, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    soundfile.write(path, 0.1 * rng.normal(size=(int(rate * seconds), channels)), rate, **options)
    return path


def make(root, segments=True, blanks=True):
    """A corpus with all that is odd: blanks in names, speakers that Kaldi can't sort, parts of files, any format."""
    blank = " " if blanks else "_"
    kinds = [("a", "wav", 16000, 1), ("a-b", "flac", 8000, 1), (None, "wav", 44100, 2), (f"s{blank}p", "ogg", 16000, 1),
             ("说", "wav", 16000, 1)]
    splits = {}
    for split in ("train", "dev", "test"):
        cuts = [utterance(f"{split}{'/' if i % 2 else blank}{i}",
                          noise(root / "wav" / f"{split}{blank}{i}.{suffix}", rate, channels), f"你好 {i}",
                          speaker and f"{speaker}{split}", "zh")
                for i, (speaker, suffix, rate, channels) in enumerate(kinds)]
        if segments and split == "dev":
            long = utterance(f"rec{blank}1", noise(root / "wav" / "long.wav", 44100, 1, 5.0)).recording
            for i, (start, samples) in enumerate([(0.0, 55125), (1.3, 33957), (4.0, 44100)]):
                said = SupervisionSegment(id=f"part{i}", recording_id=long.id, start=0, duration=samples / 44100,
                                          text=f"段{i}", speaker="long", language="zh")
                cuts.append(MonoCut(id=said.id, start=start, duration=said.duration, channel=0, recording=long,
                                    supervisions=[said]))
        splits[split] = CutSet.from_cuts(cuts)
    write_splits(root, splits)
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """At a path with blanks and hanzi, with features."""
    root = make(tmp_path_factory.mktemp("kaldi") / "语料 one")
    contract = FeatureContract()
    extract_folder(root, root / "fbank", contract)
    return root


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def kaldi_sort(text, *options):
    return subprocess.run(["sort", *options], input=text, capture_output=True, text=True, check=True,
                          env={**os.environ, "LC_ALL": "C"}).stdout


def validate(folder):
    """The rules of Kaldi's utils/validate_data_dir.sh, with the system's own sort."""
    utt2spk = (folder / "utt2spk").read_text(encoding="utf-8")
    rows = [line.split(" ") for line in utt2spk.splitlines()]
    assert all(len(row) == 2 for row in rows)
    assert kaldi_sort(utt2spk, "-k2") == utt2spk, "sorted by speaker"
    utterances = [row[0] for row in rows]
    spk2utt = [line.split() for line in lines(folder / "spk2utt")]
    assert [[utt, row[0]] for row in spk2utt for utt in row[1:]] == rows
    segments = folder / "segments"
    for path in folder.iterdir():
        if path.is_dir() or path.suffix in (".ark", ".json"):
            continue
        text = path.read_text(encoding="utf-8")
        keys = [line.split()[0] for line in text.splitlines()]
        assert text.endswith("\n") and kaldi_sort("\n".join(keys) + "\n", "-u").split() == keys, path.name
        if path.name == "wav.scp" and segments.exists():
            assert sorted({line.split()[1] for line in lines(segments)}) == keys
        elif path.name != "spk2utt":
            assert keys == utterances, path.name
    for line in lines(segments) if segments.exists() else ():
        _, _, start, end = line.split()
        assert float(end) > float(start) >= 0


def described(cut):
    said = cut.supervisions[0]
    rate = cut.recording.sampling_rate
    return (said.text, said.speaker, said.language, round(cut.start * rate), round(cut.duration * rate), rate,
            os.path.abspath(cut.recording.sources[0].source))


def test_there_and_back(corpus, tmp_path, capsys):
    to = tmp_path / "out"
    assert outgoing.main(["export", str(corpus), "--to", str(to), "--features", "fbank"]) == 0
    assert "3 of 8 utterances in dev is not mono WAV" in capsys.readouterr().err
    for split in ("train", "dev", "test"):
        validate(to / split)
    assert (to / "dev" / "segments").exists() and not (to / "train" / "segments").exists()
    assert prepare.main(["kaldi", "--from", str(to), "--to", str(tmp_path / "back")]) == 0
    contract = FeatureContract()
    extract_folder(tmp_path / "back", tmp_path / "back" / "fbank", contract)
    for split in ("train", "dev", "test"):
        old = {cut.id: cut for cut in read_cuts(corpus / "fbank" / f"{split}.jsonl.gz")}
        new = {cut.id: cut for cut in read_cuts(tmp_path / "back" / f"{split}.jsonl.gz")}
        again = {cut.id: cut for cut in read_cuts(tmp_path / "back" / "fbank" / f"{split}.jsonl.gz")}
        raw = {cut.id: cut for cut in read_cuts(corpus / f"{split}.jsonl.gz")}
        texts = {id: cut.supervisions[0].text.replace(" ", "") for id, cut in raw.items()}  # prepare normalises
        assert new.keys() == old.keys()
        names = outgoing.name([cut for s in ("train", "dev", "test") for cut in read_cuts(corpus / f"{s}.jsonl.gz")])
        stored = kaldiio.load_scp(str(to / split / "feats.scp"))
        for id in new:
            assert described(new[id])[1:] == described(raw[id])[1:] and new[id].supervisions[0].text == texts[id]
            assert np.array_equal(audio.read(new[id])[0], audio.read(raw[id])[0])
            kept = old[id].load_features()
            assert np.array_equal(stored[names[id].utterance], kept), "the archives that there were, to the bit"
            assert np.array_equal(again[id].load_features(), kept)
        assert len(stored) == len(old) and not (to / split / "feats.ark").exists()
        frames = dict(line.split() for line in lines(to / split / "utt2num_frames"))
        assert all(int(frames[names[id].utterance]) == old[id].num_frames for id in old)


def test_kaldiio_reads_the_sound_through_segments_and_pipes(tmp_path):
    root, to = make(tmp_path / "a b"), tmp_path / "out"
    outgoing.export(root, to)
    names = {one.utterance: id for id, one in outgoing.name(
        [cut for s in ("train", "dev", "test") for cut in read_cuts(root / f"{s}.jsonl.gz")]).items()}
    cuts = {cut.id: cut for cut in read_cuts(root / "dev.jsonl.gz")}
    wav = {line.split()[0]: line for line in lines(to / "dev" / "wav.scp") if ".wav" in line}
    (tmp_path / "wav.scp").write_text("\n".join(wav.values()) + "\n", encoding="utf-8")
    some = [line for line in lines(to / "dev" / "segments") if line.split()[1] in wav]
    (tmp_path / "segments").write_text("\n".join(some) + "\n", encoding="utf-8")
    heard = kaldiio.load_scp(str(tmp_path / "wav.scp"), segments=str(tmp_path / "segments"))
    assert len(heard) == 6
    for utt in heard:
        rate, samples = heard[utt]
        want = audio.read(cuts[names[utt]])[0]
        want = np.rint(want * 32768) if want.dtype != np.int16 else want
        got = samples.reshape(len(samples), -1).T
        assert rate == cuts[names[utt]].sampling_rate and abs(got.shape[1] - want.shape[1]) <= 1
        width = min(got.shape[1], want.shape[1])  # kaldiio rounds a segment's end down
        assert np.array_equal(got[:, :width], want[:, :width])


def test_names_sort_by_utterance_and_speaker_whatever_speakers_are_called():
    draw = random.Random(0)
    numbered = 0
    for _ in range(300):
        people = ["".join(draw.choices("ab-_ !说", k=draw.randint(1, 4))) for _ in range(4)] + [None]
        cuts = [utterance(f"{draw.choice(people + ['x']) or ''}{draw.choice(['-', '', ' '])}{i}", "no.wav", "x",
                          draw.choice(people)) for i in range(8)]
        cuts = list({cut.id: cut for cut in cuts}.values())
        names = outgoing.name(cuts)
        assert len({one.utterance for one in names.values()}) == len(cuts)
        order = sorted(names.values())
        text = "".join(f"{one.utterance} {one.speaker}\n" for one in order)
        assert kaldi_sort(text) == kaldi_sort(text, "-k2") == text
        assert not any(c.isspace() for one in order for c in one.utterance + one.speaker)
        same = {}
        for cut in cuts:  # one speaker, one name
            who = cut.supervisions[0].speaker or f"?{cut.id}"
            assert same.setdefault(who, names[cut.id].speaker) == names[cut.id].speaker
        assert len(set(same.values())) == len(same)
        numbered += order[0].speaker.startswith("spk")
    assert 0 < numbered < 300
    plain = outgoing.name([utterance("ann-1", "no.wav", "x", "ann"), utterance("u2", "no.wav", "x", "bob")])
    assert plain == {"ann-1": ("ann-1", "ann"), "u2": ("bob-u2", "bob")}


@pytest.mark.parametrize("file", ["a b.wav", "it's $HOME `x`.wav", 'say "a".wav', "a|b.wav", "x.ark:12", "a[1]",
                                  "全 角.wav", "tab\tx.wav"])
def test_an_entry_of_wav_scp_names_its_file(tmp_path, file):
    path = noise(tmp_path / file, format="WAV")
    value = outgoing.entry(str(path))
    assert value.startswith("cat ") and value.endswith(" |")
    assert subprocess.run(["sh", "-c", value[:-1]], capture_output=True).stdout == path.read_bytes()
    assert incoming._sound(tmp_path / "wav.scp", 1, "a", value) == (path, None)
    assert outgoing.entry("/plain/a.wav") == "/plain/a.wav"
    with pytest.raises(UserError, match="line break"):
        outgoing.entry("/a\nb.wav")


def test_sound_written_anew(tmp_path, capsys):
    root, to = make(tmp_path / "a b"), tmp_path / "out"
    assert outgoing.main(["export", str(root), "--to", str(to), "--wav", "--nj", "2"]) == 0
    assert "not mono WAV" not in capsys.readouterr().err
    validate(to / "dev")
    assert not (to / "dev" / "segments").exists()
    names = outgoing.name([cut for s in ("train", "dev", "test") for cut in read_cuts(root / f"{s}.jsonl.gz")])
    written = dict(line.split(" ", 1) for line in lines(to / "dev" / "wav.scp"))
    for cut in read_cuts(root / "dev.jsonl.gz"):
        info = soundfile.info(written[names[cut.id].utterance])
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames == pytest.approx(16000 * cut.duration, abs=1)
    first = next(cut for cut in read_cuts(root / "dev.jsonl.gz") if cut.id == "dev 0")
    same = soundfile.read(written[names[first.id].utterance], dtype="int16")[0]
    assert np.array_equal(same, audio.read(first)[0][0]), "16-bit WAV stays what it is"


def test_a_later_export_leaves_nothing_of_an_earlier_one(corpus, tmp_path):
    outgoing.export(corpus, tmp_path, "fbank")
    (tmp_path / "dev" / "cmvn.scp").write_text("mine\n")
    outgoing.export(corpus, tmp_path, splits=["dev"], wav=16000)
    assert {path.name for path in (tmp_path / "dev").iterdir()} == {
        "wav.scp", "text", "utt2spk", "spk2utt", "utt2dur", "utt2lang", "speechlab_ids.json", "wav", "cmvn.scp"}


def test_features_of_another_form_are_written_anew(corpus, tmp_path):
    from lhotse import NumpyFilesWriter

    folder = make(tmp_path / "data", segments=False)
    contract = FeatureContract()
    extract_folder(folder, folder / "fbank", contract)
    kept = {}
    with NumpyFilesWriter(tmp_path / "npy") as writer:
        cuts = []
        for cut in read_cuts(folder / "fbank" / "dev.jsonl.gz"):
            kept[cut.id] = cut.load_features()
            made = cut.features
            made.storage_type, made.storage_path = writer.name, str(writer.storage_path)
            made.storage_key = writer.write(cut.id.replace("/", "-"), kept[cut.id])
            cuts.append(cut)
    write_splits(folder / "fbank", {"dev": cuts})
    outgoing.export(folder, tmp_path / "out", "fbank", ["dev"])
    validate(tmp_path / "out" / "dev")
    stored = kaldiio.load_scp(str(tmp_path / "out" / "dev" / "feats.scp"))
    names = outgoing.name(read_cuts(folder / "dev.jsonl.gz"))
    assert (tmp_path / "out" / "dev" / "feats.ark").exists() and len(stored) == len(kept) == 5
    for id, x in kept.items():
        assert stored[names[id].utterance].dtype == np.float32 and np.array_equal(stored[names[id].utterance], x)


def test_exports_that_can_not_be(corpus, tmp_path, capsys):
    to = ["--to", str(tmp_path / "out")]
    for options, word in (([str(tmp_path)], "no manifests"), ([str(corpus), "--features", "fbank9"], "--stage 2"),
                          ([str(corpus), "--splits", "trian"], "no split trian"),
                          ([str(corpus), "--espnet"], "no token lists")):
        assert outgoing.main(["export", *options, *to]) != 0
        error = capsys.readouterr().err
        assert word in error and len(error.splitlines()) == 1


# Import


def directory(root, names=("s1-a", "s1-b", "s2-c", "s3-d"), **files):
    """A small data directory; a file given as text replaces the good one, as None removes it."""
    root.mkdir(parents=True, exist_ok=True)
    good = {"wav.scp": "".join(f"{n} {noise(root / 'wav' / f'{n}.wav')}\n" for n in names),
            "text": "".join(f"{n} 你 好\n" for n in names),
            "utt2spk": "".join(f"{n} {n.split('-')[0]}\n" for n in names)}
    for name, text in {**good, **{key.replace("wav_scp", "wav.scp"): text for key, text in files.items()}}.items():
        (root / name).unlink(missing_ok=True)
        if text is not None:
            (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def test_one_directory_is_split_like_a_folder(tmp_path, capsys):
    assert prepare.main(["kaldi", "--from", str(directory(tmp_path / "d")), "--to", str(tmp_path / "data")]) == 0
    cuts = {s: list(read_cuts(tmp_path / "data" / f"{s}.jsonl.gz")) for s in ("train", "dev", "test")}
    assert all(cuts.values()) and sum(map(len, cuts.values())) == 4
    speakers = [{cut.supervisions[0].speaker for cut in some} for some in cuts.values()]
    assert set.union(*speakers) == {"s1", "s2", "s3"} and sum(map(len, speakers)) == 3
    assert {cut.supervisions[0].text for some in cuts.values() for cut in some} == {"你好"}
    assert "note" not in capsys.readouterr().err


def splits(root, **options):
    made = incoming.prepare(root, root, **options)
    return {split: sorted(cut.id for cut in cuts) for split, cuts in made.items()}


def test_directories_by_their_names(tmp_path, capsys):
    for i, name in enumerate(("train_nodev", "dev", "test_a-b", "eval92", "other")):
        directory(tmp_path / name, (f"s{i}-x", f"s{i}-y"))
    assert splits(tmp_path) == {"train": ["s0-x", "s0-y"], "dev": ["s1-x", "s1-y"], "test_a_b": ["s2-x", "s2-y"],
                                "test_eval92": ["s3-x", "s3-y"]}
    assert "other not" in capsys.readouterr().err
    directory(tmp_path / "train_sp", ("s5-x",))
    with pytest.raises(UserError, match="2 directories for train .*--option train=train_nodev"):
        splits(tmp_path)
    assert splits(tmp_path, train="train_sp,other", test="eval92")["train"] == ["s4-x", "s4-y", "s5-x"]
    directory(tmp_path / "train", ("s6-x", "s6-y"))
    assert splits(tmp_path)["train"] == ["s6-x", "s6-y"]
    with pytest.raises(UserError, match="no data directory nowhere"):
        splits(tmp_path, dev="nowhere")
    directory(tmp_path / "dev", ("s6-x",))
    with pytest.raises(UserError, match="s6-x is in .*train too"):
        splits(tmp_path)
    directory(tmp_path / "dev", ("s6-z",))
    capsys.readouterr()
    assert splits(tmp_path)["dev"] == ["s6-z"]
    assert "speaker s6 is in dev and train" in capsys.readouterr().err
    speakers = [{id.split("-")[0] for id in ids} for ids in splits(tmp_path, split_by="speaker").values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 3, "no speaker in two"
    with pytest.raises(UserError, match="one data directory"):
        splits(tmp_path / "train", train="x")
    with pytest.raises(UserError, match="no Kaldi data directory"):
        splits(tmp_path / "train" / "wav")


def test_without_dev_and_test_they_are_taken_from_train(tmp_path):
    directory(tmp_path / "train", [f"s{i}-x" for i in range(10)])
    assert {split: len(ids) for split, ids in splits(tmp_path).items()} == {"train": 8, "dev": 1, "test": 1}


WAV = "s1-a {0}/wav/s1-a.wav\ns1-b {0}/wav/s1-b.wav\ns2-c {0}/wav/s2-c.wav\ns3-d {0}/wav/s3-d.wav\n"
WRONG = {
    "no text": (dict(text=None), "text can't be read"),
    "an empty file": (dict(text=""), "text is empty"),
    "an id alone": (dict(wav_scp="s1-a x.wav\ns1-b\n"), "wav.scp line 2: there is nothing after s1-b"),
    "twice": (dict(text="s1-a x\n\ns1-a y\n"), "text line 3: s1-a is in line 1 too"),
    "not UTF-8": (dict(text="s1-a 你好\n".encode("gb18030")), "text line 1 is not UTF-8"),
    "a missing file": (dict(wav_scp=WAV.replace("s1-b.wav", "gone.wav")), "wav.scp: 1 files .*line 2: .*gone.wav"),
    "no speaker": (dict(utt2spk="s1-a s1\ns1-b s1\ns2-c s2\n"), r"utt2spk: 1 utterances .*text line 4: s3-d"),
    "other ids": (dict(text="x y\n"), "no utterance of text is in wav.scp"),
    "segment without end": (dict(segments="u s1-a 0.0\n"), "segments line 1: after u must stand"),
    "segment that ends first": (dict(segments="u s1-a 0 1\nv s1-a 0.4 0.2\n"), "segments line 2: after v"),
    "segment of no number": (dict(segments="u s1-a nan 1\n"), "segments line 1: after u"),
    "segment of nothing": (dict(segments="u rec 0 1\n"), "segments line 1: recording rec is not in wav.scp"),
    "a command": (dict(wav_scp=WAV.replace("s1-b {0}", "s1-b sph2pipe -f wav {0}").replace("b.wav", "b.sph |")),
                  r"wav.scp line 2: the sound of s1-b is made by a command \(sph2pipe"),
    "damaged names": (dict(names="{"), "speechlab_ids.json is damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_directories(tmp_path, capsys, name):
    files, message = WRONG[name]
    files = {incoming.IDS if key == "names" else key: text.replace("{0}", str(tmp_path / "d"))
             if isinstance(text, str) else text for key, text in files.items()}
    root = directory(tmp_path / "d", **files)
    with pytest.raises(UserError, match=message):
        incoming.prepare(root, tmp_path)
    capsys.readouterr()
    assert prepare.main(["kaldi", "--from", str(root), "--to", str(tmp_path / "data")]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(error) == 1 and error[0].startswith("error: ")


def test_what_is_accepted_with_a_note(tmp_path, capsys):
    root = directory(tmp_path / "d", utt2spk=None)
    (root / "wav.scp").write_text("\ufeff" + "\r\n".join(reversed(lines(root / "wav.scp"))) + "\r\ns4-e gone.wav\r\n")
    (root / "text").write_text("s1-a  x\ty \ns1-b\nzz z\n" + "\n".join(lines(root / "text")[2:]), encoding="utf-8")
    made, _ = incoming.read(root)
    assert [(one.id, one.text, one.speaker) for one in made] == [
        ("s3-d", "你 好", None), ("s2-c", "你 好", None), ("s1-b", "", None), ("s1-a", "x\ty", None)]
    notes = capsys.readouterr().err
    for word in ("wav.scp is not sorted (line 2)", "1 utterances of wav.scp are not in text", "(s4-e)",
                 "1 utterances of text are not in wav.scp", "(zz)", "no utt2spk"):
        assert word in notes
    assert notes.count("note: ") == 4 + ("text is not sorted" in notes)


LABELS = "s1-a yes\ns1-b no\ns2-c yes\ns3-d no\n"


def carried_by(root, tmp_path, *carry):
    made = incoming.prepare(root, tmp_path, carry=carry, split_by="random" if "speaker" in carry else "auto")
    return {cut.id: cut.supervisions[0] for some in made.values() for cut in some}


def test_labels_by_their_file(tmp_path, capsys):
    root = directory(tmp_path / "d", [f"s{i}-{x}" for i in range(3) for x in "abc"], utt2spk=None)
    names = [line.split()[0] for line in lines(root / "wav.scp")]
    for file, label in (("text", "你 好"), ("utt2lang", "zh"), ("utt2label", "a word")):  # the later ones come first
        if file != "text":
            (root / file).write_text("".join(f"{name} {label}\n" for name in names))
        found = carried_by(root, tmp_path, "label")
        assert {(said.label, said.text) for said in found.values()} == {(label, "你 好")}
        assert (f"its labels are those in {file}" in capsys.readouterr().err) == (file != "utt2label")
    (root / "text").unlink()
    assert {said.text for said in carried_by(root, tmp_path, "label").values()} == {None}
    (root / "utt2label").write_text("".join(f"{name} a\n" for name in names[:5]))
    capsys.readouterr()
    assert sorted(carried_by(root, tmp_path, "label")) == names[:5]
    assert "4 utterances of wav.scp are not in utt2label and are left out" in capsys.readouterr().err
    for file in ("utt2label", "utt2lang"):
        (root / file).unlink()
    with pytest.raises(UserError, match="has no labels: write utt2label"):
        carried_by(root, tmp_path, "label")


def test_what_else_a_data_directory_carries(tmp_path, capsys):
    root = directory(tmp_path / "d", text=None, utt2label=LABELS, utt2mood="s1-a a\ns1-b b\ns2-c c\ns3-d d e\n")
    found = carried_by(root, tmp_path, "speaker", "mood")
    assert {id: (said.speaker, said.mood, said.text) for id, said in found.items()} == {
        "s1-a": ("s1", "a", None), "s1-b": ("s1", "b", None), "s2-c": ("s2", "c", None), "s3-d": ("s3", "d e", None)}
    assert prepare.main(["kaldi", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "speaker"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[3] == "1"
    for carry, message in ((("text",), "text can't be read"), (("speaker", "room"), "utt2room can't be read"),
                           (("clean",), "no clean partners: use the corpus folder")):
        with pytest.raises(UserError, match=message):
            carried_by(root, tmp_path, *carry)
    (root / "utt2label").write_text(LABELS.replace("s3-d no\n", ""))
    with pytest.raises(UserError, match=r"utt2label: 1 utterances of utt2spk are not in it \(utt2spk line 4: s3-d"):
        carried_by(root, tmp_path, "speaker", "label")
    (root / "utt2spk").unlink()
    with pytest.raises(UserError, match="utt2spk can't be read"):
        carried_by(root, tmp_path, "speaker")


def test_labels_through_the_whole_stage(tmp_path, capsys):
    root = directory(tmp_path / "d", [f"s{i}-{x}" for i in range(3) for x in "abc"], text=None)
    (root / "utt2label").write_text("".join(f"s{i}-{x} {x}\n" for i in range(3) for x in "abc"))
    command = ["kaldi", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]
    assert prepare.main(command) == 0, "by speaker: each says each word"
    assert prepare.main([*command, "--split_by", "random"]) == 0, "class by class"
    for split in ("train", "dev", "test"):
        found = {cut.supervisions[0].label for cut in read_cuts(tmp_path / "data" / f"{split}.jsonl.gz")}
        assert found == {"a", "b", "c"}
    assert capsys.readouterr().out.splitlines()[-1].split()[-3:] == ["3", "1", "1"]


def test_relative_paths_and_pipes_of_cat(tmp_path, monkeypatch):
    noise(tmp_path / "wav" / "a b.wav")
    root = directory(tmp_path / "data" / "train", wav_scp="s1-a cat wav/a\\ b.wav |\ns1-b cat \"wav/a b.wav\"|\n"
                     "s2-c wav/a b.wav\ns3-d ../../wav/a b.wav\n")
    (tmp_path / "data" / "train" / "wav").rename(tmp_path / "unused")
    _, sounds = incoming.read(root)
    assert {os.path.realpath(sound.path) for sound in sounds.values()} == {str(tmp_path / "wav" / "a b.wav")}


@pytest.mark.parametrize("value", ["touch {0} ; cat a.wav |", "touch {0} |", "touch {0} |:12", "| touch {0}",
                                   "cat a.wav; touch {0} |", "cat `touch {0}` |", "cat $(touch {0}) |", "touch {0} '|"])
def test_nothing_is_executed(tmp_path, value):
    mark = tmp_path / "mark"
    root = directory(tmp_path / "d", wav_scp=f"s1-a {value.format(mark)}\n")
    with pytest.raises(UserError, match="wav.scp"):
        incoming.prepare(root, tmp_path)
    assert not mark.exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", [None, "soundfile"])
def test_archives_hold_sound_and_nothing_else(tmp_path, form):
    sound = {name: (np.random.default_rng(i).normal(size=8000) * 3000).astype(np.int16)
             for i, name in enumerate(("s1-a", "s1-b", "s2/c", "s3-d"))}
    kaldiio.save_ark(str(tmp_path / "wav.ark"), {name: (16000, samples) for name, samples in sound.items()},
                     scp=str(tmp_path / "wav.scp"), write_function=form, write_kwargs={"format": "flac"})
    root = directory(tmp_path / "d", tuple(sound)[:2], wav_scp=(tmp_path / "wav.scp").read_text(),
                     text="".join(f"{name} 好\n" for name in sound), utt2spk=None)
    cuts = {cut.id: cut for some in incoming.prepare(root, tmp_path / "out").values() for cut in some}
    assert cuts.keys() == {"s1-a", "s1-b", "s2-c", "s3-d"}, "no slash in an id"
    for id, cut in cuts.items():
        assert np.array_equal(soundfile.read(cut.recording.sources[0].source, dtype="int16")[0],
                              sound[id.replace("s2-", "s2/")])
    mark = tmp_path / "mark"
    kaldiio.save_ark(str(tmp_path / "bad.ark"), {"s1-a": Bomb(mark)}, write_function="pickle")
    kaldiio.save_ark(str(tmp_path / "mat.ark"), {"s1-a": np.ones((3, 2), dtype=np.float32)})
    whole = (tmp_path / "wav.ark").read_bytes()
    (tmp_path / "cut.ark").write_bytes(whole[:5000])
    good = (tmp_path / "wav.scp").read_text().splitlines()[1:]
    for place in ("bad.ark:5", "mat.ark:5", "wav.ark:3", "wav.ark:99999999", "cut.ark:5"):
        (root / "wav.scp").write_text("\n".join([f"s1-a {tmp_path / place}", *good]))
        with pytest.raises(UserError, match=r"\.ark has no sound for s1-a at"):
            incoming.prepare(root, tmp_path / "out", split_by="random")
    assert not mark.exists()
    kaldiio.load_mat(str(tmp_path / "bad.ark:5"))
    assert mark.exists(), "what would have happened"


def test_segments_at_their_recordings_ends(tmp_path):
    root = directory(tmp_path / "d", segments="u1 s1-a 0 -1\nu2 s1-a 0.1 0.5\nu3 s1-a 0.2 0.9\nu4 s1-a 0.2 3\n"
                     "u5 s1-a 0 0.50002\n", text="".join(f"u{i} x\n" for i in range(1, 6)), utt2spk=None)
    cuts = {cut.id: (cut.start, cut.duration) for some in incoming.prepare(root, tmp_path).values() for cut in some}
    assert cuts == {"u1": (0.0, 0.5), "u2": (0.1, 0.4), "u3": (0.2, 0.3), "u4": (0.2, 2.8), "u5": (0.0, 0.5)}


def test_it_is_one_of_the_corpora(tmp_path):
    assert corpora.load("kaldi") is incoming and incoming.ABOUT and incoming.LICENSE
    with pytest.raises(UserError, match="--data_dir DIR"):
        incoming.fetch(tmp_path)


# ESPnet (its own training: tests/recipes/test_espnet_train.py)


@pytest.fixture
def plain(tmp_path):
    """Whole mono files of one rate, a token list, features."""
    cuts = {split: CutSet.from_cuts(
        [utterance(f"{split}-{i}", noise(tmp_path / "wav" / f"{split}{i}.wav"), f"AB {'CD' * i}", split, "en")
         for i in range(3)]) for split in ("train", "dev", "test")}
    write_splits(tmp_path, cuts)
    for kind, size in (("char", 0), ("bpe", 9)):
        tokens = Tokenizer.train([cut.supervisions[0].text for cut in cuts["train"]], kind, vocab_size=size)
        write_json(tmp_path / f"{kind}-1" / "tokens.json", {"main": tokens.state()})
    extract_folder(tmp_path, tmp_path / "fbank", FeatureContract())
    return tmp_path


def test_what_espnet_needs(plain, capsys):
    to = plain / "out"
    assert outgoing.main(["export", str(plain), "--to", str(to), "--espnet"]) == 1
    assert "2 token lists (bpe-1, char-1): say which with --tokens" in capsys.readouterr().err
    command = ["export", str(plain), "--to", str(to), "--espnet", "--tokens"]
    assert outgoing.main([*command, "char-1"]) == 0
    shown = capsys.readouterr().out
    assert "espnet2.bin.asr_train" in shown and f"{to}/train/wav.scp,speech,sound" in shown
    units = lines(to / "espnet" / "tokens.txt")
    assert units[:2] == ["<blank>", "<unk>"] and units[-1] == "<sos/eos>" and "<space>" in units and "▁" not in units
    assert lines(to / "espnet" / "train" / "speech_shape")[0] == "train-0 8000"
    assert lines(to / "espnet" / "train" / "text_shape") == [f"train-{i} {n},{len(units)}" for i, n in
                                                            enumerate((2, 5, 7))]
    assert outgoing.main([*command, "bpe-1", "--features", "fbank"]) == 0
    shown = capsys.readouterr().out
    assert "feats.scp,speech,kaldi_ark" in shown and "--input_size 80" in shown and "--bpemodel" in shown
    assert lines(to / "espnet" / "dev" / "speech_shape")[0] == "dev-0 50,80"
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(to / "espnet" / "bpe.model"))
    assert [pieces.id_to_piece(i) for i in range(9)] == lines(to / "espnet" / "tokens.txt")[:-1]
    assert subprocess.run(["bash", "-n", str(to / "espnet" / "asr_train.sh")]).returncode == 0


def test_symbols_come_in_and_go_out(tmp_path, capsys):
    """ESPnet is told which tokens are no characters, and what was exported can be read again."""
    root = tmp_path / "kaldi"
    directory(root, [f"s{i}-x" for i in range(5)])
    text = [f"s{i}-x 你 好 <noise> !HUM" for i in range(5)]
    (root / "text").write_text("\n".join(text) + "\n", encoding="utf-8")
    (root / "utt2lang").write_text("".join(f"s{i}-x 汉语\n" for i in range(5)), encoding="utf-8")
    (tmp_path / "nlsyms").write_text("!HUM\n")

    def texts(source, *options):
        assert prepare.main(["kaldi", "--from", str(source), "--to", str(tmp_path / "data"), *options]) == 0
        return {cut.supervisions[0].text for split in ("train", "dev", "test")
                for cut in read_cuts(tmp_path / f"data/{split}.jsonl.gz")}

    own = f"--option=nlsyms={tmp_path / 'nlsyms'}"
    assert texts(root) == {"你好HUM"} and texts(root, own) == {"你好"}
    assert texts(root, own, "--option=symbols=keep") == {"你好<NOISE> <HUM>"}
    tokens = Tokenizer.train(["你好<NOISE> <HUM>"])
    write_json(tmp_path / "data/char-1/tokens.json", {"main": tokens.state()})
    assert outgoing.main(["export", str(tmp_path / "data"), "--to", str(tmp_path / "out"), "--espnet"]) == 0
    assert sorted(lines(tmp_path / "out/espnet/nlsyms.txt")) == ["<HUM>", "<NOISE>"]
    assert "--non_linguistic_symbols" in (tmp_path / "out/espnet/asr_train.sh").read_text()
    assert lines(tmp_path / "out/espnet/dev/text_shape")[0].split()[1] == f"5,{len(tokens) + 1}"
    assert texts(tmp_path / "out", "--option=symbols=keep") == {"你好<NOISE> HUM"}, "one's own must be named"
    assert texts(tmp_path / "out", "--option=symbols=keep", own) == {"你好<NOISE> <HUM>"}


def test_what_espnet_can_not_take(plain, corpus, capsys):
    tokens = ["--espnet", "--tokens", "char-1"]
    assert outgoing.main(["export", str(plain), "--to", str(plain / "a,b"), *tokens]) == 1
    assert "comma" in capsys.readouterr().err
    assert outgoing.main(["export", str(plain), "--to", str(plain / "out"), "--splits", "train", *tokens]) == 1
    assert "splits train and dev" in capsys.readouterr().err
    write_json(corpus / "char-1" / "tokens.json", json.loads((plain / "char-1" / "tokens.json").read_text()))
    command = ["export", str(corpus), "--to", str(plain / "b c"), *tokens]
    assert outgoing.main(command) == 1
    assert "parts of files: --wav" in capsys.readouterr().err
    assert outgoing.main([*command, "--wav"]) == 0
    assert "espnet/train/wav.scp,speech,sound" in capsys.readouterr().out
    for split, count in (("train", 5), ("dev", 8)):
        files = [line.split(" ", 1)[1] for line in lines(plain / "b c" / "espnet" / split / "wav.scp")]
        assert len(files) == count and all(soundfile.info(file).samplerate == 16000 for file in files)


def call(folder, **files):
    """A data directory of a two-channel call: 440 Hz on the first side, 880 Hz on the second."""
    time = np.arange(8000 * 4) / 8000
    (folder / "wav").mkdir(parents=True)
    soundfile.write(folder / "wav" / "call.wav",
                    0.25 * np.stack([np.sin(2 * np.pi * f * time) for f in (440, 880)], 1), 8000)
    for name, text in files.items():
        (folder / name.replace("_scp", ".scp")).write_text(text)
    return folder


def pitch(cut):
    """Hz of the strongest frequency of what is heard."""
    samples, rate = audio.read(cut)
    power = np.abs(np.fft.rfft(samples.astype(float).mean(0)))
    return round(power.argmax() * rate / samples.shape[1])


SEGMENTS = "".join(f"u{i} call {i} {i + 0.5} {channel}\n" for i, channel in enumerate(["0", "1", "A", "B"]))
CALL = {"wav_scp": "call wav/call.wav\n", "text": "u0 a\nu1 b\nu2 c\nu3 d\n"}


def test_segments_with_a_channel(tmp_path, capsys):
    """The side that the fifth field names is heard, is what stage 1 checks, and goes out again."""
    here = call(tmp_path / "in", segments=SEGMENTS, **CALL)
    (here / "wav.scp").write_text(f"call {here}/wav/call.wav\n")
    cuts = {cut.id: cut for some in incoming.prepare(here, tmp_path / "out").values() for cut in some}
    assert {id: pitch(cut) for id, cut in cuts.items()} == {"u0": 440, "u1": 880, "u2": 440, "u3": 880}
    assert (cuts["u3"].start, cuts["u3"].duration, cuts["u3"].channel) == (3, 0.5, 1)
    assert cuts["u3"].supervisions[0].channel == 1
    assert prepare.main(["kaldi", "--from", str(here), "--to", str(tmp_path / "data")]) == 0
    outgoing.export(tmp_path / "data", tmp_path / "kaldi")
    assert sorted(line for split in ("train", "dev", "test") for line in lines(tmp_path / "kaldi" / split / "segments")
                  ) == [f"u{i} call {i} {i}.5 {i % 2}" for i in range(4)]
    again = {cut.id: cut for some in incoming.prepare(tmp_path / "kaldi", tmp_path / "out").values() for cut in some}
    assert {id: pitch(cut) for id, cut in again.items()} == {"u0": 440, "u1": 880, "u2": 440, "u3": 880}


def test_a_channel_that_is_not_there(tmp_path, capsys):
    here = call(tmp_path / "in", segments=SEGMENTS.replace("3.5 B", "3.5 2"), **CALL)
    made = incoming.prepare(here, tmp_path / "out")
    (bad,) = [cut for some in made.values() for cut in some if cut.id == "u3"]
    reason = check_audio(here / "wav" / "call.wav", [(bad.start, bad.duration, [bad.channel])])
    assert reason == ["channel: there is no channel 2, counted from 0, among 2"]
    for word in ("C1", "-1", "x", "1.0"):
        (here / "segments").write_text(SEGMENTS.replace("3.5 B", f"3.5 {word}"))
        with pytest.raises(UserError, match=f"segments line 4: {word} is no channel: it must be 0, 1... or A, B..."):
            incoming.prepare(here, tmp_path / "out")


@pytest.mark.parametrize("sides", [("A", "B"), ("1", "2")])
def test_sides_of_a_call(tmp_path, sides):
    """reco2file_and_channel counts for a recording of several channels, and segments' own channel before it."""
    here = call(tmp_path / "in", text="call-A a\ncall-B b\nmono c\n",
                reco2file_and_channel=f"call-A call {sides[0]}\ncall-B call {sides[1]}\nmono mono {sides[1]}\n")
    soundfile.write(here / "wav" / "mono.wav", 0.1 * np.sin(np.arange(8000) * 2 * np.pi * 220 / 8000), 8000)
    (here / "wav.scp").write_text(f"call-A {here}/wav/call.wav\ncall-B {here}/wav/call.wav\n"
                                  f"mono {here}/wav/mono.wav\n")
    cuts = {cut.id: cut for some in incoming.prepare(here, tmp_path / "out").values() for cut in some}
    assert {id: pitch(cut) for id, cut in cuts.items()} == {"call-A": 440, "call-B": 880, "mono": 220}
    (here / "segments").write_text("call-A call-A 0 1\ncall-B call-B 0 1 0\nmono mono 0 1\n")
    cuts = {cut.id: cut for some in incoming.prepare(here, tmp_path / "out").values() for cut in some}
    assert {id: pitch(cut) for id, cut in cuts.items()} == {"call-A": 440, "call-B": 440, "mono": 220}
    (here / "reco2file_and_channel").write_text("call-A call 0\n")
    with pytest.raises(UserError, match="reco2file_and_channel line 1: after call-A must stand a file's name and A"):
        incoming.prepare(here, tmp_path / "out")


def test_peaks_are_not_cut_off(tmp_path, capsys):
    """Floats above full scale, and a resampled square wave's overshoot: quieter as a whole, and counted."""
    time = np.arange(16000) / 16000
    wave = np.sin(2 * np.pi * 200 * time)
    square = np.sign(np.sin(2 * np.pi * 100 * np.arange(44100) / 44100 + 0.01))
    kinds = {"loud": (1.5 * wave, 16000, "FLOAT"), "full": (wave, 16000, "FLOAT"), "square": (square, 44100, "PCM_16")}
    cuts = []
    for name, (sound, rate, subtype) in kinds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, rate, subtype=subtype)
        cuts.append(utterance(name, tmp_path / f"{name}.wav", "a"))
    write_splits(tmp_path, {"train": CutSet.from_cuts(cuts)})
    outgoing.export(tmp_path, tmp_path / "out", wav=16000)
    said = capsys.readouterr().err
    assert "2 of 3 utterances in train go above full scale" in said and "(loud)" in said
    read = {name: soundfile.read(tmp_path / "out" / "train" / "wav" / f"{name}.wav", dtype="int16")[0]
            for name in kinds}
    for name, samples in read.items():
        assert 32760 <= samples.max() <= 32767, name
    np.testing.assert_allclose(read["loud"], 32767 * wave, atol=1)
    np.testing.assert_allclose(read["full"], np.minimum(32768 * wave, 32767), atol=1)
    assert (np.abs(read["square"].astype(int)) > 32760).sum() < 400  # one overshoot an edge, and no flat top


def test_flac_of_floats_above_full_scale(tmp_path):
    wave = np.sin(np.arange(16000) * 0.1).astype(np.float32)
    assert write_flac(tmp_path / "loud.flac", 2 * wave, 16000) is True
    assert write_flac(tmp_path / "full.flac", wave, 16000) is False
    loud, full = (soundfile.read(tmp_path / f"{name}.flac", dtype="int16")[0].astype(int) for name in ("loud", "full"))
    assert np.abs(loud - full).max() <= 2 and np.abs(loud).max() == 32767
