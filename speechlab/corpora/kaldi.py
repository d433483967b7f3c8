"""A corpus of one's own in Kaldi's form: a data directory (``wav.scp``, ``text``; optional ``utt2spk``, ``segments``,
``utt2lang``), or a folder of them named ``train``, ``dev`` and ``test``, as Kaldi's and ESPnet's recipes make them.

What ``prepare --carry`` names must be there:

* ``text``: in the file text; not needed if no text is carried.
* ``speaker``: in utt2spk.
* ``label``: in utt2label; if there is no such file, in utt2lang; else in text.
* a recipe's own WORD: in utt2WORD.

Non-speech symbols in text (``<NOISE>``, ``[laughter]``) are left out. ``prepare --option symbols=keep`` keeps them as
tokens, and ``--option nlsyms=FILE`` names further ones, in a file such as ESPnet's of that name.

A fifth field of segments is the channel that is heard, counted from 0 or as A, B, as Kaldi's extract-segments takes it.
Where there is none, ``reco2file_and_channel`` may say which side of a call a recording is (A or 1 is the first). Where
nobody says it, several channels are averaged.

An entry of wav.scp may be a file, ``cat FILE |``, or a place in an archive (``FILE.ark:1234``), which is unpacked. **No
command is executed**: any other pipe is refused, and only sound is read from an archive. (lhotse has an import of its
own, but that runs the commands of wav.scp in a shell, and the first odd line ends it with a traceback.) ``feats.scp``
is not read: features are computed from the sound, as the config says.

Reference: kaldi-asr.org/doc/data_prep.html; utils/validate_data_dir.sh there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechlab.corpora import folder as folders
from speechlab.corpora.cuts import part, threaded, utterance
from speechlab.errors import UserError
from speechlab.files import is_hidden
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import CutSet, MonoCut, MultiCut

ABOUT = "your own, in Kaldi's form: a data directory (wav.scp, text), or a folder of train, dev and test ones"
LICENSE = "yours"
SPEAKERS_SHARED = True  # checked here, as in the corpus folder

# {utterance: [id, speaker]}: the original names of what python -m speechlab.data.kaldi export had to rename.
IDS = "speechlab_ids.json"
# Seconds that a segment may end after its recording. It is cut at the recording's end, as extract-segments does.
OVERSHOOT = 0.5
_UNKNOWN_LENGTH = 0x7FFFF000  # bytes; a WAV written into a pipe claims 2 to 4 GB: its writer could not know the length
_NAMES = {"train": re.compile(r"train.*", re.I), "dev": re.compile(r"(dev|val|cv).*", re.I),
          "test": re.compile(r"(test|eval).*", re.I)}


class Sound(NamedTuple):
    """Where a recording's sound is: a whole file, or the place ``offset`` (in bytes) in an archive."""

    path: Path
    offset: int | None = None


class Place(NamedTuple):
    """What part of a recording an utterance is.

    In seconds (``end`` None: to its end), and maybe the channel, counted from 0.
    """

    recording: str
    start: float = 0.0
    end: float | None = None
    channel: int | None = None


class Utterance(NamedTuple):
    """One utterance of a data directory. Without a file segments, ``recording`` is the utterance's id and ``end`` None.

    ``custom``: whatever else it carries, by name.
    """

    id: str
    text: str | None
    speaker: str | None
    language: str | None
    recording: str
    start: float = 0.0
    end: float | None = None  # seconds; None: the end of the recording
    channel: int | None = None  # counted from 0; None: nothing names a channel
    side: int | None = None  # the recording's channel in reco2file_and_channel
    custom: dict[str, str] = {}


def fetch(root: Path) -> Path:
    """There is nothing to fetch: always a UserError."""
    raise UserError("kaldi is a corpus of your own: give its data directory, which holds wav.scp and text, or the "
                    "folder of its train, dev and test directories, with --data_dir DIR")


