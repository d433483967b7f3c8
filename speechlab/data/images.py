"""Batches of a pack's images (speechlab.data.image_pack), for training and judging.

Augmentation is in :mod:`speechlab.data.image_augment`: it changes whole batches, on the device where the network is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlab.data.image_augment import Augment, augment
from speechlab.data.image_pack import Pack, write_pack
from speechlab.errors import UserError

__all__ = ["Augment", "ImageLoader", "Pack", "augment", "to_float", "write_pack"]


class ImageLoader:
    """The batches of one epoch after another, for one of ``world_size`` processes, from any step on.

    A batch is ``{"x": (B, H, W, C) uint8, "y": (B,) int64, "index": (B,) int64 (place in the split), "ids": names,
    "flip": (B,) bool}``. ``flip`` says which images are mirrored in this epoch, for augmentation that mirrors every
    image in every other epoch.

    A step takes ``accum`` batches of ``batch_size`` images. Process r makes the batches r, r + world_size and so on of
    each step (as EpochLoader in data/speech.py). Which images a step sees depends on seed, epoch and step alone, not on
    the number of processes.

    For training, images are shuffled. With ``drop_last``, those that do not fill the last step are left out: others in
    each epoch. Without it, or if a split is smaller than one step, they are shared out evenly as one more step. For
    judging, all images come in order.

    ``device`` (e.g. a GPU): the whole split is kept there. By default, batches are copied from the memory map, whose
    pages all processes share.

    Raises:
        ValueError: ``accum`` is not a multiple of ``world_size``.
        UserError: the training split has fewer than two images for each batch of a step.
    """

    def __init__(self, pack: Pack, split: str, batch_size: int, *, train: bool, seed: int = 0, rank: int = 0,
                 world_size: int = 1, accum: int = 1, drop_last: bool = True,
                 device: torch.device | str | None = None):
        if accum % world_size or (accum > 1 and not train):
            raise ValueError(f"accum = {accum} must be a multiple of the {world_size} processes, and 1 for judging")
        images, labels = pack.split(split)
        self.batch_size, self.train, self.seed, self.accum = batch_size, train, seed, accum
        self.places = range(rank, accum, world_size)
        self.labels, self.ids = torch.from_numpy(labels), pack.ids(split)
        self.images = np.asarray(images)  # a plain array of the same memory: faster to index than a memmap
        self.resident = torch.from_numpy(self.images.copy()).to(device) if device is not None else None
        self.first_flip = torch.from_numpy(np.random.default_rng([seed, 1]).random(len(labels)) < 0.5)
        self.whole, rest = divmod(len(labels), batch_size * accum)
        # At least two images per batch: batch normalisation has no variance over one.
        self.partial = rest >= 2 * accum and (not drop_last or not self.whole) if train else rest > 0
        if train and not self.whole and not self.partial:
            raise UserError(f"{split} of {pack.folder} has {len(labels)} images, fewer than two for each of a step's "
                            f"{accum} batches: lower train.accum or add images")

    def size(self, epoch: int = 0) -> int:
        """The number of steps of an epoch."""
        return self.whole + self.partial

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """The steps of ``epoch`` after the first ``skip``: for each, a list of this process's (place, batch)."""
        count, each = len(self.labels), self.batch_size * self.accum
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(count) if self.train else np.arange(count)
        for step in range(skip, self.size(epoch)):
            shares = np.array_split(order[step * each : (step + 1) * each], self.accum)
            yield [(place, self._batch(shares[place], epoch)) for place in self.places]

    def batches(self, epoch: int = 0) -> Iterator[dict[str, Any]]:
        """All batches of ``epoch`` one by one, for judging and predicting."""
        return (batch for step in self.epoch(epoch) for _, batch in step)

    def _batch(self, index: np.ndarray, epoch: int) -> dict[str, Any]:
        at = torch.from_numpy(index)
        x = torch.from_numpy(np.take(self.images, index, axis=0)) if self.resident is None else \
            self.resident[at.to(self.resident.device, non_blocking=True)]
        flip = self.first_flip[at] ^ (epoch % 2 == 1)
        return {"x": x, "y": self.labels[at], "index": at, "flip": flip, "ids": [self.ids[i] for i in index.tolist()]}


def to_float(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32: each channel minus its ``mean``, divided by its ``std``.

    In memory the channels stay last: convolutions on CPUs and tensor cores are fastest with this layout.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=x.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=x.device)[:, None, None]
    return x.permute(0, 3, 1, 2).float().mul_(scale).add_(shift)
