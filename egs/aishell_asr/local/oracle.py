"""The oracle row: the errors of one who hears every tonal syllable perfectly but must still pick the hanzi.

Its ear is the transcript's pinyin; its head is a character trigram estimated on the training text, which picks among
the characters that training has under each reading (a dictionary's, where training has none). No weight is tuned. What
it gets wrong, homophones and characters unseen in training, no acoustic model without other text can be expected to
get right.

    python local/oracle.py --data data/mini --exp exp/mini_conformer

writes EXP/decode/oracle/<test_set>/hyp.jsonl for each DATA/test*.jsonl.gz whose supervisions carry ``pinyin``. With
``--lm DIR``, a model that may know more text than the training set's, EXP/decode/oracle_lm/ likewise.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from lhotse import CutSet

from speechlab.decoding import arpa
from speechlab.decoding.ngram import NGram, choose
from speechlab.errors import UserError, cli
from speechlab.files import write_text

UNWRITTEN = "\N{REPLACEMENT CHARACTER}"


def utterances(manifest: Path) -> Iterator[tuple[dict, list[str] | None]]:
    """Each cut of a manifest as a line for hyp.jsonl (no ``hyp`` yet), and its numbered syllables, one a character.

    The syllables are None where the cut has none, or not as many as its text has characters.
    """
    for cut in CutSet.from_file(manifest):
        (supervision,) = cut.supervisions
        text = supervision.text or ""
        syllables = (supervision.custom or {}).get("pinyin", "").split()
        line = {"id": cut.id, "ref": text, "seconds": cut.duration, "speaker": supervision.speaker}
        yield line, syllables if syllables and len(syllables) == len(text) else None


def readings_of(characters: set[str]) -> dict[str, list[str]]:
    """Reading -> characters, by pypinyin's dictionary; neutral tone is 5."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise UserError("the oracle row needs pypinyin: pip install pypinyin") from None
    table = defaultdict(list)
    for character in sorted(characters):
        for reading in pinyin(character, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True)[0]:
            table[reading].append(character)
    return dict(table)


def choose_by(lm: arpa.ArpaLM, candidates: Sequence[Sequence[str]], beam: int) -> tuple[list[str], float]:
    """As ``ngram.choose``, by an ARPA model over units: of two ways into one of its states only the better can win."""
    numbers = {unit: i for i, unit in enumerate(lm.units)}
    states, scores, ways = lm.start(1), np.zeros(1), [()]
    for options in candidates:
        tokens = np.array([numbers.get(option, 1) for option in options])
        log_probs, reached = lm.step(np.repeat(states, len(tokens)), np.tile(tokens, len(states)))
        total = np.repeat(scores, len(tokens)) + log_probs
        kept: dict[int, int] = {}
        for place in np.argsort(-total, kind="stable"):
            kept.setdefault(int(reached[place]), int(place))
            if beam and len(kept) == beam:
                break
        places = list(kept.values())
        ways = [(ways[p // len(tokens)], options[p % len(tokens)]) for p in places]
        states, scores = reached[places], total[places]
    scores = scores + lm.final(states)
    way, best = ways[int(scores.argmax())], []
    while way:
        way, option = way
        best.append(option)
    return best[::-1], float(scores.max())


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl.gz and test*.jsonl.gz")
    parser.add_argument("--exp", type=Path, required=True, help="experiment whose decode/oracle/ is written")
    parser.add_argument("--lm", type=Path, help="the folder of a language model (lm.arpa): a second row, oracle_lm")
    parser.add_argument("--order", type=int, default=3, help="order of the character n-gram (default: 3)")
    parser.add_argument("--beam", type=int, default=200, help="contexts kept; 0: all, exact (default: 200)")
    args = parser.parse_args(argv)
    if args.order < 1 or args.beam < 0:
        raise UserError(f"--order {args.order} --beam {args.beam}: an order is 1 or more, a beam 0 or more")
    if not (args.data / "train.jsonl.gz").exists():
        raise UserError(f"no {args.data / 'train.jsonl.gz'}: run stage 1")

    manifests = sorted(args.data.glob("test*.jsonl.gz"))
    tests = {path.name.removesuffix(".jsonl.gz"): list(utterances(path)) for path in manifests}
    tests = {name: lines for name, lines in tests.items() if any(syllables for _, syllables in lines)}
    if not tests:
        print(f"no test set in {args.data} carries pinyin: no oracle row")
        return 0

    sentences, seen = set(), defaultdict(set)
    for line, syllables in utterances(args.data / "train.jsonl.gz"):
        sentences.add(line["ref"])  # a sentence spoken by several voices is one sentence of text
        for character, syllable in zip(line["ref"], syllables or ()):
            seen[syllable].add(character)
    model = NGram(sorted(sentences), args.order)
    dictionary = readings_of(model.vocabulary)

    heads: dict[str, Callable[[Sequence[Sequence[str]]], tuple[list[str], float]]] = {
        "oracle": lambda options: choose(model, options, args.beam)}
    if args.lm:
        units = json.loads((args.lm / "lm.json").read_text(encoding="utf-8"))["units"]
        lm = arpa.load(args.lm, units)
        heads["oracle_lm"] = lambda options: choose_by(lm, options, args.beam)
    for method, head in heads.items():
        for name, lines in tests.items():
            written = []
            for line, syllables in lines:
                answer = {**line, "hyp": "", "score": None, "error": None}
                if syllables is None:
                    answer["error"] = "no pinyin, or not one syllable a character"
                else:
                    # A reading that no known character has is heard but can't be written: one <unk>, one error.
                    options = [sorted(seen.get(s, ())) or dictionary.get(s) or [UNWRITTEN] for s in syllables]
                    best, answer["score"] = head(options)
                    answer["hyp"] = "".join(best)
                written.append(json.dumps(answer, ensure_ascii=False) + "\n")
            path = args.exp / "decode" / method / name / "hyp.jsonl"
            write_text(path, "".join(written))
            print(f"{path}: {len(written)} utterances")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
