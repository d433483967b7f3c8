"""Planners: which cuts make a batch, alike for any number of processes, in every epoch another way."""

import hashlib
import json
import random
import warnings
from collections import Counter

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechlab.data.batching import ByCount, ByDuration, BySpeaker
from speechlab.data.speech import DataConfig, EpochLoader
from speechlab.errors import UserError


def cut(id, seconds=1.0, speaker=None, **custom):
    recording = Recording(id=id, sources=[], sampling_rate=16000, num_samples=round(16000 * seconds), duration=seconds)
    said = SupervisionSegment(id=id, recording_id=id, start=0, duration=seconds, speaker=speaker, custom=custom or None)
    return MonoCut(id=id, start=0, duration=seconds, channel=0, recording=recording, supervisions=[said])


def spoken(**counts):
    return CutSet.from_cuts(cut(f"{name}-{i}", speaker=name, label=name) for name, n in counts.items()
                            for i in range(n))


class Names:
    """The simplest dataset: a batch is its cuts' ids, and the epoch that it was made in."""

    epoch = -1

    def __getitem__(self, cuts):
        return {"ids": [one.id for one in cuts], "epoch": self.epoch}


def ids(planner, epoch=0, places=1):
    """Steps of batches of ids."""
    plans = [planner(epoch, place, places) for place in range(places)]
    assert len({len(plan) for plan in plans}) == 1, "as many steps in each place"
    return [[[one.id for one in batch] for batch in step] for step in zip(*plans)]


def flat(steps):
    return [id for step in steps for batch in step for id in batch]


def plain(id):
    return id.partition("_again")[0]


def loader(planner, rank=0, world_size=1, accum=4):
    return EpochLoader(Names(), CutSet.from_cuts([]), DataConfig(), train=True, rank=rank, world_size=world_size,
                       accum=accum, planner=planner)


MANY = spoken(ann=13, bob=5, cid=29, dan=8, eva=2)
PLANNERS = {"duration": lambda: ByDuration(MANY, 6.0, 3, shuffle=True, seed=3),
            "count": lambda: ByCount(MANY, 4, seed=3),
            "balanced": lambda: ByCount(MANY, 4, balance="label", seed=3),
            "speakers": lambda: BySpeaker(MANY, 3, 2, seed=3)}


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_depends_on_seed_and_epoch_alone(name):
    make = PLANNERS[name]
    planner = make()
    first = ids(planner, 0, 4)
    assert ids(planner, 1, 4) != first == ids(planner, 0, 4) == ids(make(), 0, 4)
    planner.seed = 4
    assert ids(planner, 5, 4) != ids(make(), 5, 4)


@pytest.mark.parametrize("name", PLANNERS)
def test_any_number_of_processes_and_any_first_step(name):
    make = PLANNERS[name]
    whole = [dict(step) for step in loader(make()).epoch(2)]
    assert [set(step) for step in whole] == [{0, 1, 2, 3}] * loader(make()).size(2)
    parts = [[dict(step) for step in loader(make(), rank, 2).epoch(2)] for rank in (0, 1)]
    assert [{**a, **b} for a, b in zip(*parts, strict=True)] == whole
    assert [dict(step) for step in loader(make()).epoch(2, skip=2)] == whole[2:]
    assert whole[0][0]["epoch"] == 2 and [batch["ids"] for batch in loader(make()).batches(2)] == [
        step[place]["ids"] for step in whole for place in range(4)]


def test_by_duration_plans_as_ever():
    """The sum of what commit 762fed5 planned, before planners could be exchanged."""
    rng = random.Random(0)
    cuts = CutSet.from_cuts(cut(f"{i:03d}", round(rng.uniform(0.5, 9), 3)) for i in range(300))
    found = [ids(ByDuration(cuts, 30.0, 10, shuffle=shuffle, seed=5), epoch, places)
             for shuffle in (True, False) for places in (1, 4) for epoch in (0, 1)]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == "61a0b463473eb8c9"


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 1.0], [0.5, 20.0], [25.0, 20.0], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_few_utterances(seconds, places, shuffle):
    """A dev or test set of one or two; no warning either."""
    cuts = CutSet.from_cuts(cut(f"{i}", s) for i, s in enumerate(seconds))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = ids(ByDuration(cuts, 30.0, 10, shuffle=shuffle), 0, places)
    assert {id[0] for id in flat(steps)} == {one.id for one in cuts} and all(batch for step in steps for batch in step)
    if places == 1:
        assert len(flat(steps)) == len(cuts)
    assert ids(ByDuration(CutSet.from_cuts([]), 30.0, 10, shuffle=shuffle), 0, places) == []


