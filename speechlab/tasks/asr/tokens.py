"""Stage 3: the token list. ``python -m speechlab.tasks.asr.tokens CONFIG --data data/mini --to data/mini/char-ab12``.

Makes ``tokens.json`` from the training text, and says how much of the other splits it cannot write.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lhotse import CutSet

from speechlab.data.tokens import SPLIT, UNKNOWN, Tokenizer
from speechlab.errors import UserError, cli
from speechlab.files import write_json
from speechlab.tasks import load_config


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.tasks.asr.tokens", description="Make the token list.")
    parser.add_argument("config", help="a YAML file; its section `tokens` is read")
    parser.add_argument("--data", required=True, help="the folder of the manifests")
    parser.add_argument("--to", required=True, help="the folder to write tokens.json into")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.set)
    data = Path(args.data)
    if not (data / "train.jsonl.gz").exists():
        raise UserError(f"no {data / 'train.jsonl.gz'}: run the recipe's manifest stage (--stage 1)")
    texts = {p.name.removesuffix(".jsonl.gz"): [c.supervisions[0].text for c in CutSet.from_file(p)]
             for p in sorted(data.glob("*.jsonl.gz"))}
    tokenizer = Tokenizer.train(texts["train"], config.tokens.kind, config.tokens.min_count, config.tokens.vocab_size)
    found = {"main": tokenizer.state()}
    if config.tokens.auxiliary:
        read = [unit for text in texts["train"] for unit in SPLIT[config.tokens.auxiliary](text)]
        if not set(read) - {UNKNOWN}:
            reads = "English" if config.tokens.auxiliary == "arpabet" else "Chinese"
            raise UserError(f"tokens.auxiliary = {config.tokens.auxiliary} reads {reads}, and the training text has "
                            "none: use a config without it (--config conf/plain.yaml)")
        auxiliary = Tokenizer.train(texts["train"], config.tokens.auxiliary)
        found["auxiliary"] = auxiliary.state()
        unread = f", {100 * read.count(UNKNOWN) / len(read):.1f} % unread" if UNKNOWN in read else ""
        print(f"auxiliary: {len(auxiliary)} units ({auxiliary.kind}{unread})")
    for split, lines in texts.items():
        ids = [i for line in lines for i in tokenizer.encode(line)]
        unknown = sum(i == 1 for i in ids)
        print(f"{split}: {len(lines)} utterances, {len(ids)} tokens, {unknown} unknown "
              f"({100 * unknown / max(len(ids), 1):.2f} %)")
    write_json(Path(args.to) / "tokens.json", found)
    print(f"{len(tokenizer)} tokens in {args.to}/tokens.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
