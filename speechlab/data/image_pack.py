"""Image corpora as packs: memory-mapped uint8 arrays, with their mean and standard deviation.

A pack is a folder with these files:

* ``<split>.images.npy``: uint8, (N, H, W, C); C is 1 or 3.
* ``<split>.labels.npy``: int64, (N,).
* ``<split>.ids.txt``: one name per line; optional.
* ``images.json``: describes the others. It is written last, so a folder without it is no pack.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from speechlab.errors import UserError
from speechlab.files import shown, write_json
from speechlab.progress import progress

# A split: (images, labels) or (images, labels, ids). Images are an array (N, H, W, C), or an iterable of arrays
# (H, W, C) in which None stands for an image that is left out. Each image has a label, and an id if there are ids.
Split = tuple[Any, ...]
_CHUNK = 512  # images that are written at once
_SPLIT_NAME = r"train|dev|test(_\w+)?"


@dataclasses.dataclass(frozen=True)
class Pack:
    """An opened pack."""

    folder: Path
    classes: tuple[str, ...]  # names of the classes; label 0 is the first
    size: tuple[int, int]  # height and width in pixels
    channels: int  # 1 (grey) or 3 (RGB)
    mean: tuple[float, ...]  # of the training images, one per channel; pixels from 0 to 1
    std: tuple[float, ...]  # standard deviation, likewise
    splits: dict[str, dict[str, Any]]  # by split: count (images) and per_class (images of each class)
    source: str  # the corpus's name

    @classmethod
    def open(cls, folder: str | Path) -> Pack:
        """The pack in ``folder``; UserError if there is none, or one that can't be read."""
        path = Path(folder) / "images.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return cls(Path(folder), tuple(about["classes"]), tuple(about["size"]), about["channels"],
                       tuple(about["mean"]), tuple(about["std"]), about["splits"], about["source"])
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"no {path}: run the stage that makes it (./run.sh --stage 1)") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: remove it and run ./run.sh --stage 1") from None

    def split(self, name: str) -> tuple[np.memmap, np.ndarray]:
        """A split's images, a read-only memory map (N, H, W, C) of uint8, and its labels, (N,) int64."""
        if name not in self.splits:
            raise UserError(f"{self.folder} has no split {name!r}: it has {', '.join(self.splits)}")
        wanted = (self.splits[name]["count"], *self.size, self.channels)
        path = self.folder / f"{name}.images.npy"
        try:
            images, labels = np.load(path, mmap_mode="r"), np.load(path.with_name(f"{name}.labels.npy"))
        except (OSError, ValueError, EOFError):
            raise UserError(f"{path} or its labels are missing or cut short: run ./run.sh --stage 1 --force") from None
        if images.shape != wanted or images.dtype != np.uint8 or labels.shape != wanted[:1]:
            raise UserError(f"{path} is not what images.json says ({images.shape}, not {wanted}): run "
                            "./run.sh --stage 1 --force")
        return images, labels

    def ids(self, name: str) -> list[str]:
        """The name of each image of a split: as the corpus says, or ``<split>-<number>``."""
        path = self.folder / f"{name}.ids.txt"
        if path.exists():
            return path.read_bytes().decode().removesuffix("\n").split("\n")  # a name may hold other line separators
        return [f"{name}-{number:05d}" for number in range(self.splits[name]["count"])]


# --- writing


def write_pack(out: str | Path, splits: Mapping[str, Split], classes: Sequence[str], source: str) -> Pack:
    """Write a pack to the folder ``out``. An older pack there stays until the new one is complete.

    Args:
        splits: train, and optionally dev, test, test_...: see :data:`Split`. All images have the same size and the same
            number of channels (1 or 3).
        classes: names of the classes; label 0 is the first.
        source: the corpus's name.
    Raises:
        UserError: images of different size or number of channels, labels out of range, an empty split.
    """
    out = Path(out)
    _check_names(splits, classes)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".tmp-*-pack"):  # left by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    aside = out / f".tmp-{os.getpid()}-pack"
    aside.mkdir()
    try:
        about: dict[str, Any] = {"classes": list(classes)}
        shape: tuple[int, ...] | None = None
        found = {}
        for name in sorted(splits, key=lambda split: (split != "train", split)):
            shape, found[name], pixels = _write_split(aside, name, splits[name], len(classes), shape)
            if name == "train":
                mean, std = _statistics(pixels)
        assert shape is not None
        about.update(size=list(shape[:2]), channels=shape[2], mean=mean, std=std, splits=found, source=source)
        (out / "images.json").unlink(missing_ok=True)  # until it is written again, the folder is no pack
        for stale in out.glob("*.*"):
            if re.fullmatch(rf"({_SPLIT_NAME})\.(images\.npy|labels\.npy|ids\.txt)", stale.name):
                stale.unlink()
        for path in aside.iterdir():
            os.replace(path, out / path.name)
        write_json(out / "images.json", about)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Pack.open(out)


