"""The record of a stage, and what has changed since it was written.

The record is beside the stage's outputs, in ``.stages/<number>_<title>.json``. It has ``status`` (running, done,
failed, interrupted), ``why`` the stage was run, and a signature of three parts. These are kept as readable text, so
that we can tell what has changed:

    arguments   the words of the command, without those that change no result
    config      the sections of the resolved config that the stage names by --conf, flattened
    inputs      size, time and content of each file that the stage reads
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterator

from stagelib.plan import Plan, Stage, Stop, nearest

# Options of a stage's command that change how a result is made, but not the result: the number of processes; and the
# options of cmd.sh, for a stage that calls it.
INDIFFERENT_OPTIONS = {"nj", "ngpu", "num_workers", "engine", "image", "backend", "log"}
# Keys of the config that change no result. Each has its full path, because a model may have an argument log or image.
INDIFFERENT_KEYS = {
    "data.num_workers",  # how many processes read; what an epoch holds depends on seed and epoch alone
    "data.resident",  # where the images are kept: on the device or not
    "train.threads",  # how many cores compute, as --ngpu: sums are only rounded in another way
    "train.log_steps", "train.tensorboard", "train.histograms", "train.wandb",  # what is logged
    "train.save_minutes", "train.keep",  # how much an interruption costs; a resumed training gives the same result
}
# All other keys count. Some of them look as if they did not: train.amp (it changes the arithmetic), train.average (it
# changes the weights), decode.batch_size and decode.max_duration (they change the speed, which results.txt tells).
# If one of these grows, a training goes on from where it is.
GROWING = ("train.epochs", "train.max_minutes")
LARGEST_HASHED = 256 << 20  # bytes; of a larger file (e.g. a feature archive), only size and time are compared
NOT_SET = "not set"
DEFAULTS = "the defaults"  # the key of the defaults, beside the sections of a resolved config
TASK = "task"  # the config's line that says which one
OWN_CODE = "local"  # the recipe's folder of its own modules
FIRST_OF_OWN_CODE = 4  # the training; what comes before it makes data, by modules of the house
MOST_FILES = 200  # if an input is a folder with more files (AISHELL has 140,000), only its first level is compared


def write(path: str, text: str) -> None:
    """Write a small file: all of it or nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.tmp-{os.getpid()}"
    with open(aside, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load(stage: Stage) -> dict | None:
    """The stage's record; None if there is none. If it can't be read, its status says so, and the stage runs again."""
    try:
        with open(stage.record_path, encoding="utf-8", errors="surrogateescape") as file:
            record = json.load(file)
        return record if {"status", "arguments", "config", "inputs"} <= set(record) else {"status": "unreadable"}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {"status": "unreadable"}


def save(stage: Stage, status: str, signature: dict, **more: object) -> None:
    """Write the record: ``status``, the signature, the time, and ``more``."""
    inputs = {name: {key: file[key] for key in ("size", "mtime_ns", "sha256")}
              for name, file in signature["inputs"].items()}
    record = {"status": status, "when": time.strftime("%Y-%m-%d %H:%M:%S"), **more, **signature, "inputs": inputs}
    write(stage.record_path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def arguments(stage: Stage, plan: Plan) -> list[str]:
    """The words of the command that change results. The config's name is left out if its content is compared."""
    words, kept = list(stage.command), []
    while words:
        word = words.pop(0)
        if word.startswith("--") and word[2:].partition("=")[0] in INDIFFERENT_OPTIONS:
            if "=" not in word and words and not words[0].startswith("--"):
                words.pop(0)
        elif not (stage.conf and word == plan.values["config"]):
            kept.append(portable(word, plan))
    return kept


def portable(word: str, plan: Plan) -> str:
    """``word`` without the paths of the repository and the downloads, which may be mounted in another place."""
    for name in ("downloads", "repo"):
        word = word.replace(plan.values[name], f"<{name}>")
    return word


def sections(stage: Stage, config: dict, strict: bool = True) -> dict[str, object]:
    """The part of the resolved config that the stage reads, as ``{"features.num_mel_bins": 80, ...}``.

    With ``strict``, a section that does not exist is an error.
    """
    flat: dict[str, object] = {}

    def add(key: str, value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        elif key not in INDIFFERENT_KEYS:
            flat[key] = value

    for section in stage.conf:
        if section not in config and not strict:
            continue
        if section not in config:
            hint = nearest(section, list(config))
            raise Stop(f"{stage.name}: --conf {section}: the config has no such section{hint}", 2)
        add(section, config[section])
    if stage.train and stage.conf and TASK in config:
        flat[TASK] = config[TASK]  # another task has another loss over the same network
    return flat


def content(path: str) -> str:
    """SHA-256 of a file's content; "" if the file is too large. For a .gz, it is that of the unpacked content: the
    header holds a time, and a manifest that was made again must not look changed."""
    if os.path.getsize(path) > LARGEST_HASHED:
        return ""
    for opened in (gzip.open, open) if path.endswith(".gz") else (open,):
        digest = hashlib.sha256()
        try:
            with opened(path, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            continue  # it is no gzip file, or is cut short
        return digest.hexdigest()
    return ""


def matches(path: str) -> list[str]:
    """The files and folders that an input's name stands for; ``*`` in it stands for a part of a name."""
    if "*" in path:
        return sorted(glob.glob("*".join(glob.escape(part) for part in path.split("*"))))
    return [path] if os.path.exists(path) else []


def files_of(path: str) -> Iterator[str]:
    """The files of an input: the file itself, or those in the folder, at any depth, without hidden files and logs."""
    for place in matches(path):
        if not os.path.isdir(place):
            yield place
            continue
        for folder, inner, files in os.walk(place):
            inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "log")
            yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))


def own_code(stage: Stage, config: dict | None) -> list[str]:
    """The recipe's own modules, as inputs of a stage: where the config names a task or a network of ``local/``, they
    decide what the training and all that follows it do."""
    def names_local(value: object) -> bool:
        if isinstance(value, dict):
            return any(map(names_local, value.values()))
        return isinstance(value, str) and value.startswith("local.")

    plain = {key: value for key, value in (config or {}).items() if key != DEFAULTS}
    if stage.number < FIRST_OF_OWN_CODE or not names_local(plain):
        return []
    return sorted(path for path in files_of(OWN_CODE) if path.endswith(".py"))


def fingerprints(stage: Stage, plan: Plan, with_content: bool, more: list[str]) -> dict[str, dict]:
    """``{path: {"size", "mtime_ns", "sha256"}}`` of those inputs, and of ``more``, that exist."""
    made: dict[str, dict] = {}
    for path in [*stage.inputs, *more]:
        files = list(itertools.islice(files_of(path), MOST_FILES + 1))
        if len(files) > MOST_FILES:
            names = sorted(os.listdir(path)) if os.path.isdir(path) else matches(path)
            listing = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
            made[portable(path, plan)] = {"size": len(names), "mtime_ns": 0, "sha256": listing}
            continue
        for file in files:
            try:
                stat = os.stat(file)
            except FileNotFoundError:
                continue
            made[portable(file, plan)] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
                                          "sha256": content(file) if with_content else "", "path": file}
    return made


