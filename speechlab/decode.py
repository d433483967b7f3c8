"""Let an experiment answer its test sets: ``python -m speechlab.decode EXP --data DIR --methods "ctc_greedy joint"``.

The checkpoint says what is to be done: recognise speech, or classify images. Of speech, weights of a language model
that the config leaves open are tuned on the validation set first, never on a test set.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechlab.config import override
from speechlab.errors import UserError, cli
from speechlab.files import write_json, write_text
from speechlab.progress import progress
from speechlab.training import checkpoint, distributed

if TYPE_CHECKING:
    from speechlab.decoding.ctc import Hypothesis
    from speechlab.tasks.recogniser import Recogniser
    from speechlab.tasks.search import Search


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.decode", description=__doc__,
                                     formatter_class=Help)
    parser.add_argument("exp", type=Path, help="the experiment's folder")
    parser.add_argument("--data", required=True, type=Path, help="the folder of manifests and features, or of images")
    parser.add_argument("--methods", default="all", help="names from below, or all that the model can (default)")
    parser.add_argument("--lm", type=Path, help="speech: the folder of an n-gram language model (lm.arpa)")
    parser.add_argument("--neural_lm", type=Path, help="speech: the folder of a language model as a network")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an override of the config's section decode (others were training's and are passed over)")
    parser.add_argument("--sets", default="", help="test sets (default: every test... of --data)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)), help="0 or 1")
    args = parser.parse_args(argv)
    device = distributed.start(min(args.ngpu, 1)).device
    state = checkpoint.load(args.checkpoint or args.exp / "checkpoints" / "final.pt")
    state["config"] = override(state["config"], [text for text in args.set if text.startswith("decode.")])
    run = {"image": classify_images}.get(state["config"].get("task"), recognise_speech)
    write_json(args.exp / "decode" / "methods.json", run(state, device, args))
    return 0


class Help(argparse.RawDescriptionHelpFormatter):
    """Names the methods at the end; only asked for help are both tasks imported."""

    def format_help(self) -> str:
        from speechlab.tasks.classifier import METHODS
        from speechlab.tasks.recogniser import METHODS_HELP

        images = "".join(f"  {name:12s} {about}\n" for name, about in METHODS.items())
        return f"{super().format_help()}\n{METHODS_HELP}\nof images:\n{images}"


def classify_images(state: dict[str, Any], device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Predict every test split of a pack; returns the methods with their settings."""
    from speechlab.data.images import Pack
    from speechlab.tasks.classifier import METHODS, Classifier, predict

    for name in ("lm", "neural_lm"):
        if getattr(args, name):
            raise UserError(f"--{name} is for speech: {args.exp} classifies images", 2)
    pack = Pack.open(args.data)
    classifier = Classifier(state, device)
    classifier.suits(pack)
    methods = classifier.methods() if args.methods == "all" else list(dict.fromkeys(args.methods.split()))
    for method in methods:
        if method not in METHODS:
            raise UserError(f"no method '{method}' for images: there are {', '.join(METHODS)}", 2)
        if method not in classifier.methods():
            raise UserError(f"method {method}: decode.tta is none (--set decode.tta=translate)", 2)
    sets = args.sets.split() or [name for name in pack.splits if name.startswith("test")]
    if not sets or not methods:
        raise UserError(f"--methods names none of {', '.join(METHODS)}" if sets else
                        f"{args.data} has no test split: it has {', '.join(pack.splits)}")
    for name in sets:
        predict(classifier, pack, name, methods, args.exp)
    return {method: {"tta": classifier.config.decode.tta if method == "tta" else "none"} for method in methods}


def recognise_speech(state: dict[str, Any], device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Decode every test set by every method; returns the methods with their weights."""
    from speechlab.decoding import arpa
    from speechlab.tasks.recogniser import Recogniser
    from speechlab.tasks.search import Search

    sets = args.sets.split() or sorted(p.name.removesuffix(".jsonl.gz") for p in args.data.glob("test*.jsonl.gz"))
    if not sets:
        raise UserError(f"no test*.jsonl.gz in {args.data}: run the manifest stage (./run.sh --stage 1)")
    recogniser = Recogniser(state, device)
    if args.lm:
        recogniser.lm = arpa.load(args.lm, recogniser.tokenizer.units)
    if args.neural_lm:
        recogniser.load_neural_lm(args.neural_lm)
    search = Search(recogniser, args.data)
    weights = {method: search.weights(method) for method in chosen(recogniser, args.methods)}
    for name in sets:
        decode(recogniser, search, args.data, name, weights, args.exp)
    return weights


def chosen(recogniser: Recogniser, names: str) -> list[str]:
    """The methods that a user asked for; ``all`` passes over what the model can't do, a name that can't is an error."""
    from speechlab.tasks.recogniser import METHODS

    if names == "all":
        for method in METHODS:
            if why := recogniser.lacks(method):
                print(f"method {method} passed over: {why}")
        return recogniser.methods()
    for method in names.split():
        if why := recogniser.lacks(method):
            raise UserError(f"method {method}: {why}", 2)
    if not names.split():
        raise UserError("--methods names none", 2)
    return list(dict.fromkeys(names.split()))


def decode(recogniser: Recogniser, search: Search, data: Path, name: str, weights: dict[str, dict[str, Any]],
           exp: Path) -> None:
    """Write ``exp/decode/<method>/<name>/{hyp.jsonl, time.json}`` for each method in ``weights``."""
    cuts, batches = recogniser.batches(data, name)
    by_id = {cut.id: cut for cut in cuts}
    seconds, network = defaultdict(float), 0.0
    lines: dict[str, list[str]] = {method: [] for method in weights}
    for batch in progress(batches, name):
        began = time.perf_counter()
        found = recogniser.encode(batch)
        network += time.perf_counter() - began
        for method, its in weights.items():
            began = time.perf_counter()
            nbest = search(found, method, its)
            seconds[method] += time.perf_counter() - began
            lines[method] += [line(by_id[cut_id], hyps, recogniser) for cut_id, hyps in zip(batch["ids"], nbest)]
    audio = sum(cut.duration for cut in cuts)
    for method in weights:
        folder = exp / "decode" / method / name
        write_text(folder / "hyp.jsonl", "\n".join(sorted(lines[method])) + "\n")
        factor = (network + seconds[method]) / audio
        write_json(folder / "time.json", {
            "audio_seconds": audio, "network_seconds": network, "search_seconds": seconds[method],
            "real_time_factor": factor, "device": str(recogniser.device), "threads": torch.get_num_threads()})
        print(f"{name} {method}: {len(cuts)} utterances, {audio:.0f} s, real-time factor {factor:.4f}", flush=True)


def line(cut: Any, nbest: list[Hypothesis], recogniser: Recogniser) -> str:
    """One answer for hyp.jsonl, its n-best with it."""
    supervision, best = cut.supervisions[0], nbest[0]
    record = {"id": cut.id, "ref": supervision.text, "hyp": recogniser.tokenizer.decode(best.tokens),
              "seconds": round(cut.duration, 3), "speaker": supervision.speaker, "score": best.score,
              "error": best.error}
    if reading := (supervision.custom or {}).get("pinyin"):
        record["pinyin"] = reading
    if len(nbest) > 1:
        record["nbest"] = [{"hyp": recogniser.tokenizer.decode(h.tokens), "score": h.score, "parts": h.parts}
                           for h in nbest]
    return json.dumps(record, ensure_ascii=False)


if __name__ == "__main__":
    raise SystemExit(main())
