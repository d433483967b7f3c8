"""The form ``speech``: lhotse cuts by split become manifests, after the checks that all corpora share.

The steps are: normalise text, and leave out or keep its non-speech symbols (``OPTIONS``); decode every file once, and
list and leave out what can't be used; check that no speaker is in two splits; write ``{split}.jsonl.gz``,
``bad_audio.tsv`` and ``summary.json``. The same input gives the same bytes.

Only what items carry is checked: the ``text`` and ``speaker`` of the supervision; in ``supervision.custom``, a
``label``, the path of a ``clean`` partner, or a recipe's own word. Silence is a fault; but if items carry labels, it
may be a class.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab.corpora.cuts import threaded
from speechlab.data.check import check_audio, check_partner
from speechlab.data.forms import Corpus
from speechlab.data.manifests import carried, write_splits
from speechlab.data.symbols import Symbols
from speechlab.data.text import normalise
from speechlab.errors import UserError
from speechlab.files import shown, write_json, write_text
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import CutSet, MonoCut

CARRIES = ("text",)
# symbols: leave_out or keep, for non-speech symbols such as <NOISE>. nlsyms: a file that names further ones. Both are
# described in speechlab/data/symbols.py.
OPTIONS = {"symbols": "leave_out", "nlsyms": ""}
SAMPLE_RATE = 16000  # Hz, of the sound in recipes; sound of other rates is resampled when features are computed
WORDLESS = "text: nothing but non-speech symbols"  # the reason for such an utterance; it is no fault of the corpus
LONG = 60.0  # seconds; a longer utterance is usually a mistake, and may not fit into memory


def finish(made: Mapping[str, CutSet], out: Path, corpus: Corpus) -> dict[str, dict]:
    """Normalise, check, and write all splits to ``out``. On any error none is written. Returns what summary.json holds.

    Args:
        made: the cuts of each split, one supervision per cut.
        out: the folder of the manifests.
        corpus: what the cuts carry, and whether speakers may be in several splits.
    Raises:
        UserError: splits that recipes can't use, a speaker in two splits, too many bad utterances, a class without
            training utterances.
    """
    if not isinstance(made, Mapping):
        raise UserError(f"{corpus.name}: prepare() must return {{split: CutSet}}, and returned a "
                        f"{type(made).__name__}: if its data is not speech, its module must name a FORM")
    order = sorted(made, key=lambda split: (split != "train", split))
    cuts = {split: sorted(made[split], key=lambda cut: cut.id) for split in order}
    options = {**OPTIONS, **corpus.options}
    symbols = Symbols.read(options["symbols"], options["nlsyms"])
    _check_splits(cuts)
    if not corpus.shared_speakers:
        _check_speakers(cuts)
    counted = {split: _count_symbols(some, symbols) for split, some in cuts.items()}
    changed = {split: sum(_normalise_text(cut, symbols) for cut in some) for split, some in cuts.items()}
    bad = _find_bad(cuts, corpus, symbols)
    _write_bad(out, cuts, bad)
    good = {split: [cut for cut in some if cut.id not in bad] for split, some in cuts.items()}
    summary = {split: _summary(good[split], len(cuts[split]), changed[split]) for split in good}
    if "label" in corpus.carries:
        _count_classes(summary, good)
    if any(counted.values()):  # corpora without any have no such key
        for split, row in summary.items():
            row["symbols"] = dict(sorted(counted[split].items()))
    stale = _earlier_splits(out) - set(good)
    write_json(out / "summary.json", summary)
    write_splits(out, good)
    for split in stale:
        (out / f"{split}.jsonl.gz").unlink(missing_ok=True)
    _show(summary, symbols.keep)
    return summary


def _check_splits(cuts: dict[str, list[MonoCut]]) -> None:
    """Check what recipes rely on: train, dev and a test that are not empty, unique ids, one supervision per cut."""
    tests = [split for split in cuts if split.startswith("test")]
    strange = [split for split in cuts if split not in ("train", "dev", *tests)]
    if strange or not {"train", "dev"} <= set(cuts) or not tests:
        raise UserError(f"the splits must be train, dev and test (or test_...): got {', '.join(cuts) or 'none'}")
    seen: dict[str, str] = {}
    for split, some in cuts.items():
        if not some:
            raise UserError(f"{split} has no utterances: add some, or split otherwise (--split_by)")
        for cut in some:
            if cut.id in seen:
                raise UserError(f"two utterances are named {cut.id}, in {seen[cut.id]} and {split}: ids must be unique")
            if len(cut.supervisions) != 1:
                raise UserError(f"utterance {cut.id} in {split} has {len(cut.supervisions)} supervisions, not one")
            seen[cut.id] = split
            for source in cut.recording.sources:
                if source.type == "file":  # absolute: recipes, containers and notebooks run in different folders
                    source.source = os.path.abspath(source.source)


def _check_speakers(cuts: dict[str, list[MonoCut]]) -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for split, some in cuts.items():
        for cut in some:
            if cut.supervisions[0].speaker is not None:
                where[cut.supervisions[0].speaker].add("test" if split.startswith("test") else split)
    shared = sorted(speaker for speaker, found in where.items() if len(found) > 1)
    if shared:
        first = f"speaker {shared[0]} is in {' and '.join(sorted(where[shared[0]]))}"
        more = f" (and {len(shared) - 1} more speakers)" if len(shared) > 1 else ""
        raise UserError(f"{first}{more}: each speaker belongs in one split, or a test is not on unseen voices")


def _count_symbols(cuts: list[MonoCut], symbols: Symbols) -> Counter[str]:
    """Count each non-speech symbol in the transcripts, and print a note about words that look like one."""
    found: Counter[str] = Counter()
    strange: Counter[str] = Counter()
    for cut in cuts:
        text = cut.supervisions[0].text
        found.update(symbols.count(text))
        strange.update(symbols.unlisted(text))
    if strange:
        (first, count), *others = strange.most_common()
        more = f" and {len(others)} others" if others else ""
        print(f"note: {first} ({count} times){more} in transcripts are read as words: if they are no speech, list "
              "them in a file, a symbol per line, and give it (run.sh --nlsyms FILE, or --option nlsyms=FILE)",
              file=sys.stderr)
    return found


def _normalise_text(cut: MonoCut, symbols: Symbols) -> bool:
    """Normalise the text in place. If this changes it, keep the original as ``raw_text`` and return True."""
    supervision = cut.supervisions[0]
    if supervision.text is None:
        return False
    raw, supervision.text = supervision.text, normalise(supervision.text, supervision.language, symbols)
    if raw != supervision.text:
        supervision.custom = {**(supervision.custom or {}), "raw_text": raw}
    return raw != supervision.text


# --- what can't be used


def _find_bad(cuts: dict[str, list[MonoCut]], corpus: Corpus, symbols: Symbols) -> dict[str, str]:
    """{id: reason} of each utterance that can't be used."""
    bad = _find_bad_audio(cuts, corpus)
    for some in cuts.values():
        for cut in some:
            for what in corpus.carries:
                if reason := _lacks(cut, what, symbols):
                    bad.setdefault(cut.id, reason)
                    break
    if "clean" in corpus.carries:
        bad = {**_find_bad_partners(cuts, corpus.nj, bad), **bad}
    return bad


