"""CMU's AN4 ("census"): spelled names, numbers, dates and control words in English, 84 speakers, about 50 minutes.

Recorded at Carnegie Mellon University about 1991, see A. Acero, "Acoustical and Environmental Robustness in Automatic
Speech Recognition", Kluwer 1993. 948 training and 130 test utterances, 16 kHz. The university publishes no checksum;
``.complete`` records the checksum of what was downloaded.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from ..errors import UserError
from ..progress import progress
from .audio import write_flac
from .cuts import threaded, utterance
from .fetch import File, fetch_corpus

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "English: spelled words and numbers, CMU's AN4, 84 speakers, 50 minutes; needs no package client"
LICENSE = "CMU, BSD-like: free for any use"

FILES = [File("an4_sphere.tar.gz", urls=("http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz",
                                         "https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz"),
              members={"an4/": ""})]
DEV_PART = 0.1  # of the training speakers


def fetch(root: Path) -> Path:
    """Fetch AN4's NIST sphere files (64 MB) to ``root/an4``: ``etc/`` with the lists and ``wav/``."""
    return fetch_corpus(root, "an4", FILES, "give a folder that holds AN4 as --data_dir, or choose --corpus synthetic")


def prepare(folder: Path, out: Path, nj: int = 1) -> dict[str, CutSet]:
    """AN4 as published (``etc/an4_{train,test}.{fileids,transcription}``, ``wav/*/<speaker>/*.{sph,raw,wav}``).

    Returns a CutSet for each of train, dev and test. test is as published (``an4test_clstk``, ten speakers who are not
    in train). dev is every tenth speaker of the training list; a hash of the name decides which.

    Audio is copied to ``out/audio`` as flac: lhotse needs a program for sphere files that few people have, and raw
    files (16 bit, big endian) do not say their sample rate.
    """
    from lhotse import CutSet

    folder, out = Path(folder), Path(out)
    root = next((f for f in (folder, folder / "an4") if (f / "etc").is_dir()), None)
    if root is None:
        raise UserError(f"an4: {folder} has no etc/an4_train.fileids: give AN4 as it was unpacked, or fetch it with "
                        "python -m speechlab.corpora an4 (a folder with manifest.tsv is --corpus folder)")
    listed = {part: _read_list(root, part) for part in ("train", "test")}
    speakers = sorted({_speaker(name) for name in listed["train"]}, key=lambda s: hashlib.sha256(s.encode()).digest())
    dev = set(speakers[: max(1, round(DEV_PART * len(speakers)))])
    of_dev = {name: text for name, text in listed["train"].items() if _speaker(name) in dev}
    splits = {"train": {n: t for n, t in listed["train"].items() if n not in of_dev}, "dev": of_dev,
              "test": listed["test"]}
    cuts = {}
    for split, texts in splits.items():
        paths = threaded(lambda name: _as_flac(root, name, out / "audio"), texts, nj)
        cuts[split] = CutSet.from_cuts(
            utterance(Path(name).name, path, texts[name], _speaker(name), "en")
            for name, path in zip(texts, progress(paths, f"an4 {split}", total=len(texts))))
    return cuts


def _speaker(name: str) -> str:
    """``an4_clstk/fash/an251-fash-b`` -> ``fash``."""
    return Path(name).parent.name


def _read_list(root: Path, part: str) -> dict[str, str]:
    """A list's utterances in order: {name as in the .fileids: text without <s> and </s>}."""
    texts: dict[str, str] = {}
    transcripts, names = root / "etc" / f"an4_{part}.transcription", root / "etc" / f"an4_{part}.fileids"
    for path in (transcripts, names):
        if not path.is_file():
            raise UserError(f"an4: {path} is missing: remove the folder {root} and fetch it again")
    for number, line in enumerate(transcripts.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(.*)\(([^()\s]+)\)\s*", line)
        if not found:
            raise UserError(f"an4: {transcripts} line {number} is not 'WORDS (utterance)': {line!r}")
        texts[found[2]] = " ".join(word for word in found[1].split() if word not in ("<s>", "</s>", "<sil>"))
    listed = names.read_text(encoding="utf-8").split()
    without = [name for name in listed if Path(name).name not in texts]
    if without:
        raise UserError(f"an4: {transcripts} has no line for {without[0]} ({len(without)} such): fetch AN4 again")
    return {name: texts[Path(name).name] for name in listed}


def _as_flac(root: Path, name: str, to: Path) -> Path:
    """Copy an utterance's audio to a flac file and return its path. If the audio can't be read, speechlab.prepare will
    find that and list it."""
    sources = [root / "wav" / f"{name}{suffix}" for suffix in (".sph", ".wav", ".flac", ".raw")]
    source = next((path for path in sources if path.is_file()), sources[0])
    raw = dict(samplerate=16000, channels=1, format="RAW", subtype="PCM_16", endian="BIG")
    try:
        samples, rate = soundfile.read(source, dtype="int16", **(raw if source.suffix == ".raw" else {}))
    except (soundfile.SoundFileError, OSError):
        return source
    copy = to / f"{Path(name).name}.flac"
    write_flac(copy, samples, rate)
    return copy
