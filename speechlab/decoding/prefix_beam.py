"""The inner call of CTC prefix beam search, without torch so that worker processes start at once."""

from __future__ import annotations

import numpy as np

from speechlab.errors import UserError

# fast-ctc-decode answers with one string: a private-use character (plane 15 has 65,533) a unit is never ambiguous.
_FIRST = 0xF0000


def search(candidates: tuple[np.ndarray, np.ndarray], beam: int) -> list[int]:
    """The most probable label sequence within ``beam``.

    Args:
        candidates: posteriors ``(T, K)`` as float32 with blank first and zeros where pruned, and the K units' ids.
        beam: prefixes kept after each frame.

    Returns:
        Unit ids, without blanks.
    """
    try:
        import fast_ctc_decode
    except ImportError:
        raise UserError("CTC beam search needs fast-ctc-decode: pip install it, or decode with ctc_greedy") from None
    probs, ids = candidates
    if not len(probs) or len(ids) == 1:
        return []
    # The package takes a matrix of two or more units; a threshold just over zero passes over what was pruned to zero.
    alphabet = ["", *(chr(_FIRST + column) for column in range(len(ids) - 1))]
    text, _ = fast_ctc_decode.beam_search(probs, alphabet, beam_size=beam, beam_cut_threshold=1e-30)
    return [int(ids[ord(character) - _FIRST + 1]) for character in text]
