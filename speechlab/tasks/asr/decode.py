"""Decodes test sets: the network computes each utterance once, and every search method uses that."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from speechlab.decoding import arpa
from speechlab.decoding.ctc import Hypothesis
from speechlab.errors import UserError
from speechlab.files import write_json, write_text
from speechlab.progress import progress
from speechlab.tasks.asr.recogniser import METHODS, Recogniser
from speechlab.tasks.asr.search import Search
from speechlab.tasks.interface import test_sets


def decode(recogniser: Recogniser, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Decode every test set by every method. Returns {method: its weights}.

    Weights that the config does not give are first tuned on the validation set, never on a test set.
    """
    sets = test_sets(data, args.sets)
    if args.lm:
        recogniser.lm = arpa.load(args.lm, recogniser.tokenizer.units)
    if args.neural_lm:
        recogniser.load_neural_lm(args.neural_lm)
    search = Search(recogniser, data)
    weights = {method: search.weights(method) for method in chosen(recogniser, args.methods)}
    for name in sets:
        decode_set(recogniser, search, data, name, weights, exp)
    return weights


def chosen(recogniser: Recogniser, names: str) -> list[str]:
    """The methods that a user asked for. ``all`` means those that work with this model. UserError for the name of a
    method that does not."""
    if names == "all":
        for method in METHODS:
            if why := recogniser.lacks(method):
                print(f"method {method} passed over: {why}")
        return list(recogniser.methods())
    for method in names.split():
        if why := recogniser.lacks(method):
            raise UserError(f"method {method}: {why}", 2)
    if not names.split():
        raise UserError("--methods names none", 2)
    return list(dict.fromkeys(names.split()))


def decode_set(recogniser: Recogniser, search: Search, data: Path, name: str, weights: dict[str, dict[str, Any]],
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
    """A line of hyp.jsonl: the answer for one utterance, with its n-best."""
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
