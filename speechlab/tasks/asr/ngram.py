"""Stage 3: an n-gram language model over a recogniser's units, from its training text (and other text).

``python -m speechlab.tasks.asr.ngram CONFIG --data DATA --tokens DATA/char-ab12 --to DATA/char-ab12/lm-cd34`` makes
``lm.arpa`` and ``lm.json`` (units, order, perplexities), and says how well the model predicts the development text.
Test sets are never read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lhotse import CutSet

from speechlab.data.lm import LMConfig, estimate
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.arpa import ArpaLM
from speechlab.errors import UserError, cli
from speechlab.files import write_json
from speechlab.tasks import load_config


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.tasks.asr.ngram",
                                     description="Estimate the language model.")
    parser.add_argument("config", help="a YAML file; its section `lm` is read")
    parser.add_argument("--data", required=True, type=Path, help="the folder of the manifests")
    parser.add_argument("--tokens", required=True, type=Path, help="the folder of tokens.json")
    parser.add_argument("--text", type=Path, help="a file of more text, a sentence a line")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write lm.arpa and lm.json into")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    args = parser.parse_args(argv)
    config: LMConfig = load_config(args.config, args.set).lm
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
