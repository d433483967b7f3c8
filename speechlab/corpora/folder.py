"""A corpus of one's own: a folder of audio files and a ``manifest.tsv`` that says what they are.

``manifest.tsv`` is UTF-8, separated by tabs, with a header line. Its columns:

* ``path``: needed; relative to the folder, or absolute. soundfile must be able to read the file. Any sample rate and
  any number of channels will do.
* what the recipe learns from: needed. This is ``text``, or what ``prepare --carry`` names: ``label``, ``speaker``,
  ``clean`` (the path of the clean version of a noisy file), or a recipe's own word. In ``text``, non-speech symbols
  such as ``<NOISE>`` are left out; ``prepare --option symbols=keep`` keeps them as tokens.
* ``speaker``, ``split`` (train, dev, test or test_...), ``language`` (zh, en...): optional.
* any other column becomes a custom field of the supervision.

If only labels are carried, folders of classes may take the manifest's place: ``yes/*.wav no/*.flac``, or the same under
``train`` and ``test`` (and ``dev`` or ``valid``).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from speechlab.corpora.cuts import threaded, utterance
from speechlab.errors import UserError
from speechlab.files import Walked, is_hidden, shown, walk
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "your own: a folder with manifest.tsv (path, text or label...; optional speaker, split, language)"
LICENSE = "yours"
SPEAKERS_SHARED = True  # speakers are checked here instead: a random split must be allowed to share them

MANIFEST = "manifest.tsv"
_SHARE = 0.1  # of all utterances, for dev and for test each
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aif", ".aiff", ".au", ".sph", ".w64", ".caf")
_SPLIT_NAMES = {"training": "train", "valid": "dev", "val": "dev", "validation": "dev", "development": "dev",
                "eval": "test", "evaluation": "test", "testing": "test"}
Row = dict[str, str]


def fetch(root: Path) -> Path:
    """There is nothing to fetch: always a UserError."""
    raise UserError(f"folder is a corpus of your own: give its folder, which holds {MANIFEST}, with --data_dir DIR")


def prepare(folder: Path, out: Path, nj: int = 1, split_by: str = "auto", carry: tuple[str, ...] = ("text",),
            shared_speakers: bool = False) -> dict[str, CutSet]:
    """Read ``folder/manifest.tsv``, or class folders, and split it into train, dev and test.

    Args:
        split_by: ``column`` (what the manifest says), or 80/10/10 by ``speaker`` (needs three speakers at least) or
            ``random`` (within each class, if labels are carried). ``auto`` is the first of these that the manifest
            allows.
        carry: columns that must be there, and filled in on every line.
        shared_speakers: accept that the column ``split`` puts a speaker into two splits.
    Returns:
        A CutSet for each split.
    Raises:
        UserError: for a fault in the manifest or the folders: it names the lines, and says what to do.
    """
    from lhotse import CutSet

    manifest = Path(folder) / MANIFEST
    if tuple(carry) == ("label",) and not manifest.exists():
        rows, described = read_class_folders(Path(folder)), Path(folder)
    else:
        rows, described = read_manifest(manifest, carry), manifest
    by_path = split_rows(rows, described, split_by, shared_speakers, by_label="label" in carry)
    ids = name_rows(rows)

    def cut(row: Row):
        custom = {key: value for key, value in row.items()
                  if key not in ("path", "text", "speaker", "split", "language") and value}
        if "clean" in carry:
            custom["clean"] = os.path.abspath(manifest.parent / row["clean"])
        return utterance(ids[row["path"]], manifest.parent / row["path"], row.get("text"), row.get("speaker") or None,
                         row.get("language") or None, **custom)

    splits: dict[str, list] = defaultdict(list)
    for made, row in zip(progress(threaded(cut, rows, nj), "Reading headers", total=len(rows)), rows):
        splits[by_path[row["path"]]].append(made)
    return {split: CutSet.from_cuts(splits[split]) for split in sorted(splits)}


def read_manifest(manifest: Path, need: Iterable[str] = ("text",)) -> list[Row]:
    """The lines of a manifest as dicts, checked. A fault is one UserError that names the lines and says what to do."""
    need = ["path", *need]
    if not manifest.is_file():
        raise UserError(f"{manifest.parent} has no {MANIFEST}: write one, separated by tabs, with a header line and "
                        f"the columns {', '.join(need)} (speaker, split and language if you have them)")
    try:
        text = manifest.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    # By hand: csv's fields end at 131,072 characters, and str.splitlines breaks lines at U+2028 and other characters.
    lines = [line.split("\t") for line in re.split(r"\r\n|\r|\n", text)]
    header = [name.strip() for name in lines[0]]
    lacks = [name for name in need if name not in header]
    if lacks:
        hint = " (is it separated by tabs?)" if len(header) < 2 else ""
        raise UserError(f"{manifest} lacks the column {', '.join(lacks)}: its header line has "
                        f"{', '.join(header) or 'nothing'}{hint}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"{manifest} has two columns named {twice[0]}: rename one")
    numbered = [(number, line) for number, line in enumerate(lines[1:], 2) if any(field.strip() for field in line)]
    if not numbered:
        raise UserError(f"{manifest} has a header line and nothing under it")
    _refuse(manifest, [number for number, line in numbered if len(line) != len(header)],
            lambda n: f"{len(lines[n - 1])} fields", f"lines don't have the header's {len(header)} fields",
            "separate all fields with one tab")
    rows = {number: dict(zip(header, map(str.strip, line))) for number, line in numbered}
    for name in need:
        _refuse(manifest, [number for number, row in rows.items() if not row[name]], lambda n: rows[n]["path"],
                f"lines have an empty {name}", "fill it in or remove the line")
    first: dict[Path, int] = {}
    for number, row in rows.items():
        first.setdefault(manifest.parent / row["path"], number)
    _refuse(manifest, [n for n, row in rows.items() if first[manifest.parent / row["path"]] != n],
            lambda n: rows[n]["path"], "lines name a file that a line above them names too", "keep one of them")
    _refuse(manifest, [n for n, row in rows.items() if not (manifest.parent / row["path"]).is_file()],
            lambda n: rows[n]["path"], "files that it names are not there",
            f"paths are relative to {manifest.parent}; add the files or remove the lines")
    return list(rows.values())


def read_class_folders(folder: Path, suffixes: tuple[str, ...] = _SUFFIXES, what: str = "audio") -> list[Row]:
    """Path and label of each file in ``folder/<label>/``; or path, label and split of each file in
    ``folder/{train,dev,test}/<label>/``. Files may lie deeper in a class's folder, and folders may be links.

    What is left out is counted on stderr. A link with a right name that leads nowhere is taken as a file: whoever reads
    it says what is wrong.

    Args:
        suffixes: files with other suffixes are left out.
        what: what the files are, for messages.
    Raises:
        UserError: there are no class folders, or one is empty.
    """
    parts = _folders(folder)
    if not parts:
        raise UserError(f"{folder} has neither a folder for each class nor {MANIFEST} (with the columns path, label)")
    by_split = {part: split_name(part.name) for part in parts if split_name(part.name) in ("train", "dev", "test")}
    others = [part for part in parts if part not in by_split]
    if "train" in by_split.values() and (not others or len(set(by_split.values())) > 1):
        for part in others:
            _note(f"{part} is left out: beside {', '.join(path.name for path in by_split)} it is neither a split nor a "
                  "class")
        rows = [{**row, "split": split} for part, split in by_split.items()
                for row in _class_rows(folder, part, suffixes, what)]
    else:
        for part in by_split:
            _note(f"{part} is taken for a class, since {others[0].name} beside it is no split" if others else
                  f"{part} is taken for a class, since there is no train beside it")
        rows = _class_rows(folder, folder, suffixes, what)
    odd = [row["path"] for row in rows if shown(row["path"]) != row["path"] and not _is_utf8(row["path"])]
    if odd:
        raise UserError(f"{folder}: {len(odd)} names are not UTF-8 (first: {shown(odd[0])}): rename them (convmv does "
                        "it for whole folders)")
    return rows


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps such bytes as surrogates, which no manifest can hold
        return False
    return True


def _class_rows(folder: Path, part: Path, suffixes: tuple[str, ...], what: str) -> list[Row]:
    rows: list[Row] = []
    others = 0
    there = sorted(part.iterdir())
    left_out = Walked(part, hidden=[path for path in there if _is_no_class(path)],
                      dangling=[path for path in there if not path.exists() and not is_hidden(path.name)])
    loose = [path for path in there if path.is_file() and path.suffix.lower() in suffixes and not is_hidden(path.name)]
    if loose:
        _note(f"{len(loose)} files in {part} itself (first: {shown(loose[0].name)}) are {what}, but in no class's "
              "folder: left out")
    first: dict[Path, Path] = {}
    for of_class in _folders(part):
        twin = first.setdefault(of_class.resolve(), of_class)
        if twin != of_class:
            _note(f"{of_class} is {twin} by another name: all that is in it counts for both")
        walked = walk(of_class, known=_folders(part))
        files = sorted(walked.files + [path for path in walked.dangling if path.suffix.lower() in suffixes])
        left_out.dangling += [path for path in walked.dangling if path not in files]
        left_out.hidden += walked.hidden
        left_out.again += walked.again
        left_out.closed += walked.closed
        good = [path for path in files if path.suffix.lower() in suffixes]
        if not good:
            raise UserError(f"the class folder {of_class} has no {what} ({', '.join(suffixes[:4])}...): add some, or "
                            "remove the folder")
        others += len(files) - len(good)
        rows += [{"path": path.relative_to(folder).as_posix(), "label": of_class.name} for path in good]
    if others:
        _note(f"{others} files under {part} are no {what} by their names: left out")
    for note in left_out.notes():
        _note(note)
    if not rows:
        raise UserError(f"{part} has no folder for a class: put its {what} into {part}/LABEL/")
    return rows


def _folders(folder: Path) -> list[Path]:
    """The folders of classes, or of splits; UserError for a link to nothing, which may have been one."""
    there = sorted(folder.iterdir())
    gone = [path for path in there if path.is_symlink() and not path.exists() and not path.suffix]
    if gone:
        raise UserError(f"{shown(gone[0])} is a link to nothing ({shown(os.readlink(gone[0]))}): mend or remove it")
    return [path for path in there if path.is_dir() and not _is_no_class(path)]


def _is_no_class(path: Path) -> bool:
    return is_hidden(path.name) or (path.name.startswith("__") and path.is_dir())


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def split_name(name: str) -> str:
    """The name that a split has here: ``Valid`` -> ``dev``. An unknown name is put in lower case."""
    return _SPLIT_NAMES.get(name.lower(), name.lower())


def split_rows(rows: list[Row], manifest: Path, split_by: str = "auto", shared_speakers: bool = False,
               by_label: bool = False) -> dict[str, str]:
    """The split of each row's path. ``split_by`` and ``shared_speakers``: see :func:`prepare`. ``by_label``: a random
    split is made within each class."""
    speakers = {row.get("speaker", "") for row in rows}
    ways = {"column": "split" in rows[0], "speaker": "" not in speakers and len(speakers) >= 3, "random": True}
    if split_by == "auto":
        split_by = next(way for way, possible in ways.items() if possible)
    if split_by not in ways:
        raise UserError(f"--split_by {split_by}: it must be one of auto, {', '.join(ways)}", status=2)
    if not ways[split_by]:
        lack = "a column split" if split_by == "column" else "a column speaker, filled in, with at least three speakers"
        raise UserError(f"--split_by {split_by} needs {lack}: {manifest} has none; use --split_by random")
    if len(rows) < 3:
        raise UserError(f"{manifest} has {len(rows)} utterances: at least three are needed (train, dev, test)")
    if split_by == "speaker":
        by_speaker = split_speakers(Counter(row["speaker"] for row in rows))
        return {row["path"]: by_speaker[row["speaker"]] for row in rows}
    if split_by == "random":
        if speakers - {""}:
            print(f"note: {manifest} is split at random, so the test's speakers are heard in training", file=sys.stderr)
        return _split_random(rows, manifest, by_label)
    return _split_column(rows, manifest, shared_speakers, by_label)


def split_speakers(utterances: dict[str, int], parts: tuple[str, ...] = ("test", "dev"),
                   share: float = _SHARE) -> dict[str, str]:
    """The split of each speaker. Each of ``parts`` gets whole speakers with about ``share`` of all utterances; train
    gets the other speakers.

    Speakers are taken in the order of their hashes, so a new file moves few speakers to another split. A speaker who
    would bring a part above 1.5 times its share is passed over, unless there is no other.

    Args:
        utterances: how many utterances each speaker has.
    """
    left = sorted(utterances, key=_hash)
    wanted = share * sum(utterances.values())
    split: dict[str, str] = {}
    for index, part in enumerate(parts):
        most = len(left) - (len(parts) - index)  # leave a speaker for each of the parts that follow, and for train
        taken: list[str] = []
        for speaker in left:
            has = sum(utterances[s] for s in taken)
            if has < wanted and len(taken) < most and has + utterances[speaker] <= 1.5 * wanted:
                taken.append(speaker)
        taken = taken or [min(left, key=lambda speaker: utterances[speaker])]
        split.update(dict.fromkeys(taken, part))
        left = [speaker for speaker in left if speaker not in taken]
    return {**split, **dict.fromkeys(left, "train")}


def split_random(paths: list[str], parts: tuple[str, ...] = ("test", "dev"), share: float = _SHARE) -> dict[str, str]:
    """The split of each path, by the path's own hash: a new file never moves another one. A part that would stay empty
    gets one path."""
    order = sorted(paths, key=_hash)
    bounds = [((i + 1) * share, part) for i, part in enumerate(parts)]
    split = {path: next((part for bound, part in bounds if _hash(path) < bound), "train") for path in paths}
    for part in parts:
        if part not in split.values():
            counts = Counter(split.values())
            split[next(path for path in order if counts[split[path]] > 1)] = part
    if "train" not in split.values():
        counts = Counter(split.values())
        split[next((path for path in reversed(order) if counts[split[path]] > 1), order[-1])] = "train"
    return split


def _split_random(rows: list[Row], manifest: Path, by_label: bool,
                  parts: tuple[str, ...] = ("test", "dev")) -> dict[str, str]:
    """:func:`split_random`; with ``by_label``, within each class. A class with too few clips for all parts is in train
    alone."""
    if not by_label:
        return split_random([row["path"] for row in rows], parts)
    classes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        classes[row["label"]].append(row["path"])
    most = max(map(len, classes.values()))
    if most <= len(parts):
        raise UserError(f"{manifest}: no class has more than {most} clips, so none can be taken for "
                        f"{' and '.join(parts)}: add clips, or say the split of each")
    split: dict[str, str] = {}
    for paths in classes.values():
        split.update(split_random(paths, parts) if len(paths) > len(parts) else dict.fromkeys(paths, "train"))
    return split


def _split_column(rows: list[Row], manifest: Path, shared_speakers: bool, by_label: bool) -> dict[str, str]:
    split = {row["path"]: split_name(row["split"]) for row in rows}
    strange = sorted(row["split"] for row in rows if not re.fullmatch(r"train|dev|test(_\w+)?", split[row["path"]]))
    if strange:
        raise UserError(f"{manifest}: split {strange[0]!r} is none of train, dev, test, test_NAME: correct it")
    train = [row for row in rows if split[row["path"]] == "train"]
    there = {name.partition("_")[0] for name in split.values()}
    parts = tuple(part for part in ("test", "dev") if part not in there)
    if not train:
        raise UserError(f"{manifest}: no line has the split train: correct the column, or give --split_by random")
    if parts:  # dev or test is missing: take it from train, by speakers if that is possible
        speakers = Counter(row.get("speaker", "") for row in train)
        if "" not in speakers and len(speakers) > len(parts):
            by_speaker = split_speakers(speakers, parts)
            split.update({row["path"]: by_speaker[row["speaker"]] for row in train})
        elif len(train) > len(parts):
            split.update(_split_random(train, manifest, by_label, parts))
        else:
            raise UserError(f"{manifest}: too few lines have the split train to take {' and '.join(parts)} from them")
    where: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        where[row.get("speaker", "")].add(split[row["path"]].partition("_")[0])
    shared = sorted(speaker for speaker, found in where.items() if speaker and len(found) > 1)
    if shared and not shared_speakers:
        more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
        raise UserError(f"{manifest}: speaker {shared[0]}{more} is in {' and '.join(sorted(where[shared[0]]))}, so the "
                        "test would not be on unseen voices: use --split_by speaker, or correct the column split")
    return split


def name_rows(rows: list[Row]) -> dict[str, str]:
    """An id for each path: the path without suffix, spaces, slashes and brackets, at which Kaldi's and sclite's files
    break. Two paths that would get the same id get a hash each as well."""
    stems = {row["path"]: str(Path(row["path"]).with_suffix("")).strip("./") for row in rows}
    plain = {path: re.sub(r"[\s/\\()]+", "-", stem) for path, stem in stems.items()}
    count = Counter(plain.values())
    return {path: id if count[id] == 1 else f"{id}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
            for path, id in plain.items()}


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _refuse(manifest: Path, lines: list[int], show: Callable[[int], str], what: str, todo: str) -> None:
    """If any ``lines`` have a fault, raise one UserError: how many they are, the first three, what to do."""
    if lines:
        some = ", ".join(f"line {n}: {show(n)}" for n in lines[:3]) + (", ..." if len(lines) > 3 else "")
        raise UserError(f"{manifest}: {len(lines)} {what} ({some}): {todo}")