def prepare(folder: Path, out: Path, nj: int = 1, split_by: str = "auto", carry: tuple[str, ...] = ("text",),
            train: str = "", dev: str = "", test: str = "") -> dict[str, CutSet]:
    """Read the data directory ``folder``, or the data directories in it.

    A speaker in two directories is accepted, with a note: the corpus was published like that. Sound in archives is
    unpacked to ``out/audio`` as flac.

    Args:
        split_by: as for the corpus ``folder``; ``auto`` keeps the directories' own split if there are several.
        carry: what each utterance must have, see above.
        train, dev, test: the directories in ``folder`` that make each split (several, separated by commas); by default
            those whose names begin with train; with dev, val or cv; with test or eval.
    Returns:
        A CutSet for each split.
    Raises:
        UserError: for a fault in the directories; it names file and line.
    """
    from lhotse import CutSet

    folder = Path(folder)
    rows: list[folders.Row] = []
    found: dict[str, tuple[Path, Utterance, Sound]] = {}
    for split, directory in find(folder, {"train": train, "dev": dev, "test": test}):
        utterances, sounds = read(directory, carry)
        for one in utterances:
            if one.id in found:
                raise UserError(f"{directory / 'text'}: utterance {one.id} is in {found[one.id][0]} too: ids must be "
                                "unique")
            found[one.id] = (directory, one, sounds[one.recording])
            rows.append({"path": one.id, "speaker": one.speaker or "", "label": one.custom.get("label", ""),
                         **({"split": split} if split else {})})
    by_id = folders.split_rows(rows, folder, split_by, shared_speakers=True, by_label="label" in carry)
    if split_by in ("auto", "column"):
        _note_shared(folder, rows)
    recordings = sorted({(directory, one.recording, sound) for directory, one, sound in found.values()})
    made = threaded(lambda job: _recording(*job, out), recordings, nj)
    headers = {job[:2]: cut for job, cut in
               zip(recordings, progress(made, "Reading headers", total=len(recordings)))}
    splits: dict[str, list] = {}
    for directory, one, _ in found.values():
        splits.setdefault(by_id[one.id], []).append(_cut(one, headers[directory, one.recording]))
    return {split: CutSet.from_cuts(splits[split]) for split in sorted(splits)}


def find(folder: Path, named: dict[str, str]) -> list[tuple[str, Path]]:
    """(split, data directory) pairs: ``("", folder)`` if ``folder`` is a data directory, else the directories in it.

    ``named``: by split, the names that the user gave (separated by commas, or "").
    """
    if (folder / "wav.scp").is_file():
        if any(named.values()):
            raise UserError(f"{folder} is one data directory: train, dev and test name directories in a folder of "
                            "several", status=2)
        return [("", folder)]
    entries = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    for path in (place for entry in entries for place in (entry, entry / "wav.scp")):
        if path.is_symlink() and not path.exists() and (path not in entries or any(
                name.fullmatch(path.name) for name in _NAMES.values())):
            raise UserError(f"{path} is a link to nothing ({os.readlink(path)}): mend or remove it")
    there = [path.name for path in entries if (path / "wav.scp").is_file()]
    chosen: list[tuple[str, Path]] = []
    for split, pattern in _NAMES.items():
        names = [name for name in named[split].split(",") if name]
        for name in names:
            if name not in there:
                raise UserError(f"{folder} has no data directory {name} (with a wav.scp): it has "
                                f"{', '.join(there) or 'none'}", status=2)
        names = names or [name for name in there if pattern.fullmatch(name)]
        if split != "test" and not named[split] and len(names) > 1:
            if split not in names:
                raise UserError(f"{folder} has {len(names)} directories for {split} ({', '.join(names)}): say which "
                                f"with --option {split}={names[0]} (several by commas)")
            names = [split]
        chosen += [(_test_name(name) if split == "test" else split, folder / name) for name in names]
    if not any(split == "train" for split, _ in chosen):
        raise UserError(f"{folder} is no Kaldi data directory: it has no wav.scp, and no directory train with one"
                        + (f" (but {', '.join(there)}: say which with --option train={there[0]})" if there else ""))
    left = [name for name in there if folder / name not in [path for _, path in chosen]]
    if left:
        _note(f"{folder}: {', '.join(path.name for _, path in chosen)} are read, {', '.join(left)} not")
    return chosen


def _note_shared(folder: Path, rows: list[folders.Row]) -> None:
    where: dict[str, set[str]] = {}
    for row in rows:
        where.setdefault(row["speaker"], set()).add(row.get("split", "").partition("_")[0])
    shared = sorted(speaker for speaker, found in where.items() if speaker and len(found) > 1)
    if shared:
        more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
        _note(f"{folder}: speaker {shared[0]}{more} is in {' and '.join(sorted(where[shared[0]]))}, so the test is not "
              "on unseen voices; --split_by speaker splits anew")


