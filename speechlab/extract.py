"""Stored features: ``python -m speechlab.extract CONFIG --data data/mini --to data/mini/fbank80-3f2a --nj 4``.

For every ``{split}.jsonl.gz`` in ``--data``, the folder ``--to`` gets ``{split}.jsonl.gz`` (the same cuts, with
features) and Kaldi archives of float32, ``{split}/0000.ark`` and so on. ``contract.json`` is written last: a folder
that has it is complete.

The work is done in parts of 500 utterances. The archive and the manifest of a part are written to temporary files and
renamed. So it can be interrupted at any moment, and the same command goes on with the missing parts. In a complete
folder, the command starts again from the beginning (run.sh does so only if you ask for it or something changed).

Several machines can share the work by ``--shard`` (or SPEECHLAB_SHARD, which cmd.sh sets in a Slurm array). First,
0/N prepares the folder; then 1/N to N/N make their parts at the same time; then the same command without a shard joins
all parts. The files are the same to the byte, however the work was shared.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from lhotse.serialization import deserialize_item

from speechlab import tasks
from speechlab.errors import UserError, cli
from speechlab.features import audio
from speechlab.features.contract import FILE, FeatureContract, load_contract
from speechlab.features.fbank import extract
from speechlab.features.storage import ArkWriter
from speechlab.files import atomic, sha256, write_json
from speechlab.progress import progress

__all__ = ["extract_folder", "load_contract", "main"]
PART = 500  # utterances per part; it is fixed, so that parts are the same for any --nj
SUFFIX = ".jsonl.gz"
Job = tuple[list[str], Path, FeatureContract]


def extract_folder(data: Path, to: Path, contract: FeatureContract, nj: int = 1,
                   shard: tuple[int, int] | None = None) -> dict[str, Counter]:
    """Extract the features of all splits of the folder ``data`` into ``to``, or one shard of this work.

    Args:
        contract: which features to compute.
        nj: number of processes.
        shard: (i, n), one of n machines that share the work. i = 0 only prepares the folder; i = 1 to n makes every
            n-th part. A shard writes no manifests of whole splits.
    Returns:
        Counts for each split (of a shard's parts only): cuts, seconds of audio, frames, resampled, mixed_down,
        one_channel (one of several was used).
    Raises:
        UserError: no manifests, a manifest or an audio file that can't be read, an utterance shorter than a frame.
    """
    manifests = sorted(path for path in data.glob("*" + SUFFIX) if not path.name.startswith("."))
    if not manifests:
        raise UserError(f"no manifests ({data}/*{SUFFIX}): stage 1 makes them")
    splits = [path.name.removesuffix(SUFFIX) for path in manifests]
    index, of = shard or (0, 1)
    if index == 0:
        _clear(to, splits)
    counts: dict[str, Counter] = {split: Counter() for split in splits}
    jobs: list[Job] = []
    owners: dict[Path, str] = {}
    for manifest, split in zip(manifests, splits):
        lines = _lines(manifest)
        _begin(to / split, manifest, contract, alone=index == 0)
        for number, start in enumerate(range(0, len(lines), PART)):
            ark = to / split / f"{number:04d}.ark"
            if shard and len(owners) % of != index - 1:
                owners[ark] = ""
                continue
            owners[ark] = split
            if _part(ark).exists():
                counts[split] += _count(json.loads(line) for line in _lines(_part(ark)))
            else:
                jobs.append((lines[start:start + PART], ark, contract))
    if shard == (0, of):
        return counts
    kept = sum(c["cuts"] for c in counts.values())
    if kept:
        print(f"going on: {kept} utterances were extracted before", file=sys.stderr)
    if jobs:
        for _ in progress(_watched(_run(jobs, nj), owners, counts), contract.kind, sum(len(job[0]) for job in jobs)):
            pass
    if shard:
        return counts
    for split in splits:
        arks = sorted(ark for ark, owner in owners.items() if owner == split)
        with atomic(to / (split + SUFFIX)) as aside, open(aside, "wb") as whole:
            for ark in arks:  # gzip files that are joined are a gzip file again
                whole.write(_part(ark).read_bytes())
            if not arks:
                whole.write(gzip.compress(b"", mtime=0))
    write_json(to / FILE, {"features": contract.to_dict(), "name": contract.name(),
                           "splits": {split: {**c, "seconds": round(c["seconds"], 3)} for split, c in counts.items()}})
    for ark in owners:
        _part(ark).unlink(missing_ok=True)
    return counts


def _clear(to: Path, splits: list[str]) -> None:
    """Remove a complete extraction; of an interrupted one, remove the splits that there are no longer."""
    fresh = (to / FILE).exists()
    (to / FILE).unlink(missing_ok=True)  # removed first: without it the folder is not complete
    for mark in to.glob("*/source.json"):
        if fresh or mark.parent.name not in splits:
            (to / (mark.parent.name + SUFFIX)).unlink(missing_ok=True)
            shutil.rmtree(mark.parent)


def _begin(folder: Path, manifest: Path, contract: FeatureContract, alone: bool = True) -> None:
    """Keep a split's finished parts if they were made from the same manifest by the same contract and version. Remove
    them otherwise.

    A shard is not ``alone``: it removes nothing, and raises a UserError if shard 0 did not prepare the folder for the
    same manifest and contract.
    """
    source = {"manifest": sha256(manifest), "features": contract.name(), "part": PART}
    mark = folder / "source.json"
    try:
        same = json.loads(mark.read_text(encoding="utf-8")) == source
    except (OSError, ValueError):
        same = False
    if not alone:
        if not same:
            raise UserError(f"{folder} was not laid out for this manifest and contract: --shard 0/N comes before the "
                            "shards, which run beside one another")
        return
    if not same:
        folder.parent.joinpath(folder.name + SUFFIX).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(mark, source)
    for left in folder.glob(".tmp-*"):  # what a killed process was writing
        left.unlink(missing_ok=True)


def _part(ark: Path) -> Path:
    """The manifest of one part. It is written after the archive, so a part that has it is done."""
    return ark.with_suffix(SUFFIX)


def _lines(manifest: Path) -> list[str]:
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") as file:
            return [line for line in file if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{manifest} can't be read ({error}): make it again (stage 1)") from None


def _count(cuts: Iterable[dict]) -> Counter:
    total: Counter = Counter(cuts=0, seconds=0.0, frames=0, resampled=0, mixed_down=0, one_channel=0)
    for cut in cuts:
        total["cuts"] += 1
        total["seconds"] += cut["duration"]
        total["frames"] += cut["features"]["num_frames"]
        recording = cut["recording"]
        total["resampled"] += recording["sampling_rate"] != cut["features"]["sampling_rate"]
        heard = len(cut["channel"]) if isinstance(cut["channel"], list) else 1
        total["mixed_down"] += heard > 1
        total["one_channel"] += heard == 1 < len(recording["channel_ids"])
    return total


def _do_part(job: Job) -> tuple[Path, Counter]:
    """Read, extract and store one part's utterances."""
    lines, ark, contract = job
    done = []
    with atomic(ark) as aside, ArkWriter(aside, named=os.path.abspath(ark)) as writer:
        for line in lines:
            try:
                item, cut = json.loads(line), deserialize_item(json.loads(line))  # deserialize_item spoils its argument
            except Exception as error:  # lhotse raises errors of many kinds for a missing or misspelt field
                raise UserError(f"{ark.parent.name}{SUFFIX} has a line that is no cut ({error!r}): {line[:80]}... "
                                "Make the manifests again (stage 1)") from None
            samples, rate = audio.read(cut)
            features = extract(samples, rate, contract).numpy()
            if not len(features) or not math.isfinite(features.sum()):
                what = "holds samples that are not numbers" if len(features) else "is too short for one frame"
                raise UserError(f"audio {cut.recording.sources[0].source} of cut {cut.id} {what} "
                                f"({samples.shape[-1]} samples at {rate} Hz): remove it, or make the manifests again "
                                "(stage 1)")
            item["features"] = {
                "type": contract.kind, "num_frames": len(features), "num_features": features.shape[1],
                "frame_shift": contract.shift_samples / contract.sample_rate, "sampling_rate": contract.sample_rate,
                "start": cut.start, "duration": cut.duration, "storage_type": writer.name,
                "storage_path": writer.storage_path, "storage_key": writer.write(cut.id, features),
                "recording_id": cut.recording.id, "channels": cut.channel,
            }
            done.append(item)
    with atomic(_part(ark)) as aside:
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in done)
        aside.write_bytes(gzip.compress(text.encode(), 6, mtime=0))
    return ark, _count(done)


