"""CTC prefix beam search with an n-gram language model fused in, for many utterances at once.

The search is that of Graves (2012) with the fusion of Hannun et al. (2014). A prefix has the probability of all CTC
paths that collapse to it; those that end in blank are kept apart from those that do not. When a prefix grows by a unit,
the language model's log probability of that unit is added with a weight, and so is a bonus per unit.

Here the prefixes of all utterances stand in flat arrays. One step of numpy operations takes each utterance over its
next frame, without any loop over utterances, prefixes or candidates. Two tricks keep the steps few and small, and
change no answer:

* A frame in which only blank reaches ``prune`` multiplies all prefixes of an utterance by one number. It is no step of
  its own, but a factor that is noted for the next step. So utterances need not pause at the same frames.
* A grown prefix is dropped before the language model is asked, if it could not enter the beam even when the language
  model were certain of its unit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechlab.decoding.alignment import token_frames
from speechlab.decoding.arpa import ArpaLM
from speechlab.decoding.ctc import Hypothesis, check_posteriors
from speechlab.errors import UserError

# Odd 64-bit constants for the hash of a prefix, from splitmix64 (Steele, Lea & Flood 2014), as signed integers.
_MIX, _SPREAD = (np.array(value, np.uint64).view(np.int64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9))


@torch.no_grad()
def fused_beam(
    log_probs: Tensor,
    lengths: Tensor,
    lm: ArpaLM | None = None,
    *,
    beam: int = 8,
    nbest: int = 8,
    lm_weight: float = 0.3,
    length_bonus: float = 0.0,
    top: int = 20,
    prune: float = 1e-3,
    threshold: float = 10.0,
    blank: int = 0,
    times: bool = True,
) -> list[list[Hypothesis]]:
    """The best token sequences of each utterance by ``log p_ctc + lm_weight * log p_lm + length_bonus * tokens``.

    Args:
        log_probs: natural log posteriors, ``(B, T, V)``.
        lengths: frames of each utterance, ``(B,)``.
        lm: the language model over the same units, or None.
        beam: prefixes per utterance that are kept after each frame.
        nbest: the most answers per utterance.
        lm_weight: weight of the language model's natural log probability, ``</s>`` included; at least 0.
        length_bonus: added for each token; makes up for the language model, which prefers short answers.
        top: the most units that are looked at in a frame.
        prune: units with a smaller posterior are left out of a frame (but never its best unit and blank).
        threshold: prefixes whose score (natural log) is lower than the utterance's best by more than this are dropped.
        blank: the index of CTC's blank; with a language model it must be 0.
        times: find the frames of the best answer's tokens, by alignment.

    Returns:
        For each utterance its answers, the best first. ``score`` is the sum above; ``parts`` has ``ctc`` and ``lm``,
        natural log probabilities without weights (``ctc`` summed over the paths within the beam). An unsound posterior
        gives one answer with ``error``.

    Raises:
        UserError: for an option out of range.
    """
    for name, value, least in (("beam", beam, 1), ("nbest", nbest, 1), ("top", top, 1)):
        if value < least:
            raise UserError(f"CTC beam search: {name} is {value}; it must be at least {least}")
    if not 0 <= prune < 1:
        raise UserError(f"CTC beam search: prune is {prune}; it is a probability, at least 0 and less than 1")
    if not lm_weight >= 0 or not threshold > 0:
        raise UserError(f"CTC beam search: lm_weight is {lm_weight} (at least 0), threshold {threshold} (over 0)")
    if lm is not None and (blank or len(lm.units) != log_probs.shape[-1]):
        raise UserError(f"CTC beam search: a language model of {len(lm.units)} units, posteriors of "
                        f"{log_probs.shape[-1]} (blank {blank}): both must have the same units, blank the first")
    errors = check_posteriors(log_probs, lengths)
    log_probs = log_probs.float().cpu()
    sizes = np.array([0 if error else size for error, size in zip(errors, lengths.tolist())], dtype=np.int64)
    steps = _prepare(log_probs.numpy(), sizes, blank, prune, top)
    found = _Search(steps, lm, beam, lm_weight, length_bonus, threshold, log_probs.shape[2], blank).run(nbest)
    answers = [[Hypothesis(error=error)] if error else mine for error, mine in zip(errors, found)]
    if times:
        # The search knows when a prefix first came up. That is not when it is spoken.
        frames = token_frames(log_probs.numpy(), sizes, [mine[0].tokens for mine in answers], blank)
        for mine, (starts, ends) in zip(answers, frames):
            mine[0].starts, mine[0].ends = starts, ends
    return answers


class _Steps(NamedTuple):
    """What the search needs of the posteriors. A step is a frame with candidates.

    Each utterance has its own number of steps. The utterances are sorted by it, the most steps first, so that step s
    concerns the first ``bounds[s + 1] - bounds[s]`` of them. There are P pairs (step, utterance), step by step, and
    their C candidates stand in the same order.
    """

    order: np.ndarray  # (B,) the caller's number of each utterance
    bounds: np.ndarray  # (steps + 1,) step s has the pairs bounds[s] ... bounds[s + 1] - 1
    blank: np.ndarray  # (P,) posterior of blank
    pause: np.ndarray  # (P,) log of blank's posteriors over the frames without candidates since the step before
    carry: np.ndarray  # (P,) 0 where there were such frames, else 1
    first: np.ndarray  # (P + 1,) pair p has the candidates first[p] ... first[p + 1] - 1
    count: np.ndarray  # (P,) number of candidates
    units: np.ndarray  # (C,) ascending within a pair
    logs: np.ndarray  # (C,) log posteriors
    probs: np.ndarray  # (C,) posteriors
    keys: np.ndarray  # (C + 1,) ascending: pair * V + unit; the last is larger than any
    rest: np.ndarray  # (B,) as pause, after an utterance's last step; in the order of ``order``


def _candidates(log_probs: np.ndarray, utterance: np.ndarray, time: np.ndarray, prune: float,
                top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The units to look at in each frame.

    Args:
        log_probs: (B, T, V).
        utterance, time: (F,) of each frame of all utterances, one utterance after another.
        prune, top: as in :func:`fused_beam`.
    Returns:
        For each candidate its frame (an index into ``utterance`` and ``time``), its unit and its log posterior; sorted
        by frame and unit.
    """
    vocab = log_probs.shape[2]
    least = np.finfo(np.float32).min  # -inf is less: an impossible unit is never a candidate
    likely = np.float32(math.log(prune) if prune else least)
    begin = np.flatnonzero(time == 0)
    found = [np.zeros(0, np.int64)]
    for row, start, size in zip(utterance[begin], begin, np.diff(begin, append=len(time))):
        table = log_probs[row, :size]
        cells = (table >= likely).ravel().nonzero()[0]
        if len(cells) > 4 * top * size:  # flat posteriors, or no pruning: this bounds the memory
            best = torch.from_numpy(table).topk(min(top, vocab), dim=1).indices.numpy()
            cells = np.sort((best + np.arange(size)[:, None] * vocab).ravel())
            cells = cells[table.ravel()[cells] >= likely]
        found.append(cells + start * vocab)
    frames, units = np.divmod(np.concatenate(found), vocab)
    count = np.bincount(frames, minlength=len(time))
    empty = np.flatnonzero(count == 0)
    if len(empty):  # a frame where nothing is likely keeps its best unit
        best = log_probs[utterance[empty], time[empty]].argmax(1)
        frames, units = np.divmod(np.sort(np.concatenate([frames * vocab + units, empty * vocab + best])), vocab)
    logs = log_probs[utterance[frames], time[frames], units].astype(np.float64)
    if count.max(initial=0) > top:
        many = np.flatnonzero((count > top)[frames])
        many = many[np.lexsort((-logs[many], frames[many]))]
        place = np.arange(len(many)) - np.searchsorted(frames[many], frames[many])
        kept = np.ones(len(frames), bool)
        kept[many[place >= top]] = False
        frames, units, logs = frames[kept], units[kept], logs[kept]
    return frames, units, logs