def signature(stage: Stage, plan: Plan, config: dict | None, with_content: bool = False) -> dict:
    """The three parts of the signature as they are now. Contents are read only ``with_content``: a file whose time has
    not changed need not be read."""
    inputs = fingerprints(stage, plan, with_content, own_code(stage, config))
    return {"arguments": arguments(stage, plan), "config": sections(stage, config) if stage.conf and config else {},
            "inputs": inputs}


def defaults(stage: Stage, config: dict | None) -> dict[str, object]:
    """The defaults of the keys in the stage's sections."""
    return sections(stage, config.get(DEFAULTS, {}), strict=False) if stage.conf and config else {}


def changes(record: dict, now: dict, defaults: dict[str, object] | None = None) -> tuple[list[str], dict[str, tuple]]:
    """What differs between a record and the signature ``now``: the reasons, and {key of the config: (was, is)}.

    Two things are no change. A key that the record does not have and that has its default: it was added to speechlab
    after the record. An input with another time but the same content: its new time is noted in ``record["inputs"]``
    (and ``record["touched"]`` is set), so that its content need not be read again.
    """
    was, is_ = record["config"], now["config"]
    # Older versions recorded them, too.
    was = {key: value for key, value in was.items() if key not in INDIFFERENT_KEYS}
    # An older record has no task.
    is_ = is_ if TASK in was else {key: value for key, value in is_.items() if key != TASK}
    young = {key for key, value in (defaults or {}).items() if key not in was and is_.get(key, NOT_SET) == value}
    keys = {key: (was.get(key, NOT_SET), is_.get(key, NOT_SET)) for key in [*was, *(k for k in is_ if k not in was)]
            if is_ and key not in young and was.get(key, NOT_SET) != is_.get(key, NOT_SET)}
    reasons = []
    if record["arguments"] != now["arguments"]:
        reasons.append(_argument_reason(record["arguments"], now["arguments"]))
    for name, new in now["inputs"].items():
        old = record["inputs"].get(name)
        if old is None:
            if not (name.startswith(OWN_CODE + os.sep) and not any(n.startswith(OWN_CODE + os.sep)
                                                                   for n in record["inputs"])):  # an older record
                reasons.append(f"{name} is new")
        elif old["size"] != new["size"] and not name.endswith(".gz"):
            reasons.append(f"{name} has changed")
        elif (old["mtime_ns"], old["size"]) != (new["mtime_ns"], new["size"]) or not new["mtime_ns"]:
            sha = new["sha256"] or content(new["path"])
            if not sha or sha != old["sha256"]:
                reasons.append(f"{name} has changed")
            elif new["mtime_ns"]:
                old.update(size=new["size"], mtime_ns=new["mtime_ns"])
                record["touched"] = True
    return reasons, keys


