"""Which utterances make a batch: planners for :class:`speechlab.data.speech.EpochLoader`.

A planner is called with ``(epoch, place, places)`` and returns the batches of one place in an epoch, one per step. Each
step of training takes ``places`` batches (``train.accum``), whoever computes them. A planner must give every place the
same number of batches, and its plan must depend on nothing but its seed and the three arguments. So a plan is the same
for any number of processes, and an interrupted epoch goes on where it stopped.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from itertools import islice

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler

from speechlab.data.manifests import carried
from speechlab.errors import UserError

Planner = Callable[[int, int, int], list[CutSet]]


class ByDuration:
    """Batches of at most ``max_duration`` seconds (padding counted), of cuts of similar length, by lhotse's sampler.

    Args:
        num_buckets: groups of similar lengths; there are fewer for few cuts.
        shuffle: take another order in each epoch.
    """

    def __init__(self, cuts: CutSet, max_duration: float, num_buckets: int, *, shuffle: bool, seed: int = 0):
        self.cuts, self.max_duration, self.shuffle, self.seed = cuts, max_duration, shuffle, seed
        self.num_buckets = min(num_buckets, max(2, len(cuts) // 8))

    def __call__(self, epoch: int, place: int, places: int) -> list[CutSet]:
        if len(self.cuts) < 2:  # too few: lhotse can't make buckets
            return [self.cuts] * len(self.cuts)
        with warnings.catch_warnings():
            # We keep the cuts in memory on purpose: they are read in every epoch.
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")
            # For a few cuts lhotse makes a single bucket, and takes the mean of an empty list of bounds.
            warnings.filterwarnings("ignore", message="Mean of empty slice|invalid value", category=RuntimeWarning)
            sampler = DynamicBucketingSampler(
                self.cuts, max_duration=self.max_duration, shuffle=self.shuffle, seed=self.seed,
                num_buckets=self.num_buckets, drop_last=False, rank=place, world_size=places,
            )
            sampler.set_epoch(epoch)
            return list(sampler)


class ByCount:
    """Batches of ``size`` cuts; every cut is seen in every epoch, in another order each time.

    What does not fill the last step is shared out evenly among its places. If a place would get fewer than two cuts
    (of which batch normalisation has no variance), the first cuts of the epoch fill it up.

    balance: what is to be equally frequent, ``"label"`` or ``"speaker"``, say. Cuts of the rarer classes are then
    repeated until each class has as many as the largest one, and any batch has nearly equally many of each class.

    A cut that is repeated in an epoch has another id there, so that it is augmented in another way.
    """

    def __init__(self, cuts: CutSet, size: int, *, balance: str = "", seed: int = 0):
        if size < 1 or not len(cuts):
            raise ValueError(f"batches of {size} out of {len(cuts)} cuts: both must be at least 1")
        self.cuts, self.size, self.seed = list(cuts), size, seed
        self.classes = list(_groups(self.cuts, balance).values()) if balance else []

    def __call__(self, epoch: int, place: int, places: int) -> list[CutSet]:
        order = self.order(epoch)
        each = self.size * places
        least = min(2, self.size) * places
        rest = len(order) % each
        if 0 < rest < least:
            order = np.concatenate([order, np.resize(order, least - rest)])
        copies = _earlier(order)
        steps = (np.arange(start, min(start + each, len(order))) for start in range(0, len(order), each))
        return [CutSet.from_cuts(_copy(self.cuts[order[at]], copies[at]) for at in np.array_split(step, places)[place])
                for step in steps]

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the cuts in the order in which ``epoch`` takes them."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.classes:
            return rng.permutation(len(self.cuts))
        rounds = max(map(len, self.classes))
        shuffled = [np.concatenate([rng.permutation(some) for _ in range(-(-rounds // len(some)))])[:rounds]
                    for some in self.classes]
        return np.concatenate([rng.permutation(one_of_each) for one_of_each in zip(*shuffled, strict=True)])


class BySpeaker:
    """Batches of ``speakers`` different speakers, with ``utterances`` different cuts of each, one after another.

    In every epoch each speaker's cuts are shuffled and put into groups of ``utterances``; what is left of them has its
    turn in other epochs. A batch takes one group from each of the speakers that have the most groups left, so that few
    groups stay without a batch. Speakers with too few cuts for one group are left out (:attr:`left_out`). The first
    batches fill up the last step.

    Raises:
        UserError: fewer than ``speakers`` speakers have ``utterances`` cuts, or a cut's speaker is unknown.
    """

    def __init__(self, cuts: CutSet, speakers: int, utterances: int, *, seed: int = 0):
        self.cuts, self.speakers, self.utterances, self.seed = list(cuts), speakers, utterances, seed
        groups = _groups(self.cuts, "speaker")
        self.by_speaker = [some for some in groups.values() if len(some) >= utterances]
        self._planned: tuple[int, list[list[int]]] = (-1, [])
        self.left_out = [speaker for speaker, some in groups.items() if len(some) < utterances]
        if len(self.by_speaker) < speakers:
            raise UserError(f"a batch needs {speakers} speakers with {utterances} utterances each, and only "
                            f"{len(self.by_speaker)} of {len(groups)} speakers have so many: ask for fewer")

    def __call__(self, epoch: int, place: int, places: int) -> list[CutSet]:
        if self._planned[0] != epoch:  # made once: all places share the plan of an epoch
            self._planned = epoch, self._batches(np.random.default_rng([self.seed, epoch]))
        batches = self._planned[1]
        steps = -(-len(batches) // places)
        mine = [batches[(step * places + place) % len(batches)] for step in range(steps)]
        return [CutSet.from_cuts(self.cuts[i] for i in batch) for batch in mine]

    def _batches(self, rng: np.random.Generator) -> list[list[int]]:
        """Batches of an epoch, in its order."""
        left = []  # for each speaker: groups that no batch has yet
        for some in self.by_speaker:
            shuffled = iter(rng.permutation(some).tolist())
            left.append([list(islice(shuffled, self.utterances)) for _ in range(len(some) // self.utterances)])
        count = np.array([len(groups) for groups in left])
        made = []
        while True:
            # The speakers with the most groups left; a random one of equals, or the same speakers would always meet.
            chosen = np.argsort(-(count + rng.random(len(count))))[: self.speakers]
            if count[chosen].min() == 0:
                break
            count[chosen] -= 1
            made.append([i for speaker in rng.permutation(chosen).tolist() for i in left[speaker].pop()])
        return [made[i] for i in rng.permutation(len(made)).tolist()]


def _groups(cuts: list[Cut], what: str) -> dict[str, list[int]]:
    """The numbers of the cuts that carry the same ``what``, in the order of its values."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, cut in enumerate(cuts):
        found = carried(cut, what)
        if found is None:
            raise UserError(f"utterance {cut.id} carries no {what}: prepare the corpus with --carry {what}")
        groups[str(found)].append(number)
    return dict(sorted(groups.items()))


def _earlier(order: np.ndarray) -> list[int]:
    """For each place in ``order``: how often its number occurs before it."""
    seen: dict[int, int] = defaultdict(int)
    found = []
    for number in order.tolist():
        found.append(seen[number])
        seen[number] += 1
    return found


def _copy(cut: Cut, number: int) -> Cut:
    return cut.with_id(f"{cut.id}_again{number}") if number else cut
