"""Tokens: text to integers and back. Index 0 is CTC's blank, index 1 the unknown token.

As a stage: ``python -m speechlab.data.tokens CONFIG --data data/mini --to data/mini/char-ab12`` makes ``tokens.json``
from the training text, and says how much of the other splits it cannot write.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from speechlab.data import pinyin
from speechlab.errors import UserError, cli
from speechlab.files import write_json

BLANK, UNKNOWN, SPACE = "<blank>", "<unk>", "▁"


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """Section ``tokens``.

    kind: of the units that are written. min_count: how often a unit must be seen in training to get a number.
    auxiliary: units of a second target for the encoder's lower layers (section ``loss``): ``phone`` (initials and tonal
    finals) or ``syllable``, both of Chinese text by pypinyin; empty for none.
    factored: a unit's output weights share those of its auxiliary units (models/asr.py, FactoredHead).
    """

    kind: Literal["char"] = "char"
    min_count: int = 1
    auxiliary: Literal["", "phone", "syllable"] = ""
    factored: bool = False

    def __post_init__(self) -> None:
        if self.factored and not self.auxiliary:
            raise ValueError("factored needs auxiliary: the parts are auxiliary units")

    def name(self) -> str:
        """The folder's name: kind and four hex digits of what defines the units."""
        from speechlab.config import short_hash

        return f"{self.kind}-{short_hash(dataclasses.asdict(self))}"


def _characters(text: str) -> list[str]:
    return list(text.replace(" ", SPACE))


SPLIT: dict[str, Callable[[str], list[str]]] = {
    "char": _characters, "phone": pinyin.phones, "syllable": pinyin.syllables,
}


class Tokenizer:
    """Text as units of one kind; in characters a space between words is the unit ``▁``."""

    def __init__(self, units: Sequence[str], kind: str = "char"):
        if list(units[:2]) != [BLANK, UNKNOWN] or len(set(units)) != len(units):
            raise UserError(f"a token list must begin with {BLANK}, {UNKNOWN} and name each unit once")
        if kind not in SPLIT:
            raise UserError(f"a token list of kind '{kind}': there are {', '.join(SPLIT)}")
        self.units, self.kind = list(units), kind
        self._index = {unit: i for i, unit in enumerate(self.units)}

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "char", min_count: int = 1) -> Tokenizer:
        """The units of ``texts``, the most frequent first."""
        counts = Counter(unit for text in texts for unit in SPLIT[kind](text))
        units = sorted((u for u, n in counts.items() if n >= min_count), key=lambda u: (-counts[u], u))
        if not units:
            raise UserError("the training text is empty: there is nothing to make tokens of")
        return cls([BLANK, UNKNOWN, *units], kind)

    @classmethod
    def load(cls, folder: str | Path, part: str = "main") -> Tokenizer:
        """Read ``tokens.json`` from a folder: its part ``main``, or ``auxiliary``."""
        path = Path(folder) / "tokens.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8"))[part])
        except FileNotFoundError:
            raise UserError(f"no {path}: run the recipe's token stage (--stage 3)") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not a token list: delete it and run --stage 3") from None

    def encode(self, text: str) -> list[int]:
        """Text to token indices; what is not in the list becomes the unknown token."""
        return [self._index.get(unit, 1) for unit in SPLIT[self.kind](text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Token indices to text; blank and unknown write nothing."""
        units = [self.units[i] for i in ids if i > 1]
        return " ".join(units) if self.kind != "char" else "".join(units).replace(SPACE, " ").strip()

    def state(self) -> dict[str, Any]:
        """What :meth:`load` and the constructor read."""
        return {"kind": self.kind, "units": self.units}


@cli
def main(argv: list[str] | None = None) -> int:
    from lhotse import CutSet

    from speechlab.config import load

    parser = argparse.ArgumentParser(prog="python -m speechlab.data.tokens", description="Make the token list.")
    parser.add_argument("config", help="a YAML file; its section `tokens` is read")
    parser.add_argument("--data", required=True, help="the folder of the manifests")
    parser.add_argument("--to", required=True, help="the folder to write tokens.json into")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    args = parser.parse_args(argv)
    config = load(args.config, args.set)
    data = Path(args.data)
    if not (data / "train.jsonl.gz").exists():
        raise UserError(f"no {data / 'train.jsonl.gz'}: run the recipe's manifest stage (--stage 1)")
    texts = {p.name.removesuffix(".jsonl.gz"): [c.supervisions[0].text for c in CutSet.from_file(p)]
             for p in sorted(data.glob("*.jsonl.gz"))}
    tokenizer = Tokenizer.train(texts["train"], config.tokens.kind, config.tokens.min_count)
    found = {"main": tokenizer.state()}
    if config.tokens.auxiliary:
        if not any(SPLIT[config.tokens.auxiliary](text) for text in texts["train"]):
            raise UserError(f"tokens.auxiliary = {config.tokens.auxiliary} reads Chinese, and the training text has no "
                            "hanzi: use a config without it (--config conf/plain.yaml)")
        auxiliary = Tokenizer.train(texts["train"], config.tokens.auxiliary)
        found["auxiliary"] = auxiliary.state()
        print(f"auxiliary: {len(auxiliary)} units ({auxiliary.kind})")
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