def _check_names(splits: Mapping[str, Split], classes: Sequence[str]) -> None:
    strange = [name for name in splits if not re.fullmatch(_SPLIT_NAME, name)]
    if strange or "train" not in splits:
        raise UserError(f"the splits must be train, and maybe dev, test, test_...: got {', '.join(splits) or 'none'}")
    twice = [name for name in classes if list(classes).count(name) > 1]
    if len(classes) < 2 or twice:
        raise UserError(f"two classes are named {twice[0]!r}" if twice else
                        f"at least two classes are needed: got {', '.join(classes) or 'none'}")


def _write_split(folder: Path, name: str, split: Split, classes: int, shape: tuple[int, ...] | None
                 ) -> tuple[tuple[int, ...], dict[str, Any], np.ndarray]:
    """Write one split. Returns its images' shape (H, W, C), its entry in images.json, and how often each pixel value
    occurs in each channel, (C, 256) (of train only)."""
    images, labels, *ids = split
    labels = np.asarray(labels)
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise UserError(f"{name}: label {labels[bad[0]]} of image {bad[0]} is out of range (and {bad.size - 1} more): "
                        f"there are {classes} classes, counted from 0")
    kept: list[np.ndarray] = []
    pixels = np.zeros(0)
    with open(folder / f"{name}.images.npy", "wb") as file:
        for numbers, chunk in _chunks(images, len(labels), name):
            if shape is None:
                shape = chunk.shape[1:]
                if shape[2] not in (1, 3):
                    raise UserError(f"{name}: images of {shape[2]} channels: they must have 1 (grey) or 3 (RGB)")
            if chunk.shape[1:] != shape:
                raise UserError(f"{name}: image {numbers[0]} is {_shown(chunk.shape[1:])}, those before are "
                                f"{_shown(shape)}: all images of a pack must share one size and mode")
            if not kept:
                _header(file, len(labels), shape)
                pixels = np.zeros((shape[2], 256), dtype=np.int64)
            for channel in range(shape[2] if name == "train" else 0):
                pixels[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
            file.write(np.ascontiguousarray(chunk).data)
            kept.append(numbers)
        if not kept:
            raise UserError(f"{name} has no images")
        there = np.concatenate(kept)
        file.seek(0)
        _header(file, len(there), shape)  # as long as the first header: numpy leaves room for any number
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / f"{name}.labels.npy", labels[there].astype(np.int64))
    if ids:
        (folder / f"{name}.ids.txt").write_text("".join(f"{shown(str(ids[0][i]))}\n" for i in there), encoding="utf-8")
    per_class = np.bincount(labels[there].astype(np.int64), minlength=classes)
    assert shape is not None
    return shape, {"count": len(there), "per_class": per_class.tolist()}, pixels


def _chunks(images: Any, count: int, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers, images with these numbers), at most :data:`_CHUNK` at once and all of one shape. UserError unless
    there are ``count`` images of uint8."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
            raise UserError(f"{name}: {images.dtype} images of shape {images.shape} for {count} labels: they must be "
                            f"uint8, ({count}, H, W, C)")
        for start in range(0, count, _CHUNK):
            chunk = images[start : start + _CHUNK]
            yield np.arange(start, start + len(chunk)), chunk
        return
    numbers: list[int] = []
    chunk: list[np.ndarray] = []
    number = -1
    for number, image in enumerate(progress(images, f"Packing {name}", total=count)):
        if image is None:
            continue
        if image.dtype != np.uint8 or image.ndim != 3:
            raise UserError(f"{name}: image {number} is {image.dtype} of shape {image.shape}, not uint8 (H, W, C)")
        if chunk and (image.shape != chunk[0].shape or len(chunk) == _CHUNK):
            yield np.array(numbers), np.stack(chunk)
            numbers, chunk = [], []
        numbers.append(number)
        chunk.append(image)
    if number + 1 != count:
        raise UserError(f"{name}: {number + 1} images for {count} labels")
    if chunk:
        yield np.array(numbers), np.stack(chunk)


def _header(file: IO[bytes], count: int, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} pixels, " + {1: "grey", 3: "RGB"}.get(shape[2], f"{shape[2]} channels")


def _statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels from 0 to 1. ``pixels`` (C, 256): how often each value
    occurs. The standard deviation is at least 1/255, because images are divided by it."""
    values = np.arange(256) / 255
    share = pixels / pixels.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(std, 1 / 255).tolist()


def show_pack(pack: Pack) -> None:
    """Print a small table: each split's images, and those of its smallest and its largest class."""
    print(f"{len(pack.classes)} classes, images of {_shown((*pack.size, pack.channels))}, mean "
          f"{', '.join(f'{v:.4f}' for v in pack.mean)}, std {', '.join(f'{v:.4f}' for v in pack.std)}")
    print(f"{'split':<14}{'images':>9}{'least a class':>15}{'most a class':>14}")
    for name, found in pack.splits.items():
        print(f"{name:<14}{found['count']:>9}{min(found['per_class']):>15}{max(found['per_class']):>14}")
