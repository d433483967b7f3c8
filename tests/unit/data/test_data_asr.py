"""Batches: bounded by duration, planned alike for any number of processes, augmented by seed."""

import numpy as np
import pytest
import torch
from lhotse import CutSet

from speechlab.corpora.cuts import utterance
from speechlab.data.asr import SpeechDataset
from speechlab.data.augment import SpecAugment, item_rng, scale_frequency
from speechlab.data.speech import CachedFeatures, DataConfig, EpochLoader
from speechlab.data.tokens import Tokenizer


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    import soundfile

    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    made = []
    for i in range(60):
        path = folder / f"{i}.wav"
        soundfile.write(path, rng.standard_normal(int(16000 * rng.uniform(0.5, 3))).astype(np.float32) * 0.1, 16000)
        made.append(utterance(f"u{i:02d}", path, "你好" if i % 2 else "好", f"s{i % 3}", "zh"))
    return CutSet.from_cuts(made)


def loader(cuts, rank=0, world_size=1, accum=4, augment=None, **config):
    dataset = SpeechDataset(lambda cut: torch.ones(int(100 * cut.duration), 8), Tokenizer.train(["你好"]), augment, 7)
    settings = DataConfig(max_duration=8, max_seconds=5, num_buckets=3, **config)
    return EpochLoader(dataset, cuts, settings, train=True, seed=3, rank=rank, world_size=world_size, accum=accum)


def seen(one, epoch=0, skip=0):
    return [{place: batch["ids"] for place, batch in step} for step in one.epoch(epoch, skip)]


def test_a_batch_is_bounded_by_duration_and_everything_is_seen(cuts):
    one = loader(cuts, accum=1)
    durations = {cut.id: cut.duration for cut in cuts}
    ids = []
    for (_, batch), in one.epoch(0):
        assert max(durations[i] for i in batch["ids"]) * len(batch["ids"]) <= 8 + 1e-6
        ids += batch["ids"]
    assert sorted(ids) == sorted(durations)
    assert seen(one, 0) == seen(loader(cuts, accum=1), 0) != seen(one, 1)


def test_processes_share_out_what_one_would_see(cuts):
    whole = seen(loader(cuts))
    parts = [seen(loader(cuts, rank, 2)) for rank in (0, 1)]
    assert [{**a, **b} for a, b in zip(*parts, strict=True)] == whole
    assert [set(step) for step in parts[1]] == [{1, 3}] * len(whole)
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        loader(cuts, 0, 3)


def test_an_epoch_from_its_middle(cuts):
    assert seen(loader(cuts), skip=2) == seen(loader(cuts))[2:]


def test_targets_and_padding(cuts):
    (_, batch), = next(loader(cuts, accum=1).epoch(0))
    assert batch["x"].shape[:2] == (len(batch["ids"]), int(batch["x_lens"].max()))
    for row, length in zip(batch["x"], batch["x_lens"], strict=True):
        assert row[:length].eq(1).all() and row[length:].eq(0).all()
    assert set(batch["y_lens"].tolist()) <= {1, 2} and batch["y"].dtype == torch.long


def test_augmentation_depends_on_seed_epoch_and_item_alone(cuts):
    augment = SpecAugment(tempo=0.2, freq_width=4, time_width=20)

    def values(workers, epoch):
        one = loader(cuts, accum=1, augment=augment, num_workers=workers)
        return {i: x[:n] for ((_, b),) in one.epoch(epoch) for i, x, n in zip(b["ids"], b["x"], b["x_lens"])}

    a, b, c = values(0, 0), values(2, 0), values(0, 1)
    assert all(a[i].equal(b[i]) for i in a)
    assert any(a[i].shape != c[i].shape or not a[i].equal(c[i]) for i in a)


def test_spec_augment():
    x = torch.randn(200, 80)
    y = SpecAugment(freq_masks=2, freq_width=20, time_masks=2, time_width=30, time_share=0.1)(x, item_rng(0, 0, "a"))
    assert y.shape == x.shape and y.ne(x).any() and y[y.ne(x)].eq(0).all(), "what changes becomes the mean"
    rows, columns = y.eq(0).all(1).sum(), y.eq(0).all(0).sum()
    assert rows <= 2 * 20 and columns <= 2 * 20
    sizes = {len(SpecAugment(tempo=0.1, freq_masks=0, time_masks=0)(x, item_rng(0, 0, str(i)))) for i in range(50)}
    assert min(sizes) >= 181 and max(sizes) <= 223 and len(sizes) > 10


def test_cached_features_do_not_depend_on_what_fits(cuts):
    reads = []

    def read(cut):
        reads.append(cut.id)
        return np.linspace(0, 1, 80, dtype=np.float32).reshape(10, 8)

    large, none = CachedFeatures(read), CachedFeatures(read, limit=0)
    cut = cuts[0]
    first = large(cut)
    assert large(cut).equal(first) and reads == [cut.id]
    assert none(cut).equal(first) and none(cut).equal(first) and len(reads) == 3


def test_vtlp_moves_a_peak_to_the_scaled_frequency():
    bins, mel = 80, lambda f: 1127 * np.log1p(f / 700)
    centres = 700 * np.expm1((mel(20) + (mel(8000) - mel(20)) * (np.arange(bins) + 1) / (bins + 1)) / 1127)
    x = torch.zeros(3, bins)
    at = int(np.abs(centres - 1000).argmin())
    x[:, at - 1:at + 2] = torch.tensor([0.5, 1.0, 0.5])
    for factor in (0.9, 1.1):
        peak = int(scale_frequency(x, factor)[0].argmax())
        assert peak == int(np.abs(centres - factor * centres[at]).argmin())
    torch.testing.assert_close(scale_frequency(x, 1.0), x)
    assert SpecAugment(vtlp=0.2)(torch.randn(9, bins), item_rng(1, 0, "a")).shape == (9, bins)
