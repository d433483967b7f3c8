"""Train a model: ``python -m speechlab.train CONFIG --data DIR --exp DIR``. Interrupted, the same command goes on."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from speechlab.config import dump, load
from speechlab.data.augment import seed_everything
from speechlab.errors import UserError, cli
from speechlab.files import write_text
from speechlab.training import distributed
from speechlab.training.loop import Trainer
from speechlab.training.tracking import environment, start_log


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.train", description=__doc__)
    parser.add_argument("config", help="a YAML file (egs/*/conf/*.yaml)")
    parser.add_argument("--data", required=True, type=Path, help="the folder of manifests, features and tokens")
    parser.add_argument("--exp", required=True, type=Path, help="the experiment's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)),
                        help="GPUs (0: the CPU; several: start by torchrun)")
    args = parser.parse_args(argv)
    config = load(args.config, args.set)
    if not args.data.is_dir():
        raise UserError(f"no folder {args.data}: run the recipe's data stages first (./run.sh --stage 0)")
    args.exp.mkdir(parents=True, exist_ok=True)
    processes = distributed.share(config.train.accum, args.ngpu)
    with distributed.helpers(processes, ["-m", "speechlab.train", *(sys.argv[1:] if argv is None else argv)]):
        return train(config, args)


def train(config: Any, args: argparse.Namespace) -> int:
    """Train in this process, one of those that share the work."""
    world = distributed.start(args.ngpu)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    log = logging.getLogger("speechlab")
    if world.first:
        log = start_log(args.exp)
        write_text(args.exp / "config.yaml", dump(config))
    try:
        seed_everything(config.train.seed)  # every process builds the same weights
        task = task_class(config.task)(config, args.data, world.device)
        seed_everything(config.train.seed + world.rank)  # and draws masks of its own
        parameters = sum(p.numel() for p in task.model.parameters())
        if world.first:
            log.info("%s: %.2f M parameters, %s x %d", config.model.path, parameters / 1e6, world.device, world.size)
        env = environment(world.device, data=str(args.data), parameters=parameters,
                          processes=world.size) if world.first else {}
        accum = -(-config.train.accum // world.size) * world.size
        if accum != config.train.accum:
            log.info("%d processes: %d batches to a step instead of %d", world.size, accum, config.train.accum)
        loader = task.loader(world.rank, world.size, accum)
        return Trainer(task, loader, config.train, config.optim, args.exp, world, {"env": env}).run()
    finally:
        distributed.stop(world)


def task_class(name: str) -> type:
    """The task's class: ``speechlab.tasks.asr`` has ``AsrTask``."""
    return getattr(importlib.import_module(f"speechlab.tasks.{name}"), f"{name.title().replace('_', '')}Task")


if __name__ == "__main__":
    raise SystemExit(main())
