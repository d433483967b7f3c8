"""The fetcher: sources in order, resume, checks, archives that mean harm. All servers are on 127.0.0.1."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from speechlab.corpora import archives, fetch
from speechlab.corpora.fetch import File, Package, fetch_corpus
from speechlab.errors import UserError, cli


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE", 0.0)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.cuts`` holds after how many bytes the next connections are cut."""

    def do_GET(self) -> None:
        body, wanted = self.server.content.get(self.path), self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if body is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[start : start + cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.cuts, server.asked, server.ranges = {}, [], [], True
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tarball(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


BODY = os.urandom(300_000)


# --- addresses

def test_a_cut_download_goes_on_where_it_was_cut(server, tmp_path):
    server.content["/x.bin"], server.cuts = BODY, [100_000, 50_000]
    folder = fetch_corpus(tmp_path, "c", [File("x.bin", len(BODY), digest(BODY), (server.url + "/x.bin",))], "")
    assert (folder / "x.bin").read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert json.loads((folder / ".complete").read_text())["files"] == [
        {"name": "x.bin", "size": len(BODY), "sha256": digest(BODY), "source": server.url + "/x.bin"}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]  # nothing of the work is left


def test_an_interrupted_run_is_gone_on_with_by_the_next(server, tmp_path):
    server.content["/x.bin"] = BODY
    part = tmp_path / ".fetching" / "c" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:123_456])
    fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY), (server.url + "/x.bin",))], "")
    assert server.asked == [("/x.bin", "bytes=123456-")]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, ranges):
    server.content["/x.bin"], server.ranges = BODY, ranges
    part = tmp_path / ".fetching" / "c" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"y" * 1000)
    folder = fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY), (server.url + "/x.bin",))], "")
    assert (folder / "x.bin").read_bytes() == BODY


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    server.content["/x.bin"] = BODY
    part = tmp_path / ".fetching" / "c" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)  # killed between the last byte and the renaming: the server answers 416
    folder = fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY), (server.url + "/x.bin",))], "")
    assert (folder / "x.bin").read_bytes() == BODY and len(server.asked) == 1


def test_mirrors_in_turn(server, tmp_path, capsys):
    server.content["/wrong.bin"], server.content["/right.bin"] = BODY[::-1], BODY
    urls = ("http://127.0.0.1:9/x.bin", server.url + "/none.bin", server.url + "/wrong.bin", server.url + "/right.bin")
    folder = fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY), urls)], "")
    assert (folder / "x.bin").read_bytes() == BODY
    said = capsys.readouterr().err
    assert "refused" in said and "HTTP 404" in said and "SHA-256" in said
    assert [path for path, _ in server.asked] == ["/none.bin", "/wrong.bin", "/right.bin"]  # none asked in vain twice


def test_file_addresses(tmp_path):
    (tmp_path / "mirror.bin").write_bytes(BODY)
    folder = fetch_corpus(tmp_path / "d", "c", [File("x.bin", None, None, ((tmp_path / "mirror.bin").as_uri(),))], "")
    assert (folder / "x.bin").read_bytes() == BODY
    assert json.loads((folder / ".complete").read_text())["files"][0]["sha256"] == digest(BODY)


def test_a_page_instead_of_an_archive(server, tmp_path):
    server.content["/login/x.tar.gz"], server.content["/x.tar.gz"] = b"<html>log in", tarball(("a/b.txt", b"1"))
    urls = (server.url + "/login/x.tar.gz", server.url + "/x.tar.gz")
    folder = fetch_corpus(tmp_path, "c", [File("x.tar.gz", urls=urls, members={"a/": ""})], "")
    assert (folder / "b.txt").read_bytes() == b"1"


# --- what is there already

def test_nothing_is_fetched_twice(server, tmp_path):
    server.content["/x.bin"] = BODY
    files = [File("x.bin", None, digest(BODY), (server.url + "/x.bin",))]
    folder = fetch_corpus(tmp_path, "c", files, "")
    before = (folder / ".complete").stat().st_mtime_ns
    assert fetch_corpus(tmp_path, "c", files, "") == folder
    assert len(server.asked) == 1 and (folder / ".complete").stat().st_mtime_ns == before
    server.content["/x.bin"] = BODY * 2  # another version is wanted: fetched, and put in the old one's place
    fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY * 2), (server.url + "/x.bin",))], "")
    assert (folder / "x.bin").read_bytes() == BODY * 2


