"""AISHELL-1: a tree of its real layout through lhotse and the whole stage; a download from this machine."""

import functools
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from speechlab import prepare
from speechlab.corpora import aishell
from speechlab.errors import UserError

TEXTS = {
    "BAC009S0002W0122": "而 对 楼市 成交 抑制 作用 最 大 的 限 购",
    "BAC009S0002W0123": "也 成为 地方 政府 的 眼中 钉",
    "BAC009S0003W0121": "ｂ 二 三 公里", "BAC009S0724W0121": "广州市 房地产",
    "BAC009S0764W0121": "甚至 出现 交易 几乎 停滞 的 情况",
}
PART = {"S0002": "train", "S0003": "train", "S0724": "dev", "S0764": "test"}


def wav(name):
    encoded = io.BytesIO()
    sound = 0.1 * np.random.default_rng(len(name)).normal(size=8000)
    soundfile.write(encoded, sound, 16000, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


def tree(root):
    for name in [*TEXTS, "BAC009S0002W0199"]:  # the last has no transcript, as some of the real ones
        speaker = name[6:11]
        path = root / "data_aishell/wav" / PART[speaker] / speaker / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(name))
    (root / "data_aishell/transcript").mkdir()
    lines = "".join(f"{name} {text}\n" for name, text in TEXTS.items())
    (root / "data_aishell/transcript/aishell_transcript_v0.8.txt").write_text(lines, encoding="utf-8")
    (root / "resource_aishell").mkdir()
    (root / "resource_aishell/speaker.info").write_text("0002 F\n")
    return root


@pytest.mark.parametrize("named", [".", "data_aishell"])
def test_the_real_layout_through_the_stage(tmp_path, capsys, named):
    root = tree(tmp_path / "aishell")
    assert prepare.main(["aishell", "--from", str(root / named), "--to", str(tmp_path / "data"), "--nj", "2"]) == 0
    shown = capsys.readouterr()
    assert "1 recordings have no transcript" in shown.err
    cuts = {split: {cut.id: cut for cut in CutSet.from_file(tmp_path / f"data/{split}.jsonl.gz")}
            for split in ("train", "dev", "test")}
    assert {split: sorted(some) for split, some in cuts.items()} == {
        "train": sorted(TEXTS)[:3], "dev": ["BAC009S0724W0121"], "test": ["BAC009S0764W0121"]}
    cut = cuts["train"]["BAC009S0002W0122"]
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker, cut.supervisions[0].language) == (
        "而对楼市成交抑制作用最大的限购", "S0002", "zh")
    assert cuts["train"]["BAC009S0003W0121"].supervisions[0].text == "B二三公里"
    assert cut.load_audio().shape == (1, 8000)


def test_a_broken_file_is_listed_and_does_not_stop_it(tmp_path):
    root = tree(tmp_path / "aishell")
    broken = root / "data_aishell/wav/train/S0002/BAC009S0002W0123.wav"
    broken.write_bytes(b"RIFF")
    assert prepare.main(["aishell", "--from", str(root), "--to", str(tmp_path / "data")]) == 0
    listed = (tmp_path / "data/bad_audio.tsv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith(f"{broken}\tunreadable") and listed[1].endswith("BAC009S0002W0123")
    train = CutSet.from_file(tmp_path / "data/train.jsonl.gz").to_eager()
    assert len(train) == 2 and train["BAC009S0002W0122"].load_audio().shape == (1, 8000)  # not a link that is gone


def test_what_is_not_aishell(tmp_path):
    with pytest.raises(UserError, match="is not AISHELL-1: there is no data_aishell/transcript"):
        aishell.find(tmp_path)
    root = tree(tmp_path / "aishell")
    for path in (root / "data_aishell/wav/dev").rglob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match="dev has no wav files: unpack data_aishell.tgz"):
        aishell.find(root)
    (root / "data_aishell/wav/S0724.tar.gz").touch()
    with pytest.raises(UserError, match="unpack the archives there"):
        aishell.find(root)


@pytest.fixture
def mirror(tmp_path):
    """An address on this machine that serves both archives, packed as the real ones: a tar of a speaker's tars."""
    root, site = tree(tmp_path / "source"), tmp_path / "site/33"
    site.mkdir(parents=True)
    data = root / "data_aishell"
    for speaker, part in PART.items():
        with tarfile.open(data / f"wav/{speaker}.tar.gz", "w:gz") as tar:
            tar.add(data / "wav" / part / speaker, arcname=f"{part}/{speaker}")
    with tarfile.open(site / "data_aishell.tgz", "w:gz") as tar:
        tar.add(data / "transcript", arcname="data_aishell/transcript")
        for packed in data.glob("wav/*.tar.gz"):
            tar.add(packed, arcname=f"data_aishell/wav/{packed.name}")
    with tarfile.open(site / "resource_aishell.tgz", "w:gz") as tar:
        tar.add(root / "resource_aishell", arcname="resource_aishell")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "site"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetch_from_the_second_mirror_then_from_what_is_there(tmp_path, monkeypatch, mirror):
    monkeypatch.setattr(aishell, "MIRRORS", (f"{mirror}/nowhere", mirror))
    folder = aishell.fetch(tmp_path / "downloads")
    assert folder == tmp_path / "downloads/aishell"
    counts = {split: len(cuts) for split, cuts in aishell.prepare(folder, tmp_path).items()}
    assert counts == {"train": 3, "dev": 1, "test": 1}
    assert (folder / ".complete").exists()
    monkeypatch.setattr(aishell, "MIRRORS", ())
    assert aishell.fetch(tmp_path / "downloads") == folder


def test_no_network_names_every_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(aishell, "MIRRORS", ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b"))
    with pytest.raises(UserError, match=r"9/a \(.*9/b \(.*by hand.*--data_dir"):
        aishell.fetch(tmp_path)


def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, monkeypatch, mirror):
    evil = tmp_path / "site/33/data_aishell.tgz"
    with tarfile.open(evil, "w:gz") as tar:
        link = tarfile.TarInfo("data_aishell/out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        file = tarfile.TarInfo("data_aishell/out/evil.txt")
        file.size = 4
        tar.addfile(file, io.BytesIO(b"evil"))
    monkeypatch.setattr(aishell, "MIRRORS", (mirror,))
    with pytest.raises(UserError, match="could not be downloaded"):
        aishell.fetch(tmp_path / "downloads")
    assert not (tmp_path / "evil.txt").exists()
