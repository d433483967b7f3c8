"""A disk that is full, or mounted read-only: one line with the path, and no traceback, from everything that writes."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from image_helper import make_pack

import speechlab
from speechlab import extract, infer, prepare, report, score, train
from speechlab.errors import cli, of_the_system

ASR = "task: asr\nmodel: {class: 'speechlab.models.asr:Conformer', d: 16, heads: 2, layers: 1}\n"
IMAGE = """
task: image
model: {class: 'speechlab.models.images:MLP', hidden: [8]}
data: {batch_size: 32}
train: {epochs: 1, accum: 1, amp: 'off'}
"""


@pytest.mark.parametrize(("number", "says"), [
    (errno.ENOSPC, "no space left while writing /data/x: free some disk (df -h)"),
    (errno.EDQUOT, "no space in your quota left while writing /data/x: free some disk (quota -s)"),
    (errno.EROFS, "/data/x: can't be written: it is on a file system that is mounted read-only"),
    (errno.EACCES, "/data/x: no permission"), (errno.EPERM, "/data/x: not permitted"),
    (errno.ENOTDIR, "/data/x: a part of this path is a file"), (errno.EISDIR, "/data/x: is a folder"),
    (errno.EEXIST, "/data/x: is there already"), (errno.ENAMETOOLONG, "/data/x: this name is too long"),
    (errno.ELOOP, "/data/x: a link"), (errno.EIO, "/data/x: the disk"), (errno.ESTALE, "/data/x: the network folder"),
])
@pytest.mark.parametrize("name", ["/data/x", b"/data/x", Path("/data/x"), "/data/.tmp-123-x"])
def test_an_error_of_the_system_is_one_line_with_its_path(capsys, number, says, name):
    @cli
    def main(argv=None):
        raise OSError(number, os.strerror(number), name)

    assert main() == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: " + says) and said.err.count("\n") == 1 and not said.out


def test_what_may_be_a_bug_keeps_its_traceback():
    for error in (OSError(errno.EBADF, "bad", "x"), OSError(errno.EACCES, "no path"), OSError("nothing"),
                  FileNotFoundError(errno.ENOENT, "gone", "x")):
        assert of_the_system(error) is None
        with pytest.raises(OSError):
            cli(lambda argv, error=error: (_ for _ in ()).throw(error))()
    assert "no space left while writing the output" in of_the_system(OSError(errno.ENOSPC, "full"))
    assert "no space left" in of_the_system(OSError("1000 requested and 12 written"))  # numpy, without a number


def test_only_the_first_of_several_processes_says_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    main = cli(lambda argv: (_ for _ in ()).throw(OSError(errno.EROFS, "ro", "/x")))
    assert main() == 1 and not capsys.readouterr().err


class Disk:
    """A small disk of its own, as far as this process may mount one."""

    def __init__(self, place: Path):
        self.place = place

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.place)], check=True)

    def fill(self) -> None:
        with open(self.place / "filling", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A recipe with an experiment, a corpus and features, on a small disk."""
    place = tmp_path_factory.mktemp("disk") / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def work(disk, tmp_path_factory):
    """What is read, on another disk; and a trained experiment on the small one."""
    work = tmp_path_factory.mktemp("work")
    (work / "conf").mkdir()
    (work / "conf" / "asr.yaml").write_text(ASR)
    (work / "conf" / "image.yaml").write_text(IMAGE)
    make_pack(work / "pack")
    assert prepare.main(["synthetic", "--from", str(work), "--to", str(work / "speech"), "--option", "train=8",
                         "--option", "dev=2", "--option", "test=2"]) == 0
    exp = speechlab.train(work / "conf" / "image.yaml", data=work / "pack", exp=disk.place / "exp" / "a")
    from speechlab import decode

    assert decode.main([str(exp), "--data", str(work / "pack")]) == 0
    from PIL import Image

    Image.new("L", (8, 8)).save(work / "a.png")
    return work


def commands(work, place):
    exp = place / "exp" / "a"
    return {
        "prepare": (prepare.main, ["synthetic", "--from", str(work), "--to", str(place / "data"), "--option",
                                   "train=8"]),
        "extract": (extract.main, [str(work / "conf" / "asr.yaml"), "--data", str(work / "speech"), "--to",
                                   str(place / "fbank")]),
        "extract2": (extract.main, [str(work / "conf" / "asr.yaml"), "--data", str(work / "speech"), "--to",
                                    str(place / "fbank"), "--nj", "2"]),
        "train": (train.main, [str(work / "conf" / "image.yaml"), "--data", str(work / "pack"), "--exp",
                               str(place / "exp" / "new")]),
        "train on": (train.main, [str(work / "conf" / "image.yaml"), "--data", str(work / "pack"), "--exp", str(exp),
                                  "--set", "train.epochs=9"]),
        "score": (score.main, [str(exp)]),
        "report": (report.main, [str(place)]),
        "infer": (infer.main, [str(exp), str(work / "a.png"), "--out", str(place / "out.tsv")]),
    }


@pytest.mark.parametrize("what", ["prepare", "extract", "extract2", "train", "train on", "score", "report", "infer"])
@pytest.mark.parametrize("how", ["read-only", "full"])
def test_one_line(disk, work, capfd, how, what):
    main, words = commands(work, disk.place)[what]
    if how == "full":
        disk.fill()
    else:
        disk.remount("ro")
    capfd.readouterr()
    try:
        status = main(words)
    finally:
        if how == "full":
            (disk.place / "filling").unlink()
        else:
            disk.remount("rw")
        for made in ("data", "fbank", "exp/new"):
            shutil.rmtree(disk.place / made, ignore_errors=True)
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 1 and "Traceback" not in said, said
    assert len(lines) == 1 and ("read-only" if how == "read-only" else "no space left") in lines[0], said
    assert str(disk.place) in lines[0] and ".tmp-" not in lines[0] and "Exception ignored" not in said
