"""Stage 1: a corpus becomes manifests, or a pack of images.

    python -m speechlab.prepare NAME --from downloads/NAME --to data/NAME --nj 4

A corpus of images (its module says ``KIND = "images"``) is packed by speechlab/data/image_pack.py. For speech:

The corpus's module (speechlab/corpora/NAME.py) says what is said where; here is done what all corpora share: text is
normalised, every file is decoded once and what can't be used is listed and left out, speakers are kept apart, and
``{split}.jsonl.gz``, ``bad_audio.tsv`` and ``summary.json`` are written. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from speechlab.corpora.cuts import threaded
from speechlab.data.check import check_audio
from speechlab.data.image_pack import show_pack, write_pack
from speechlab.data.manifests import write_splits
from speechlab.data.text import normalise
from speechlab.errors import UserError, cli
from speechlab.files import write_json, write_text
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import CutSet, MonoCut

SAMPLE_RATE = 16000  # what recipes hear; other rates are resampled when features are computed
LONG = 60.0  # seconds; more than this in one utterance is mostly a mistake, and a batch that does not fit
_OWN = ("folder", "out", "nj")  # parameters of a corpus's prepare() that are no options of the corpus
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@cli
def main(argv: list[str] | None = None) -> int:
    """Command line: see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m speechlab.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpus", help="a name that python -m speechlab.corpora --list shows, or folder")
    parser.add_argument("--from", dest="source", metavar="DIR", help="the corpus on disk (default: downloads/NAME)")
    parser.add_argument("--to", required=True, metavar="DIR", help="where the manifests or the pack go, e.g. data/NAME")
    parser.add_argument("--nj", type=int, default=1, help="how many files to read at once")
    parser.add_argument("--split_by", choices=["auto", "speaker", "column", "random"], default="auto",
                        help="for the corpus folder (others are split as they are published): by the column split, by "
                        "speakers, at random; auto is the first of these that its manifest.tsv allows")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="an option of the corpus, e.g. --option train=50 for synthetic; may be repeated")
    args = parser.parse_args(argv)

    from speechlab import corpora

    module = corpora.load(args.corpus)
    options = parse_options(args.corpus, module, args.option)
    if "split_by" in inspect.signature(module.prepare).parameters:  # recipes pass it on whatever the corpus is
        options.setdefault("split_by", args.split_by)
    downloads = Path(os.environ.get("SPEECHLAB_DOWNLOADS") or "downloads")
    source = Path(args.source) if args.source else downloads / args.corpus
    if not source.is_dir():
        raise UserError(f"{args.corpus}: there is no folder {source}: give the corpus's folder, or fetch it with "
                        f"python -m speechlab.corpora {args.corpus} --to {source.parent}")
    out = Path(args.to)
    out.mkdir(parents=True, exist_ok=True)
    if getattr(module, "KIND", "speech") == "images":
        splits, classes = module.prepare(source, out, nj=args.nj, **options)
        show_pack(write_pack(out, splits, classes, args.corpus))
        return 0
    splits = module.prepare(source, out, nj=args.nj, **options)
    finish(splits, out, nj=args.nj, shared_speakers=getattr(module, "SPEAKERS_SHARED", False))
    return 0


def parse_options(name: str, module: ModuleType, given: list[str]) -> dict[str, Any]:
    """``["train=50"]`` -> ``{"train": 50}``, checked against the signature of the module's ``prepare``."""
    known = {key: p for key, p in inspect.signature(module.prepare).parameters.items() if key not in _OWN}
    options: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            what = f"--option {pair} is not KEY=VALUE" if not equals else f"{name} has no option {key}"
            raise UserError(f"{what}: {name}'s options are {', '.join(known) or 'none'}", status=2)
        kind = type(known[key].default)
        try:
            options[key] = _TRUTH[value.lower()] if kind is bool else kind(value) if kind in (int, float) else value
        except (ValueError, KeyError):
            raise UserError(f"--option {pair}: {key} must be {kind.__name__}", status=2) from None
    return options


def finish(splits: Mapping[str, CutSet], out: Path, nj: int = 1, shared_speakers: bool = False) -> dict[str, dict]:
    """Normalise, check, and write all splits (or, on any error, none) to ``out``; returns what summary.json holds."""
    order = sorted(splits, key=lambda split: (split != "train", split))
    cuts = {split: sorted(splits[split], key=lambda cut: cut.id) for split in order}
    _check_form(cuts)
    if not shared_speakers:
        _check_speakers(cuts)
    changed = {split: sum(map(_normalise_text, some)) for split, some in cuts.items()}
    bad = _find_bad(cuts, nj)
    _write_bad(out, cuts, bad)
    good = {split: [cut for cut in some if cut.id not in bad] for split, some in cuts.items()}
    summary = {split: _summary(good[split], len(cuts[split]), changed[split]) for split in good}
    stale = _earlier_splits(out) - set(good)
    write_json(out / "summary.json", summary)
    write_splits(out, good)
    for split in stale:
        (out / f"{split}.jsonl.gz").unlink(missing_ok=True)
    _show(summary, good)
    return summary


