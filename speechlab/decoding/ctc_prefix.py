"""CTC as a scorer of prefixes, token by token (Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end
speech recognition", algorithm 2).

The probability of a prefix is that of all token sequences that begin with it. The paper computes it frame by frame for
every prefix and every candidate. Here no step loops over time, and most of the work is left out:

* The probability of a candidate needs one sum over the frames where it could begin. Only a prefix that was chosen needs
  the forward variables of its last token.
* Forward variables are linear recurrences, r_t = (r_{t-1} + a_t) y_t, so they are cumulative sums: r_t / Y_t = sum of
  a_s / Y_{s-1} over s <= t, with Y_t = y_1 ... y_t. In logarithms that is ``logcumsumexp``. Multiplying by Y again
  costs digits, so it is done in float64.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from speechlab.decoding.attention import END

# Log probability of an impossible token in the cumulative sums: minus infinity less minus infinity would be NaN.
_IMPOSSIBLE = -1e4


@dataclasses.dataclass
class _State:
    """What is known of N prefixes. Index 0 of the time axis is before the first frame."""

    owner: Tensor  # (N,) the utterance
    last: Tensor  # (N,) the last token; -1 for the empty prefix
    prefix: Tensor  # (N,) log probability of all token sequences that begin with the prefix
    # Forward variables: log probability that the frames up to t give exactly this prefix.
    token: Tensor  # (N, 1 + T) by paths that end in its last token
    blank: Tensor  # (N, 1 + T) by paths that end in blank

    def pick(self, rows: Tensor) -> _State:
        """The state of ``rows`` (N',)."""
        return _State(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


class CTCPrefixScorer:
    """Scores candidates by CTC's output, as a :class:`~speechlab.decoding.attention.PartialScorer`.

    The scores of a prefix's tokens add up to the log probability of all token sequences that begin with it. With the
    score of the end, they add up to that of this sequence alone, which is what CTC's loss computes.

    Args:
        log_probs: natural log posteriors (B, T, V). Index 0 is blank; as a candidate it is the end.
        lengths: frames of each utterance, (B,); later frames are not looked at.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor):
        batch, frames, _ = log_probs.shape
        lengths = lengths.to(log_probs.device)
        if lengths.shape != (batch,) or (batch and int(lengths.max()) > frames):
            raise ValueError(f"posteriors {tuple(log_probs.shape)} with lengths {lengths.tolist()}")
        if not frames:  # one frame of padding, so that every sum over time has a term
            log_probs, frames = torch.nn.functional.pad(log_probs, (0, 0, 0, 1)), 1
        valid = torch.arange(frames, device=log_probs.device) < lengths[:, None]
        # (B, V, T): the frames of a candidate are side by side. Beyond the end only blank is possible, and certain.
        self.table = log_probs.float().masked_fill(~valid[:, :, None], -math.inf).transpose(1, 2).contiguous()
        self.table[:, END].masked_fill_(~valid, 0.0)
        wide = torch.float32 if log_probs.device.type == "mps" else torch.float64  # MPS has no float64
        self.blanks = self._cumulative(self.table[:, END].to(wide))  # (B, 1 + T)

    @staticmethod
    def _cumulative(y: Tensor) -> Tensor:
        """Log probabilities of frames (N, T) -> of the first t frames together, (N, 1 + T)."""
        return torch.nn.functional.pad(y.clamp(min=_IMPOSSIBLE).cumsum(1), (1, 0))

    def start(self, batch: int) -> _State:
        """The empty prefix of each utterance."""
        if batch != len(self.table):
            raise ValueError(f"{batch} prefixes to begin with, and {len(self.table)} utterances")
        owner = torch.arange(batch, device=self.table.device)
        return _State(owner, torch.full_like(owner, -1), self.blanks.new_zeros(batch),
                      torch.full_like(self.blanks, -math.inf), self.blanks)

    def score(self, tokens: Tensor, state: _State, candidates: Tensor) -> tuple[Tensor, _State]:
        """tokens (N,) to append, candidates (N, K) -> log probabilities (N, K) of the candidates, and the new state.

        A candidate 0 is the end. At the start, ``tokens`` are 0 and nothing is appended.
        """
        started = tokens != END
        if started.any():
            state = self._append(tokens, state)
        both = torch.logaddexp(state.token, state.blank)
        # A token may begin at t after both kinds of path up to t - 1; the last token again only after a blank.
        again = (candidates == state.last[:, None])[:, :, None]
        before = torch.where(again, state.blank[:, None, :-1], both[:, None, :-1])
        prefix = _sum(before + self.table[state.owner[:, None], candidates])
        prefix = torch.where(candidates == END, both[:, -1:], prefix)
        scores = (prefix - state.prefix[:, None]).float()
        return scores.masked_fill(state.prefix.isneginf()[:, None], -math.inf), state

    def select(self, state: _State, rows: Tensor) -> _State:
        """The state of ``rows`` (N',)."""
        return state.pick(rows)

    def _append(self, tokens: Tensor, state: _State) -> _State:
        """The state of the prefixes with ``tokens`` (N,) appended."""
        begin = torch.where((tokens == state.last)[:, None], state.blank, torch.logaddexp(state.token, state.blank))
        begin = begin[:, :-1]
        y = self.table[state.owner, tokens].to(begin.dtype)  # (N, T)
        held, blanks = self._cumulative(y), self.blanks[state.owner]
        token = held[:, 1:] + torch.logcumsumexp(begin - held[:, :-1], 1)
        token = torch.nn.functional.pad(token, (1, 0), value=-math.inf)
        blank = blanks[:, 1:] + torch.logcumsumexp(token[:, :-1] - blanks[:, :-1], 1)
        blank = torch.nn.functional.pad(blank, (1, 0), value=-math.inf)
        return _State(state.owner, tokens, _sum(begin + y), token, blank)


def _sum(x: Tensor) -> Tensor:
    """logsumexp over the last axis, ten times as fast on a CPU when most terms are almost 0, as here.

    The exponentials of such terms are denormal numbers, which a CPU computes slowly. They are raised to 1e-26 of the
    largest term.
    """
    largest = x.amax(-1, keepdim=True)
    total = (x - largest.masked_fill(largest.isneginf(), 0.0)).clamp_(min=-60.0).exp_().sum(-1)
    return total.log() + largest[..., 0]
