"""What is recorded of a stage, and what has changed since.

A record lies beside the stage's outputs, in ``.stages/<number>_<title>.json``: ``status`` (running, done, failed,
interrupted), ``why`` the stage was run, and a signature of three parts, each kept readable so that a reason can be
told:

    arguments   the command's words, less those that change no result
    config      the sections of the resolved config that the stage names by --conf, flattened
    inputs      size, time and content of each file it reads
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

# Options of a stage's command that say how a result is made, but not what it is: its processes, and cmd.sh's own, where
# a stage calls that itself.
INDIFFERENT_OPTIONS = {"nj", "ngpu", "num_workers", "engine", "image", "backend", "log"}
# Keys of the config of the same kind, each by its full path: a model may well have an argument called log or image.
INDIFFERENT_KEYS = {
    "data.num_workers",  # who reads: what an epoch holds depends on seed and epoch alone
    "data.resident",  # where the images lie: on the device or beside it
    "train.threads",  # who computes, as --ngpu: sums are rounded otherwise, no more
    "train.log_steps", "train.tensorboard", "train.histograms", "train.wandb",  # what is told of a training
    "train.save_minutes", "train.keep",  # what an interruption may cost: a resumed training gives the same result
}
# All else counts, also what is nearly of this kind: train.amp (another arithmetic), train.average (other weights),
# decode.batch_size and decode.max_duration (the speed that results.txt tells is theirs).
# A training that was given more of these goes on from where it is.
GROWING = ("train.epochs", "train.max_minutes")
LARGEST_HASHED = 256 << 20  # bytes; what is larger (a feature archive, say) goes by size and time alone
NOT_SET = "not set"
DEFAULTS = "the defaults"  # the place of the defaults beside the sections of a resolved config
MOST_FILES = 200  # of a folder that is an input; a larger one (AISHELL has 140,000) goes by what its first level holds


def write(path: str, text: str) -> None:
    """Write a small file whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.tmp-{os.getpid()}"
    with open(aside, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load(stage: Stage) -> dict | None:
    """The stage's record; None if there is none. One that can't be read counts as a stage that was interrupted."""
    try:
        with open(stage.record_path, encoding="utf-8", errors="surrogateescape") as file:
            record = json.load(file)
        return record if {"status", "arguments", "config", "inputs"} <= set(record) else {"status": "unreadable"}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {"status": "unreadable"}


def save(stage: Stage, status: str, signature: dict, **more: object) -> None:
    """Record ``status`` and the signature, with the time and whatever else is worth knowing."""
    inputs = {name: {key: file[key] for key in ("size", "mtime_ns", "sha256")}
              for name, file in signature["inputs"].items()}
    record = {"status": status, "when": time.strftime("%Y-%m-%d %H:%M:%S"), **more, **signature, "inputs": inputs}
    write(stage.record_path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def arguments(stage: Stage, plan: Plan) -> list[str]:
    """The command's words that change results; the config's name is left out where its content is looked at."""
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
    """``word`` without the places where the repository and the downloads happen to lie (a mount differs, say)."""
    for name in ("downloads", "repo"):
        word = word.replace(plan.values[name], f"<{name}>")
    return word


def sections(stage: Stage, config: dict, strict: bool = True) -> dict[str, object]:
    """The part of the resolved config that the stage reads, as ``{"features.num_mel_bins": 80, ...}``.

    A section that isn't there is an error where ``strict``.
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
    return flat


def content(path: str) -> str:
    """SHA-256 of what a file says; "" if it is too large. Of a .gz, of what is in it: its header holds a time, and a
    manifest made again must not look changed."""
    if os.path.getsize(path) > LARGEST_HASHED:
        return ""
    for opened in (gzip.open, open) if path.endswith(".gz") else (open,):
        digest = hashlib.sha256()
        try:
            with opened(path, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            continue  # not, or not all of, what its name says
        return digest.hexdigest()
    return ""


def matches(path: str) -> list[str]:
    """What is there under an input's name, in which ``*`` stands for a part of a name."""
    if "*" in path:
        return sorted(glob.glob("*".join(glob.escape(part) for part in path.split("*"))))
    return [path] if os.path.exists(path) else []


def files_of(path: str) -> Iterator[str]:
    """The files that stand for an input: a folder's own, at any depth, without hidden ones and logs."""
    for place in matches(path):
        if not os.path.isdir(place):
            yield place
            continue
        for folder, inner, files in os.walk(place):
            inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "log")
            yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))


def fingerprints(stage: Stage, plan: Plan, with_content: bool) -> dict[str, dict]:
    """``{path: {"size", "mtime_ns", "sha256"}}`` of the inputs; of those that are there."""
    made: dict[str, dict] = {}
    for path in stage.inputs:
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
    """The three parts as they are now. Contents are only read on demand: a file whose time is unchanged needs none."""
    inputs = fingerprints(stage, plan, with_content)
    return {"arguments": arguments(stage, plan), "config": sections(stage, config) if stage.conf and config else {},
            "inputs": inputs}


def defaults(stage: Stage, config: dict | None) -> dict[str, object]:
    """What the keys of the stage's sections are where nobody sets them."""
    return sections(stage, config.get(DEFAULTS, {}), strict=False) if stage.conf and config else {}


def changes(record: dict, now: dict, defaults: dict[str, object] | None = None) -> tuple[list[str], dict[str, tuple]]:
    """What differs between a record and the signature ``now``: reasons, and the config's keys with (was, is).

    A key that the record doesn't know and that stands at its default is younger than the record: no change.
    An input with another time but the same content is no change; its new time is noted in ``record["inputs"]`` (and
    ``record["touched"]`` set), so that its content need not be read again.
    """
    was, is_ = record["config"], now["config"]
    was = {key: value for key, value in was.items() if key not in INDIFFERENT_KEYS}  # of an older version
    young = {key for key, value in (defaults or {}).items() if key not in was and is_.get(key, NOT_SET) == value}
    keys = {key: (was.get(key, NOT_SET), is_.get(key, NOT_SET)) for key in [*was, *(k for k in is_ if k not in was)]
            if is_ and key not in young and was.get(key, NOT_SET) != is_.get(key, NOT_SET)}
    reasons = []
    if record["arguments"] != now["arguments"]:
        reasons.append(_argument_reason(record["arguments"], now["arguments"]))
    for name, new in now["inputs"].items():
        old = record["inputs"].get(name)
        if old is None:
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
    """``num_mel_bins was 80, is 40``: by a key's last part, unless two of them are alike."""
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
