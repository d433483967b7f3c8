"""Batches for speech recognition: text as targets. What any task on cuts needs is in speechlab/data/speech.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from speechlab.data.augment import SpecAugment, item_rng
from speechlab.data.tokens import Tokenizer


class SpeechDataset(Dataset):
    """Turns a batch of cuts into ``{"x": (B, T, bins), "x_lens": (B,), "y": (B, U) token ids, "y_lens": (B,), "ids"}``.

    Args:
        features: ``cut -> (T, bins)`` float tensor, normalised.
        tokenizer: turns text into token ids.
        augment: changes training features; its random numbers depend on (seed, epoch, cut id).
        auxiliary: turns text into a second target, ``z`` and ``z_lens``.
    """

    def __init__(self, features: Callable[[Any], Tensor], tokenizer: Tokenizer, augment: SpecAugment | None = None,
                 seed: int = 0, auxiliary: Tokenizer | None = None):
        self.features, self.augment, self.seed = features, augment, seed
        self.targets = {"y": tokenizer, **({"z": auxiliary} if auxiliary is not None else {})}
        self.epoch = 0

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        xs: list[Tensor] = []
        for cut in cuts:
            x = self.features(cut)
            if self.augment is not None:
                x = self.augment(x, item_rng(self.seed, self.epoch, cut.id))
            xs.append(x)
        batch = {"x": pad_sequence(xs, batch_first=True), "x_lens": torch.tensor([len(x) for x in xs]),
                 "ids": [cut.id for cut in cuts]}
        for name, tokenizer in self.targets.items():
            ys = [torch.tensor(tokenizer.encode(cut.supervisions[0].text), dtype=torch.long) for cut in cuts]
            batch[name] = pad_sequence(ys, batch_first=True)
            batch[f"{name}_lens"] = torch.tensor([len(y) for y in ys])
        return batch