def test_a_file_put_there_by_hand_is_taken_and_kept(tmp_path):
    (tmp_path / "x.bin").write_bytes(BODY)
    folder = fetch_corpus(tmp_path, "c", [File("x.bin", None, digest(BODY), ("http://127.0.0.1:9/x.bin",))], "")
    assert (folder / "x.bin").read_bytes() == BODY == (tmp_path / "x.bin").read_bytes()


def test_a_folder_that_no_fetch_made_is_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        fetch_corpus(tmp_path, "c", [File("x.bin", urls=("http://127.0.0.1:9/x.bin",))], "")
    assert (tmp_path / "c" / "mine.txt").read_text() == "mine"


# --- failures

def test_the_failure_names_every_source_and_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    (tmp_path / "x.deb").write_bytes(b"not it")
    file = File("x.deb", None, digest(BODY), ("http://127.0.0.1:9/x.deb", server.url + "/x.deb"),
                Package("apt-get", "x", "1.0"), {"usr/": ""})
    with pytest.raises(UserError) as caught:
        fetch_corpus(tmp_path, "c", [file], "choose --corpus an4")
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"{tmp_path / 'x.deb'} (its SHA-256", "127.0.0.1:9/x.deb (", "refused",
                 f"{server.url}/x.deb (HTTP 404", "apt-get x 1.0 (apt-get is not installed)",
                 f"put x.deb into {tmp_path}", "or choose --corpus an4"):
        assert part in message, part
    assert not (tmp_path / "c").exists() and (tmp_path / "x.deb").exists()


def test_no_room_is_known_before_a_byte_is_fetched(server, tmp_path):
    server.content["/x.bin"] = BODY
    with pytest.raises(UserError, match="SPEECHLAB_DOWNLOADS"):
        fetch_corpus(tmp_path, "c", [File("x.bin", 1 << 60, None, (server.url + "/x.bin",))], "")
    assert server.asked == []


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch, capsys):
    """The error is not taken for a mirror's, says what is full, and the next run goes on."""
    server.content["/x.bin"] = body = os.urandom(3 * fetch.MEGABYTE)
    files = [File("x.bin", len(body), digest(body), (server.url + "/x.bin", server.url + "/x.bin"))]

    def filling(path, mode="r", **kwargs):
        file = open(path, mode, **kwargs)
        if not str(path).endswith(".part"):
            return file
        write = file.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            seek = file.seek

            def write(self, block):
                if file.tell() > fetch.MEGABYTE:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                return write(block)

        return Full()

    monkeypatch.setattr(fetch, "open", filling, raising=False)
    assert cli(lambda argv: fetch_corpus(tmp_path, "c", files, "") and 0)([]) == 1
    assert "no space left while writing" in capsys.readouterr().err and len(server.asked) == 1
    monkeypatch.delattr(fetch, "open")
    assert (fetch_corpus(tmp_path, "c", files, "") / "x.bin").read_bytes() == body
    assert server.asked[1][1].startswith("bytes=") and server.asked[1][1] != "bytes=0-"


# --- archives

@pytest.mark.parametrize("member", [
    ("../out.txt", b"x"), ("a/../../out.txt", b"x"), ("/tmp/out.txt", b"x"), ("a\\..\\..\\out.txt", b"x"),
    link("a/l", "/etc/passwd"), link("a/l", "../../out.txt"), link("a/l", "../out.txt", tarfile.LNKTYPE),
    link("a/dev", "", tarfile.CHRTYPE), link("a/pipe", "", tarfile.FIFOTYPE)],
    ids=lambda m: m[0] if isinstance(m, tuple) else f"{m.type.decode()}-{m.linkname}")
def test_tar_members_that_lead_out(tmp_path, member):
    (tmp_path / "x.tar.gz").write_bytes(tarball(("a/good.txt", b"1"), member))
    with pytest.raises(UserError, match="unsafe"):
        archives.extract(tmp_path / "x.tar.gz", tmp_path / "to" / "deep")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"x.tar.gz", "good.txt"}
    with pytest.raises(UserError, match="unsafe"):  # and the fetcher leaves nothing at all behind but the archive
        fetch_corpus(tmp_path, "c", [File("x.tar.gz", members={"a/": ""})], "")
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt"])
def test_zip_members_that_lead_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(name, "x")
    with pytest.raises(UserError, match="unsafe"):
        archives.extract(tmp_path / "x.zip", tmp_path / "to")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["x.zip"]


