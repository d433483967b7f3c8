"""An n-gram language model over a recogniser's units, from its training text (and other text): the stage.

``python -m speechlab.data.lm CONFIG --data data/mini --tokens data/mini/char-ab12 --to data/mini/lm-cd34`` makes
``lm.arpa`` and ``lm.json`` (units, order, perplexities), and says how well the model predicts the development text.
Test sets are never read.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

from speechlab.data.text import normalise
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.arpa import ArpaLM
from speechlab.decoding.ngram import NGram
from speechlab.errors import UserError, cli
from speechlab.files import write_json


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Section ``lm``.

    order: 4 is a 4-gram. distinct: a sentence counts once, however many times it was recorded: in read speech that is
    how many people were given it to read, and says nothing of the language (conversations want false). own_weight:
    beside more text (``--text``), which is larger and of other kinds, a transcript counts so many times.
    """

    order: int = 3
    distinct: bool = True
    own_weight: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 10:
            raise ValueError(f"order is {self.order}; it must be 1 to 10")
        if not 0 < self.own_weight < float("inf"):
            raise ValueError(f"own_weight is {self.own_weight:g}; it must be over 0")

    def name(self) -> str:
        """The folder's name: four hex digits of what defines the model, apart from its texts and units."""
        from speechlab.config import short_hash

        return f"lm-{short_hash(dataclasses.asdict(self))}"


def estimate(texts: Iterable[str], tokenizer: Tokenizer, config: LMConfig, more_text: Path | None = None,
             language: str | None = None) -> NGram:
    """The model of training transcripts, and of a file of more, whose lines are normalised as transcripts are."""
    sentences = list(dict.fromkeys(texts) if config.distinct else texts)
    more = _read(more_text, language) if more_text else []
    if config.distinct:
        more = list(dict.fromkeys(more))
    units = [[tokenizer.units[i] for i in tokenizer.encode(text)] for text in [*sentences, *more]]
    weights = itertools.chain([config.own_weight if more else 1] * len(sentences), itertools.repeat(1, len(more)))
    return NGram(units, config.order, weights, vocabulary=tokenizer.units[2:])


def _read(path: Path, language: str | None) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"--text: no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--text: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    found = [text for text in (normalise(line, language) for line in lines) if text]
    if not found:
        raise UserError(f"--text: nothing is said in {path}")
    return found


@cli
def main(argv: list[str] | None = None) -> int:
    from lhotse import CutSet

    from speechlab.config import load

    parser = argparse.ArgumentParser(prog="python -m speechlab.data.lm", description="Estimate the language model.")
    parser.add_argument("config", help="a YAML file; its section `lm` is read")
    parser.add_argument("--data", required=True, type=Path, help="the folder of the manifests")
    parser.add_argument("--tokens", required=True, type=Path, help="the folder of tokens.json")
    parser.add_argument("--text", type=Path, help="a file of more text, a sentence a line")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write lm.arpa and lm.json into")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    args = parser.parse_args(argv)
    config: LMConfig = load(args.config, args.set).lm
    if not (args.data / "train.jsonl.gz").exists():
        raise UserError(f"no {args.data / 'train.jsonl.gz'}: run the recipe's manifest stage (--stage 1)")
    tokenizer = Tokenizer.load(args.tokens)
    spoken = {path.name.removesuffix(".jsonl.gz"): [cut.supervisions[0] for cut in CutSet.from_file(path)]
              for path in [args.data / "train.jsonl.gz", *sorted(args.data.glob("dev*.jsonl.gz"))]}
    texts = {split: [line.text for line in lines if line.text] for split, lines in spoken.items()}
    if not texts["train"]:
        raise UserError(f"the transcripts in {args.data / 'train.jsonl.gz'} are empty: there is nothing to learn from")

    model = estimate(texts["train"], tokenizer, config, args.text, spoken["train"][0].language)
    model.write_arpa(args.to / "lm.arpa")
    written = ArpaLM.read(args.to / "lm.arpa", tokenizer.units)  # what will be used is what is judged
    perplexity = {}
    for split, lines in texts.items():
        ids = [tokenizer.encode(line) for line in lines]
        count, unknown = sum(map(len, ids)), sum(line.count(1) for line in ids)
        perplexity[split] = round(written.perplexity(ids), 3) if ids else None
        print(f"{split}: {len(ids)} sentences, {count} tokens, {unknown} unknown "
              f"({100 * unknown / max(count, 1):.2f} %), perplexity {perplexity[split]}")
    write_json(args.to / "lm.json", {"units": tokenizer.units, "order": config.order, "perplexity": perplexity})
    print(f"{written.order}-gram of {len(written)} n-grams in {args.to}/lm.arpa")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
