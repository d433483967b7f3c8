"""Trains an image classifier: with cross-entropy over classes, or with mean squared error for comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.config import to_dict
from speechlab.data.images import ImageLoader, Pack, augment, to_float
from speechlab.errors import UserError
from speechlab.scoring.metric import METRICS
from speechlab.tasks.image import layers
from speechlab.tasks.image.config import Config, LossConfig
from speechlab.training.device import to_device
from speechlab.training.interface import Evaluation, Loss

log = logging.getLogger("speechlab")
JUDGED = 1000  # images per batch when the network is judged
WATCHED = 512  # images from which dead units are found
DRAWN = 5  # images whose feature maps are drawn
CAPTION = ("Row: an image, then what the network makes of it: 8 feature maps of each size of map, the first layers' on "
           "the left, the last ones' on the right; bright: a strong answer. Above them, of a network over pixels: the "
           "first weights, red where they ask for light, blue for dark.")
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def judge(logits: Tensor, y: Tensor, config: LossConfig) -> Loss:
    """The loss of section ``loss`` for logits (B, classes) and labels (B,): its sum, and the number of images."""
    logits = logits.float()
    if config.name == "cross_entropy":
        total = F.cross_entropy(logits, y, reduction="sum", label_smoothing=config.label_smoothing)
    else:
        classes = logits.shape[1]
        target = F.one_hot(y, classes) * (1 - config.label_smoothing) + config.label_smoothing / classes
        total = (logits.softmax(1) - target).square().sum()
    return Loss(total, torch.tensor(float(len(y)), device=logits.device))


def build_model(config: Config, input_size: tuple[int, int, int], classes: int) -> nn.Module:
    """The network that a config describes, with memory in the layout channels last."""
    try:
        model = config.model.build(input_size=input_size, classes=classes)
    except (ValueError, TypeError) as error:
        raise UserError(f"model: {error}", 2) from None
    return model.to(memory_format=torch.channels_last)


class ImageTraining:
    """Training and judging a classifier on the pack ``data`` (see speechlab/training/interface.py).

    The network is judged by its error in % on the split ``dev``. If the pack has no dev, nothing is judged, and the
    last epoch counts.
    """

    metric = METRICS["error"]

    def __init__(self, config: Config, data: Path, device: torch.device, seed: int | None = None):
        self.config, self.device = config, device
        self.pack = Pack.open(data)
        self.model: nn.Module = build_model(config, (self.pack.channels, *self.pack.size), len(self.pack.classes))
        self.seed = config.train.seed if seed is None else seed
        self.valid = self._judging("dev") if "dev" in self.pack.splits else None
        if hasattr(self.model, "measure"):
            images, _ = self.pack.split("train")
            self.model.measure(self.floats(torch.from_numpy(images[: config.data.whiten].copy())))

    def _judging(self, split: str) -> ImageLoader:
        return ImageLoader(self.pack, split, JUDGED, train=False)

    def loader(self, rank: int = 0, world_size: int = 1, accum: int = 1) -> ImageLoader:
        """Training batches for process ``rank`` of ``world_size``. A step of all processes takes ``accum`` batches."""
        config = self.config.data
        device = self.device if config.resident and self.device.type != "cpu" else None
        loader = ImageLoader(self.pack, "train", config.batch_size, train=True, seed=self.seed, rank=rank,
                             world_size=world_size, accum=accum, device=device)
        if rank == 0:
            log.info("training on %d images of %d classes, %d steps an epoch%s", len(loader.labels),
                     len(self.pack.classes), loader.size(), "" if self.valid else "; no dev split: nothing is judged")
        return loader

    def floats(self, x: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> float (B, C, H, W), normalised."""
        return to_float(x, self.pack.mean, self.pack.std)

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        return {"model": [p for p in self.model.parameters() if p.requires_grad]}

    def loss(self, batch: dict[str, Any], which: str) -> Loss:
        x = augment(self.floats(batch["x"]), None, self.config.data.augment, batch["flip"])
        return judge(self.model(x), batch["y"].to(x.device), self.config.loss)

    def watch(self) -> dict[str, float]:
        """The norm of the last step's gradient, by layer."""
        return {f"grad_norm/{name}": norm for name, norm in layers.gradient_norms(self.model).items()}

    def evaluate(self, model: nn.Module) -> Evaluation:
        if self.config.data.calibrate and any(isinstance(m, BATCH_NORM) for m in model.modules()):
            self._calibrate(model)
        total = count = wrong = 0.0
        for batch in self.valid.batches() if self.valid else ():
            batch = to_device(batch, self.device)
            logits = model(self.floats(batch["x"]))
            loss = judge(logits, batch["y"], self.config.loss)
            total, count = total + float(loss.total), count + float(loss.count)
            wrong += float((logits.argmax(1) != batch["y"]).sum())
        error = 100 * wrong / max(count, 1)
        metrics = {"loss": total / count, "error": error, "accuracy": 100 - error} if count else {}
        dead, drawn = self._look_inside(model)
        return Evaluation(metrics, [], {**self.watch(), **dead}, {"layers": drawn},
                          captions={"layers": CAPTION})

    def _look_inside(self, model: nn.Module) -> tuple[dict[str, float], Any]:
        """The share of dead units of each layer, and a picture of feature maps."""
        split = "dev" if self.valid else "train"
        images, labels = self.pack.split(split)
        first = [int((labels == c).argmax()) for c in range(len(self.pack.classes)) if (labels == c).any()][:DRAWN]
        with layers.answers(model) as kept:
            model(self.floats(torch.from_numpy(images[:WATCHED].copy()).to(self.device)))
            dead = {f"dead/{name}": share for name, share in layers.dead_units(kept).items()}
            x = self.floats(torch.from_numpy(images[first].copy()).to(self.device))
            model(x)
            return dead, layers.picture(x, model, kept)

    def _calibrate(self, model: nn.Module) -> None:
        """Measure BatchNorm's means and variances anew, with ``model``'s weights, on augmented training images."""
        config = self.config.data
        generator = torch.Generator(self.device).manual_seed(self.seed)

        def batches() -> Iterator[Tensor]:
            loader, seen = ImageLoader(self.pack, "train", config.batch_size, train=True, seed=self.seed), 0
            for ((_, batch),) in loader.epoch(0):
                yield augment(self.floats(batch["x"].to(self.device)), generator, config.augment, batch["flip"])
                seen += len(batch["y"])
                if seen >= config.calibrate:
                    return

        torch.optim.swa_utils.update_bn(batches(), model)  # the model was in eval mode, and is again

    def state(self) -> dict[str, Any]:
        pack = self.pack
        return {"config": to_dict(self.config), "classes": list(pack.classes), "size": list(pack.size),
                "channels": pack.channels, "mean": list(pack.mean), "std": list(pack.std), "source": pack.source}