def _find_bad_audio(cuts: dict[str, list[MonoCut]], corpus: Corpus) -> dict[str, str]:
    """{id: reason} by the audio itself. Each file is opened once, even if it holds many utterances."""
    files: dict[str, list[MonoCut]] = defaultdict(list)
    for some in cuts.values():
        for cut in some:
            files[cut.recording.sources[0].source].append(cut)
    jobs = [(path, [(cut.start, cut.duration, _channels(cut)) for cut in some]) for path, some in files.items()]
    silence = "label" in corpus.carries
    checked = threaded(lambda job: check_audio(*job, silence=silence), jobs, corpus.nj)
    bad: dict[str, str] = {}
    for reasons, some in zip(progress(checked, "Checking audio", total=len(files)), files.values()):
        bad.update({cut.id: reason for cut, reason in zip(some, reasons) if reason})
    return bad


def _channels(cut: MonoCut) -> list[int]:
    """The places in the file of the channels that are heard."""
    heard = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    there = cut.recording.channel_ids
    return [there.index(channel) if channel in there else channel for channel in heard]


def _lacks(cut: MonoCut, what: str, symbols: Symbols) -> str | None:
    """Why ``cut`` does not carry ``what``, or None if it does."""
    found = carried(cut, what)
    if found is None or found == "":
        if what == "text" and found == "":
            raw = (cut.supervisions[0].custom or {}).get("raw_text")
            if symbols.count(raw):
                return WORDLESS
            return "text: nothing is left of the transcript after normalisation"
        return f"{what}: none is given"
    return None


def _find_bad_partners(cuts: dict[str, list[MonoCut]], nj: int, bad: dict[str, str]) -> dict[str, str]:
    """{id: reason} by the clean partners. Utterances in ``bad`` are passed over. Paths of partners become absolute."""
    some = [cut for split in cuts.values() for cut in split if cut.id not in bad]
    for cut in some:
        cut.supervisions[0].custom["clean"] = os.path.abspath(cut.supervisions[0].custom["clean"])

    def check(cut: MonoCut) -> str | None:
        recording = cut.recording
        return check_partner(cut.supervisions[0].custom["clean"], recording.sampling_rate, recording.duration,
                             (cut.start, cut.duration))

    reasons = progress(threaded(check, some, nj), "Checking clean audio", total=len(some))
    return {cut.id: f"clean: {reason}" for cut, reason in zip(some, reasons) if reason}


