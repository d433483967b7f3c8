"""AN4, as a made tree of the published layout, served from 127.0.0.1: the real one is never asked for."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import tarfile
import threading

import numpy as np
import pytest
import soundfile

from speechlab.corpora import an4
from speechlab.errors import UserError

TRAIN = {f"s{i:02}": 2 + i % 3 for i in range(20)}  # speaker: utterances
TEST = {"tone": 2, "ttwo": 1}


def sphere(path, samples: np.ndarray, order: str = "10") -> None:
    """A NIST sphere file: a header of 1024 bytes, then 16-bit samples (order 10: big endian)."""
    header = (f"NIST_1A\n   1024\ndatabase_id -s3 an4\nsample_count -i {len(samples)}\nsample_n_bytes -i 2\n"
              f"channel_count -i 1\nsample_byte_format -s2 {order}\nsample_rate -i 16000\nsample_coding -s3 pcm\n"
              "end_head\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode().ljust(1024) + samples.astype(">i2" if order == "10" else "<i2").tobytes())


@pytest.fixture
def published(tmp_path):
    """an4/ with etc/ and wav/, and what was put into each utterance: {name: samples}."""
    rng, root, audio = np.random.default_rng(0), tmp_path / "published" / "an4", {}
    (root / "etc").mkdir(parents=True)
    for part, speakers, room in (("train", TRAIN, "an4_clstk"), ("test", TEST, "an4test_clstk")):
        names, lines = [], []
        for speaker, count in speakers.items():
            for number in range(count):
                id = f"an{number + 1}-{speaker}-b"
                name = f"{room}/{speaker}/{id}"
                audio[name] = rng.integers(-3000, 3000, 8000 + number).astype(np.int16)
                sphere(root / "wav" / f"{name}.sph", audio[name], "10" if number % 2 else "01")
                names.append(name)
                words = f"RUBOUT G {speaker.upper()}"  # train lines have <s> </s>, test lines have not
                lines.append(f"<s> {words} </s> ({id})" if part == "train" else f"{words} ({id})")
        (root / "etc" / f"an4_{part}.fileids").write_text("\n".join(names) + "\n")
        (root / "etc" / f"an4_{part}.transcription").write_text("\n".join(lines) + "\n")
    return root, audio


def test_fetched_and_prepared(published, tmp_path, monkeypatch):
    root, audio = published
    with tarfile.open(root.parent / "an4_sphere.tar.gz", "w:gz") as file:
        file.add(root, "an4")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root.parent)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in ("moved.tar.gz", "an4_sphere.tar.gz"))
        monkeypatch.setattr(an4, "FILES", [dataclasses.replace(an4.FILES[0], urls=urls)])
        folder = an4.fetch(tmp_path / "downloads")
        server.shutdown()
    assert an4.fetch(tmp_path / "downloads") == folder  # now without a server
    splits = an4.prepare(folder, tmp_path / "out", nj=2)
    assert list(splits) == ["train", "dev", "test"]
    speakers = {split: {cut.supervisions[0].speaker for cut in cuts} for split, cuts in splits.items()}
    assert speakers["train"] | speakers["dev"] == set(TRAIN) and not speakers["train"] & speakers["dev"]
    assert len(speakers["dev"]) == 2 and speakers["test"] == set(TEST)
    assert sum(map(len, splits.values())) == len(audio)
    by_id = {name.split("/")[-1]: samples for name, samples in audio.items()}
    for cuts in splits.values():
        for cut in cuts:  # read as the recipes do, through lhotse
            assert np.array_equal(np.round(cut.load_audio()[0] * 32768).astype(np.int16), by_id[cut.id])
            (supervision,) = cut.supervisions
            assert supervision.text == f"RUBOUT G {supervision.speaker.upper()}" and supervision.language == "en"
    again = an4.prepare(folder / ".." / "an4", tmp_path / "out2")
    assert [c.id for c in again["dev"]] == [c.id for c in splits["dev"]]


def test_the_raw_distribution(published, tmp_path):
    root, audio = published
    for name, samples in audio.items():
        (root / "wav" / f"{name}.sph").unlink()
        (root / "wav" / f"{name}.raw").write_bytes(samples.astype(">i2").tobytes())
    cut = an4.prepare(root.parent, tmp_path / "out")["test"][0]  # the folder above an4/ does too
    name = next(name for name in audio if name.endswith("/" + cut.id))
    assert np.array_equal(soundfile.read(cut.recording.sources[0].source, dtype="int16")[0], audio[name])


def test_bad_audio_is_left_to_prepare_and_bad_lists_are_named(published, tmp_path):
    root, audio = published
    broken, gone = [root / "wav" / f"{name}.sph" for name in list(audio)[:2]]
    broken.write_bytes(b"NIST_1A\n")
    gone.unlink()
    splits = an4.prepare(root, tmp_path / "out")
    sources = {cut.recording.sources[0].source for cuts in splits.values() for cut in cuts}
    assert len(sources) == len(audio) and {str(broken), str(gone)} <= sources  # there to be found and listed
    transcripts = root / "etc" / "an4_test.transcription"
    lines = transcripts.read_text().splitlines()
    transcripts.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="no line for an4test_clstk/ttwo/an1-ttwo-b"):
        an4.prepare(root, tmp_path / "out")
    transcripts.write_text("\n".join([*lines[:-1], "NO BRACKETS"]))
    with pytest.raises(UserError, match="line 3 is not"):
        an4.prepare(root, tmp_path / "out")
    (root / "etc" / "an4_train.fileids").unlink()
    with pytest.raises(UserError, match="fileids is missing"):
        an4.prepare(root, tmp_path / "out")
    with pytest.raises(UserError, match="--corpus folder"):
        an4.prepare(tmp_path, tmp_path / "out")
