"""What corpora of images share: reading IDX files, holding out a part of the training images, and checks that files are
as published.

IDX is the format of MNIST's files: a magic number, the sizes as big-endian integers, then the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError

# What speechlab.data.image_pack.write_pack takes: {split: (images, labels, ids)}, and the names of the classes.
Made = tuple[dict[str, tuple], list[str]]


def read_idx(path: Path, dimensions: int) -> tuple[np.ndarray, str]:
    """The uint8 array in an IDX file, which may be packed by gzip, and the SHA-256 of its unpacked content.

    Raises a UserError if the file can't be read, or does not have so many ``dimensions``.
    """
    try:
        data = path.read_bytes()
        content = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} can't be read: {error.strerror}") from error
        raise damaged(path, "it is cut short or no gzip file") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise damaged(path, f"it is no IDX file of bytes in {dimensions} dimensions")
    shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if len(content) - start != int(np.prod(shape)):
        raise damaged(path, f"it has {len(content) - start} bytes where its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), hashlib.sha256(content).hexdigest()


def damaged(path: Path, why: str) -> UserError:
    """The error for a file that can't be read or is not as it should be."""
    return UserError(f"{path} is damaged: {why}; {_again(path)}")


def _again(path: Path) -> str:
    """What to do about a bad file. A person is told to remove the folder only if a fetch made it."""
    if (path.parent / ".complete").exists():
        return f"remove {path.parent} and fetch it again (./run.sh --stage 0)"
    return "copy it anew from where it came"


def idx_corpus(name: str, folder: Path, published: dict[str, str], counts: dict[str, Sequence[int]],
               classes: list[str], dev: int) -> Made:
    """Read a corpus of four IDX files like MNIST's, in ``folder`` or below it (where torchvision puts them).

    Args:
        published: the SHA-256 of each file's unpacked content, by the file's name.
        counts: for train and test, the number of images of each class.
        classes: the classes' names.
        dev: how many training images become the split dev.
    Raises:
        UserError: files are missing or are not as published.
    """
    folder, there = Path(folder), {}
    for file in published:
        names = [variant + end for variant in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
        roots = [folder, folder / "raw", *sorted(folder.glob("*/raw"))]
        found = next((path for root in roots for path in map(root.joinpath, names) if path.is_file()), None)
        if found is None:
            raise UserError(f"{name}: {folder} has no {file} (nor {file}.gz): fetch it with python -m "
                            f"speechlab.corpora {name}, or give the folder that holds the four files as published")
        there[file] = found
    splits = {}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        images_file, labels_file = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, images_hash = read_idx(there[images_file], 3)
        labels, labels_hash = read_idx(there[labels_file], 1)
        check_labels(there[labels_file], labels, len(images), len(classes))
        for file, found_hash in ((images_file, images_hash), (labels_file, labels_hash)):
            check_content(name, there[file], found_hash, published[file])
        check_counts(name, split, labels, counts[split], classes)
        splits[split] = (images[..., None], labels.astype(np.int64))
    return hold_out(splits, classes, dev), classes


def check_labels(path: Path, labels: np.ndarray, images: int, classes: int) -> None:
    """UserError unless each image has a label, from 0 to ``classes - 1``."""
    if len(labels) != images:
        raise damaged(path, f"it has {len(labels)} labels for {images} images")
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise damaged(path, f"label {labels[bad[0]]} of image {bad[0]} is out of range (0 to {classes - 1})")


def check_content(name: str, path: Path, found: str, published: str | None) -> None:
    """UserError unless a file's content is the published one."""
    if published and found != published:
        raise UserError(f"{path} is not {name}'s as published (SHA-256 {found[:12]}..., not {published[:12]}...): "
                        f"{_again(path)}; another corpus of this form goes through class folders (--corpus folder)")


def check_counts(name: str, split: str, labels: np.ndarray, counts: Sequence[int], classes: list[str]) -> None:
    """UserError unless each class has as many images as published."""
    for label, (found, wanted) in enumerate(zip(np.bincount(labels, minlength=len(classes)).tolist(), counts)):
        if found != wanted:
            raise UserError(f"{name}: {split} has {found} images of {classes[label]}, not {wanted} as published: "
                            "remove the folder and fetch it again")


def hold_out(splits: dict[str, tuple[np.ndarray, np.ndarray]], classes: list[str], dev: int) -> dict[str, tuple]:
    """Move ``dev`` images from train to the split dev (0: no such split), equally many per class, or one more.

    The choice is always the same: those images are taken whose numbers have the smallest hashes. Ids keep the number in
    the published split, so train-00042 may be in dev.
    """
    images, labels = splits["train"]
    per_class = np.bincount(labels, minlength=len(classes))
    share = [dev // len(classes) + (label < dev % len(classes)) for label in range(len(classes))]
    if dev < 0 or any(wanted >= there for wanted, there in zip(share, per_class.tolist()) if wanted):
        raise UserError(f"--option dev={dev}: it must be from 0 to about {len(classes) * (int(per_class.min()) - 1)}, "
                        "an equal number from each class of train", status=2)
    hashes = np.array([hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(len(labels))])
    held = np.zeros(len(labels), dtype=bool)
    for label, wanted in enumerate(share):
        of_class = np.flatnonzero(labels == label)
        held[of_class[np.argsort(hashes[of_class], kind="stable")[:wanted]]] = True
    number = np.arange(len(labels))
    made: dict[str, tuple] = {}
    for split, which in {"train": ~held, "dev": held}.items():
        if which.any():
            made[split] = (images[which], labels[which], [f"train-{n:05d}" for n in number[which]])
    for split, (images, labels) in splits.items():
        if split != "train":
            made[split] = (images, labels, [f"{split}-{n:05d}" for n in range(len(labels))])
    return made
