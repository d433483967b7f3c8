"""Images of one's own: a folder for each class, or a ``manifest.tsv`` that says what each image shows.

Class folders are ``cat/*.png dog/*.jpg``; or the same under ``train`` and ``test`` (and ``dev`` or ``valid``), as for
torchvision's ImageFolder. ``manifest.tsv`` is separated by tabs. Its columns are ``path`` (relative to the folder),
``label``, and optionally ``split`` (train, dev, test). If dev or test is missing, it is taken from train: a tenth of
each class.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..files import shown, write_text
from ..progress import progress
from .cuts import threaded
from .folder import MANIFEST, Row, read_class_folders, read_manifest, split_name, split_random
from .pictures import Made

if TYPE_CHECKING:
    from PIL.Image import Image

FORM = "images"
ABOUT = "your own images: class folders, or manifest.tsv (path, label; optional split)"
LICENSE = "yours"

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


def fetch(root: Path) -> Path:
    """There is nothing to fetch: always a UserError."""
    raise UserError(f"image_folder is a corpus of your own: give its folder, which holds a folder for each class or "
                    f"{MANIFEST}, with --data_dir DIR")


def prepare(folder: Path, out: Path, nj: int = 1, split_by: str = "auto", size: str = "", channels: int = 0) -> Made:
    """Read class folders or a manifest.

    Transparent parts become white. Photographs are turned upright, as their camera noted. An image that can't be read
    is left out and listed in ``out/bad_images.tsv``.

    Args:
        split_by: ``column`` (of the manifest, or the folders train and test), ``random`` (80/10/10 of each class), or
            ``auto``: column if there is one, else random.
        size: pixels, ``32`` or ``32x48`` (height x width): images are scaled, and their middle is cut out. Without it,
            all images must have the same size.
        channels: 1 (grey) or 3 (RGB). 0: as the images are, which must all be alike.
    Returns:
        ({split: (images, labels, ids)}, names of the classes); images are (H, W, C) uint8, read one by one.
    Raises:
        UserError: no such way to split, mixed sizes, or too many bad images in a split (more than 5 and more than 1 %,
            or all training images of a class).
    """
    folder = Path(folder)
    rows = _manifest_rows(folder) if (folder / MANIFEST).exists() else read_class_folders(folder, _SUFFIXES, "images")
    labels = {row["label"] for row in rows}
    classes = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
    split = _split(rows, folder, split_by)
    shape = _wanted(size, channels)
    headers = threaded(lambda row: _header(folder / row["path"]), rows, nj)
    found = dict(zip((row["path"] for row in rows), progress(headers, "Reading headers", total=len(rows))))
    height, width, channels = _common(found, shape)
    bad: dict[str, str] = {}
    splits: dict[str, tuple] = {}
    for name in sorted(set(split.values())):
        some = sorted((row for row in rows if split[row["path"]] == name), key=lambda row: row["path"])
        images = _images(folder, Path(out), name, some, (height, width, channels), nj, bad)
        splits[name] = (images, [classes.index(row["label"]) for row in some], [row["path"] for row in some])
    return splits, classes


# --- rows and splits


def _manifest_rows(folder: Path) -> list[Row]:
    return [{key: row[key] for key in ("path", "label", "split") if key in row}
            for row in read_manifest(folder / MANIFEST, ["label"])]


def _split(rows: list[Row], folder: Path, split_by: str) -> dict[str, str]:
    """Which split each path belongs to; every class has images in train."""
    published = "split" in rows[0]
    if split_by not in ("auto", "column", "random") or (split_by == "column" and not published):
        raise UserError(f"--split_by {split_by}: images are split by column (a column split in {MANIFEST}, or folders "
                        "train and test) or at random", status=2)
    if split_by == "random" or not published:
        split, parts = dict.fromkeys((row["path"] for row in rows), "train"), ("test", "dev")
    else:
        split = {row["path"]: split_name(row["split"]) for row in rows}
        strange = sorted({name for name in split.values() if not re.fullmatch(r"train|dev|test(_\w+)?", name)})
        if strange:
            raise UserError(f"{folder / MANIFEST}: split {strange[0]!r} is none of train, dev, test, test_NAME")
        there = {name.partition("_")[0] for name in split.values()}
        parts = tuple(part for part in ("test", "dev") if part not in there)
    for label in sorted({row["label"] for row in rows}):
        train = [row["path"] for row in rows if row["label"] == label and split[row["path"]] == "train"]
        if len(train) <= len(parts):
            taken = f", since {' and '.join(parts)} are taken from them" if parts else ""
            raise UserError(f"{folder}: class {label} has {len(train)} images for training: at least "
                            f"{len(parts) + 1} are needed{taken}")
        if parts:
            split.update(split_random(train, parts))
    return split


# --- images


def _wanted(size: str, channels: int) -> tuple[int, int, int]:
    """(height, width, channels) as the user asked for them; 0 for what was not asked for."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(size)) if size else None
    if (size and not found) or (found and "0" in (found[1], found[2])) or channels not in (0, 1, 3):
        raise UserError(f"--option size={size} channels={channels}: size is 32 or 32x48 (height x width), channels is "
                        "1 or 3", status=2)
    height = int(found[1]) if found else 0
    return height, int(found[2] or height) if found else 0, channels


