"""Augmentation of features, seeded per epoch and utterance: the number of workers or processes does not change it."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.ranges import within


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """Section ``data.augment`` for speech: masks in time and frequency (Park et al. 2019, arXiv 1904.08779), other
    tempos, and other speakers."""

    # Vocal tract length perturbation (Jaitly and Hinton 2013): the frequency axis is scaled by a factor drawn from
    # [1 - vtlp, 1 + vtlp], as if another speaker spoke. Together with tempo it does what a change of speed does.
    vtlp: float = 0.0
    tempo: float = 0.0  # the time axis is resampled by a factor drawn from [1 - tempo, 1 + tempo]; 0: not
    freq_masks: int = 2  # bands of mel bins set to 0 in each utterance
    freq_width: int = 20  # mel bins in the widest band; each width is drawn from 0 to this
    time_masks: int = 2  # stretches of frames set to 0 in each utterance
    time_width: int = 20  # frames in the longest stretch; each length is drawn from 0 to this
    time_share: float = 0.15  # but no stretch covers more than this share of the utterance

    def __post_init__(self) -> None:
        within(self, "vtlp", "tempo", least=0, below=1)
        within(self, "freq_masks", "freq_width", "time_masks", "time_width", least=0)
        within(self, "time_share", least=0, most=1)

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """(T, bins) normalised features (mean 0: masks write 0) -> augmented copy, of another T where tempo > 0."""
        if self.vtlp > 0:
            x = scale_frequency(x, float(rng.uniform(1 - self.vtlp, 1 + self.vtlp)))
        if self.tempo > 0:
            size = max(1, round(len(x) / rng.uniform(1 - self.tempo, 1 + self.tempo)))
            x = F.interpolate(x.T[None], size=size, mode="linear", align_corners=False)[0].T
        x = x.clone()
        for _ in range(self.freq_masks):
            width = int(rng.integers(0, self.freq_width + 1))
            start = int(rng.integers(0, max(1, x.shape[1] - width + 1)))
            x[:, start : start + width] = 0.0
        longest = min(self.time_width, int(self.time_share * len(x)))
        for _ in range(self.time_masks):
            width = int(rng.integers(0, longest + 1))
            start = int(rng.integers(0, max(1, len(x) - width + 1)))
            x[start : start + width] = 0.0
        return x


def scale_frequency(x: Tensor, factor: float, low: float = 20.0, high: float = 8000.0) -> Tensor:
    """Move what stands at frequency f to ``factor`` * f in x (T, mel bins), by linear interpolation between bins.

    The bins are taken for mel filters from ``low`` to ``high`` Hz (Kaldi's at 16 kHz); beyond the ends the outermost
    bin is repeated.
    """
    bins = x.shape[1]
    bottom, top = (1127.0 * np.log1p(np.array([low, high]) / 700.0)).tolist()
    mel = bottom + (top - bottom) * (np.arange(bins) + 1) / (bins + 1)  # the filters' centres
    hertz = 700.0 * np.expm1(mel / 1127.0)
    source = (1127.0 * np.log1p(hertz / factor / 700.0) - bottom) / (top - bottom) * (bins + 1) - 1
    source = np.clip(source, 0, bins - 1)
    left = np.minimum(source.astype(np.int64), bins - 2)
    share = torch.from_numpy((source - left).astype(np.float32))
    at = torch.from_numpy(left)
    return torch.lerp(x[:, at], x[:, at + 1], share)


def item_rng(seed: int, epoch: int, item: str) -> np.random.Generator:
    """A random generator that depends on seed, epoch and item alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{item}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def seed_everything(seed: int) -> None:
    """Seed the global random generators of Python, numpy and torch."""
    import random

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
