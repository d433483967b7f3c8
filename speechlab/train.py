"""Train a model: ``python -m speechlab.train CONFIG --data DIR --exp DIR``. Interrupted, the same command goes on.

From Python: ``speechlab.train("conf/tiny.yaml", data="data/mini", exp="exp/mine", sets={"optim.lr": 1e-3})``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from speechlab import callable_module, tasks
from speechlab.config import dump, settings
from speechlab.data.augment import seed_everything
from speechlab.errors import UserError, cli
from speechlab.files import write_text
from speechlab.scoring import metric
from speechlab.training import distributed
from speechlab.training.loop import Trainer
from speechlab.training.tracking import environment, start_log, stop_log


def train(config: str | Path, data: str | Path, exp: str | Path, sets: Mapping[str, Any] | Iterable[str] = (),
          ngpu: int = 0) -> Path:
    """Train to the last epoch, from wherever the experiment's checkpoints stand.

    Args:
        config: a YAML file. data: the folder that the recipe's data stages made. exp: the experiment's folder.
        sets: overrides, ``{"optim.lr": 1e-3}`` or ``["optim.lr=1e-3"]``. ngpu: GPUs (0: the CPU).
    Returns:
        The experiment's folder, for ``speechlab.load``.
    Raises:
        UserError: a mistake in the config, no such data. KeyboardInterrupt, SystemExit: a signal stopped the training;
        all is saved, and the same call goes on.
    """
    words = [str(config), "--data", str(data), "--exp", str(exp), "--ngpu", str(ngpu),
             *(word for pair in settings(sets) for word in ("--set", pair))]
    status = run(words)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)
    return Path(exp)


@cli
def main(argv: list[str] | None = None) -> int:
    return run(sys.argv[1:] if argv is None else argv)


def run(argv: list[str]) -> int:
    """Train as the command line says, in as many processes as share the work."""
    parser = argparse.ArgumentParser(prog="python -m speechlab.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", help="a YAML file (egs/*/conf/*.yaml)")
    parser.add_argument("--data", required=True, type=Path, help="the folder of manifests, features and tokens")
    parser.add_argument("--exp", required=True, type=Path, help="the experiment's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)),
                        help="GPUs, each with a process of its own (0: the CPU)")
    args = parser.parse_args(argv)
    # The working folder, where recipes run; else the recipe in whose conf/ the config lies. A notebook's user may have
    # edited its local/ since the last training, and the processes that share this one read it anew.
    args.recipe = tasks.enter(Path.cwd(), *Path(args.config).resolve().parents[:3])
    tasks.at(args.recipe, fresh=True)
    config = tasks.load_config(args.config, args.set)
    if not args.data.is_dir():
        raise UserError(f"no folder {args.data}: run the recipe's data stages first (./run.sh --stage 0)")
    check_folder(args.exp, Path(args.config), args.data)
    args.exp.mkdir(parents=True, exist_ok=True)
    processes = distributed.share(config.train.accum, args.ngpu)
    with distributed.helpers(processes, ["-m", "speechlab.train", *argv], args.ngpu):
        return train_here(config, args)


def check_folder(exp: Path, config: Path, data: Path) -> None:
    """An experiment's folder holds nothing but the experiment: it is not a recipe, nor a part of one, nor above one.

    The recipe is where the config lies (in conf/), or the working folder. tools/recipe.sh refuses the same.

    Raises:
        UserError: (status 2) with a folder that is nobody else's.
    """
    place, better = exp.resolve(), "give a folder of the experiment's own (exp/NAME)"
    if place.exists() and not place.is_dir():
        raise UserError(f"--exp {exp} is a file: it must be an experiment's folder (exp/NAME)", 2)
    if data.resolve().is_relative_to(place):
        raise UserError(f"--exp {exp} is {place}, and {data} lies in it: {better}", 2)
    for recipe in {Path.cwd().resolve(), config.resolve().parent.parent}:
        if not (recipe / "conf").is_dir():
            continue
        if recipe.is_relative_to(place):
            raise UserError(f"--exp {exp} is {place}, and the recipe lies in it: {better}", 2)
        for name in ("conf", "local", "data", "figures"):
            if place.is_relative_to((recipe / name).resolve()):
                raise UserError(f"--exp {exp}: {name}/ is the recipe's own: {better}", 2)
        if place == (recipe / "exp").resolve():
            raise UserError(f"--exp {exp} is the folder of all experiments: give one of them (exp/NAME)", 2)


def train_here(config: Any, args: argparse.Namespace) -> int:
    """Train in this process, one of those that share the work."""
    world = distributed.start(args.ngpu)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    task = tasks.find(config.task)
    log = logging.getLogger("speechlab")
    if world.first:
        log = start_log(args.exp)
        write_text(args.exp / "config.yaml", dump(config))
        metric.write(args.exp, task.metrics)
    try:
        seed_everything(config.train.seed)  # every process builds the same weights
        trainable = task.trainable(config, args.data, world.device)
        seed_everything(config.train.seed + world.rank)  # and draws masks of its own
        parameters = sum(p.numel() for p in trainable.model.parameters())
        if world.first:
            log.info("%s: %.2f M parameters, %s x %d", network(config, trainable), parameters / 1e6, world.device,
                     world.size)
        env = environment(world.device, data=str(args.data), parameters=parameters, processes=world.size,
                          task=config.task, recipe=str(args.recipe)) if world.first else {}
        accum = -(-config.train.accum // world.size) * world.size
        if accum != config.train.accum:
            log.info("%d processes: %d batches to a step instead of %d", world.size, accum, config.train.accum)
        loader = trainable.loader(world.rank, world.size, accum)
        return Trainer(trainable, loader, config.train, config.optim, args.exp, world, {"env": env}).run()
    finally:
        distributed.stop(world)
        stop_log()


def network(config: Any, trainable: Any) -> str:
    """What the log calls the network: the config's dotted path, else its class."""
    return getattr(getattr(config, "model", None), "path", "") or type(trainable.model).__qualname__


callable_module(__name__, train)

if __name__ == "__main__":
    raise SystemExit(main())
