"""The oracle row: the errors of one who hears every tonal syllable perfectly but must still pick the hanzi.

Its ear is the transcript's pinyin; its head is a character trigram estimated on the training text, which picks among
the characters that training has under each reading (a dictionary's, where training has none). No weight is tuned. What
it gets wrong, homophones and characters unseen in training, no acoustic model without other text can be expected to
get right.

    python local/oracle.py --data data/mini --exp exp/mini_conformer

writes EXP/decode/oracle/<test_set>/hyp.jsonl for each DATA/test*.jsonl.gz whose supervisions carry ``pinyin``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet

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


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl.gz and test*.jsonl.gz")
    parser.add_argument("--exp", type=Path, required=True, help="experiment whose decode/oracle/ is written")
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

    for name, lines in tests.items():
        written = []
        for line, syllables in lines:
            line |= {"hyp": "", "score": None, "error": None}
            if syllables is None:
                line["error"] = "no pinyin, or not one syllable a character"
            else:
                # A reading that no known character has is heard but can't be written: one <unk>, one error.
                options = [sorted(seen.get(s, ())) or dictionary.get(s) or [UNWRITTEN] for s in syllables]
                best, line["score"] = choose(model, options, args.beam)
                line["hyp"] = "".join(best)
            written.append(json.dumps(line, ensure_ascii=False) + "\n")
        path = args.exp / "decode" / "oracle" / name / "hyp.jsonl"
        write_text(path, "".join(written))
        print(f"{path}: {len(written)} utterances")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
