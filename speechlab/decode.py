"""Decode an experiment's test sets: ``python -m speechlab.decode EXP --data DIR --methods "ctc_greedy ctc_beam"``."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from speechlab.config import override
from speechlab.errors import UserError, cli
from speechlab.files import write_json, write_text
from speechlab.progress import progress
from speechlab.tasks.asr import METHODS, Recogniser
from speechlab.training import checkpoint, distributed


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.decode", description=__doc__)
    parser.add_argument("exp", type=Path, help="the experiment's folder")
    parser.add_argument("--data", required=True, type=Path, help="the folder of manifests and features")
    parser.add_argument("--methods", default="ctc_greedy", help=f"any of: {' '.join(METHODS)}")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an override of the config's section decode (others were training's and are passed over)")
    parser.add_argument("--sets", default="", help="test sets (default: every test*.jsonl.gz of --data)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)), help="0 or 1")
    args = parser.parse_args(argv)
    methods = args.methods.split()
    for method in methods:
        if method not in METHODS:
            raise UserError(f"no search method '{method}': there are {', '.join(METHODS)}", 2)
    sets = args.sets.split() or sorted(p.name.removesuffix(".jsonl.gz") for p in args.data.glob("test*.jsonl.gz"))
    if not sets:
        raise UserError(f"no test*.jsonl.gz in {args.data}: run the manifest stage (./run.sh --stage 1)")
    device = distributed.start(min(args.ngpu, 1)).device
    state = checkpoint.load(args.checkpoint or args.exp / "checkpoints" / "final.pt")
    state["config"] = override(state["config"], [text for text in args.set if text.startswith("decode.")])
    recogniser = Recogniser(state, device)
    for name in sets:
        cuts, batches = recogniser.batches(args.data, name)
        by_id = {cut.id: cut for cut in cuts}
        started, seconds = time.perf_counter(), dict.fromkeys(methods, 0.0)
        lines: dict[str, list[str]] = {method: [] for method in methods}
        network = 0.0
        for batch in progress(batches, f"{name}"):
            began = time.perf_counter()
            log_probs, lengths = recogniser.posteriors(batch)
            network += time.perf_counter() - began
            for method in methods:
                began = time.perf_counter()
                found = recogniser.search(log_probs, lengths, method)
                seconds[method] += time.perf_counter() - began
                for cut_id, hyp in zip(batch["ids"], found, strict=True):
                    cut = by_id[cut_id]
                    supervision = cut.supervisions[0]
                    lines[method].append(json.dumps({
                        "id": cut_id, "ref": supervision.text, "hyp": recogniser.tokenizer.decode(hyp.tokens),
                        "seconds": round(cut.duration, 3), "speaker": supervision.speaker, "score": hyp.score,
                        "error": hyp.error}, ensure_ascii=False))
        audio = sum(cut.duration for cut in cuts)
        for method in methods:
            folder = args.exp / "decode" / method / name
            write_text(folder / "hyp.jsonl", "\n".join(sorted(lines[method])) + "\n")
            taken = network + seconds[method]
            write_json(folder / "time.json", {"audio_seconds": audio, "network_seconds": network,
                                              "search_seconds": seconds[method], "real_time_factor": taken / audio,
                                              "device": str(device), "threads": torch.get_num_threads()})
            print(f"{name} {method}: {len(cuts)} utterances, {audio:.0f} s, real-time factor {taken / audio:.4f}")
        print(f"{name}: {time.perf_counter() - started:.1f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
