"""Predicting the test splits of a pack."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from speechlab.data.images import Pack
from speechlab.errors import UserError
from speechlab.tasks.image.classifier import METHODS, Classifier, predict


def decode(classifier: Classifier, data: Path, exp: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Predict every test split. Returns {method: its settings}."""
    pack = Pack.open(data)
    classifier.suits(pack)
    methods = list(classifier.methods()) if args.methods == "all" else list(dict.fromkeys(args.methods.split()))
    for method in methods:
        if method not in METHODS:
            raise UserError(f"no method '{method}' for images: there are {', '.join(METHODS)}", 2)
        if method not in classifier.methods():
            raise UserError(f"method {method}: decode.tta is none (--set decode.tta=translate)", 2)
    sets = args.sets.split() or [name for name in pack.splits if name.startswith("test")]
    if not sets or not methods:
        raise UserError(f"--methods names none of {', '.join(METHODS)}" if sets else
                        f"{data} has no test split: it has {', '.join(pack.splits)}")
    for name in sets:
        predict(classifier, pack, name, methods, exp)
    return {method: {"tta": classifier.config.decode.tta if method == "tta" else "none"} for method in methods}
