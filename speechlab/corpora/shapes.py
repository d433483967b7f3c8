"""Drawn shapes of ten kinds: images made by code in seconds, always the same, for tests and first steps.

A small convolutional network learns them in seconds. The images of a shape differ in size, place, tilt, brightness or
colours, and noise. A mirrored shape is still the same shape, so augmentation may flip images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_text
from .pictures import Made

FORM = "images"
ABOUT = "drawn shapes of ten kinds, 28 x 28 grey or in colour; made by code in seconds, for tests and first steps"
LICENSE = "none needed: made by code"

Points = list[tuple[float, float]]
_FINER = 4  # shapes are drawn this many times larger and then averaged, which makes edges smooth


def _circle(radius: float, corners: int = 40) -> Points:
    return [(radius * np.cos(a), radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, corners, endpoint=False)]


def _box(x: float, y: float, half_width: float, half_height: float) -> Points:
    return [(x + i * half_width, y + j * half_height) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _turned(points: Points, degrees: float) -> Points:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _star() -> Points:
    outer, inner = _circle(1.05, 5), _turned(_circle(0.42, 5), 36)
    return _turned([point for pair in zip(outer, inner) for point in pair], -90)


_PLUS = [_box(0, 0, 1, 0.28), _box(0, 0, 0.28, 1)]
# For each shape: polygons to fill, then polygons to clear. All are within a circle of about radius 1; y goes downwards.
SHAPES: dict[str, tuple[list[Points], list[Points]]] = {
    "circle": ([_circle(0.95)], []),
    "ring": ([_circle(1.0)], [_circle(0.6)]),
    "square": ([_box(0, 0, 0.82, 0.82)], []),
    "frame": ([_box(0, 0, 0.86, 0.86)], [_box(0, 0, 0.5, 0.5)]),
    "diamond": ([[(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]], []),
    "triangle": ([[(0, -1), (0.95, 0.75), (-0.95, 0.75)]], []),
    "plus": (_PLUS, []),
    "cross": ([_turned(box, 45) for box in _PLUS], []),
    "star": ([_star()], []),
    "bars": ([_box(0, -0.5, 0.95, 0.25), _box(0, 0.5, 0.95, 0.25)], []),
}


def fetch(root: Path) -> Path:
    """There is nothing to fetch. Make the folder ``root/shapes`` and its mark ``.complete``, which stage 0 wants."""
    folder = Path(root) / "shapes"
    if not (folder / ".complete").exists():
        write_text(folder / ".complete", "{}\n")
    return folder


def prepare(folder: Path, out: Path, nj: int = 1, train: int = 2000, dev: int = 500, test: int = 500, size: int = 28,
            channels: int = 1, seed: int = 0) -> Made:
    """Draw ``train``, ``dev`` and ``test`` images of ``size`` x ``size`` pixels. ``channels``: 1 (grey) or 3 (colour).

    The classes take turns. An image depends on its split, its number and ``seed`` alone. With dev = 0 there is no split
    dev. ``folder`` is not read.
    """
    if channels not in (1, 3) or size < 12:
        raise UserError(f"shapes: size={size} channels={channels}: size must be at least 12, channels 1 or 3", status=2)
    splits: dict[str, tuple] = {}
    for place, (split, count) in enumerate({"train": train, "dev": dev, "test": test}.items()):
        if count < (0 if split == "dev" else len(SHAPES)):
            raise UserError(f"shapes: {split}={count} images are too few for {len(SHAPES)} classes", status=2)
        labels = np.arange(count) % len(SHAPES)
        drawn = [draw(name, size, channels, np.random.default_rng([seed, place, number]))
                 for number, name in zip(range(count), list(SHAPES) * (count // len(SHAPES) + 1))]
        if drawn:
            splits[split] = (np.stack(drawn), labels)
    return splits, list(SHAPES)


def draw(name: str, size: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a shape, (size, size, channels) uint8."""
    from PIL import Image, ImageDraw

    radius = rng.uniform(0.24, 0.40) * size
    middle = size / 2 + rng.uniform(-0.1, 0.1, 2) * size
    tilt = rng.uniform(-12, 12)
    canvas = Image.new("L", (size * _FINER, size * _FINER))
    pen = ImageDraw.Draw(canvas)
    for fill, polygons in zip((255, 0), SHAPES[name]):
        for polygon in polygons:
            pen.polygon([tuple((middle + radius * np.array(point)) * _FINER) for point in _turned(polygon, tilt)], fill)
    inside = np.asarray(canvas, dtype=np.float64).reshape(size, _FINER, size, _FINER).mean(axis=(1, 3))[..., None] / 255
    if channels == 1:
        ground, colour = rng.uniform(0, 60, 1), rng.uniform(150, 255, 1)
    else:
        ground, colour = rng.uniform(0, 255, (2, 3))
        while abs(ground.mean() - colour.mean()) < 60:  # otherwise the shape could hardly be seen
            ground, colour = rng.uniform(0, 255, (2, 3))
    picture = ground + (colour - ground) * inside + rng.normal(0, 12, (size, size, channels))
    return np.clip(picture.round(), 0, 255).astype(np.uint8)
