"""Our counts beside NIST's sclite: equal where alignments have no ties, and told apart where they do."""

import json
import random
import shutil
import stat

import pytest

from speechlab.score import main
from speechlab.scoring import sclite
from speechlab.scoring.wer import Counts, Item, error_rate, trn, trn_id

needs_sclite = pytest.mark.skipif(
    sclite.program() is None, reason="sclite is not installed (Debian: apt-get install sctk)")

UNIQUE = [  # without ties: each has one best alignment, so any right implementation gives these counts
    ("spk-1", "今天天气很好", "今天天汽很好"),
    ("spk-2", "我们去学校", "我们学校"),
    ("spk-3", "他来了", "他也来了"),
    ("spk-4", "谢谢", ""),
    ("spk-5", "他说OK(对)", "他说Ok(对)"),
    ("spk-6", "", "啊"),
    ("a b", "x;y@{z}", "x;y{z}"),
]


def write_trn(folder, items, unit):
    (folder / "ref.trn").write_text(trn([(i.id, i.ref) for i in items], unit), encoding="utf-8")
    (folder / "hyp.trn").write_text(trn([(i.id, i.hyp) for i in items], unit), encoding="utf-8")
    return sclite.count(folder / "ref.trn", folder / "hyp.trn")


@needs_sclite
@pytest.mark.parametrize("unit", ["char", "word"])
def test_agrees_with_sclite(tmp_path, unit):
    items = [Item(*fixture) for fixture in UNIQUE]
    if unit == "word":
        items = [Item(i.id, " ".join(i.ref), " ".join(i.hyp)) for i in items]
    rate = error_rate(items, unit)
    assert write_trn(tmp_path, items, unit) == {trn_id(u.item.id): u.counts for u in rate.utterances}
    assert rate.counts == Counts(2, 4, 2, 30)


@needs_sclite
@pytest.mark.parametrize("unit", ["char", "word"])
def test_agrees_on_many_utterances_with_one_edit_each(tmp_path, unit):
    """All units of a reference are different, and so is what is put in: one best alignment, whatever the edit."""
    rng = random.Random(3)
    units = [chr(0x4E00 + i) for i in range(400)] if unit == "char" else [f"w{i}" for i in range(400)]
    items = []
    for number in range(150):
        ref = rng.sample(units, rng.randint(2, 12))
        hyp, place, new = list(ref), rng.randrange(len(ref)), "们" if unit == "char" else "new"
        kind = rng.choice(["S", "D", "I", ""])
        hyp[place : place + (kind in ("S", "D"))] = [new] if kind in ("S", "I") else []
        items.append(Item(f"spk-{number:03}", " ".join(ref), " ".join(hyp)))
    ours = {u.item.id: u.counts for u in error_rate(items, unit).utterances}
    assert write_trn(tmp_path, items, unit) == ours
    assert all(sum(getattr(c, kind) for c in ours.values()) for kind in ("substitutions", "deletions", "insertions"))


@needs_sclite
def test_sclite_is_never_lower_and_is_higher_where_its_weights_say_so(tmp_path):
    """Random answers over few characters are full of ties; 12345 : 45678 is 5 substitutions, or 3 D + 3 I."""
    rng = random.Random(1)
    texts = iter(lambda: "".join(rng.choices("天地人月", k=rng.randint(0, 10))), None)
    items = [Item(f"s-{i}", next(texts), next(texts)) for i in range(200)]
    items.append(Item("shift-0", "12345", "45678"))
    theirs = write_trn(tmp_path, items, "char")
    ours = {u.item.id: u.counts for u in error_rate(items, "char").utterances}
    assert all(ours[key].errors <= theirs[key].errors and ours[key].length == theirs[key].length for key in ours)
    assert (ours["shift-0"], theirs["shift-0"]) == (Counts(5, 0, 0, 5), Counts(0, 3, 3, 5))


@needs_sclite
def test_agrees_on_hanzi_and_words(tmp_path):
    items = [Item("a-1", "我用PYTHON写 HELLO 程序", "我用PYTHONS写程序"), Item("a-2", "OK 好(吧)", "OK 好(吧)吗")]
    rate = error_rate(items, "mixed")
    assert write_trn(tmp_path, items, "mixed") == {u.item.id: u.counts for u in rate.utterances}
    assert rate.counts == Counts(1, 1, 1, 12)


