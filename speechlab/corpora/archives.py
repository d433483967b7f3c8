"""Taking files out of tar, zip, wheel, npm and Debian archives without trusting them.

Only regular files are written, each under the target folder. The whole archive is refused

* if any member's name is absolute, or leads out of the folder by ``..``;
* if a wanted member is a device, or a link that leads out. (Among members that are not wanted, packages do hold such.)

A link that stays inside the archive becomes a copy.
"""

from __future__ import annotations

import io
import lzma
import posixpath
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from ..errors import UserError

# Says which members are wanted: a member's name -> its path under the target folder, or None to leave it out.
Pick = Callable[[str], "str | None"]
# A member's name, and a function that opens it. The function returns None for a link that leads to no file.
Member = tuple[str, Callable[[], "IO[bytes] | None"]]
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, NotImplementedError)


def everything(name: str) -> str:
    """A :data:`Pick` that takes all members and keeps their names."""
    return name


def only(wanted: dict[str, str]) -> Pick:
    """A :data:`Pick` for ``{"a/file.json": "file.json", "some/folder/": "ogg/"}``: a name that ends in / stands for all
    that is below it."""

    def pick(name: str) -> str | None:
        if name in wanted:
            return wanted[name]
        for prefix, target in wanted.items():
            if prefix.endswith("/") and name.startswith(prefix):
                return target + name[len(prefix) :]
        return None

    return pick


def is_archive(path: Path, name: str) -> bool:
    """Whether the file at ``path`` begins with the bytes of the kind of archive that ``name`` says. A plain .tar has no
    such bytes: always True."""
    beginnings = {".zip": b"PK", ".whl": b"PK", ".deb": b"!<arch>", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b",
                  ".bz2": b"BZh", ".xz": b"\xfd7zXZ"}
    with open(path, "rb") as file:
        return file.read(8).startswith(beginnings.get(Path(name).suffix.lower(), b""))


def extract(archive: Path, to: Path, pick: Pick = everything) -> int:
    """Write the archive's members that ``pick`` wants under the folder ``to``; returns how many files were written.

    The kind is known by the archive's name: ``.tar`` (also .gz .bz2 .xz), ``.tgz``, ``.zip``, ``.whl``, ``.deb``.

    Raises a UserError if the archive is damaged, unsafe, of another kind, or without any wanted member. Some files may
    be in ``to`` by then: so extract into a new folder and rename it (``files.atomic``).
    """
    count = 0
    try:
        for name, stream in _members(Path(archive)):
            target = pick(_safe(name, archive))
            source = None if target is None else stream()
            if source is None:
                continue
            path = to / _safe(target, archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, open(path, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            count += 1
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the archive's
        why = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise UserError(f"{archive} is damaged ({why}): remove it and run the same command again") from error
    if not count:
        raise UserError(f"{archive} holds none of the files looked for: is it another version of the package?")
    return count


def _safe(name: str, archive: Path) -> str:
    """``name`` normalised (no ./, no //); a UserError if it is absolute or climbs out."""
    normal = posixpath.normpath(name)
    if normal.startswith(("/", "../")) or normal in ("..", ".") or "\\" in normal or normal[1:2] == ":":
        raise UserError(f"{archive} is unsafe: its member {name!r} would be written outside of its folder; "
                        "nothing of it was kept")
    return normal


def _members(archive: Path) -> Iterator[Member]:
    """Every file in the archive. Links that lead out and devices are among them: opening one raises a UserError."""
    name = archive.name.lower()
    if name.endswith((".zip", ".whl")):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir():
                    yield info.filename, partial(_open_zip, file, info, archive)
    elif name.endswith((".deb", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")):
        with _deb_data(archive) if name.endswith(".deb") else open(archive, "rb") as data:
            with tarfile.open(fileobj=data) as file:
                for member in file:
                    if not member.isdir():
                        yield member.name, partial(_open_tar, file, member, archive)
    else:
        raise UserError(f"{archive}: not an archive that speechlab knows (tar, zip, wheel, npm's tgz, deb)")


def _open_zip(file: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> IO[bytes] | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        inside = _link(info.filename, file.read(info).decode("utf-8", "replace"), archive)
        return file.open(inside) if inside in file.namelist() else None
    return file.open(info)


def _open_tar(file: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> IO[bytes] | None:
    if member.issym() or member.islnk():
        # A symbolic link is relative to its own folder, a hard link to the archive's root.
        _link(member.name if member.issym() else "", member.linkname, archive)
    elif not member.isreg():
        raise UserError(f"{archive} is unsafe: its member {member.name!r} is a device; nothing of it was kept")
    try:
        return file.extractfile(member)  # follows links inside the archive; None for one to a folder
    except KeyError:  # a link to what the archive doesn't hold
        return None


def _link(name: str, target: str, archive: Path) -> str:
    """The name of the member that a link at ``name`` leads to; a UserError if it leads outside."""
    if target.startswith("/"):
        raise UserError(f"{archive} is unsafe: it links to {target!r}, outside of its folder; nothing of it was kept")
    return _safe(posixpath.join(posixpath.dirname(name), target), archive)


def _deb_data(archive: Path) -> IO[bytes]:
    """The inner data.tar of a Debian package (an ``ar`` archive, see deb(5)), as a seekable stream."""
    with open(archive, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise tarfile.TarError("not a Debian package")
        while len(header := file.read(60)) == 60:
            try:
                name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            except ValueError:
                raise tarfile.TarError("not a Debian package") from None
            if name.startswith("data.tar"):
                data = file.read(size)
                if len(data) != size:
                    raise EOFError("it is cut short")
                return _unzstd(archive, data) if name.endswith(".zst") else io.BytesIO(data)
            file.seek(size + size % 2, 1)
    raise EOFError("it is cut short: no data.tar in it")


def _unzstd(archive: Path, data: bytes) -> IO[bytes]:
    """Unpack Zstandard by the first tool that is installed (Python itself reads it only from 3.14 on)."""
    for command in (["zstd", "-dcq"], ["dpkg-deb", "--fsys-tarfile", str(archive)]):
        if shutil.which(command[0]):
            out = tempfile.TemporaryFile()  # the caller closes it
            with tempfile.TemporaryFile() as packed:
                packed.write(data)
                packed.seek(0)
                done = subprocess.run(command, stdin=packed, stdout=out, stderr=subprocess.PIPE)
            if done.returncode:
                raise tarfile.TarError(done.stderr.decode("utf-8", "replace").strip())
            out.seek(0)
            return out
    raise UserError(f"{archive} is packed by Zstandard: install zstd (or dpkg) and run the same command again")