def _check_form(cuts: dict[str, list[MonoCut]]) -> None:
    """What recipes rely on: train, dev and a test that are not empty, ids that are unique, one supervision a cut."""
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
                if source.type == "file":  # recipes, containers and notebooks run in different folders
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


def _normalise_text(cut: MonoCut) -> bool:
    """Normalise in place, keeping another original as ``raw_text``; True if it changed."""
    supervision = cut.supervisions[0]
    if supervision.text is None:
        return False
    raw, supervision.text = supervision.text, normalise(supervision.text, supervision.language)
    if raw != supervision.text:
        supervision.custom = {**(supervision.custom or {}), "raw_text": raw}
    return raw != supervision.text


def _find_bad(cuts: dict[str, list[MonoCut]], nj: int) -> dict[str, str]:
    """Reason by id of each utterance that can't be used; each file is opened once, however many utterances it holds."""
    files: dict[str, list[MonoCut]] = defaultdict(list)
    for some in cuts.values():
        for cut in some:
            files[cut.recording.sources[0].source].append(cut)
    jobs = [(path, [(cut.start, cut.duration) for cut in some]) for path, some in files.items()]
    checked = threaded(lambda job: check_audio(*job), jobs, nj)
    bad: dict[str, str] = {}
    for reasons, some in zip(progress(checked, "Checking audio", total=len(files)), files.values()):
        bad.update({cut.id: reason for cut, reason in zip(some, reasons) if reason})
    for some in cuts.values():
        for cut in some:
            if cut.supervisions[0].text == "":
                bad.setdefault(cut.id, "text: nothing is left of the transcript after normalisation")
    return bad


def _write_bad(out: Path, cuts: dict[str, list[MonoCut]], bad: dict[str, str]) -> None:
    """Write bad_audio.tsv, also when the stage then fails because too much is bad."""
    path = out / "bad_audio.tsv"
    rows = [(cut.recording.sources[0].source, bad[cut.id], split, cut.id)
            for split, some in cuts.items() for cut in some if cut.id in bad]
    write_text(path, "\n".join("\t".join(row) for row in [("path", "reason", "split", "id"), *rows]) + "\n")
    for split, some in cuts.items():
        here = [row for row in rows if row[2] == split]
        if not here:
            continue
        what = f"{len(here)} of {len(some)} utterances of {split} can't be used (first: {here[0][0]}: {here[0][1]})"
        if len(here) == len(some) or len(here) > max(5, 0.01 * len(some)):
            raise UserError(f"{what}: mend or remove those that {path} lists, and run again")
        print(f"warning: {what}: left out, see {path}", file=sys.stderr)


def _summary(cuts: list[MonoCut], before: int, changed: int) -> dict[str, Any]:
    return {
        "cuts": len(cuts),
        "seconds": round(sum(cut.duration for cut in cuts), 3),
        "speakers": len({cut.supervisions[0].speaker for cut in cuts} - {None}),
        "resampled": sum(cut.sampling_rate != SAMPLE_RATE for cut in cuts),
        "mixed_down": sum(cut.recording.num_channels > 1 for cut in cuts),
        "left_out": before - len(cuts),
        "normalised": changed,
        "long": [cut.id for cut in cuts if cut.duration > LONG],
    }


def _earlier_splits(out: Path) -> set[str]:
    """The splits that an earlier run wrote: one that the corpus has no more must not stay among the new ones."""
    try:
        return set(json.loads((out / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _show(summary: dict[str, dict], cuts: dict[str, list[MonoCut]]) -> None:
    """A small table for people, and a word about utterances that are too long to be one."""
    print(f"{'split':<14}{'utterances':>11}{'hours':>8}{'speakers':>10}{'resampled':>11}{'mixed down':>12}"
          f"{'left out':>10}")
    for split, row in summary.items():
        print(f"{split:<14}{row['cuts']:>11}{row['seconds'] / 3600:>8.3f}{row['speakers']:>10}{row['resampled']:>11}"
              f"{row['mixed_down']:>12}{row['left_out']:>10}")
    for split, row in summary.items():
        if row["long"]:
            print(f"warning: {split} has {len(row['long'])} utterances of more than {LONG:.0f} s (first: "
                  f"{row['long'][0]}): they need much memory, cut them if they don't fit", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
