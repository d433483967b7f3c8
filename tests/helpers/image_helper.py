"""A small pack of drawn pictures that a network can learn: bars, of another slant, place and brightness by class."""

import numpy as np

from speechlab.data.images import Pack, write_pack

CLASSES = ("flat", "steep", "rising", "falling")


def pictures(count: int, channels: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(N, size, size, C) uint8 and labels: a noisy bar in one of four directions through a point near the middle."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    y, x = np.mgrid[:size, :size] - size / 2
    images = np.zeros((count, size, size, channels), np.uint8)
    for i, label in enumerate(labels):
        dy, dx = rng.uniform(-2, 2, 2)
        distance = {0: y - dy, 1: x - dx, 2: (y + x - dy - dx) / 2**0.5, 3: (y - x - dy + dx) / 2**0.5}[int(label)]
        light = 200 * np.exp(-(distance**2) / 2) + rng.normal(20, 10, (size, size))
        images[i] = np.clip(light, 0, 255).astype(np.uint8)[..., None]
    return images, labels


def make_pack(folder, channels: int = 1, train: int = 256, dev: int = 64, test: int = 64) -> Pack:
    """Write it; ``dev=0`` makes a pack without a dev split."""
    sizes = {"train": train, "dev": dev, "test": test}
    splits = {name: pictures(count, channels, seed) for seed, (name, count) in enumerate(sizes.items()) if count}
    return write_pack(folder, splits, CLASSES, "bars")
