"""AISHELL-1: 178 hours of read Mandarin, 400 speakers, by lhotse's own download and prepare functions.

Bu et al. 2017, "AISHELL-1: An Open-Source Mandarin Speech Corpus and A Speech Recognition Baseline", OpenSLR 33.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from speechlab.corpora.cuts import threaded, utterance
from speechlab.errors import UserError
from speechlab.files import write_text

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "Mandarin, 178 h read by 400 speakers: AISHELL-1 (16 GB to download, or --data_dir)"
LICENSE = "Apache-2.0"

MIRRORS = ("https://www.openslr.org/resources", "https://openslr.elda.org/resources",
           "https://openslr.magicdatatech.com/resources")
PARTS = ("train", "dev", "test")
_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"


def fetch(root: Path) -> Path:
    """Download and unpack to ``root/aishell``, then mark it with ``.complete``. An interrupted download goes on.

    Raises a UserError when no mirror could serve it.
    """
    from lhotse.recipes.aishell import download_aishell

    root = Path(root)
    folder = root / "aishell"
    if (folder / ".complete").is_file():
        return folder
    tried = []
    for mirror in MIRRORS:
        try:
            with _careful():
                download_aishell(root, base_url=mirror)
            write_text(folder / ".complete", "{}\n")
            return folder
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (28, 122):
                raise  # the disk is full: another mirror won't help
            tried.append(f"{mirror} ({error or type(error).__name__})")
    raise UserError(f"aishell could not be downloaded to {root}; tried {', '.join(tried)}. What has come is kept: run "
                    "it again to go on; or unpack data_aishell.tgz, and the wav/*.tar.gz in it, by hand and give that "
                    "folder with --data_dir; or use --corpus mini")


@contextmanager
def _careful() -> Iterator[None]:
    """Make lhotse's download careful: a server that is silent for a minute is an error, and an archive can't write
    outside its folder."""
    timeout, had = socket.getdefaulttimeout(), tarfile.TarFile.__dict__.get("extraction_filter")
    makelink = tarfile.TarFile.makelink
    socket.setdefaulttimeout(60)
    if hasattr(tarfile, "data_filter"):  # PEP 706
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    else:  # e.g. Python 3.11.2 of Debian 12. lhotse checks the names; AISHELL has no links, so we refuse all links
        tarfile.TarFile.makelink = _no_link
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        tarfile.TarFile.extraction_filter = had
        tarfile.TarFile.makelink = makelink


def _no_link(archive: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    raise OSError(f"{archive.name} holds a link ({member.name}), by which it could write anywhere")


def prepare(folder: Path, out: Path, nj: int = 1) -> dict[str, CutSet]:
    """Read ``folder/data_aishell`` by lhotse's own function; ``folder`` may also be ``data_aishell`` itself.

    Returns a CutSet for each of train, dev and test. The id of a cut is its file's name without the suffix. A file that
    can't be read is among them: speechlab.prepare lists it as bad audio. Recordings without a transcript are left out.
    """
    from lhotse import CutSet

    folder = find(Path(folder))
    files = {part: sorted((folder / "data_aishell/wav" / part).rglob("*.wav")) for part in PARTS}
    try:
        manifests, broken = _lhotse(folder), []
    except Exception:  # lhotse stops at the first header that it can't read, with one of many kinds of error
        everything = [path for some in files.values() for path in some]
        broken = [path for path, header in zip(everything, threaded(_readable, everything, nj)) if not header]
        if not broken:
            raise
        with tempfile.TemporaryDirectory() as aside:
            manifests = _lhotse(_links(folder, Path(aside), set(broken), everything))
    splits = {}
    for part in PARTS:
        speech = {supervision.recording_id: supervision for supervision in manifests[part]["supervisions"]}
        cuts = []
        for recording in manifests[part]["recordings"]:
            cut, supervision = recording.to_cut(), speech[recording.id]
            cut.id, supervision.language, cut.supervisions = recording.id, "zh", [supervision]
            cuts.append(cut)
        # Their transcripts don't matter: speechlab.prepare will list these files as bad audio.
        cuts += [utterance(path.stem, path, "?", path.parent.name, "zh") for path in broken if path in files[part]]
        splits[part] = CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id))
    silent = sum(map(len, files.values())) - sum(map(len, splits.values()))
    if silent:
        print(f"note: {silent} recordings have no transcript in {_TRANSCRIPT} and are left out", file=sys.stderr)
    return splits


def find(folder: Path) -> Path:
    """The folder that holds ``data_aishell``. ``folder`` may be this folder or ``data_aishell``; UserError if neither,
    or if files are missing."""
    if (folder / _TRANSCRIPT).is_file() and folder.resolve().name == "data_aishell":
        folder = folder.resolve().parent
    data = folder / "data_aishell"
    if not (data / _TRANSCRIPT).is_file():
        raise UserError(f"{folder} is not AISHELL-1: there is no data_aishell/{_TRANSCRIPT} in it; give the folder "
                        "that data_aishell.tgz was unpacked in")
    for part in PARTS:
        if next((data / "wav" / part).rglob("*.wav"), None) is None:
            packed = any((data / "wav").glob("*.tar.gz"))
            todo = f"unpack the archives there: cd {data / 'wav'} && for a in *.tar.gz; do tar xzf $a; done" if packed \
                else "unpack data_aishell.tgz again"
            raise UserError(f"{data / 'wav' / part} has no wav files: {todo}")
    return folder


def _lhotse(folder: Path) -> dict:
    from lhotse.recipes.aishell import prepare_aishell

    logging.disable(logging.WARNING)  # lhotse writes two lines per recording without transcript; prepare writes one
    try:
        manifests = prepare_aishell(folder)
    finally:
        logging.disable(logging.NOTSET)
    for part in manifests.values():
        for recording in part["recordings"]:  # resolved now: the links of _links() will be gone
            recording.sources[0].source = os.path.realpath(recording.sources[0].source)
    return manifests


def _readable(path: Path) -> bool:
    import soundfile

    try:
        return soundfile.info(str(path)).frames > 0
    except (soundfile.SoundFileError, OSError):
        return False


def _links(folder: Path, aside: Path, without: set[Path], files: list[Path]) -> Path:
    """Make the same tree in ``aside``, of links, but leave out the files ``without``, at which lhotse would stop."""
    (aside / "data_aishell").mkdir()
    (aside / "data_aishell/transcript").symlink_to((folder / "data_aishell/transcript").resolve())
    for part in PARTS:
        (aside / "data_aishell/wav" / part).mkdir(parents=True)
    for path in files:
        if path not in without:
            link = aside / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return aside
