"""The training loop, to be read in one sitting. The task decides what a batch is and what its loss means."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from speechlab.errors import UserError
from speechlab.files import write_json, write_text
from speechlab.progress import wants_bar
from speechlab.ranges import SEEDS, within
from speechlab.training import checkpoint
from speechlab.training.device import amp_dtype, give_back, shape_of, to_device
from speechlab.training.distributed import Losses, World
from speechlab.training.interface import Loader, Trainable, record_key
from speechlab.training.optim import OptimConfig, build_optimizer, learning_rate
from speechlab.training.tracking import Tracker, memory_gb

log = logging.getLogger("speechlab")
REQUEUE = 85  # exit status after a signal: all is saved, start the same command again
PATIENCE_NONFINITE = 20  # steps in a row without a finite loss that end the run


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Section ``train``: how long and how to train, and what is written on the way."""

    epochs: int = 30  # passes over the training set
    seed: int = 1  # of the weights, of dropout and of the order of the data
    # Batches per optimiser step, over all processes: distributed.py shares them out, so that the number of processes
    # changes the speed and not the result.
    accum: int = 1
    # Number type of most of the computing. off: fp32; auto: bf16 where the device is fast in it, else fp16 on a CUDA
    # GPU and fp32 elsewhere.
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    ema: float = 0.0  # decay per step of a running average of the weights, which is then judged and kept; 0: no average
    average: int = 1  # final.pt is the mean of the weights of this many best epochs
    patience: int = 0  # stop after this many epochs without a better metric; 0: never
    log_steps: int = 20  # optimiser steps between two log lines
    save_minutes: float = 3.0  # minutes between two checkpoints inside an epoch
    keep: int = 2  # checkpoints to continue from (step-N.pt) that stay on the disk
    threads: int = 0  # CPU threads per process; 0: torch's choice
    tensorboard: bool = True  # write TensorBoard files beside metrics.jsonl
    histograms: int = 1  # epochs between two histograms of weights and gradients on TensorBoard; 0: none
    wandb: bool = False  # send the metrics to Weights & Biases too

    def __post_init__(self) -> None:
        within(self, "epochs", "accum", "average", "log_steps", "keep", least=1)
        within(self, "seed", least=0, below=SEEDS)
        within(self, "ema", least=0, below=1)
        within(self, "patience", "save_minutes", "histograms", least=0)
        within(self, "threads", least=0, most=1024)


class Stepped(NamedTuple):
    """What came of one optimiser step."""

    loss: float  # the mean over all processes' batches; NaN where the step was skipped
    count: float  # what the sum of losses was divided by, over all processes; 0 where the step was skipped
    norm: float  # of the gradient, before clipping
    items: int  # in this process's batches