def _test_name(name: str) -> str:
    """A test directory's split: ``test`` for test and eval, ``test_NAME`` for another."""
    plain = re.sub(r"\W+", "_", name)
    return "test" if plain in ("test", "eval") else plain if plain.startswith("test_") else f"test_{plain}"


def read(directory: Path, carry: Iterable[str] = ("text",)) -> tuple[list[Utterance], dict[str, Sound]]:
    """A data directory's utterances, and where the sound of each recording is, by the recording's id. A UserError names
    file and line."""
    wav = table(directory / "wav.scp")
    paths = _files(directory, carry)
    carried = {what: table(path, empty=path.name == "text") for what, path in paths.items()}
    text, speakers, languages = (
        carried.get(what) or (table(directory / name, empty=what == "text") if (directory / name).is_file() else None)
        for what, name in (("text", "text"), ("speaker", "utt2spk"), ("language", "utt2lang")))
    parts = _segments(directory / "segments", wav) if (directory / "segments").is_file() else \
        {id: Place(id) for id in wav}
    sides = _sides(directory / "reco2file_and_channel", wav)
    source = "segments" if (directory / "segments").is_file() else "wav.scp"
    first = "text" if "text" in carried else next(iter(carried))  # this file says which utterances there are
    listed, listing = carried[first], paths[first].name
    silent, unheard = [id for id in parts if id not in listed], [id for id in listed if id not in parts]
    for ids, what in ((silent, f"of {source} are not in {listing}"), (unheard, f"of {listing} are not in {source}")):
        if ids:
            _note(f"{directory}: {len(ids)} utterances {what} and are left out ({_some(ids)})")
    kept = [id for id in parts if id in listed]
    if not kept:
        raise UserError(f"{directory}: no utterance of {listing} is in {source}: their first words must be the same "
                        "ids")
    if speakers is None:
        _note(f"{directory} has no utt2spk: its speakers are unknown")
    else:
        paths["speaker"], carried["speaker"] = directory / "utt2spk", speakers
    for what, rows in carried.items():
        lack = [id for id in kept if id not in rows]
        if lack:
            raise UserError(f"{paths[what]}: {len(lack)} utterances of {listing} are not in it ({listing} line "
                            f"{listed[lack[0]][0]}: {lack[0]}): add them, or remove the file")
    own = _renamed(directory / IDS)
    ids = _plain(kept)
    utterances = []
    for id in kept:
        speaker = speakers[id][1] if speakers else None
        known = own.get(id) or [ids[id], None if speaker == id else speaker]  # Kaldi: speaker == id means unknown
        custom = {what: rows[id][1] for what, rows in carried.items() if what not in ("text", "speaker")}
        utterances.append(Utterance(known[0], _value(text, id), known[1], _value(languages, id), *parts[id],
                                    sides.get(parts[id].recording), custom))
    used = {one.recording for one in utterances}
    sounds = {id: _sound(directory / "wav.scp", line, id, value) for id, (line, value) in wav.items() if id in used}
    gone = [f"line {wav[id][0]}: {sound.path}" for id, sound in sounds.items() if not sound.path.is_file()]
    if gone:
        raise UserError(f"{directory / 'wav.scp'}: {len(gone)} files that it names are not there ({_some(gone)}): "
                        f"relative paths are looked for in the folders above {directory} and where you are")
    return utterances, sounds


def _files(directory: Path, carry: Iterable[str]) -> dict[str, Path]:
    """The file of a data directory for each thing that is carried; a UserError for what no file can hold."""
    names = {"text": "text", "speaker": "utt2spk"}
    found: dict[str, Path] = {}
    for what in carry:
        if what == "clean":
            raise UserError("kaldi: a data directory names no clean partners: use the corpus folder, with a column "
                            "clean in its manifest.tsv", status=2)
        if what == "label":
            there = [name for name in ("utt2label", "utt2lang", "text") if (directory / name).is_file()]
            if not there:
                raise UserError(f"{directory} has no labels: write utt2label (utterance and label on each line); "
                                "utt2lang or text would do as well")
            if there[0] != "utt2label":
                _note(f"{directory} has no utt2label: its labels are those in {there[0]}")
            found[what] = directory / there[0]
        else:
            found[what] = directory / names.get(what, f"utt2{what}")
    return found


