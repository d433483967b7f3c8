"""CTC beam search with an n-gram: ours against flashlight (torchaudio's ctc_decoder) and pyctcdecode, both on kenlm.

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install -e '.[asr]' kenlm flashlight-text pyctcdecode     # kenlm is compiled: a C++ compiler and cmake
    python tests/benchmarks/bench_beam.py --exp egs/aishell_asr/exp/mini_conformer --data egs/aishell_asr/data/mini
    python tests/benchmarks/bench_beam.py                         # made posteriors

All get the same posteriors, beam, language model (one ARPA file), weight and one thread. Rounds are interleaved (A B C,
A B C, ...), figures are medians over them, and ratios are taken round by round; errors of the answers (edit distance to
the reference, in units) stand beside them, since a faster search that finds less is another search. CPU seconds are
shown too: on a machine that others use they wander less than the clock.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import jiwer
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from speechlab.decoding import arpa, ctc
from speechlab.decoding.fused_beam import fused_beam
from speechlab.decoding.ngram import NGram

Batches = list[tuple[Tensor, Tensor, list[list[str]]]]  # log posteriors (B, T, V), lengths (B,), references as units
Way = Callable[[], list[list[str]]]


def heard(checkpoint_path: Path, data: Path, sets: str) -> tuple[list[str], Batches, list[list[str]]]:
    """Units, posteriors of a trained model on test sets, and the training text as units."""
    from lhotse import CutSet

    from speechlab.tasks.asr.recogniser import Recogniser
    from speechlab.training import checkpoint

    recogniser = Recogniser(checkpoint.load(checkpoint_path), torch.device("cpu"))
    units, tokenizer, batches = recogniser.tokenizer.units, recogniser.tokenizer, []
    for name in sets.split() or sorted(p.name.removesuffix(".jsonl.gz") for p in data.glob("test*.jsonl.gz")):
        cuts, found = recogniser.batches(data, name)
        texts = {cut.id: [units[i] for i in tokenizer.encode(cut.supervisions[0].text)] for cut in cuts}
        for batch in found:
            encoded = recogniser.encode(batch)
            batches.append((encoded.log_probs.float().contiguous(), encoded.lengths.cpu(),
                            [texts[i] for i in batch["ids"]]))
    train = {cut.supervisions[0].text for cut in CutSet.from_file(data / "train.jsonl.gz")}
    return units, batches, [[units[i] for i in tokenizer.encode(text)] for text in sorted(train)]


def made(vocab: int, utterances: int, size: int) -> tuple[list[str], Batches, list[list[str]]]:
    """The same of a made language (each unit is followed by a few) and posteriors that confuse units in pairs."""
    generator = torch.Generator().manual_seed(0)
    units = ["<blank>", "<unk>", *map(chr, range(0x4E00, 0x4E00 + vocab - 2))]
    after = torch.randint(2, vocab, (vocab, 6), generator=generator)
    lengths = torch.randint(5, 25, (utterances + 4000,), generator=generator)
    texts, state = [], torch.randint(2, vocab, (len(lengths),), generator=generator)
    steps = []
    for _ in range(25):
        pick = torch.multinomial(torch.tensor([8.0, 4, 2, 1, 1, 1]), len(lengths), True, generator=generator)
        state = after[state, pick]
        steps.append(state)
    texts = [line[:n] for line, n in zip(torch.stack(steps, 1).tolist(), lengths.tolist())]
    batches: Batches = []
    test = sorted(texts[:utterances], key=len)
    for first in range(0, utterances, size):
        some = test[first : first + size]
        frames = torch.tensor([4 * len(line) + 2 for line in some])
        logits = torch.randn(len(some), int(frames.max()), vocab, generator=generator)
        logits[..., 0] += 14.0
        for row, line in enumerate(some):
            at = torch.arange(len(line)) * 4 + torch.randint(1, 4, (len(line),), generator=generator)
            # What is said, and what it may be taken for.
            for unit, shift in ((torch.tensor(line), 0.0), (torch.tensor(line) % (vocab // 4) + 2, 1.5)):
                strength = 17.0 - shift + torch.randn(len(line), generator=generator)
                logits[row, at, unit] += strength
                logits[row, at + 1, unit] += strength - 2
        batches.append((logits.log_softmax(-1), frames, [[units[i] for i in line] for line in some]))
    return units, batches, [[units[i] for i in line] for line in texts[utterances:]]


def flashlight(args: argparse.Namespace, units: list[str], batches: Batches, lm: str, top: int, scratch: Path) -> Way:
    from torchaudio.models.decoder import ctc_decoder

    # Without a list of its own it takes the model's words in no order, and the scores are of other units.
    (scratch / "words.txt").write_text("\n".join(units) + "\n", encoding="utf-8")
    decoder = ctc_decoder(
        lexicon=None, tokens=units, lm=lm, lm_dict=str(scratch / "words.txt"), nbest=1, beam_size=args.beam,
        beam_size_token=top, beam_threshold=args.threshold,
        lm_weight=args.lm_weight * math.log(10),  # it leaves kenlm's scores in log10
        word_score=args.length_bonus, log_add=True, blank_token=units[0], sil_token=units[0], unk_word="<unk>")
    return lambda: [[units[i] for i in hyp[0].tokens.tolist()] for log_probs, lengths, _ in batches
                    for hyp in decoder(log_probs, lengths)]


def pyctcdecode(args: argparse.Namespace, units: list[str], batches: Batches, lm: str) -> Way:
    import pyctcdecode

    logging.disable(logging.WARNING)
    # A mark before each unit makes each a word to its language model.
    decoder = pyctcdecode.build_ctcdecoder(["", "▁⁇▁", *(f"▁{unit}" for unit in units[2:])], kenlm_model_path=lm,
                                           alpha=args.lm_weight, beta=args.length_bonus, unk_score_offset=0.0)
    return lambda: [decoder.decode(row[:size].numpy(), beam_width=args.beam, beam_prune_logp=-args.threshold,
                                   token_min_logp=math.log(args.prune)).split()
                    for log_probs, lengths, _ in batches for row, size in zip(log_probs, lengths.tolist())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, help="an experiment; without it, made posteriors")
    parser.add_argument("--data", type=Path, help="its data folder")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--sets", default="", help="test sets (default: all)")
    parser.add_argument("--order", type=int, default=4, help="of the n-gram, estimated on the training text")
    parser.add_argument("--beam", type=int, default=8)
    parser.add_argument("--top", type=int, default=20, help="units looked at in a frame")
    parser.add_argument("--prune", type=float, default=1e-3, help="posterior under which a unit is left out")
    parser.add_argument("--threshold", type=float, default=10.0, help="how far behind the best a prefix may be")
    parser.add_argument("--lm_weight", type=float, default=0.5)
    parser.add_argument("--length_bonus", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--vocab", type=int, default=4000, help="of made posteriors")
    parser.add_argument("--utterances", type=int, default=300, help="of made posteriors")
    parser.add_argument("--batch", type=int, default=30, help="of made posteriors")
    parser.add_argument("--merge", type=int, default=1, help="batches of the experiment put together to one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.exp:
        path = args.checkpoint or args.exp / "checkpoints" / "final.pt"
        units, batches, text = heard(path, args.data, args.sets)
    else:
        units, batches, text = made(args.vocab, args.utterances, args.batch)
    if args.merge > 1:
        batches = [merged(batches[i : i + args.merge]) for i in range(0, len(batches), args.merge)]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "lm.arpa")
        NGram(text, args.order, vocabulary=units[2:]).write_arpa(path)
        lm = arpa.ArpaLM.read(path, units)
        references = [line for _, _, lines in batches for line in lines]

        def ours(top: int) -> Way:
            options = dict(beam=args.beam, nbest=1, lm_weight=args.lm_weight, length_bonus=args.length_bonus,
                           prune=args.prune, top=top, threshold=args.threshold, times=False)
            return lambda: [[units[i] for i in hyps[0].tokens] for log_probs, lengths, _ in batches
                            for hyps in fused_beam(log_probs, lengths, lm, **options)]

        ways: dict[str, Way] = {f"ours, {args.top} units a frame": ours(args.top), "ours, 5": ours(5)}
        for name, build in {
            f"flashlight, {args.top}": lambda: flashlight(args, units, batches, path, args.top, Path(folder)),
            "flashlight, 5": lambda: flashlight(args, units, batches, path, 5, Path(folder)),
            f"pyctcdecode, over {args.prune:g}": lambda: pyctcdecode(args, units, batches, path),
        }.items():
            try:
                ways[name] = build()
            except (ImportError, RuntimeError) as error:  # torchaudio says so by the latter
                print(f"{name}: not installed ({error})")
        compare(args, units, batches, references, ways, lm)


def merged(some: Batches) -> tuple[Tensor, Tensor, list[list[str]]]:
    rows = [row[:size] for log_probs, lengths, _ in some for row, size in zip(log_probs, lengths.tolist())]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, torch.tensor([len(row) for row in rows]), list(itertools.chain(*(lines for _, _, lines in some)))


def compare(args: argparse.Namespace, units: list[str], batches: Batches, references: list[list[str]],
            ways: dict[str, Way], lm: arpa.ArpaLM) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    answers = {name: way() for name, way in ways.items()}  # and warms up
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            way()
            times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    greedy = [[units[i] for i in hyp.tokens] for log_probs, lengths, _ in batches
              for hyp in ctc.greedy(log_probs, lengths)]
    total = sum(map(len, references))
    frames = sum(int(lengths.sum()) for _, lengths, _ in batches)
    print(f"{len(references)} utterances in {len(batches)} batches, {frames} frames of {len(units)} units; "
          f"{lm.order}-gram of {len(lm)} n-grams; beam {args.beam}, weight {args.lm_weight:g}; "
          f"one thread, {args.rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':30s} {'errors':>7s} {'%':>6s} {'ms':>8s} {'CPU ms':>8s} {'ms an utt.':>11s} "
          f"{'x ours':>7s} {'x ours, CPU':>12s}")
    print(f"{'(greedy)':30s} {errors(references, greedy):7d} {100 * errors(references, greedy) / total:6.2f}")
    first = next(iter(ways))
    for name, taken in times.items():
        wrong = errors(references, answers[name])
        wall, cpu = (statistics.median(column) for column in zip(*taken))
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(taken, times[first])) for i in (0, 1)]
        print(f"{name:30s} {wrong:7d} {100 * wrong / total:6.2f} {1e3 * wall:8.1f} {1e3 * cpu:8.1f} "
              f"{1e3 * wall / len(references):11.3f} {ratios[0]:7.2f} {ratios[1]:12.2f}")


def errors(references: list[list[str]], answers: list[list[str]]) -> int:
    found = jiwer.process_words([" ".join(line) for line in references], [" ".join(line) for line in answers])
    return found.substitutions + found.deletions + found.insertions


if __name__ == "__main__":
    main()