def test_zip_links(tmp_path):
    for target, fine in (("../../out.txt", False), ("/etc/passwd", False), ("real.txt", True)):
        info = zipfile.ZipInfo("a/link.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
            file.writestr("a/real.txt", "1")
            file.writestr(info, target)
        if fine:
            archives.extract(tmp_path / "x.zip", tmp_path / "to")
            assert (tmp_path / "to/a/link.txt").read_text() == "1" and not (tmp_path / "to/a/link.txt").is_symlink()
        else:
            with pytest.raises(UserError, match="unsafe"):
                archives.extract(tmp_path / "x.zip", tmp_path / "to")


def test_links_inside_become_copies_and_what_nobody_asked_for_is_left(tmp_path):
    (tmp_path / "x.tgz").write_bytes(tarball(
        ("./p/data/a.txt", b"1"), link("p/data/b.txt", "a.txt"), link("p/data/c.txt", "p/data/a.txt", tarfile.LNKTYPE),
        ("p/code.py", b"bad"), link("p/share/doc", "/usr/share/doc")))
    count = archives.extract(tmp_path / "x.tgz", tmp_path / "to", archives.only({"p/data/": "d/"}))
    found = {str(p.relative_to(tmp_path / "to")): p.read_bytes() for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert found == {"d/a.txt": b"1", "d/b.txt": b"1", "d/c.txt": b"1"} and count == 3
    assert not any(p.is_symlink() for p in (tmp_path / "to").rglob("*"))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_damaged_archive_is_one_line_and_not_taken_again(server, tmp_path, keep):
    whole = tarball(("a/b.bin", BODY))
    server.content["/x.tar.gz"] = whole[: int(keep * len(whole))]
    file = File("x.tar.gz", urls=(server.url + "/x.tar.gz",), members={"a/": ""})
    with pytest.raises(UserError, match="damaged"):
        fetch_corpus(tmp_path, "c", [file], "")
    assert not (tmp_path / "c").exists()
    server.content["/x.tar.gz"] = whole
    assert (fetch_corpus(tmp_path, "c", [file], "") / "b.bin").read_bytes() == BODY


def test_an_archive_without_what_is_looked_for(tmp_path):
    (tmp_path / "x.tgz").write_bytes(tarball(("package/index.js", b"1")))
    with pytest.raises(UserError, match="none of the files"):
        archives.extract(tmp_path / "x.tgz", tmp_path / "to", archives.only({"package/data/": ""}))


def deb(data: bytes, name: str) -> bytes:
    """An ar archive as deb(5) has it; debian-binary has an odd length less its padding."""
    out = b"!<arch>\n"
    for member, content in ((b"debian-binary", b"2.0\n"), (b"control.tar.gz", b"odd"), (name.encode(), data)):
        out += b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (member, 0, 0, 0, b"100644", len(content)) + content
        out += b"\n" * (len(content) % 2)
    return out


@pytest.mark.parametrize("packing", ["gz", "xz", "zst"])
def test_debian_packages(tmp_path, packing):
    import lzma

    plain = gzip.decompress(tarball(("./usr/share/x/a.ogg", BODY), link("./usr/share/doc/x", "/etc")))
    if packing == "zst":
        if not shutil.which("zstd"):
            pytest.skip("zstd is not installed")
        data = subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True).stdout
    else:
        data = gzip.compress(plain) if packing == "gz" else lzma.compress(plain)
    (tmp_path / "x.deb").write_bytes(deb(data, f"data.tar.{packing}"))
    archives.extract(tmp_path / "x.deb", tmp_path / "to", archives.only({"usr/share/x/": ""}))
    assert (tmp_path / "to/a.ogg").read_bytes() == BODY
    if shutil.which("dpkg-deb"):  # an independent reader finds the same in what this test has made
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(tmp_path / "x.deb")], capture_output=True)
        assert done.stdout == plain
    (tmp_path / "x.deb").write_bytes(deb(data, f"data.tar.{packing}")[:-1000])
    with pytest.raises(UserError, match="damaged"):
        archives.extract(tmp_path / "x.deb", tmp_path / "to2", archives.only({"usr/share/x/": ""}))


# --- package clients

def wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("thing/data.json", "{}")
        file.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        file.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("thing-1.0.dist-info/RECORD", "")
    return path.read_bytes()


