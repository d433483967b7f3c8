"""CTC as a scorer of prefixes, token by token (Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end
speech recognition", algorithm 2).

A prefix's probability is that of all labellings that begin with it. The paper computes it frame by frame for every
prefix and every candidate. Here no step loops over time, and most of the work is not done at all:

* What a candidate's probability needs from the time axis is one sum over the frames where it could begin. Only the
  prefix that was chosen needs the forward variables of its last token.
* Those are linear recurrences, r_t = (r_{t-1} + a_t) y_t, hence cumulative sums: r_t / Y_t = sum of a_s / Y_{s-1} over
  s <= t, with Y_t = y_1 ... y_t. In logarithms that is ``logcumsumexp``. Taking Y off
  again costs digits: hence float64.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from speechlab.decoding.attention import END

# Stands for an impossible token in the cumulative sums, where minus infinity would meet itself.
_IMPOSSIBLE = -1e4


@dataclasses.dataclass
class _State:
    """Of N prefixes: the utterance (N,), the last token (N,; -1 of the empty prefix), log probability (N,) of all that
    begins with it, and the forward variables (N, 1 + T): log probability of the frames up to t giving just this prefix,
    ending in its last token or in blank. Index 0 is before the first frame."""

    owner: Tensor
    last: Tensor
    prefix: Tensor
    token: Tensor
    blank: Tensor

    def pick(self, rows: Tensor) -> _State:
        return _State(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


class CTCPrefixScorer:
    """Scores candidates by a CTC output, as a :class:`~speechlab.decoding.attention.PartialScorer`.

    The scores of a prefix's tokens add up to the log probability of all labellings that begin with it; with the end, of
    that labelling alone (what CTC loss computes).

    Args:
        log_probs: natural log posteriors (B, T, V), blank at index 0, which for a candidate means the end.
        lengths: frames of each utterance, (B,); what lies beyond is not looked at.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor):
        batch, frames, _ = log_probs.shape
        lengths = lengths.to(log_probs.device)
        if lengths.shape != (batch,) or (batch and int(lengths.max()) > frames):
            raise ValueError(f"posteriors {tuple(log_probs.shape)} with lengths {lengths.tolist()}")
        if not frames:  # one frame of padding, so that every sum over time has a term
            log_probs, frames = torch.nn.functional.pad(log_probs, (0, 0, 0, 1)), 1
        valid = torch.arange(frames, device=log_probs.device) < lengths[:, None]
        # (B, V, T): a candidate's frames side by side. Beyond the end nothing but blanks, which are certain.
        self.table = log_probs.float().masked_fill(~valid[:, :, None], -math.inf).transpose(1, 2).contiguous()
        self.table[:, END].masked_fill_(~valid, 0.0)
        wide = torch.float32 if log_probs.device.type == "mps" else torch.float64  # MPS has no float64
        self.blanks = self._cumulative(self.table[:, END].to(wide))  # (B, 1 + T)

    @staticmethod
    def _cumulative(y: Tensor) -> Tensor:
        """(N, T) -> (N, 1 + T): log probability of the first t frames."""
        return torch.nn.functional.pad(y.clamp(min=_IMPOSSIBLE).cumsum(1), (1, 0))

    def start(self, batch: int) -> _State:
        """The empty prefix of each utterance."""
        if batch != len(self.table):
            raise ValueError(f"{batch} prefixes to begin with, and {len(self.table)} utterances")
        owner = torch.arange(batch, device=self.table.device)
        return _State(owner, torch.full_like(owner, -1), self.blanks.new_zeros(batch),
                      torch.full_like(self.blanks, -math.inf), self.blanks)

    def score(self, tokens: Tensor, state: _State, candidates: Tensor) -> tuple[Tensor, _State]:
        """tokens (N,), candidates (N, K), both token numbers -> log probabilities (N, K), state.

        A candidate 0 is the end. Before any token, ``tokens`` are 0 and append nothing.
        """
        started = tokens != END
        if started.any():
            state = self._append(tokens, state)
        both = torch.logaddexp(state.token, state.blank)
        # A token begins at t after any ending at t - 1; the same token again only after a blank.
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
        """The prefixes with one token more."""
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
    """logsumexp over the last axis, ten times as fast on a CPU where most terms are almost 0, as here.

    Their exponentials are denormal numbers, which a CPU computes slowly; 1e-26 of the largest will do for them.
    """
    largest = x.amax(-1, keepdim=True)
    total = (x - largest.masked_fill(largest.isneginf(), 0.0)).clamp_(min=-60.0).exp_().sum(-1)
    return total.log() + largest[..., 0]
