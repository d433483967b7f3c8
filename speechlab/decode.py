"""Let an experiment answer its test sets: ``python -m speechlab.decode EXP --data DIR --methods "ctc_greedy joint"``.

The checkpoint says which task it is, and the task what is to be done: recognise, classify, enhance... ``--help`` with
an experiment tells its methods and the options that are its task's own. With --config, the section ``decode`` is the
config's as it is now, and not the one that stood there when the model was trained.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from speechlab import tasks
from speechlab.errors import UserError, cli
from speechlab.files import read_json, write_json
from speechlab.tasks.command import parse
from speechlab.tasks.interface import Model, Task


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.decode", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="the experiment's folder")
    parser.add_argument("--data", required=True, type=Path, help="the folder that the recipe's data stages made")
    parser.add_argument("--methods", default="all", help="names from below, or all that the model can (default)")
    parser.add_argument("--sets", default="", help="test sets (default: every test... of --data)")
    parser.add_argument("--config", type=Path,
                        help="a YAML file whose section decode counts (default: the checkpoint's)")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an override of the config's section decode (others were training's and are passed over)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)), help="0 or 1")
    args, task = parse(parser, sys.argv[1:] if argv is None else argv, "decode")
    from speechlab.training import distributed

    if not args.data.is_dir():
        raise UserError(f"no folder {args.data}: run the recipe's data stages first (./run.sh --stage 0)")
    device = distributed.start(min(args.ngpu, 1)).device
    config = tasks.load_config(args.config, args.set) if args.config else None
    sets = [] if config is not None else [text for text in args.set if text.startswith("decode.")]
    model = tasks.load(args.exp, args.checkpoint, device, sets, config)
    answer(task, model, args)
    return 0


def answer(task: Task, model: Model, args: argparse.Namespace) -> None:
    """Answer the test sets and note the methods; those that were asked for before and are not now are removed, or an
    older checkpoint's answers would stand among this one's results."""
    listing = args.exp / "decode" / "methods.json"
    before = read_json(listing)
    methods = task.decode(model, args.data, args.exp, args)
    for name in before if isinstance(before, dict) else ():
        if name not in methods:
            shutil.rmtree(args.exp / "decode" / name, ignore_errors=True)
    write_json(listing, methods)


if __name__ == "__main__":
    raise SystemExit(main())