def _header(path: Path) -> tuple[int, int, int] | None:
    """(height, width, channels) from the file's header; None if the header can't be read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                width, height = picture.size
                if _orientation(picture) >= 5:  # the picture lies on its side
                    width, height = height, width
                return height, width, 1 if picture.mode in _GREY else 3
    except Exception:  # decoders raise errors of many kinds; read_image will say what is wrong
        return None


def _common(found: dict[str, tuple[int, int, int] | None], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that all images will have: the one asked for, else their own. UserError if their own shapes differ."""
    known = {path: header for path, header in found.items() if header}
    if not known:
        raise UserError(f"none of the {len(found)} images can be read (first: {next(iter(found))})")
    height, width, channels = shape
    for asked, kind, option in ((height, slice(0, 2), "size=32"), (channels, slice(2, 3), "channels=1 or channels=3")):
        kinds = Counter(header[kind] for header in known.values())
        if not asked and len(kinds) > 1:
            first, second = [next(path for path, header in known.items() if header[kind] == one)
                             for one, _ in kinds.most_common(2)]
            what = [f"{path} ({_name(known[path][kind])})" for path in (first, second)]
            raise UserError(f"images differ: {what[0]} and {what[1]}, {len(kinds)} kinds in all: give --option "
                            f"{option}, or make them alike")
    one = next(iter(known.values()))
    return height or one[0], width or one[1], channels or one[2]


def _name(kind: tuple[int, ...]) -> str:
    return f"{kind[0]} x {kind[1]}" if len(kind) == 2 else {1: "grey", 3: "colour"}[kind[0]]


def _images(folder: Path, out: Path, split: str, rows: list[Row], shape: tuple[int, int, int], nj: int,
            bad: dict[str, str]) -> Iterator[np.ndarray | None]:
    """Yield the images of ``rows``, None for each that can't be read. A UserError at the end if these are too many."""
    good: Counter[str] = Counter()
    here = []
    for row, image in zip(rows, threaded(lambda row: read_image(folder / row["path"], shape), rows, nj)):
        if isinstance(image, str):
            bad[row["path"]] = image
            here.append(row["path"])
            yield None
        else:
            good[row["label"]] += 1
            yield image
    listing = out / "bad_images.tsv"
    write_text(listing, "".join(f"{shown(path)}\t{reason}\n" for path, reason in [("path", "reason"), *bad.items()]))
    if not here:
        return
    what = f"{len(here)} of {len(rows)} images of {split} can't be read (first: {folder / here[0]}: {bad[here[0]]})"
    lost = sorted({row["label"] for row in rows} - set(good))
    if len(here) > max(5, 0.01 * len(rows)) or (split == "train" and lost):
        none = f", none of class {lost[0]} is left" if lost else ""
        raise UserError(f"{what}{none}: mend or remove those that {listing} lists, and run again")
    print(f"warning: {what}: left out, see {listing}", file=sys.stderr)


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray | str:
    """The image as (height, width, channels) uint8, or why it can't be read."""
    from PIL import Image, ImageOps

    height, width, channels = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                picture = _flat(_upright(opened)).convert("L" if channels == 1 else "RGB")
                if picture.size != (width, height):
                    picture = ImageOps.fit(picture, (width, height))
                return np.asarray(picture).reshape(height, width, channels)
    except Exception as error:  # decoders raise errors of many kinds
        return " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__


def _orientation(picture: Image) -> int:
    """How the camera was held, by EXIF: 1 is upright, and so is a picture whose EXIF data can't be read."""
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # malformed EXIF raises just about anything, and the picture itself is sound
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(picture: Image) -> Image:
    """As ImageOps.exif_transpose, which also writes EXIF anew and fails where it is malformed."""
    from PIL.Image import Transpose

    turns = (Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
             Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)  # for 2 to 8
    how = _orientation(picture)
    return picture.transpose(turns[how - 2]) if how > 1 else picture


def _flat(picture: Image) -> Image:
    """The picture on a white ground, without transparency, in 8 bits."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits: convert() would clip the values instead of scaling them
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("it holds real numbers, whose range is not known")
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), with_alpha)
    return picture