def _value(rows: dict[str, tuple[int, str]] | None, id: str) -> str | None:
    return rows[id][1] if rows and id in rows else None


def table(path: Path, empty: bool = False) -> dict[str, tuple[int, str]]:
    """Read a file of Kaldi's: {first word of a line: (line number, rest of the line)}. ``empty``: the rest may be
    empty."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): a Kaldi data directory needs it") from None
    rows: dict[str, tuple[int, str]] = {}
    last, unsorted = "", 0
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            words = re.split(r"[ \t]+", line.decode().strip(" \t\r"), maxsplit=1)  # as in Kaldi: blanks and tabs only
        except UnicodeDecodeError:
            raise UserError(f"{path} line {number} is not UTF-8: save the file as UTF-8") from None
        if not words[0]:
            continue
        if len(words) < 2 and not empty:
            raise UserError(f"{path} line {number}: there is nothing after {words[0]}: complete or remove the line")
        if words[0] in rows:
            raise UserError(f"{path} line {number}: {words[0]} is in line {rows[words[0]][0]} too: keep one of them")
        unsorted = unsorted or (number if words[0] < last else 0)  # code points sort as their UTF-8, LC_ALL=C, does
        last = words[0]
        rows[words[0]] = (number, words[1] if len(words) > 1 else "")
    if not rows:
        raise UserError(f"{path} is empty")
    if unsorted:
        _note(f"{path} is not sorted (line {unsorted}): it is read all the same, Kaldi wants LC_ALL=C sort")
    return rows


def _segments(path: Path, wav: dict[str, tuple[int, str]]) -> dict[str, Place]:
    """{utterance: its part of a recording}. The end -1 becomes None: the end of the recording."""
    parts: dict[str, Place] = {}
    for id, (number, value) in table(path).items():
        words = value.split()
        try:
            recording, start, end = words[0], float(words[1]), float(words[2])
            if len(words) > 4 or not 0 <= start < float("inf") or not (start < end < float("inf") or end == -1):
                raise ValueError
        except (ValueError, IndexError):
            raise UserError(f"{path} line {number}: after {id} must stand a recording, its start and its later end in "
                            f"seconds, and maybe a channel, not {value!r}") from None
        if recording not in wav:
            raise UserError(f"{path} line {number}: recording {recording} is not in wav.scp")
        channel = None if len(words) == 3 else _channel(words[3], first=0)
        if len(words) == 4 and channel is None:
            raise UserError(f"{path} line {number}: {words[3]} is no channel: it must be 0, 1... or A, B...")
        parts[id] = Place(recording, start, None if end == -1 else end, channel)
    return parts


def _sides(path: Path, wav: dict[str, tuple[int, str]]) -> dict[str, int]:
    """The channel by recording, of those that reco2file_and_channel names; nothing without that file.

    Its sides are CTM's: A or 1 is the first channel.
    """
    sides: dict[str, int] = {}
    for id, (number, value) in (table(path) if path.is_file() else {}).items():
        side = _channel(value.split()[-1], first=1)
        if side is None or len(value.split()) != 2:
            raise UserError(f"{path} line {number}: after {id} must stand a file's name and A, B... or 1, 2..., not "
                            f"{value!r}")
        if id in wav:
            sides[id] = side
    return sides


def _channel(word: str, first: int) -> int | None:
    """A channel counted from 0, by its letter or by its number, where ``first`` is the first one; None: it is none."""
    if re.fullmatch(r"[A-H]", word):
        return ord(word) - ord("A")
    return int(word) - first if re.fullmatch(r"[0-9]{1,4}", word) and int(word) >= first else None


def _sound(scp: Path, number: int, id: str, value: str) -> Sound:
    """What an entry of wav.scp means. The entry is not executed."""
    if value.startswith("|") or value.endswith("|"):
        try:
            command = shlex.split(value.strip("|"))
        except ValueError:
            command = [value]
        if len(command) != 2 or command[0] != "cat" or value.startswith("|"):
            raise UserError(f"{scp} line {number}: the sound of {id} is made by a command ({value.strip('| ')[:80]}), "
                            "and commands are not executed here: write files first (Kaldi's wav-copy, ESPnet's "
                            "format_wav_scp.sh); `cat FILE |` alone is understood")
        return Sound(_resolve(scp, command[1]))
    place = re.fullmatch(r"(.+):(\d+)", value)
    if place:
        return Sound(_resolve(scp, place[1]), int(place[2]))
    return Sound(_resolve(scp, value))


def _resolve(scp: Path, name: str) -> Path:
    """The file that wav.scp names. A relative path is relative to the folder where a recipe runs, which is usually
    somewhere above data/train: each of these folders is tried."""
    above = [folder / name for folder in (*scp.absolute().parents[:4], Path.cwd())]
    return next((path for path in above if path.is_file()), above[-1])  # joining an absolute path gives that path


def _renamed(path: Path) -> dict[str, list]:
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(id, str) and (speaker is None or isinstance(speaker, str))
                   for id, speaker in names.values()):
            raise ValueError
        return names
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged: remove it, and utterances keep their Kaldi names") from None


def _plain(ids: Iterable[str]) -> dict[str, str]:
    """{id: the id without slashes and brackets}, at which hypothesis files and sclite break. Ids that would become the
    same get a hash each."""
    plain = {id: re.sub(r"[/\\()]+", "-", id) for id in ids}
    count = Counter(plain.values())
    return {id: name if count[name] == 1 else f"{name}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"
            for id, name in plain.items()}


def _recording(directory: Path, id: str, sound: Sound, out: Path) -> MonoCut | MultiCut:
    """The whole recording as a cut. Sound in an archive is first written to ``out/audio``."""
    if sound.offset is None:
        return utterance(id, sound.path)
    from speechlab.corpora.audio import write_flac

    name = f"{re.sub(r'[^0-9A-Za-z_.-]+', '-', id)}-{hashlib.sha256(id.encode()).hexdigest()[:8]}.flac"
    path = Path(out) / "audio" / directory.name / name
    write_flac(path, *_unpack(sound, id))
    return utterance(id, path)


def _unpack(sound: Sound, id: str):
    """Samples and rate in Hz at a place in an archive. (kaldiio's own way could unpickle what is there, or run a
    shell.)"""
    import soundfile
    from kaldiio.matio import read_kaldi

    try:
        with open(sound.path, "rb") as file:
            file.seek(sound.offset or 0)
            head = file.read(8)
            if head[:4] != b"RIFF" and head[:5] != b"AUDIO":
                raise ValueError("neither RIFF nor AUDIO stands there")
            promised, there = int.from_bytes(head[4:], "little"), file.seek(0, os.SEEK_END) - (sound.offset or 0)
            if head[:4] == b"RIFF" and there - 8 < promised < _UNKNOWN_LENGTH:  # kaldiio returns what there is
                raise ValueError(f"{there} of {promised + 8} bytes are there")
            file.seek(sound.offset or 0)
            rate, samples = read_kaldi(file, load_kwargs={"dtype": "int16"})  # which AUDIO takes; RIFF is 8 or 16 bits
        if samples.dtype == "uint8":  # 8-bit WAV is unsigned
            samples = (samples.astype("int16") - 128) * 256
        return samples, rate
    except (OSError, ValueError, EOFError, AssertionError, RuntimeError, soundfile.SoundFileError) as error:
        raise UserError(f"{sound.path} has no sound for {id} at {sound.offset} ({error}): was the archive written "
                        "after wav.scp?") from None
    except Exception as error:  # the wave module's own kind, of which kaldiio holds a copy
        raise UserError(f"{sound.path}: the sound of {id} at {sound.offset} can't be read ({error})") from None


def _cut(one: Utterance, whole: MonoCut | MultiCut) -> MonoCut | MultiCut:
    """The part of the recording that is the utterance."""
    recording = whole.recording
    behind = 0.0 if one.end is None else one.end - recording.duration
    end = recording.duration if -0.5 / recording.sampling_rate <= behind <= OVERSHOOT else one.end
    duration = recording.duration if end == recording.duration and not one.start else round(end - one.start, 8)
    # If an utterance begins after its recording's end, one sample is left, and speechlab.prepare calls it bad audio.
    duration = max(duration, 1 / recording.sampling_rate)
    channel = one.channel
    if channel is None and recording.num_channels > 1:  # else the one channel is a side that was taken out before
        channel = one.side
    return part(one.id, recording, one.start, duration, channel, text=one.text, speaker=one.speaker,
                language=one.language, custom=one.custom or None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
