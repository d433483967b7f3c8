"""Forced alignment: the frames of known tokens on the most probable CTC path through them, for a whole batch at once.

The path is found by the Viterbi algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def token_frames(
    log_probs: np.ndarray, sizes: np.ndarray, tokens: Sequence[Sequence[int]], blank: int = 0
) -> list[tuple[list[int], list[int]]]:
    """When each token is spoken, on the most probable path that collapses to ``tokens``.

    Args:
        log_probs: natural log posteriors, ``(B, T, V)``.
        sizes: frames of each utterance, ``(B,)``.
        tokens: of each utterance. There must be a path through them: enough frames, and a probability above 0.
        blank: the index of CTC's blank.

    Returns:
        For each utterance the starts and ends: token i takes the frames ``starts[i]`` to ``ends[i] - 1``.
    """
    batch, counts = len(tokens), np.array([len(line) for line in tokens], dtype=np.int64)
    frames, width = int(sizes.max(initial=0)), 2 * int(counts.max(initial=0)) + 1
    # A path goes along blank, token, blank, ..., token, blank, and may skip a blank between tokens that differ.
    units = np.full((batch, width), blank)
    for row, line in enumerate(tokens):
        units[row, 1 : 2 * len(line) : 2] = line
    barred = np.full((batch, width), -np.inf)
    barred[:, 1:2] = 0.0  # a path may begin with the first token
    barred[:, 3::2][units[:, 3::2] != units[:, 1:-2:2]] = 0.0

    rows = np.arange(batch)
    heard = np.take_along_axis(log_probs[:, :frames], units[:, None], 2).swapaxes(0, 1)  # (T, B, places)
    ending = {int(size) for size in sizes}
    best = np.full((batch, width + 2), -np.inf)  # two places more in front: never reached, and before the first
    best[:, 1] = 0.0
    moves = np.zeros((frames, batch, width), np.int8)
    place = 2 * counts
    for frame in range(frames):
        stay, step, skip = best[:, 2:], best[:, 1:-1], best[:, :-2] + barred
        further = np.maximum(step, skip)
        moves[frame] = (further > stay) * (1 + (skip > step))
        best[:, 2:] = np.maximum(stay, further) + heard[frame]
        best[:, 1] = -np.inf
        if frame + 1 in ending:  # a path ends in the last blank or in the last token
            last = np.flatnonzero(sizes == frame + 1)
            place[last] -= best[last, place[last] + 1] > best[last, place[last] + 2]

    path = np.full((batch, frames + 2), -1)  # one frame more at both ends
    for frame in reversed(range(frames)):
        active = sizes > frame
        path[active, frame + 1] = place[active]
        place = place - np.where(active, moves[frame, rows, place], 0)
    spoken = (path > 0) & (path % 2 == 1)
    starts = (spoken[:, 1:-1] & (path[:, 1:-1] != path[:, :-2])).nonzero()
    ends = (spoken[:, 1:-1] & (path[:, 1:-1] != path[:, 2:])).nonzero()
    bounds = np.searchsorted(starts[0], np.arange(batch + 1)).tolist()
    first, last = starts[1].tolist(), (ends[1] + 1).tolist()
    return [(first[low:high], last[low:high]) for low, high in zip(bounds, bounds[1:])]