@pytest.mark.parametrize("size, places", [(4, 1), (4, 4), (7, 2), (1, 3), (100, 1), (100, 8)])
def test_by_count_sees_everything(size, places):
    for epoch in range(3):
        steps = ids(ByCount(MANY, size), epoch, places)
        found = Counter(map(plain, flat(steps)))
        assert set(found) == {one.id for one in MANY}
        assert sum(found.values()) - len(MANY) < 2 * places, "little is repeated, to fill the last step"
        assert {len(batch) for step in steps[:-1] for batch in step} <= {size}
        assert all(min(2, size) <= len(batch) <= size for batch in steps[-1])
        assert len(set(flat(steps))) == len(flat(steps)), "repeated ones have ids of their own"


def test_by_count_with_fewer_cuts_than_places():
    steps = ids(ByCount(spoken(a=3), 5), 0, 4)
    assert [len(batch) for batch in steps[0]] == [2, 2, 2, 2] and set(map(plain, flat(steps))) == {"a-0", "a-1", "a-2"}
    with pytest.raises(ValueError):
        ByCount(CutSet.from_cuts([]), 5)


def test_by_count_in_balance():
    planner = ByCount(MANY, 10, balance="label", seed=1)
    steps = ids(planner, 0, 2)
    count = Counter(plain(id).split("-")[0] for id in flat(steps))
    assert set(count.values()) == {29} and {plain(id) for id in flat(steps)} == {one.id for one in MANY}
    for batch in (batch for step in steps[:-1] for batch in step):
        assert set(Counter(plain(id).split("-")[0] for id in batch).values()) == {2}, "five classes, ten cuts"
    repeats = Counter(map(plain, flat(steps)))
    assert {repeats[f"bob-{i}"] for i in range(5)} <= {5, 6}, "the rare ones by turns"
    assert len(set(flat(steps))) == len(flat(steps)) == 5 * 29
    with pytest.raises(UserError, match="utterance ann-0 carries no mood: prepare the corpus with --carry mood"):
        ByCount(MANY, 10, balance="mood")


@pytest.mark.parametrize("speakers, utterances, places", [(3, 2, 1), (3, 2, 4), (2, 5, 2), (5, 2, 1), (1, 29, 1)])
def test_by_speaker(speakers, utterances, places):
    for epoch in range(5):
        steps = ids(BySpeaker(MANY, speakers, utterances), epoch, places)
        for batch in (batch for step in steps for batch in step):
            assert len(batch) == len(set(batch)) == speakers * utterances
            groups = [batch[i : i + utterances] for i in range(0, len(batch), utterances)]
            assert all(len({id.split("-")[0] for id in group}) == 1 for group in groups)
            assert len({group[0].split("-")[0] for group in groups}) == speakers


def test_by_speaker_uses_what_there_is():
    """6, 2, 14, 4 and 1 groups of two. Seven batches of three need 21 groups, and 6 + 2 + 7 + 4 + 1 are 20: so six."""
    planner = BySpeaker(MANY, 3, 2)
    steps = ids(planner)
    assert len(steps) == 6 and len(set(flat(steps))) == 6 * 6, "none twice"
    seen = {id for epoch in range(40) for id in flat(ids(planner, epoch))}
    assert seen == {one.id for one in MANY}, "what is left over has its turn"
    assert BySpeaker(MANY, 2, 5).left_out == ["eva"]
    even = spoken(**{f"s{i}": 8 for i in range(8)})
    assert sorted(flat(ids(BySpeaker(even, 4, 2)))) == sorted(one.id for one in even)
    met = {tuple(sorted({id.split("-")[0] for id in batch})) for step in ids(BySpeaker(even, 4, 2)) for batch in step}
    assert len(met) > 4, "not the same speakers together each time"


def test_by_speaker_that_can_not_be():
    with pytest.raises(UserError, match="needs 4 speakers with 6 utterances each, and only 3 of 5 speakers"):
        BySpeaker(MANY, 4, 6)
    with pytest.raises(UserError, match="utterance x carries no speaker: .* --carry speaker"):
        BySpeaker(CutSet.from_cuts([cut("x")]), 1, 1)


def test_one_bucket_is_refused():
    with pytest.raises(ValueError, match="num_buckets = 1 must be at least 2"):
        DataConfig(num_buckets=1)
