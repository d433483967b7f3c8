"""A corpus of one's own: how it is split, what is kept of it, and each way in which its manifest can be wrong."""

import os
import re
from collections import Counter

import numpy as np
import pytest
import soundfile

from speechlab import prepare
from speechlab.corpora import folder
from speechlab.data.batching import ByDuration
from speechlab.data.speech import read_split
from speechlab.errors import UserError


def audio(path, rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.1 * np.random.default_rng(0).normal(size=(rate // 2, channels))
    soundfile.write(path, sound, rate)


def write(root, header, *rows, make=True):
    """A manifest with these lines, and the audio that its first column names."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.tsv").write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n", encoding="utf-8")
    for row in rows if make else ():
        if row and row[0] and not (root / row[0]).exists():
            audio(root / row[0])
    return root


def speakers_folder(root, **utterances):
    rows = [(f"{name}/{i}.flac", f"text {i}", name) for name, count in utterances.items() for i in range(count)]
    return write(root, ("path", "text", "speaker"), *rows)


def test_any_format_rate_and_channels_through_the_whole_stage(tmp_path, capsys):
    root = tmp_path / "my voice 我的"
    kinds = {"a.wav": (8000, 1), "b b.flac": (44100, 2), "深/c.ogg": (22050, 1), "d.mp3": (16000, 2),
             "e.wav": (48000, 3)}
    for name, (rate, channels) in kinds.items():
        audio(root / name, rate, channels)
    write(root, ("path", "text", "mood"), *((name, "你好，世界", "glad" if name == "a.wav" else "") for name in kinds))
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--nj", "2"]) == 0
    from lhotse import CutSet

    cuts = {cut.id: cut for split in ("train", "dev", "test")
            for cut in CutSet.from_file(tmp_path / f"data/{split}.jsonl.gz")}
    assert set(cuts) == {"a", "b-b", "深-c", "d", "e"}
    assert [cuts[id].sampling_rate for id in ("a", "b-b", "深-c", "d", "e")] == [8000, 44100, 22050, 16000, 48000]
    assert cuts["a"].supervisions[0].mood == "glad" and "mood" not in cuts["e"].supervisions[0].custom
    assert {cut.supervisions[0].text for cut in cuts.values()} == {"你好世界"}
    counted = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert (sum(int(c[4]) for c in counted), sum(int(c[5]) for c in counted)) == (4, 3)  # resampled, mixed down


@pytest.mark.parametrize("options, texts, language", [
    ([], {"HELLO 0", "HELLO 1", "HELLO 2"}, "en"),
    (["--option", "symbols=keep"], {"HELLO <NOISE> 0", "HELLO <NOISE> 1", "HELLO <NOISE> 2"}, "en"),
    ([], {"HELLO 0", "HELLO 1", "HELLO 2"}, "中文")])
def test_symbols_by_option(tmp_path, options, texts, language):
    root = write(tmp_path / "mine", ("path", "text", "language"),
                 *((f"{i}.wav", f"hello [noise] {i}", language) for i in range(3)))
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), *options]) == 0
    from lhotse import CutSet

    assert {cut.supervisions[0].text for split in ("train", "dev", "test")
            for cut in CutSet.from_file(tmp_path / f"data/{split}.jsonl.gz")} == texts


def test_by_speaker_is_disjoint_balanced_and_steady(tmp_path):
    sizes = {f"s{i:02d}": 3 + i % 5 for i in range(40)}
    split = folder.split_speakers(sizes)
    share = Counter()
    for speaker, part in split.items():
        share[part] += sizes[speaker] / sum(sizes.values())
    assert set(split) == set(sizes) and 0.08 < share["dev"] < 0.15 and 0.08 < share["test"] < 0.15
    more = folder.split_speakers({**sizes, "s00": 4})
    assert sum(more[speaker] != split[speaker] for speaker in sizes) <= 2


@pytest.mark.parametrize("sizes, largest", [({"a": 5, "b": 5, "c": 5}, None), ({"a": 100, "b": 1, "c": 1}, "a"),
                                            ({"a": 1, "b": 200, "c": 9, "d": 9}, "b")])
def test_few_speakers_leave_the_largest_to_train(sizes, largest):
    split = folder.split_speakers(sizes)
    assert set(split.values()) == {"train", "dev", "test"} and split.get(largest, "train") == "train"


def test_random_moves_no_other_file():
    paths = [f"{i}.wav" for i in range(1000)]
    split, count = folder.split_random(paths), Counter(folder.split_random(paths).values())
    assert 70 < count["dev"] < 130 and 70 < count["test"] < 130
    more = folder.split_random([*paths, "new.wav"])
    assert {path: more[path] for path in paths} == split
    for few in (["a", "b", "c"], ["x.wav", "y.wav", "z.wav", "w.wav"]):
        assert set(folder.split_random(few).values()) == {"train", "dev", "test"}


def splits_of(root, **options):
    made = folder.prepare(root, root, **options)
    return {split: {cut.supervisions[0].speaker for cut in cuts} for split, cuts in made.items()}


def test_which_way_by_default(tmp_path, capsys):
    where = {"a": "train", "b": "valid", "c": "test"}
    rows = [(f"{speaker}{i}.wav", "x", speaker, split) for speaker, split in where.items() for i in range(2)]
    root = write(tmp_path / "column", ("path", "text", "speaker", "split"), *rows)
    assert splits_of(root) == {"train": {"a"}, "dev": {"b"}, "test": {"c"}}
    by_speaker = splits_of(speakers_folder(tmp_path / "speaker", a=3, b=3, c=3))
    assert sorted(len(names) for names in by_speaker.values()) == [1, 1, 1]
    assert capsys.readouterr().err.count("random") == 0
    assert splits_of(speakers_folder(tmp_path / "two", a=10, b=10))["train"] == {"a", "b"}
    assert "split at random" in capsys.readouterr().err


def test_a_column_without_dev(tmp_path):
    rows = [(f"{s}{i}.wav", "x", s, "test" if s == "e" else "train") for s in "abcde" for i in range(2)]
    found = splits_of(write(tmp_path, ("path", "text", "speaker", "split"), *rows))
    assert found["test"] == {"e"} and len(found["dev"]) == 1 and found["train"] | found["dev"] == set("abcd")


def test_a_speaker_in_two_splits(tmp_path):
    rows = [(f"{i}.wav", "x", "ann", split) for i, split in enumerate(["train", "dev", "test"])]
    root = write(tmp_path, ("path", "text", "speaker", "split"), *rows)
    for options in ({}, {"split_by": "column"}):
        with pytest.raises(UserError, match="speaker ann is in dev and test and train.*--split_by speaker"):
            folder.prepare(root, root, **options)
    assert splits_of(root, shared_speakers=True) == {"train": {"ann"}, "dev": {"ann"}, "test": {"ann"}}
    assert set(splits_of(root, split_by="random")) == {"train", "dev", "test"}


GOOD = [(f"{i}.wav", f"word {i}") for i in range(4)]
WRONG = {
    "no path column": (("file", "text"), GOOD, "lacks the column path: its header line has file, text"),
    "no text column": (("path", "label"), GOOD, "lacks the column text"),
    "commas": (("path,text",), [("0.wav,a",)], "lacks the column path, text.*separated by tabs"),
    "twice the column": (("path", "text", "text"), [(*row, "") for row in GOOD], "two columns named text"),
    "no rows": (("path", "text"), [], "nothing under it"),
    "too few": (("path", "text"), GOOD[:2], "2 utterances: at least three"),
    "a short line": (("path", "text"), [*GOOD, ("4.wav",)], r"1 lines don't have .* 2 fields \(line 6: 1 fields"),
    "empty text": (("path", "text"), [*GOOD, ("4.wav", " ")], r"1 lines have an empty text \(line 6: 4.wav"),
    "same file": (("path", "text"), [*GOOD, ("./0.wav", "b")], r"line 6: \./0.wav.*keep one"),
    "unknown split": (("path", "text", "split"), [(*row, "trian") for row in GOOD], "'trian' is none of train, dev"),
    "no train": (("path", "text", "split"), [(*row, "test") for row in GOOD], "no line has the split train"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_manifests(tmp_path, capsys, name):
    header, rows, message = WRONG[name]
    root = write(tmp_path / "d", header, *rows, make=name != "commas")
    with pytest.raises(UserError, match=message):
        folder.prepare(root, tmp_path)
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "manifest.tsv" in error


def test_missing_files_are_counted_and_some_named(tmp_path):
    root = write(tmp_path, ("path", "text"), *GOOD, *((f"gone{i}.wav", "x") for i in range(5)), make=False)
    for i in range(4):
        audio(root / f"{i}.wav")
    with pytest.raises(UserError, match=r"5 files that .* not there \(line 6: gone0.wav, .*gone2.wav, \.\.\.\)"):
        folder.prepare(root, tmp_path)


def test_no_manifest_no_folder_wrong_encoding(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match="has no manifest.tsv: write one.*path, text"):
        folder.prepare(tmp_path / "d", tmp_path)
    assert prepare.main(["folder", "--from", str(tmp_path / "none"), "--to", str(tmp_path / "data")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "d/manifest.tsv").write_bytes("path\ttext\na.wav\t你好\n".encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        folder.prepare(tmp_path / "d", tmp_path)
    with pytest.raises(UserError, match="--data_dir"):
        folder.fetch(tmp_path)


@pytest.mark.parametrize("way, message", [("speaker", "needs a column speaker"), ("column", "needs a column split"),
                                          ("colour", "must be one of auto, column, speaker, random")])
def test_ways_that_are_not_possible(tmp_path, way, message):
    root = write(tmp_path, ("path", "text"), *GOOD)
    with pytest.raises(UserError, match=message):
        folder.prepare(root, tmp_path, split_by=way)


def test_the_way_on_the_command_line(tmp_path, capsys):
    root = speakers_folder(tmp_path / "d", a=8, b=8, c=8, d=8)
    command = ["folder", "--from", str(root), "--to", str(tmp_path / "data")]
    assert prepare.main([*command, "--split_by", "column"]) == 1
    assert "needs a column split" in capsys.readouterr().err
    assert prepare.main([*command, "--split_by", "random"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[3] == "4"  # all four speakers are in train
    assert prepare.main(command) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[3] == "2"


def test_other_columns_may_be_what_a_recipe_needs(tmp_path):
    root = write(tmp_path, ("path", "label"), *((f"{i}.wav", "yes") for i in range(4)))
    cuts = folder.prepare(root, tmp_path, carry=("label",))
    supervision = next(iter(cuts["train"])).supervisions[0]
    assert supervision.label == "yes" and supervision.text is None
    with pytest.raises(UserError, match="lacks the column text"):
        folder.prepare(root, tmp_path)


def test_quotes_bom_and_windows_line_ends(tmp_path):
    write(tmp_path, ("path", "text"), *GOOD)
    (tmp_path / "manifest.tsv").write_bytes(
        "\ufeffpath\ttext\r\n0.wav\t\"say\r\n1.wav\tit's\r\n\r\n2.wav\tc\r\n".encode())
    assert [row["text"] for row in folder.read_manifest(tmp_path / "manifest.tsv")] == ['"say', "it's", "c"]


def test_ids_stay_apart():
    ids = folder.name_rows([{"path": p} for p in ("a/b.wav", "a-b.wav", "a/b.flac", "c (1).wav", "/abs/d.wav")])
    assert len(set(ids.values())) == 5 and ids["c (1).wav"] == "c-1-" and ids["/abs/d.wav"] == "abs-d"
    assert not any(character in id for id in ids.values() for character in " /()")


# --- labels, speakers, clean partners


def carried_by(data, what):
    from lhotse import CutSet

    return {split: Counter(getattr(cut.supervisions[0], what) for cut in CutSet.from_file(data / f"{split}.jsonl.gz"))
            for split in ("train", "dev", "test")}


def test_labels_and_speakers_of_a_manifest(tmp_path, capsys):
    rows = [(f"{s}{i}.wav", "yes" if i % 2 else "no", s, "good" if i else "") for s in "abcd" for i in range(4)]
    root = write(tmp_path / "d", ("path", "label", "speaker", "room"), *rows)
    command = ["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry"]
    assert prepare.main([*command, "label,speaker"]) == 0
    assert "classes" in capsys.readouterr().out
    found = carried_by(tmp_path / "data", "label")
    assert sum(map(sum, (c.values() for c in found.values()))) == 16 and set(found["train"]) == {"yes", "no"}
    speakers = carried_by(tmp_path / "data", "speaker")
    assert len(set.union(*map(set, speakers.values()))) == sum(map(len, speakers.values())) == 4, "disjoint"
    assert carried_by(tmp_path / "data", "text")["train"].keys() == {None}
    assert prepare.main([*command, "label,speaker,mood"]) == 1
    assert "lacks the column mood" in capsys.readouterr().err
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data")]) == 1
    assert "lacks the column text" in capsys.readouterr().err
    assert prepare.main([*command, "label,speaker,room"]) == 1
    assert "lines have an empty room" in capsys.readouterr().err


def test_clean_partners_of_a_manifest(tmp_path):
    for i in range(4):
        audio(tmp_path / f"d/clean/{i}.wav")
    root = write(tmp_path / "d", ("path", "clean"), *((f"{i}.wav", f"clean/{i}.wav") for i in range(4)))
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "clean"]) == 0
    found = carried_by(tmp_path / "data", "clean")
    assert set.union(*map(set, found.values())) == {str(root / f"clean/{i}.wav") for i in range(4)}


def class_folders(root, **counts):
    for name, count in counts.items():
        for i in range(count):
            audio(root / name.replace("_", "/") / f"{i}.wav")
    return root


def test_class_folders(tmp_path, capsys):
    root = class_folders(tmp_path / "d", yes=12, no=3, maybe=2)
    audio(root / "yes/deeper/x.flac")
    (root / "yes/notes.txt").write_text("x")
    (root / ".git").mkdir()
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]) == 0
    shown = capsys.readouterr()
    found = carried_by(tmp_path / "data", "label")
    assert all({"yes", "no"} <= set(count) for count in found.values()), "each class of three is in every split"
    assert found["train"]["maybe"] == 2 and sum(found[split]["yes"] for split in found) == 13
    assert carried_by(tmp_path / "data", "speaker")["train"].keys() == {None}
    assert "1 files under" in shown.err
    assert shown.out.splitlines()[1].split()[-3:] == ["3", str(min(found["train"].values())),
                                                      str(max(found["train"].values()))]
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry",
                         "label,speaker"]) == 1
    assert "no manifest.tsv: write one" in (error := capsys.readouterr().err) and "path, label, speaker" in error


def test_class_folders_with_splits(tmp_path):
    root = class_folders(tmp_path / "d", train_a=9, train_b=9, valid_a=1, valid_b=1, Test_a=2, Test_b=1)
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]) == 0
    assert carried_by(tmp_path / "data", "label") == {"train": {"a": 9, "b": 9}, "dev": {"a": 1, "b": 1},
                                                      "test": {"a": 2, "b": 1}}
    root = class_folders(tmp_path / "e", train_a=9, train_b=9, test_a=2, test_b=1)
    made = folder.prepare(root, tmp_path, carry=("label",))
    assert {cut.supervisions[0].label for cut in made["dev"]} == {"a", "b"} and len(made["test"]) == 3
    root = class_folders(tmp_path / "f", train_a=3, other_b=3)
    made = folder.prepare(root, tmp_path, carry=("label",))
    assert {cut.supervisions[0].label for cut in made["train"]} == {"train", "other"}, "classes that are called so"


@pytest.mark.parametrize("counts, message", [
    ({}, "neither a folder for each class nor manifest.tsv .with the columns path, label"),
    ({"a": 2, "b": 1}, "no class has more than 2 clips"),
    ({"train": 3, "test": 3}, "test has no folder for a class"),
    ({"train_a": 3, "test_a": 1, "test_b": 1}, "class 'b' has utterances in test, but none in train"),
])
def test_class_folders_that_can_not_be(tmp_path, capsys, counts, message):
    root = class_folders(tmp_path / "d", **counts)
    root.mkdir(exist_ok=True)
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and re.search(message, error[0])


def test_an_empty_class_folder(tmp_path):
    root = class_folders(tmp_path / "d", a=3)
    (root / "b").mkdir()
    with pytest.raises(UserError, match="the class folder .*b has no audio"):
        folder.prepare(root, tmp_path, carry=("label",))


def test_no_part_of_a_random_split_stays_empty():
    for number in range(3000):
        paths = [f"{number}-{i}.wav" for i in range(3)]
        assert set(folder.split_random(paths).values()) == {"train", "dev", "test"}, paths


def test_class_folders_that_are_linked_hidden_or_gone(tmp_path, capsys):
    root = class_folders(tmp_path / "d", yes=5, no=5)
    audio(root / "yes/.ipynb_checkpoints/0.wav")
    class_folders(tmp_path / "far", maybe=5)
    (root / "maybe").symlink_to(tmp_path / "far/maybe")
    (root / "no/loop").symlink_to(root)
    (root / "no/other").symlink_to(root / "yes")
    (root / "no/gone.wav").symlink_to(tmp_path / "gone.wav")
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]) == 0
    found = carried_by(tmp_path / "data", "label")
    assert sum((count for count in found.values()), Counter()) == {"yes": 5, "no": 5, "maybe": 5}
    said = capsys.readouterr().err
    assert f"1 hidden files or folders under {root} (first: yes/.ipynb_checkpoints): left out" in said
    assert f"2 links to folders that are read anyway under {root} (first: no/loop): left out" in said
    assert f"{root}/no/gone.wav\tmissing" in (tmp_path / "data/bad_audio.tsv").read_text()
    assert "1 of" in said and "gone.wav: missing): left out" in said


def test_a_long_field_and_odd_separators_of_a_manifest(tmp_path):
    """160,000 characters in a field; U+2028, a vertical tab and a next-line character end no line."""
    long = "好" * 160_000
    root = write(tmp_path, ("path", "text", "note"), ("a\u2028b.wav", "one\u2028two", long),
                 ("c\x85.wav", "three\x0bfour", "x"))
    rows = folder.read_manifest(root / "manifest.tsv")
    assert [row["path"] for row in rows] == ["a\u2028b.wav", "c\x85.wav"]
    assert [row["text"] for row in rows] == ["one\u2028two", "three\x0bfour"] and rows[0]["note"] == long
    (root / "manifest.tsv").write_bytes("path\ttext\ra\u2028b.wav\tone\r".encode())  # an old Mac's lines
    assert folder.read_manifest(root / "manifest.tsv") == [{"path": "a\u2028b.wav", "text": "one"}]


def test_a_folder_whose_name_is_not_utf8(tmp_path, capsys):
    root = class_folders(tmp_path / "coffee", yes=3, no=3).rename(tmp_path / os.fsdecode(b"caf\xe9"))
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data"), "--carry", "label"]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "caf\\xe9" in error and "is not UTF-8, which no manifest can hold: rename that file or folder" in error
    assert not list((tmp_path / "data").glob("*.jsonl.gz"))


def test_three_utterances_are_a_corpus(tmp_path):
    """One each for train, dev and test, and batches of all three, for any number of places."""
    root = write(tmp_path / "in", ("path", "text"), *((f"{i}.wav", "你好") for i in range(3)))
    assert prepare.main(["folder", "--from", str(root), "--to", str(tmp_path / "data")]) == 0
    for split in ("train", "dev", "test"):
        cuts = read_split(tmp_path / "data", split)
        assert len(cuts) == 1
        for places in (1, 2, 4):
            for epoch in (0, 1):
                plans = [ByDuration(cuts, 120, 10, shuffle=split == "train")(epoch, place, places)
                         for place in range(places)]
                assert {len(plan) for plan in plans} == {1}, "as many steps at each place"
                assert all([cut.id for cut in plan[0]] == [next(iter(cuts)).id] for plan in plans)