def _prepare(log_probs: np.ndarray, sizes: np.ndarray, blank: int, prune: float, top: int) -> _Steps:
    """Choose the candidates of (B, T, V) log posteriors, fold the frames that have none, and sort the rest by step."""
    batch, _, vocab = log_probs.shape
    begin = np.cumsum(sizes) - sizes  # the first frame of each utterance, with all frames in one row
    utterance = np.repeat(np.arange(batch), sizes)
    time = np.arange(len(utterance)) - begin[utterance]
    frame, units, logs = _candidates(log_probs, utterance, time, prune, top)
    spoken = units != blank
    frame, units, logs = frame[spoken], units[spoken], logs[spoken]
    blanks = log_probs[utterance, time, blank].astype(np.float64)
    count = np.bincount(frame, minlength=len(utterance))  # candidates of each frame
    at = np.flatnonzero(count)  # the frames that have some: the steps, still one utterance after another
    pause, carry, rest = _pauses(np.where(count, 0.0, blanks), at, utterance, begin, sizes)

    # Sort the pairs by step, and within a step by the order of utterances.
    steps = np.bincount(utterance[at], minlength=batch)
    order = np.argsort(-steps, kind="stable")
    number = np.arange(len(at)) - np.repeat(np.cumsum(steps) - steps, steps)
    pairs = np.lexsort((np.argsort(order)[utterance[at]], number))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(number))]).astype(np.int64)
    # And the candidates with them.
    start, count = (np.cumsum(count[at]) - count[at])[pairs], count[at[pairs]]
    first = np.concatenate([[0], np.cumsum(count)])
    take = np.arange(len(units)) + np.repeat(start - first[:-1], count)
    units, logs = units[take], logs[take]
    keys = np.append(np.repeat(np.arange(len(at)), count) * vocab + units, np.iinfo(np.int64).max)
    return _Steps(order, bounds, np.exp(blanks[at[pairs]]), pause[pairs], carry[pairs], first, count, units, logs,
                  np.exp(logs), keys, rest[order])