def _write_bad(out: Path, cuts: dict[str, list[MonoCut]], bad: dict[str, str]) -> None:
    """Write bad_audio.tsv. It is written even if the stage then fails because too many utterances are bad."""
    path = out / "bad_audio.tsv"
    rows = [(shown(cut.recording.sources[0].source), bad[cut.id], split, cut.id)
            for split, some in cuts.items() for cut in some if cut.id in bad]
    write_text(path, "\n".join("\t".join(row) for row in [("path", "reason", "split", "id"), *rows]) + "\n")
    for split, some in cuts.items():
        here = [row for row in rows if row[2] == split]
        if not here:
            continue
        what = f"{len(here)} of {len(some)} utterances of {split} can't be used (first: {here[0][0]}: {here[0][1]})"
        mistakes = [row for row in here if row[1] != WORDLESS]
        if len(here) == len(some) or len(mistakes) > max(5, 0.01 * len(some)):
            raise UserError(f"{what}: mend or remove those that {path} lists, and run again")
        print(f"warning: {what}: left out, see {path}", file=sys.stderr)


# --- the summary


def _summary(cuts: list[MonoCut], before: int, changed: int) -> dict[str, Any]:
    return {
        "cuts": len(cuts),
        "seconds": round(sum(cut.duration for cut in cuts), 3),
        "speakers": len({cut.supervisions[0].speaker for cut in cuts} - {None}),
        "resampled": sum(cut.sampling_rate != SAMPLE_RATE for cut in cuts),
        "mixed_down": sum(len(_channels(cut)) > 1 for cut in cuts),
        "left_out": before - len(cuts),
        "normalised": changed,
        "long": [cut.id for cut in cuts if cut.duration > LONG],
    }


def _count_classes(summary: dict[str, dict], cuts: dict[str, list[MonoCut]]) -> None:
    """Add to each split's row: how many classes it has, and the smallest and the largest number of utterances of a
    class."""
    count = {split: Counter(str(carried(cut, "label")) for cut in some) for split, some in cuts.items()}
    everything = sorted(set().union(*count.values()))
    if unseen := [label for label in everything if label not in count["train"]]:
        where = " and ".join(split for split in count if unseen[0] in count[split])
        more = f" (nor have {len(unseen) - 1} more classes)" if len(unseen) > 1 else ""
        raise UserError(f"class {unseen[0]!r} has utterances in {where}, but none in train{more}: add some to train, "
                        "or split otherwise (--split_by random gives each class to train first)")
    for split, row in summary.items():
        each = [count[split][label] for label in everything]
        row.update(classes=len(count[split]), least_per_class=min(each), most_per_class=max(each))


def _earlier_splits(out: Path) -> set[str]:
    """The splits that an earlier run wrote. Those that the corpus no longer has must be removed."""
    try:
        return set(json.loads((out / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


# The table's columns: (heading, width, a split's value)
_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("utterances", 11, lambda row: str(row["cuts"])),
    ("hours", 8, lambda row: f"{row['seconds'] / 3600:.3f}"),
    ("speakers", 10, lambda row: str(row["speakers"])),
    ("resampled", 11, lambda row: str(row["resampled"])),
    ("mixed down", 12, lambda row: str(row["mixed_down"])),
    ("left out", 10, lambda row: str(row["left_out"])),
)
_CLASS_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("classes", 9, lambda row: str(row["classes"])),
    ("least per class", 17, lambda row: str(row["least_per_class"])),
    ("most per class", 16, lambda row: str(row["most_per_class"])),
)
_SYMBOL_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("symbols", 9, lambda row: str(sum(row["symbols"].values()))),
)


def _show(summary: dict[str, dict], kept: bool = False) -> None:
    """Print a small table, the symbols that were left out or ``kept``, and a note about utterances that are too
    long."""
    for line in _table(summary):
        print(line)
    if symbols := sum((Counter(row.get("symbols")) for row in summary.values()), Counter()):
        print(f"symbols {'kept as tokens' if kept else 'left out (run.sh --symbols keep: kept as tokens)'}: "
              + ", ".join(f"{symbol} {count}" for symbol, count in symbols.most_common()))
    for split, row in summary.items():
        if row["long"]:
            print(f"warning: {split} has {len(row['long'])} utterances of more than {LONG:.0f} s (first: "
                  f"{row['long'][0]}): they need much memory, cut them if they don't fit", file=sys.stderr)


def _table(summary: dict[str, dict]) -> Iterator[str]:
    columns = (_COLUMNS + (_CLASS_COLUMNS if "classes" in summary["train"] else ())
               + (_SYMBOL_COLUMNS if "symbols" in summary["train"] else ()))
    yield f"{'split':<14}" + "".join(f"{heading:>{width}}" for heading, width, _ in columns)
    for split, row in summary.items():
        yield f"{split:<14}" + "".join(f"{value(row):>{width}}" for _, width, value in columns)