def gone(stage: Stage, plan: Plan, record: dict, now: dict) -> list[str]:
    """``NAME is gone`` for files of an input with ``*`` that the record knows, where others of that input are there: a
    method that nobody decodes by any more must not stand in the results. An input that is gone as a whole (a corpus,
    to save space) is no change."""
    found = []
    for path in stage.inputs:
        if "*" in path and matches(path):
            pattern = "[^/]*".join(re.escape(part) for part in portable(path, plan).split("*"))
            found += [f"{name} is gone" for name in record["inputs"]
                      if name not in now["inputs"] and re.fullmatch(pattern, name)]
    return found


def key_reasons(keys: dict[str, tuple]) -> list[str]:
    """``num_mel_bins was 80, is 40`` for each key. Only the last part of a key is named, unless two would be alike."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [f"{name if last.count(name) == 1 else key} was {_show(old)}, is {_show(new)}"
            for name, (key, (old, new)) in zip(last, keys.items())]


def _show(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _argument_reason(old: list[str], new: list[str]) -> str:
    was, is_ = _by_option(old), _by_option(new)
    for key in [*was, *is_]:
        if was.get(key) != is_.get(key):
            show = [" ".join(words[key]) or "given" if key in words else "not given" for words in (was, is_)]
            return f"{key} was {show[0]}, is {show[1]}"
    return "the command's words are in another order"


def _by_option(words: list[str]) -> dict[str, list[str]]:
    """``{"the command": [python, -m, ...], "--data": [...], ...}``."""
    options: dict[str, list[str]] = {"the command": []}
    name = "the command"
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options.setdefault(name, []).extend([value] if equals else [])
        else:
            options[name].append(word)
    return options