def test_mixed_units_are_written_for_sclite(tmp_path, monkeypatch, capsys):
    """A program in sclite's place shows the trn files that it was given."""
    fake = tmp_path / "bin" / "sclite"
    fake.parent.mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: str(fake) if name == "sclite" else None)
    fake.write_text('#!/bin/sh\ncp "$2" "$0.ref"\ncp "$5" "$0.hyp"\n'
                    'printf "id: (u-1)\\nScores: (#C #S #D #I) 3 1 0 0\\nREF: x\\n\\n"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    exp = experiment(tmp_path, [Item("u-1", "我用PYTHON写", "我用PYTHONS写")])
    for options in ([], ["--metric", "mer"]):
        assert main([str(exp), "--sclite", *options]) == 0
        out = capsys.readouterr().out
        assert "no utterance differs" in out and out.count(" MER ") == 2
        assert (tmp_path / "bin/sclite.ref").read_text(encoding="utf-8") == "我 用 PYTHON 写 (u-1)\n"
        assert (tmp_path / "bin/sclite.hyp").read_text(encoding="utf-8") == "我 用 PYTHONS 写 (u-1)\n"


def experiment(tmp_path, items, method="ctc_greedy"):
    folder = tmp_path / "my exp" / "decode" / method / "test"
    folder.mkdir(parents=True)
    (tmp_path / "my exp" / "config.yaml").write_text("task: asr\n")
    (folder / "hyp.jsonl").write_text("".join(
        json.dumps({"id": i.id, "ref": i.ref, "hyp": i.hyp, "error": i.error}) + "\n" for i in items))
    return tmp_path / "my exp"


@needs_sclite
def test_command(tmp_path, capsys):
    exp = experiment(tmp_path, [Item(*fixture) for fixture in UNIQUE] + [Item("bad-1", "老师", error="no audio")])
    experiment(tmp_path, [Item("shift-0", "一二三四五", "四五六七八"), Item("same-0", "好", "好")], "ctc_beam")
    experiment(tmp_path, [Item("shift-0", "一二三四五", error="no audio")], "failed")
    assert main([str(exp), "--sclite"]) == 0
    out = capsys.readouterr().out
    rows = {tuple(line.split()[1:4:2]): line.split()[4:] for line in out.splitlines() if line.startswith("test ")}
    ours, theirs = rows["ctc_greedy", "ours"], rows["ctc_greedy", "sclite"]
    assert ours == theirs == "7 30 24 2 4 2 8 26.67".split()
    assert rows["ctc_beam", "ours"][3:7] == ["5", "0", "0", "5"]
    assert rows["ctc_beam", "sclite"][3:7] == ["0", "3", "3", "6"]
    assert "test ctc_beam: shift-0: ours S 5 D 0 I 0, sclite S 0 D 3 I 3\n" in out and "weighs S 4" in out
    assert "test failed: every utterance failed" in out
    assert not (exp / "results.txt").exists(), "it shows, and writes no results"


def test_without_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    exp = experiment(tmp_path, [Item("u-1", "老师", "老师")])
    assert main([str(exp), "--sclite"]) == 1
    error = capsys.readouterr().err
    assert "apt-get install sctk" in error and len(error.splitlines()) == 1


def test_no_syllables_for_sclite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/nowhere/{name}")
    assert main([str(experiment(tmp_path, [Item("u-1", "老", "老")])), "--sclite", "--metric", "ser"]) == 2
    assert "no syllables" in capsys.readouterr().err


def test_how_it_is_called_and_what_is_made_of_its_words(tmp_path, monkeypatch, capsys):
    """A program in sclite's place: one that counts otherwise, forgets an utterance, and one that fails."""
    fake = tmp_path / "bin" / "sctk"
    fake.parent.mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: str(fake) if name == "sctk" else None)
    fake.write_text('#!/bin/sh\n[ "$1" = sclite ] || exit 9\n'
                    'printf "id: (u-1)\\nScores: (#C #S #D #I) 1 0 1 1\\nREF: x\\n\\n"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    exp = experiment(tmp_path, [Item("u-1", "老师", "老是"), Item("u-2", "好", "好")])
    assert main([str(exp), "--sclite"]) == 0
    out = capsys.readouterr().out
    assert "u-2 is only in ours" in out and "u-1: ours S 1 D 0 I 0, sclite S 0 D 1 I 1" in out
    fake.write_text('#!/bin/sh\necho "Error: it is broken" >&2\nexit 3\n')
    assert main([str(exp), "--sclite"]) == 1
    error = capsys.readouterr().err
    assert "status 3" in error and "it is broken" in error and len(error.splitlines()) == 1
