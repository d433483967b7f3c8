"""How fast is the fbank stage? ``python tests/benchmarks/bench_fbank.py [--data egs/aishell_asr/data/mini]``

Measures, interleaved and as medians, in seconds of audio a second: the bare transform (ours, lhotse's Fbank,
torchaudio's, kaldi-native-fbank's loop in Python; one thread, audio in memory), the whole stage (manifest and audio
read, features extracted and stored, manifest written) against lhotse's ``compute_and_store_features`` with its default
storage and with ours, and random reading of what was stored. Also how far each transform is from Kaldi.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import soundfile
import torch
import torchaudio.compliance.kaldi as torchaudio_kaldi
from lhotse import CutSet, Fbank, FbankConfig, MonoCut, Recording
from lhotse.features.io import default_features_storage_backend, get_writer, is_module_available

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from speechlab import extract as stage
from speechlab.features import audio
from speechlab.features.contract import FeatureContract
from speechlab.features.fbank import extract
from speechlab.features.storage import ArkWriter

CONTRACT = FeatureContract()
LHOTSE = FbankConfig(num_filters=80, high_freq=0.0)


def made_cuts(folder: Path, count: int, kind: str) -> CutSet:
    """``count`` utterances of 2 to 8 s of made audio."""
    rng = np.random.default_rng(0)
    cuts = []
    for i in range(count):
        t = np.arange(int(16000 * rng.uniform(2, 8))) / 16000
        x = 0.3 * np.sin(2 * np.pi * 200 * t) * np.sin(3 * t) + 0.02 * rng.standard_normal(t.size)
        path = folder / f"{i}.{kind}"
        soundfile.write(path, x, 16000)
        recording = Recording.from_file(path)
        cuts.append(MonoCut(f"u{i}", 0.0, recording.duration, 0, recording=recording))
    return CutSet.from_cuts(cuts)


def compare(title: str, ways: dict[str, Callable[[], object]], seconds: float, repeats: int, against: str,
            clock: Callable[[], float] = time.perf_counter) -> None:
    """Time ``ways`` in turn, ``repeats`` times after one warm-up, and print a table with ratios to ``against``."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = clock()
            with contextlib.redirect_stderr(io.StringIO()):
                way()
            if turn:
                times[name].append(clock() - start)
    print(f"\n{title} (median of {repeats}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    print(f"{'':<46}{'audio s / s':>12}{'s / 1000 s':>12}{'speed ratio':>13}{'min..max s':>14}")
    base = statistics.median(times[against])
    for name, each in times.items():
        middle = statistics.median(each)
        print(f"{name:<46}{seconds / middle:>12.0f}{1000 * middle / seconds:>12.3f}{base / middle:>13.2f}"
              f"{min(each):>8.2f}..{max(each):.2f}")


def kaldi(samples: np.ndarray) -> np.ndarray:
    """kaldi-native-fbank, frame by frame as its Python interface has it."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges, options.mel_opts.num_bins = 0.0, False, 80
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(16000, samples * 32768)
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def bare(cuts: CutSet, repeats: int, count: int) -> None:
    """The transforms alone, on audio in memory, and their distance from Kaldi."""
    waves = [cut.load_audio()[0] for cut in list(cuts)[:count]]
    layer = Fbank(LHOTSE)
    ways = {
        "ours": lambda w: extract(w, 16000, CONTRACT),
        "lhotse Fbank": lambda w: layer.extract(torch.from_numpy(w * 32768), 16000),
        "torchaudio compliance.kaldi": lambda w: torchaudio_kaldi.fbank(
            torch.from_numpy(w * 32768)[None], num_mel_bins=80, snip_edges=False),
        "kaldi-native-fbank, Python loop": kaldi,
    }
    seconds = sum(len(wave) for wave in waves) / 16000
    compare("Bare transform, one thread, CPU time (which other programs disturb less)",
            {n: lambda f=f: [f(w) for w in waves] for n, f in ways.items()},
            seconds, 5 * repeats, "lhotse Fbank", time.process_time)
    noise = np.random.default_rng(1).normal(0, 0.1, 60 * 16000).astype(np.float32)
    for what, some in (("this audio", waves), ("a minute of white noise", [noise])):
        wanted = [kaldi(wave) for wave in some]
        print(f"\nDistance from Kaldi on {what}:")
        for name, way in list(ways.items())[:3]:
            off = np.concatenate([np.abs(np.asarray(way(w)) - k).ravel() for w, k in zip(some, wanted)])
            print(f"{name:<46}largest {off.max():.5f}, above 1e-3: {1e6 * (off > 1e-3).mean():.1f} in a million")


def whole(cuts: CutSet, folder: Path, jobs: list[int], repeats: int) -> None:
    """The stage, and lhotse's own."""
    data, seconds = folder / "data", sum(cut.duration for cut in cuts)
    data.mkdir()
    cuts.to_file(data / "train.jsonl.gz")
    writers = {f"its default, {default_features_storage_backend().name}": default_features_storage_backend()}
    if is_module_available("lilcom"):
        writers["lilcom_chunky"] = get_writer("lilcom_chunky")
    writers["our storage"] = ArkWriter

    def lhotse(nj: int, writer: type) -> None:
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        (folder / "theirs").mkdir()
        CutSet.from_file(data / "train.jsonl.gz").compute_and_store_features(
            Fbank(LHOTSE), folder / "theirs" / "feats", num_jobs=nj, storage_type=writer, progress_bar=False,
        ).to_file(folder / "theirs" / "train.jsonl.gz")

    def read_and_extract() -> None:
        for cut in CutSet.from_file(data / "train.jsonl.gz"):
            extract(*audio.read(cut), CONTRACT)

    for nj in jobs:
        ways: dict[str, Callable[[], object]] = {
            f"ours, --nj {nj}": lambda nj=nj: stage.extract_folder(data, folder / "ours", CONTRACT, nj)}
        for name, writer in writers.items():
            ways[f"lhotse, {nj} jobs, {name}"] = lambda nj=nj, writer=writer: lhotse(nj, writer)
        if nj == 1:
            ways["(ours without storing: read and transform)"] = read_and_extract
        compare(f"Whole stage, {len(cuts)} utterances, {seconds:.0f} s", ways, seconds, repeats,
                f"lhotse, {nj} jobs, {next(iter(writers))}")
    lhotse(1, next(iter(writers.values())))
    ours, theirs = (list(CutSet.from_file(folder / who / "train.jsonl.gz")) for who in ("ours", "theirs"))
    order = random.Random(0).sample(range(len(ours)), len(ours))
    compare("Random reading of stored features", {
        "ours": lambda: [ours[i].load_features() for i in order],
        f"lhotse, {next(iter(writers))}": lambda: [theirs[i].load_features() for i in order],
    }, seconds, repeats, f"lhotse, {next(iter(writers))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with manifests (default: made audio)")
    parser.add_argument("--split", default="train", help="which of its splits")
    parser.add_argument("--count", type=int, default=1000, help="how many utterances")
    parser.add_argument("--kind", default="wav", choices=["wav", "flac"], help="format of made audio")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="*", default=[1, 2],
                        help="numbers of processes; none: the bare transform only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # lhotse's processes would take a thread a core each
    with tempfile.TemporaryDirectory() as folder:
        cuts = CutSet.from_file(args.data / f"{args.split}.jsonl.gz").subset(first=args.count) if args.data \
            else made_cuts(Path(folder), args.count, args.kind)
        bare(cuts.to_eager(), args.repeats, 60)
        if args.jobs:
            whole(cuts.to_eager(), Path(folder), args.jobs, args.repeats)


if __name__ == "__main__":
    main()
