"""Features of a split: stored ones or computed, by one contract; and an epoch's batches of any dataset."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from speechlab.corpora.cuts import utterance
from speechlab.data.manifests import write_splits
from speechlab.data.speech import DataConfig, EpochLoader, FeatureReader, read_features, read_split
from speechlab.errors import UserError
from speechlab.extract import extract_folder
from speechlab.features.audio import read
from speechlab.features.contract import FeatureContract
from speechlab.features.fbank import extract, normalise

CONTRACT = FeatureContract()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 6, "dev": 1}.items():
        for i in range(count):
            soundfile.write(root / f"{split}{i}.wav", 0.1 * rng.normal(size=8000 + 800 * i), 16000)
        splits[split] = CutSet.from_cuts(utterance(f"{split}{i}", root / f"{split}{i}.wav", speaker=f"s{i % 2}")
                                         for i in range(count))
    write_splits(root, splits)
    extract_folder(root, root / CONTRACT.name(), CONTRACT)
    extract_folder(root, root / "elsewhere", CONTRACT)
    return root


def wanted(cut, contract=CONTRACT):
    x = extract(*read(cut), contract, None)
    return normalise(x[None], torch.tensor([len(x)]))[0].numpy()


@pytest.mark.parametrize("options", [{}, {"on_the_fly": True}, {"folder": "elsewhere"}])
def test_stored_or_computed_the_numbers_are_the_same(data, options):
    if "folder" in options:
        options = {"folder": data / options["folder"]}
    for split, count in {"train": 6, "dev": 1}.items():
        cuts, reader = read_features(data, CONTRACT, split, **options)
        assert len(cuts) == count
        for cut in cuts:
            assert np.allclose(reader(cut), wanted(cut), atol=1e-5)


def test_dither_belongs_to_training_on_the_fly(data):
    contract = dataclasses.replace(CONTRACT, dither=1.0)
    (cut, *_), reader = read_features(data, contract, "train", on_the_fly=True)
    assert not np.allclose(reader(cut), wanted(cut, contract), atol=1e-5)
    again = FeatureReader(contract, stored=False, dither=True)(cut)
    assert np.array_equal(reader(cut), again), "seeded by the utterance's name"
    (cut,), reader = read_features(data, contract, "dev", on_the_fly=True)
    assert np.allclose(reader(cut), wanted(cut, contract), atol=1e-5)


def test_features_that_can_not_be_read(data):
    other = dataclasses.replace(CONTRACT, num_mel_bins=40)
    with pytest.raises(UserError, match="num_mel_bins"):
        read_features(data, other, "train", folder=data / "elsewhere")
    with pytest.raises(UserError, match=f"no .*{other.name()}/train.jsonl.gz: run the stage"):
        read_features(data, other, "train")
    with pytest.raises(UserError, match="no .*test.jsonl.gz"):
        read_split(data, "test")


def test_batches_of_any_dataset(data):
    """A speaker as the target: nothing of text is asked for."""
    cuts, reader = read_features(data, CONTRACT, "train")

    class Speakers:
        epoch = 0

        def __getitem__(self, cuts):
            return {"x": [reader(cut) for cut in cuts], "y": [cut.supervisions[0].speaker for cut in cuts],
                    "ids": [cut.id for cut in cuts]}

    for workers in (0, 2):
        loader = EpochLoader(Speakers(), cuts, DataConfig(max_duration=2.0, max_seconds=1.0, num_workers=workers),
                             train=True)
        found = {id: (len(x), y) for batch in loader.batches()
                 for id, x, y in zip(batch["ids"], batch["x"], batch["y"])}
        assert found == {f"train{i}": (50 + 5 * i, f"s{i % 2}") for i in range(6)}
    (cut,), reader = read_features(data, CONTRACT, "dev")
    alone = EpochLoader(Speakers(), CutSet.from_cuts([cut]), DataConfig(), train=False)
    assert [batch["ids"] for batch in alone.batches()] == [["dev0"]], "a split of one utterance"
