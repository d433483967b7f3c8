"""Stage 1: reads a corpus and writes its manifests (or what else its form of data is written as).

    python -m speechlab.prepare NAME --from downloads/NAME --to data/NAME --nj 4

The corpus's module (speechlab/corpora/NAME.py) reads its files. The corpus's form (speechlab/data/forms/) does what all
corpora of this form share: it checks what the module returned, writes it, and shows a small table.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from speechlab.errors import UserError, cli

_OWN = ("folder", "out", "nj", "carry")  # parameters of a corpus's prepare() that --option can't set
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@cli
def main(argv: list[str] | None = None) -> int:
    """Command line: see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m speechlab.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpus", help="a name that python -m speechlab.corpora --list shows, or folder")
    parser.add_argument("--from", dest="source", metavar="DIR", help="the corpus on disk (default: downloads/NAME)")
    parser.add_argument("--to", required=True, metavar="DIR", help="where the manifests or the pack go, e.g. data/NAME")
    parser.add_argument("--nj", type=int, default=1, help="how many files to read at once")
    parser.add_argument("--split_by", choices=["auto", "speaker", "column", "random"], default="auto",
                        help="for the corpus folder (others are split as they are published): by the column split, by "
                        "speakers, at random; auto is the first of these that its manifest.tsv allows")
    parser.add_argument("--carry", metavar="WORDS", help="what items carry, separated by commas: text, label, speaker, "
                        "clean (the path of a clean partner), or your own; for the corpora that can carry several "
                        "things, such as folder and kaldi")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="an option of the corpus, e.g. --option train=50 for synthetic, or of all speech: "
                        "symbols=keep (non-speech symbols such as <NOISE> stay as tokens), nlsyms=FILE (symbols of "
                        "your own, one per line); may be repeated")
    args = parser.parse_args(argv)

    from speechlab import corpora
    from speechlab.data import forms

    module = corpora.load(args.corpus)
    form = forms.find(getattr(module, "FORM", "speech"))
    of_form = dict(getattr(form, "OPTIONS", {}))
    options = parse_options(args.corpus, module, args.option, of_form)
    of_form = {key: options.pop(key) for key in of_form if key in options}
    known = inspect.signature(module.prepare).parameters
    if "split_by" in known:  # recipes give --split_by for every corpus
        options.setdefault("split_by", args.split_by)
    carries = parse_carry(args.corpus, args.carry, tuple(getattr(module, "CARRIES", form.CARRIES)), "carry" in known)
    if "carry" in known:
        options["carry"] = carries
    downloads = Path(os.environ.get("SPEECHLAB_DOWNLOADS") or "downloads")
    source = Path(args.source) if args.source else downloads / args.corpus
    if not source.is_dir():
        raise UserError(f"{args.corpus}: there is no folder {source}: give the corpus's folder, or fetch it with "
                        f"python -m speechlab.corpora {args.corpus} --to {source.parent}")
    out = Path(args.to)
    out.mkdir(parents=True, exist_ok=True)
    made = module.prepare(source, out, nj=args.nj, **options)
    form.finish(made, out, forms.Corpus(args.corpus, carries, getattr(module, "SPEAKERS_SHARED", False), args.nj,
                                        of_form))
    return 0


def parse_carry(name: str, given: str | None, carries: tuple[str, ...], any_of_them: bool) -> tuple[str, ...]:
    """``"label,speaker"`` -> ``("label", "speaker")``; None -> ``carries``, what the corpus carries by itself.

    ``any_of_them``: the corpus may be asked for anything, and says itself what it does not have. Other corpora may only
    be asked for some of ``carries``; else a UserError.
    """
    if given is None:
        return carries
    words = tuple(dict.fromkeys(word.strip() for word in given.split(",")))
    strange = [word for word in words if not re.fullmatch(r"[A-Za-z]\w*", word)]
    if strange:
        raise UserError(f"--carry {given}: it must be words separated by commas, e.g. label,speaker", status=2)
    lacks = [word for word in words if word not in carries]
    if lacks and not any_of_them:
        raise UserError(f"--carry {given}: {name} carries {', '.join(carries)}, and no {lacks[0]}", status=2)
    return words


def parse_options(name: str, module: ModuleType, given: list[str],
                  of_form: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``["train=50"]`` -> ``{"train": 50}``, checked against the signature of the module's ``prepare`` and the defaults
    of the form's options."""
    known = {key: p.default for key, p in inspect.signature(module.prepare).parameters.items() if key not in _OWN}
    known.update(of_form or {})
    options: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            what = f"--option {pair} is not KEY=VALUE" if not equals else f"{name} has no option {key}"
            raise UserError(f"{what}: {name}'s options are {', '.join(known) or 'none'}", status=2)
        kind = type(known[key])
        try:
            options[key] = _TRUTH[value.lower()] if kind is bool else kind(value) if kind in (int, float) else value
        except (ValueError, KeyError):
            raise UserError(f"--option {pair}: {key} must be {kind.__name__}", status=2) from None
    return options


if __name__ == "__main__":
    raise SystemExit(main())