def _pauses(passed: np.ndarray, at: np.ndarray, utterance: np.ndarray, begin: np.ndarray,
            sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blank's log posteriors over the runs of frames without candidates.

    Args:
        passed: (F,) blank's log posterior in each frame, 0 in a frame with candidates.
        at: (S,) the frames with candidates.
        utterance: (F,) of each frame.
        begin, sizes: (B,) the first frame and the number of frames of each utterance.
    Returns:
        ``pause`` (S,), ``carry`` (S,) and ``rest`` (B,) as in :class:`_Steps`, but frame by frame.
    """
    passed = np.concatenate([[0.0], np.cumsum(passed)])  # so that a run's sum is a difference
    before = np.concatenate([[-1], at[:-1]])  # the step before each
    fresh = np.flatnonzero(np.diff(utterance[at], prepend=-1))  # an utterance's first step
    before[fresh] = begin[utterance[at[fresh]]] - 1
    last = begin - 1
    last[utterance[at]] = at  # an utterance's last step overwrites those before it
    return passed[at] - passed[before + 1], (at - before == 1) * 1.0, passed[begin + sizes] - passed[last + 1]


# Rows of _Search.floats, one column per prefix.
_TOTAL = 0  # log probability of the prefix by all its paths so far
# The shares of it whose paths end in blank, and in the last unit: both, since one minus the other would be rounded off.
_IN_BLANK, _IN_UNIT = 1, 2
_EXTRA = 3  # weighted log probability of the language model, and the bonus
_LM = 4  # log probability of the language model without a weight

# Rows of _Search.ints, one column per prefix.
_OWNER = 0  # the utterance, as the steps order them
_STATE = 1  # of the language model
_LAST = 2  # the last unit
_HASH, _PARENT = 3, 4  # of the prefix, and of the prefix without its last unit
_NODE = 5  # its place in the tree of prefixes


class _Repeats(NamedTuple):
    """R prefixes whose last unit is a candidate of their frame."""

    rows: np.ndarray  # (R,) which of the N prefixes
    at: np.ndarray  # (R,) which of the C candidates is the last unit


class _Stay(NamedTuple):
    """N prefixes that do not grow in this frame, as the first three rows of ``floats``."""

    total: np.ndarray  # (N,) log probability
    in_blank: np.ndarray  # (N,) share of the paths that end in blank
    in_unit: np.ndarray  # (N,) share of the paths that end in the last unit


class _Grown(NamedTuple):
    """G grown prefixes, one for each pair of a prefix and a candidate of its frame."""

    source: np.ndarray  # (G,) the prefix that grew
    choice: np.ndarray  # (G,) the candidate that it grew by
    bound: np.ndarray  # (G,) the score if the language model gives the unit a probability of 1
    shift: np.ndarray  # (N,) the pair of prefix n and candidate c is at c - shift[n]


class _Scored(NamedTuple):
    """H of the grown prefixes, with the language model's opinion of their last units."""

    source: np.ndarray  # (H,) the prefix that grew
    unit: np.ndarray  # (H,) the unit that it grew by
    bound: np.ndarray  # (H,) as in _Grown
    score: np.ndarray  # (H,) with the language model
    lm: np.ndarray | None  # (H,) log probability of the unit; None without a language model
    arcs: np.ndarray | None  # (H,) what the language model's next state is found by


class _Search:
    """The beams of all utterances in flat arrays, the prefixes of one utterance side by side, a column per prefix.

    ``floats`` (5, N) and ``ints`` (6, N) hold what is known of the N prefixes; their rows are named above.
    """

    def __init__(self, steps: _Steps, lm: ArpaLM | None, beam: int, lm_weight: float, bonus: float, threshold: float,
                 vocab: int, blank: int):
        self.steps, self.lm, self.beam, self.vocab = steps, lm, beam, vocab
        self.lm_weight, self.bonus, self.threshold = lm_weight, bonus, min(threshold, 1e30)
        n = len(steps.order)
        self.floats = np.zeros((5, n))
        self.floats[_IN_BLANK] = 1.0
        self.ints = np.zeros((6, n), np.int64)
        self.ints[_OWNER] = np.arange(n)
        self.ints[_STATE] = lm.start(n) if lm else 0
        self.ints[_LAST] = blank  # never a candidate
        self.ints[_HASH] = (self.ints[_OWNER] + 1) * _MIX
        self.ints[_NODE] = -1
        self.sizes = np.ones(n, np.int64)  # prefixes of each utterance
        self.begin = np.arange(n)  # where the prefixes of each utterance begin
        self.places = np.arange(beam)
        self.tree: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        self.nodes = 0

    def run(self, nbest: int) -> list[list[Hypothesis]]:
        """Search to the end of every utterance; the ``nbest`` best answers of each, in the caller's order."""
        done = []
        bounds = self.steps.bounds.tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            for low, high in zip(bounds, bounds[1:]):
                if high - low < len(self.sizes):  # utterances that have no frame left
                    cut = int(self.begin[high - low])
                    done.append((self.floats[:, cut:], self.ints[:, cut:]))
                    self.floats, self.ints = self.floats[:, :cut], self.ints[:, :cut]
                    self.sizes, self.begin = self.sizes[: high - low], self.begin[: high - low]
                self._step(low, high)
        floats, ints = zip((self.floats, self.ints), *reversed(done))
        self.floats, self.ints = np.concatenate(floats, 1), np.concatenate(ints, 1)
        return self._answers(nbest)

    def _step(self, low: int, high: int) -> None:
        """Take the beams over one frame of each utterance that has one left: pairs low to high - 1 of the steps."""
        pair = self.ints[_OWNER] + low  # (N,) the frame of each prefix
        total = self.floats[_TOTAL] + self.steps.pause.take(pair)  # (N,) after the frames of blank only before it
        repeats = self._repeats(pair, low, high)
        carry = self.steps.carry.take(pair.take(repeats.rows))  # (R,) 0 where such frames have ended the last unit
        stay = self._stay(pair, total, repeats, carry)
        grown = self._grow(pair, total, repeats, carry)
        self._join_known(stay, grown, repeats)
        score = stay.total + self.floats[_EXTRA]
        scored = self._drop_hopeless(score, grown)
        chosen = self._choose(score, scored, high - low)
        self._renew(stay, scored, chosen)

    def _repeats(self, pair: np.ndarray, low: int, high: int) -> _Repeats:
        """The prefixes whose last unit is a candidate of their frame; pair: (N,), within low to high - 1."""
        steps = self.steps
        start = int(steps.first[low])
        wanted = pair * self.vocab + self.ints[_LAST]
        at = steps.keys[start : int(steps.first[high])].searchsorted(wanted)
        at += start
        rows = (steps.keys.take(at) == wanted).nonzero()[0]
        return _Repeats(rows, at.take(rows))

    def _stay(self, pair: np.ndarray, total: np.ndarray, repeats: _Repeats, carry: np.ndarray) -> _Stay:
        """Every prefix stays by blank, or by its last unit again where that is a candidate.

        pair, total: (N,) of the prefixes; carry: (R,) of the repeats.
        """
        by_blank = self.steps.blank.take(pair)
        by_unit = self.floats[_IN_UNIT].take(repeats.rows) * carry * self.steps.probs.take(repeats.at)
        both = by_blank.copy()
        both[repeats.rows] += by_unit
        in_unit = np.zeros(len(pair))
        in_unit[repeats.rows] = by_unit / both.take(repeats.rows)
        return _Stay(total + np.log(both), by_blank / both, in_unit)

    def _grow(self, pair: np.ndarray, total: np.ndarray, repeats: _Repeats, carry: np.ndarray) -> _Grown:
        """Every prefix grows by each candidate of its frame; the same unit twice needs a blank in between.

        pair, total: (N,) of the prefixes; carry: (R,) of the repeats.
        """
        count = self.steps.count.take(pair)
        shift = self.steps.first.take(pair) - count.cumsum() + count
        source = np.arange(len(pair)).repeat(count)
        choice = shift.repeat(count)
        choice += np.arange(len(choice))
        bound = (total + self.floats[_EXTRA] + self.bonus).take(source) + self.steps.logs.take(choice)
        in_blank = np.maximum(self.floats[_IN_BLANK].take(repeats.rows), 1.0 - carry)
        bound[repeats.at - shift.take(repeats.rows)] += np.log(in_blank)
        return _Grown(source, choice, bound, shift)

    def _join_known(self, stay: _Stay, grown: _Grown, repeats: _Repeats) -> None:
        """Add the paths of a grown prefix that is in the beam already to that one, and take it out of the grown.

        Such a prefix is found by its parent, which must be in the beam too, and its last unit must be a candidate.
        """
        hashes = self.ints[_HASH]
        rank = hashes.argsort()
        known = hashes.take(rank)
        parents = self.ints[_PARENT].take(repeats.rows)
        where = known.searchsorted(parents)
        met = (known.take(where, mode="clip") == parents).nonzero()[0]
        if not len(met):
            return
        child, parent = repeats.rows.take(met), rank.take(where.take(met))
        same = repeats.at.take(met) - grown.shift.take(parent)
        new = grown.bound.take(same) - self.floats[_EXTRA].take(parent) - self.bonus
        old = stay.total.take(child)
        joined = np.logaddexp(old, new)
        share = np.where(joined > -np.inf, np.exp(old - joined), 1.0)
        stay.total[child] = joined
        stay.in_blank[child] *= share
        stay.in_unit[child] = stay.in_unit.take(child) * share + np.exp(new - joined)
        grown.bound[same] = -np.inf

    def _drop_hopeless(self, score: np.ndarray, grown: _Grown) -> _Scored:
        """Drop grown prefixes that could not enter the beam whatever the language model says; score the others.

        score: (N,) of the prefixes that stay. To enter a full beam, a prefix must be above its lowest score.
        """
        owner = self.ints[_OWNER]
        floor = np.maximum.reduceat(score, self.begin) - self.threshold
        full = (self.sizes == self.beam).nonzero()[0]
        floor[full] = np.maximum(floor.take(full), np.minimum.reduceat(score, self.begin).take(full))
        kept = (grown.bound > floor.take(owner).take(grown.source)).nonzero()[0]
        source, bound = grown.source.take(kept), grown.bound.take(kept)
        unit = self.steps.units.take(grown.choice.take(kept))
        if not self.lm:
            return _Scored(source, unit, bound, bound, None, None)
        lm, arcs = self.lm.score(self.ints[_STATE].take(source), unit)
        return _Scored(source, unit, bound, bound + self.lm_weight * lm, lm, arcs)

    def _choose(self, score: np.ndarray, scored: _Scored, utterances: int) -> np.ndarray:
        """The new beams: the indices of the best prefixes, utterance by utterance, the best first.

        score: (N,) of the prefixes that stay. An index n < N is one of them, N + h is grown prefix h. From here on,
        ``sizes`` and ``begin`` are those of the new beams.
        """
        grown_owner = self.ints[_OWNER].take(scored.source)
        best = np.maximum.reduceat(score, self.begin)
        np.maximum.at(best, grown_owner, scored.score)
        owner = np.concatenate([self.ints[_OWNER], grown_owner])
        behind = best.take(owner) - np.concatenate([score, scored.score])
        near = (behind <= self.threshold).nonzero()[0]
        owner, behind = owner.take(near), behind.take(near)
        near = near.take((owner * (behind.max() + 1.0) + behind).argsort())
        sizes = np.bincount(owner, minlength=utterances)
        begin = sizes.cumsum() - sizes
        self.sizes = np.minimum(sizes, self.beam)
        self.begin = self.sizes.cumsum() - self.sizes
        return near.take((begin[:, None] + self.places)[self.places < self.sizes[:, None]])

    def _renew(self, stay: _Stay, scored: _Scored, chosen: np.ndarray) -> None:
        """Make the new beams: copy the chosen prefixes, and for grown ones their parents; then add the new units."""
        count = len(stay.total)
        grows = (chosen >= count).nonzero()[0]
        picked = chosen.take(grows) - count
        chosen[grows] = scored.source.take(picked)
        self.floats[:3] = stay
        self.floats = floats = self.floats.take(chosen, axis=1)
        self.ints = ints = self.ints.take(chosen, axis=1)
        unit, bound, before = scored.unit.take(picked), scored.bound.take(picked), floats[_EXTRA].take(grows)
        floats[_TOTAL, grows] = bound - before - self.bonus
        floats[_IN_BLANK, grows] = 0.0
        floats[_IN_UNIT, grows] = 1.0
        floats[_EXTRA, grows] = before + self.bonus
        if self.lm:
            lm = scored.lm.take(picked)
            floats[_EXTRA, grows] += self.lm_weight * lm
            floats[_LM, grows] += lm
            ints[_STATE, grows] = self.lm.follow(scored.arcs.take(picked))
        ints[_LAST, grows] = unit
        ints[_PARENT, grows] = hashes = ints[_HASH].take(grows)
        hashes = (hashes + unit * _SPREAD) * _MIX
        ints[_HASH, grows] = hashes ^ (hashes >> 29)
        self.tree.append((ints[_NODE].take(grows), unit))
        ints[_NODE, grows] = np.arange(self.nodes, self.nodes + len(grows))
        self.nodes += len(grows)

    def _answers(self, nbest: int) -> list[list[Hypothesis]]:
        """The ``nbest`` best prefixes of each beam with the end of the sentence added, in the caller's order."""
        owner, node = self.ints[_OWNER], self.ints[_NODE]
        total = self.floats[_TOTAL] + self.steps.rest[owner]
        score, lm_log = total + self.floats[_EXTRA], self.floats[_LM]
        if self.lm:
            final = self.lm.final(self.ints[_STATE])
            lm_log = lm_log + final
            score += self.lm_weight * final
        rank = np.lexsort((-score, owner))
        owner = owner[rank]
        rank = rank[np.arange(len(rank)) - np.searchsorted(owner, owner) < nbest]
        parents, units = (np.concatenate(column) for column in zip(*self.tree))
        parents, units = np.append(parents, -1), np.append(units, -1)  # node -1 is the empty prefix
        columns, node = [], node[rank]
        while (node >= 0).any():  # back along the tree, all answers at once
            columns.append(units[node])
            node = parents[node]
        tokens = np.stack(columns[::-1], 1).tolist() if columns else [[] for _ in rank]
        answers: list[list[Hypothesis]] = [[] for _ in self.steps.order]
        rows = self.steps.order[self.ints[_OWNER][rank]].tolist()
        for row, line, *numbers in zip(rows, tokens, *(x[rank].tolist() for x in (score, total, lm_log))):
            parts = dict(zip(("ctc", "lm") if self.lm else ("ctc",), numbers[1:]))
            answers[row].append(Hypothesis([unit for unit in line if unit >= 0], numbers[0], parts=parts))
        return answers