def test_pip(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    (tmp_path / "index").mkdir()
    content = wheel(tmp_path / "index" / "thing-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    file = File("thing-1.0-py3-none-any.whl", None, digest(content), package=Package("pip", "thing", "1.0"),
                members={"thing/data.json": "data.json"})
    folder = fetch_corpus(tmp_path / "d", "c", [file], "")
    assert sorted(p.name for p in folder.iterdir()) == [".complete", "data.json"]
    monkeypatch.chdir(tmp_path)  # and to a folder that is meant from here: the client runs elsewhere
    assert (fetch_corpus(Path("relative"), "c", [file], "") / "data.json").exists()
    with pytest.raises(UserError, match=r"pip thing 2\.0 \(ERROR: .*thing==2\.0"):
        fetch_corpus(tmp_path / "e", "c", [File("thing-2.0-py3-none-any.whl", package=Package("pip", "thing", "2.0"),
                                                members={"thing/": ""})], "")


def fake_client(folder: Path, name: str, body: str, monkeypatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport sys, pathlib, shutil\nargs = sys.argv[1:]\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_npm(tmp_path, monkeypatch):
    (tmp_path / "thing.tgz").write_bytes(tarball(("package/data/a.bin", BODY)))
    fake_client(tmp_path / "bin", "npm", f"assert args[-1] == 'thing@1.2' and '--ignore-scripts' in args\n"
                f"shutil.copy({str(tmp_path / 'thing.tgz')!r}, 'thing-1.2.tgz')", monkeypatch)
    file = File("thing-1.2.tgz", package=Package("npm", "thing", "1.2"), members={"package/data/": ""})
    assert (fetch_corpus(tmp_path / "d", "c", [file], "") / "a.bin").read_bytes() == BODY


def test_apt_with_empty_lists_makes_lists_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "x.deb").write_bytes(deb(tarball(("./usr/x/a.bin", BODY)), "data.tar.gz"))
    fake_client(tmp_path / "bin", "apt-get", f"""
lists = next((a.split("=", 1)[1] for a in args if a.startswith("Dir::State::Lists=")), None)
if args[-1] == "update":
    assert lists  # never the machine's
    pathlib.Path(lists, "there").touch()
elif lists and pathlib.Path(lists, "there").exists():
    shutil.copy({str(tmp_path / 'x.deb')!r}, "x_1%3a2_all.deb")  # apt's way to write the version 1:2
else:
    print("W: nothing here"), print("E: Unable to locate package x")
    sys.exit(100)""", monkeypatch)
    file = File("x_2_all.deb", package=Package("apt-get", "x", "1:2"), members={"usr/x/": ""})
    assert (fetch_corpus(tmp_path / "d", "c", [file], "") / "a.bin").read_bytes() == BODY


def test_apt_without_a_mirror_says_so(tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", "apt-get", "print('E: Unable to locate package x'); sys.exit(100)", monkeypatch)
    with pytest.raises(UserError, match="Unable to locate package x.*apt-get update"):
        fetch_corpus(tmp_path / "d", "c", [File("x_1_all.deb", package=Package("apt-get", "x", "1"))], "")


# --- the registry and its command line

def test_names(capsys, tmp_path):
    from speechlab import corpora
    from speechlab.corpora.__main__ import main

    assert all(hasattr(corpora.load(name), part) for name in corpora.NAMES for part in ("ABOUT", "LICENSE", "fetch"))
    assert main(["hsk_gnic"]) == 2
    assert "did you mean hsk_gcin" in capsys.readouterr().err
    assert main(["local.nowhere"]) == 2
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(corpora.NAMES)
    (tmp_path / "file").touch()
    assert main(["synthetic", "--to", str(tmp_path / "file" / "x")]) == 1
    assert "can't make this folder" in capsys.readouterr().err


def test_a_corpus_that_exists_is_found_before_its_libraries(monkeypatch):
    from speechlab import corpora

    real = corpora.importlib.import_module

    def without(name):
        if name.endswith("hsk_gcin"):
            raise ModuleNotFoundError("No module named 'pypinyin'", name="pypinyin")
        return real(name)

    monkeypatch.setattr(corpora.importlib, "import_module", without)
    with pytest.raises(UserError, match="hsk_gcin needs the Python package pypinyin"):
        corpora.load("hsk_gcin")