def _watched(parts: Iterator[tuple[Path, Counter]], owners: dict[Path, str],
             counts: dict[str, Counter]) -> Iterator[None]:
    """Add up the counts, and yield once per utterance, for the progress display."""
    for ark, count in parts:
        counts[owners[ark]] += count
        yield from [None] * count["cuts"]


def _run(jobs: list[Job], nj: int) -> Iterator[tuple[Path, Counter]]:
    """Do ``jobs`` on ``nj`` processes with one thread each, and yield each part when it is finished."""
    nj = min(nj, len(jobs))
    if nj <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(_do_part, jobs)
        finally:
            torch.set_num_threads(threads)
        return
    # A forked process need not import torch again. On a Mac, forking isn't safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(nj, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        for future in as_completed([pool.submit(_do_part, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(f"one of the {nj} extracting processes was killed (out of memory?): run the same command "
                        "again, perhaps with a smaller --nj; finished parts are kept") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    """Prepare a worker process: it has one thread, ends silently on Ctrl-C, and ends when its parent does. It must
    watch its parent itself: a parent that is killed by kill -9 can't tell it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shard(text: str) -> tuple[int, int] | None:
    """``"2/8"`` -> (2, 8); ``""`` -> None (no shard)."""
    if not text:
        return None
    index, _, of = text.partition("/")
    if not (index.isascii() and index.isdigit() and of.isascii() and of.isdigit()) or not 0 <= int(index) <= int(of):
        raise UserError(f"--shard {text}: I/N is needed, with I from 0 to N", 2)
    if int(of) == 0:
        raise UserError(f"--shard {text}: there must be at least one shard", 2)
    return int(index), int(of)


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.extract", description="Extract and store features.")
    parser.add_argument("config", help="a YAML file; its section 'features' says what to extract")
    parser.add_argument("--data", required=True, type=Path, help="folder with {split}.jsonl.gz manifests")
    parser.add_argument("--to", required=True, type=Path, help="folder for features and manifests")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument("--shard", default=os.environ.get("SPEECHLAB_SHARD", ""), metavar="I/N",
                        help="only every N-th part, from the I-th on; 0/N: lay out what the shards share")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args(argv)
    if args.nj < 1:
        raise UserError(f"--nj must be at least 1, not {args.nj}", 2)
    shard = _shard(args.shard)
    if shard:
        args.nj = 1  # --nj is the number of shards here, and each shard has one process
    tasks.at(None)
    contract = tasks.load_config(args.config, args.set).features
    started = time.monotonic()
    counts = extract_folder(args.data, args.to, contract, args.nj, shard)
    wall = time.monotonic() - started
    if shard:
        if shard[0]:
            print(f"shard {args.shard}: {sum(c['cuts'] for c in counts.values())} utterances in {wall:.1f} s")
        return 0
    print(f"{'split':<16}{'utterances':>11}{'hours':>9}{'frames':>11}{'resampled':>11}{'mixed down':>12}")
    for split, c in counts.items():
        print(f"{split:<16}{c['cuts']:>11}{c['seconds'] / 3600:>9.3f}{c['frames']:>11}{c['resampled']:>11}"
              f"{c['mixed_down']:>12}")
    hours = sum(c["seconds"] for c in counts.values()) / 3600
    print(f"{contract.name()}: {hours:.2f} h in {wall:.1f} s -> {args.to}")
    for split, c in counts.items():
        if c["one_channel"]:
            print(f"note: {c['one_channel']} utterances of {split} are one channel each of several, as their manifest "
                  "says; if that is older than this rule, make it again (stage 1), and channels are averaged")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