class Trainer:
    """One run in one folder: :meth:`run` trains to the last epoch from wherever the folder's checkpoints stand."""

    def __init__(self, task: Trainable, loader: Loader, config: TrainConfig, optim: OptimConfig, exp: Path,
                 world: World, meta: dict[str, Any]):
        self.task, self.loader, self.config, self.optim = task, loader, config, optim
        self.exp, self.folder, self.world, self.meta = exp, exp / "checkpoints", world, meta
        self.model = task.model.to(world.device)
        self.losses: nn.Module = Losses(task)
        if world.size > 1:
            # Buffers are BatchNorm's running means. The first process judges and saves, and needs only its own.
            self.losses = DistributedDataParallel(self.losses, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.optimizers = {name: build_optimizer(p, optim) for name, p in task.optimized().items()}
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False) if config.ema else self.model
        self.dtype = amp_dtype(config.amp, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        self.epoch = self.batch = self.step = self.nonfinite = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.sums, self.whole = no_sums(), no_sums()  # since the last log line, and since the epoch's beginning
        self.signal = 0
        self.memory = [0.0]  # GB, the peak of each process so far

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train. Returns 0 when the last epoch is done, 85 or 130 when a signal asked to stop and all is saved."""
        resumed = self._restore()
        caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            caught = ()  # Python lets only the main thread catch them
        handlers = {number: signal.signal(number, self._on_signal) for number in caught}
        tracker = Tracker(self.exp, self.step, self.config.tensorboard, self.config.histograms,
                          self.config.wandb) if self.world.first else None
        if self.dtype is not None:
            log.info("computing in %s where it is safe (train.amp)", str(self.dtype).removeprefix("torch."))
        try:
            while self.epoch < self.config.epochs and not self.world.any(self._out_of_patience()):
                if not self._train_epoch(tracker, resumed):
                    self._save()
                    log.info("stopped by signal %d at step %d: saved; the same command goes on", self.signal, self.step)
                    return 130 if self.signal == signal.SIGINT else REQUEUE
                resumed = None
                self._judge_epoch(tracker)
                self._save()
            if tracker:
                self._finish(tracker)
            return 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if tracker:
                tracker.close()

    def _train_epoch(self, tracker: Tracker | None, resumed: dict[str, Any] | None) -> bool:
        """Train on what is left of the epoch; False if a signal came."""
        size = self.loader.size(self.epoch)
        groups = self.loader.epoch(self.epoch, skip=self.batch)
        if resumed is not None:  # only now, since making the iterator may have drawn random numbers
            checkpoint.set_random_state(resumed["random"])
        self.model.train()
        started = logged = saved = time.monotonic()
        if self.batch == 0:  # a resumed epoch goes on from its sums, so that an interruption changes no figure
            self.sums, self.whole = no_sums(), no_sums()
        seen, bar = 0, self._bar(size)
        for group in groups:
            done = (self.epoch + self.batch / size) / self.config.epochs
            lr = learning_rate(self.step, done, self.optim)
            step = self._step(group, lr)
            self.step += 1
            self.batch += 1
            add_loss(self.sums, step)
            add_loss(self.whole, step)
            seen += step.items
            now = time.monotonic()
            if bar is not None:
                bar.set_postfix(loss=shown(step.loss, 3), lr=f"{lr:.1e}", refresh=False)
                bar.update()
            if self.step % self.config.log_steps == 0 or self.step == 1:
                self.memory = self.world.gather(memory_gb(self.world.device))
                give_back()
                if tracker:
                    self._log_step(tracker, step.norm, lr, seen / (now - logged), self.seconds + now - started,
                                   f"{self.batch}/{size}", logging.DEBUG if bar is not None else logging.INFO)
                seen, logged = 0, now
            if self.world.any(self.signal != 0):
                self.signal = self.signal or signal.SIGTERM
                self.seconds += now - started
                return False
            if now - saved > 60 * self.config.save_minutes:
                self.seconds, started, saved = self.seconds + now - started, now, now
                self._save()
        if bar is not None:
            bar.close()
        self.seconds += time.monotonic() - started
        self.train_loss = mean_loss(self.whole)
        self.epoch, self.batch = self.epoch + 1, 0
        return True

    def _log_step(self, tracker: Tracker, norm: float, lr: float, speed: float, seconds: float, place: str,
                  level: int) -> None:
        """A line in metrics.jsonl and train.log about the steps since the last one; ``speed`` is this process's."""
        record = {"epoch": self.epoch + 1, "loss": mean_loss(self.sums), "lr": lr, "grad_norm": norm,
                  "items_per_s": speed * self.world.size, "seconds": seconds,
                  "memory_gb": max(self.memory), "memory_sum_gb": sum(self.memory),
                  **getattr(self.task, "watch", dict)()}  # while the step's gradients are there
        tracker.write("step", self.step, record)
        log.log(level, "epoch %d step %d (%s): loss %s, lr %.2e, grad norm %.2f, %.0f items/s, %.1f GB%s",
                self.epoch + 1, self.step, place, shown(record["loss"], 4), lr, norm, record["items_per_s"],
                record["memory_sum_gb"], f" in {self.world.size} processes" if self.world.size > 1 else "")
        self.sums = no_sums()

    # -- one step ----------------------------------------------------------------------------------------------------

    def _step(self, group: list[tuple[int, Any]], lr: float) -> Stepped:
        """One step of each optimiser on this process's batches, given with their places in the step."""
        group = [(place, to_device(batch, self.world.device)) for place, batch in group]
        items = sum(len(batch["ids"]) for _, batch in group)
        for name, optimizer in self.optimizers.items():
            total, count = self._accumulate(name, optimizer, group)
            norm = self._average_and_clip(optimizer, count)
            mean = total / max(count, 1e-8)
            if not (math.isfinite(mean) and math.isfinite(norm)):
                self._skip(optimizer, group, mean, norm)
                return Stepped(math.nan, 0.0, norm, items)
            self._apply(optimizer, lr)
        self.nonfinite = 0
        if self.config.ema:
            self._follow()
        return Stepped(mean, count, norm, items)

    def _accumulate(self, name: str, optimizer: Any, group: list[tuple[int, Any]]) -> tuple[float, float]:
        """Add up the gradients of the batches' summed losses; the sum of losses and of counts over all processes."""
        device = self.world.device
        total, count = torch.zeros((), device=device), torch.zeros((), device=device)
        optimizer.zero_grad(set_to_none=True)
        for place, batch in group:
            if self.world.size > 1:
                self.losses.require_backward_grad_sync = batch is group[-1][1]  # exchange gradients once per step
            # The seed belongs to the place in the step, so that dropout is the same whichever process computes it.
            torch.manual_seed(hash((self.config.seed, self.step, place)) % 2**63)
            try:
                with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
                    loss, number = self.losses(batch, name)
                self.scaler.scale(loss).backward()
            except torch.OutOfMemoryError:
                raise UserError(f"out of GPU memory at step {self.step} on a batch of {shape_of(batch)}: lower "
                                "the batch (data.batch_size, or data.max_duration and data.max_seconds of speech), "
                                "and raise train.accum in turn") from None
            total, count = total + loss.detach(), count + number
        both = self.world.sum(torch.stack([total, count]).double())
        return float(both[0]), float(both[1])

    def _average_and_clip(self, optimizer: Any, count: float) -> float:
        """Make the gradients those of the mean loss, and no longer than ``optim.clip``; their norm before clipping."""
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.scaler.unscale_(optimizer)
        # DDP has averaged sums over the processes: make it the mean over everything that was counted.
        torch._foreach_mul_([p.grad for p in parameters], self.world.size / max(count, 1e-8))
        return float(nn.utils.clip_grad_norm_(parameters, self.optim.clip or math.inf))

    def _apply(self, optimizer: Any, lr: float) -> None:
        """Change the weights along the gradients, at the learning rate ``lr``."""
        for g in optimizer.param_groups:
            g["lr"] = lr * g.get("scale", 1.0)  # optim.bias_scale
        self.scaler.step(optimizer)
        self.scaler.update()

    def _follow(self) -> None:
        """Move the average of the weights a little towards the weights."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # a young average follows faster
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for kept, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(new)

    def _skip(self, optimizer: Any, group: list[tuple[int, Any]], mean: float, norm: float) -> None:
        """Leave the weights as they are after a loss or gradient that is not finite, and save what replays it."""
        if self.scaler.is_enabled():  # fp16 overflows now and then by design: the scaler lowers its scale
            self.scaler.step(optimizer)
            self.scaler.update()
        self.nonfinite += 1
        where = self.exp / "replay" / f"step-{self.step}-rank-{self.world.rank}.pt"
        if self.nonfinite <= 2:  # the first ones explain it; twenty would only fill the disk
            checkpoint.save(where, {"batches": [batch for _, batch in group], "model": self.model.state_dict(),
                                    "random": checkpoint.random_state(), "step": self.step})
        log.warning("step %d skipped: loss %g, gradient norm %g (%d in a row); batch and weights are in %s",
                    self.step, mean, norm, self.nonfinite, where.parent)
        if self.nonfinite >= PATIENCE_NONFINITE:
            raise UserError(f"{PATIENCE_NONFINITE} steps in a row gave no finite loss (step {self.step}): lower "
                            f"optim.lr, raise optim.warmup, or look at the batches in {where.parent}")

    # -- judging, saving, going on ------------------------------------------------------------------------------------

    def _judge_epoch(self, tracker: Tracker | None) -> None:
        if not self.world.first:
            return
        started = time.monotonic()
        with torch.no_grad(), torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype is not None):
            found = self.task.evaluate(self.average.eval())
        self.seconds += time.monotonic() - started
        record = {"epoch": self.epoch, "train_loss": self.train_loss, "seconds": self.seconds,
                  **{f"valid_{name}": value for name, value in found.metrics.items()}, **found.extra,
                  **({"phase": found.phase} if found.phase else {}),
                  "lr": learning_rate(self.step, self.epoch / self.config.epochs, self.optim)}
        self.history.append({**record, "samples": [list(s) for s in found.samples]})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
        log.info("epoch %d/%d: train loss %s; validation %s; %.0f s", self.epoch, self.config.epochs,
                 shown(self.train_loss, 4), figures or "left out", self.seconds)
        if tracker:
            tracker.write("epoch", self.step, record)
            tracker.look_inside(self.epoch, self.step, self.model, found.images, found.captions)
        self._write_samples()
        best = self._best()
        if self.epoch in best:
            checkpoint.save(self.folder / f"epoch-{self.epoch}.pt",
                            {"model": self.average.state_dict(), **self.meta, **self.task.state(), "epoch": self.epoch})
        for path in self.folder.glob("epoch-*.pt*"):
            if int(path.name.split(".")[0].removeprefix("epoch-")) not in best:
                path.unlink()

    def _best(self) -> list[int]:
        """The best epochs so far, as many as are averaged; the last ones where nothing was judged."""
        metric = self.task.metric
        values = [(h.get(record_key(metric, h), math.nan), -h["epoch"]) for h in self.history]
        ranked = sorted((math.isnan(value), 0.0 if math.isnan(value) else metric.rank(value), epoch)
                        for value, epoch in values)
        return [-epoch for _, _, epoch in ranked[: self.config.average]]

    def _out_of_patience(self) -> bool:
        if not (self.world.first and self.config.patience and self.history):
            return False
        tired = self.epoch - self._best()[0] >= self.config.patience
        if tired:
            log.info("no better %s for %d epochs: stopping early", self.task.metric.name, self.config.patience)
        return tired

    def _finish(self, tracker: Tracker) -> None:
        """final.pt: the best epochs' weights, averaged, with all that inference needs."""
        best = self._best()
        weights = [checkpoint.load(self.folder / f"epoch-{n}.pt")["model"] for n in sorted(best)]
        checkpoint.save(self.folder / "final.pt", {"model": checkpoint.average(weights), **self.meta,
                                                   **self.task.state(), "epochs": sorted(best)})
        log.info("done: %d epochs, %d steps, %.0f s; checkpoints/final.pt is the mean of epochs %s", self.epoch,
                 self.step, self.seconds, ", ".join(map(str, sorted(best))))
        judged = next(h for h in self.history if h["epoch"] == best[0])
        tracker.finish({name: judged[name] for name in judged if name == "train_loss" or name.startswith("valid_")})

    def _save(self) -> None:
        if self.world.first:
            checkpoint.save(self.folder / f"step-{self.step}.pt", {
                "model": self.model.state_dict(), "ema": self.average.state_dict() if self.config.ema else None,
                "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
                "scaler": self.scaler.state_dict(), "random": checkpoint.random_state(), "epoch": self.epoch,
                "batch": self.batch, "step": self.step, "seconds": self.seconds, "history": self.history,
                "train_loss": getattr(self, "train_loss", 0.0), "sums": self.sums, "whole": self.whole, **self.meta,
                **self.task.state()})
            checkpoint.prune(self.folder, self.config.keep)
            env = self.exp / "env.json"
            judged = next((name for h in self.history if (name := record_key(self.task.metric, h))), "")
            write_json(env, {**self.meta["env"], "metric": judged or f"valid_{self.task.metric.name.lower()}",
                             "wall_seconds": round(self.seconds, 1), "epochs": self.epoch, "steps": self.step,
                             "memory_gb": round(max(self.memory), 2), "memory_sum_gb": round(sum(self.memory), 2)})

    def _restore(self) -> dict[str, Any] | None:
        """Go on from the newest good checkpoint; returns it, or None at the first start."""
        state = checkpoint.load_latest(self.folder)
        if state is None:
            return None
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"{self.folder} was trained with another model ({str(error).splitlines()[-1].strip()}): "
                            "--tag NAME starts a new experiment, --force this one afresh") from None
        if self.config.ema and state["ema"] is not None:
            self.average.load_state_dict(state["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("epoch", "batch", "step", "seconds", "history", "train_loss"):
            setattr(self, name, state[name])
        self.sums, self.whole = state.get("sums", self.sums), state.get("whole", self.whole)
        log.info("going on from checkpoints/step-%d.pt (epoch %d, %.0f s so far)", self.step, self.epoch + 1,
                 self.seconds)
        return state

    def _write_samples(self) -> None:
        if not any(record["samples"] for record in self.history):
            return
        lines = ["# The same items, answered after each epoch\n"]
        for record in self.history:
            metric = self.task.metric
            value = record.get(record_key(metric, record), math.nan)
            lines.append(f"\n## Epoch {record['epoch']}: {metric.name} {value:.{metric.decimals}f}, "
                         f"training loss {shown(record['train_loss'], 3)}\n\n| | |\n|---|---|\n")
            for name, ref, hyp in record["samples"]:
                lines.append(f"| **{name}** | {ref} |\n| answer | {hyp or '*(nothing)*'} |\n")
        write_text(self.exp / "samples.md", "".join(lines))

    def _bar(self, steps: int) -> Any:
        if not (self.world.first and wants_bar()):
            return None
        from tqdm import tqdm

        return tqdm(total=steps, initial=self.batch, dynamic_ncols=True, leave=False,
                    desc=f"epoch {self.epoch + 1}/{self.config.epochs}")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal and number == signal.SIGINT:
            os._exit(130)  # Ctrl-C twice: leave at once, the last checkpoint will do
        self.signal = number


def no_sums() -> dict[str, float]:
    """The sum of losses and of counts before any step."""
    return {"loss": 0.0, "count": 0.0}


def add_loss(sums: dict[str, float], step: Stepped) -> None:
    """Add a step's loss and count to ``sums``; a skipped step has none."""
    if not math.isnan(step.loss):
        sums["loss"] += step.loss * step.count
        sums["count"] += step.count


def mean_loss(sums: dict[str, float]) -> float:
    """The mean loss; NaN where nothing was counted, since all steps were skipped."""
    return sums["loss"] / max(sums["count"], 1) if sums["count"] else math.nan


def shown(loss: float, digits: int) -> str:
    """A loss for people to read."""
    return "skipped" if math.isnan(loss) else f"{loss:.{digits}f}"
