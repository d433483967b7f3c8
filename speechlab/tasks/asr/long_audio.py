"""Audio files of any length to text with times. A file is read in pieces, each piece is recognised, and the answers are
put together again.

A piece is at most ``chunk`` seconds, and only a few are in memory: an hour of audio needs no more memory than a minute.
Features are normalised over a piece, as they are over an utterance in training. Where a piece ends:

* With a CTC head, neighbours share ``overlap`` seconds, which both hear. :func:`join` joins them there.
* Without a CTC head, nothing says when a token was spoken. So a piece ends at the quietest point within its last
  ``overlap`` seconds, and the next begins there.
* Digital silence (never over -80 dBFS for 0.2 s: made by a noise gate, an editor or a phone) always ends a piece, and
  is left out: recordings for training have none, and a few such frames outweigh all the others in the normalisation.

A file without such silence and no longer than a chunk is one piece, and is recognised as decoding a manifest does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechlab.data.check import SHORTEST, SILENCE
from speechlab.data.pieces import examine, pieces
from speechlab.decoding import ctc
from speechlab.decoding.alignment import token_frames
from speechlab.decoding.ctc import Hypothesis
from speechlab.errors import UserError
from speechlab.features.contract import FeatureContract
from speechlab.features.fbank import extract, normalise
from speechlab.models.asr import Encoded
from speechlab.models.decoder import BOUNDARY
from speechlab.tasks.asr.recogniser import METHODS, Recogniser
from speechlab.tasks.asr.search import Search

BATCH = 80.0  # seconds of audio, padding included, that are computed together
DOUBT = 0.25  # the decoder's number of tokens may differ from CTC's by this share of CTC's
SAME = 0.3  # seconds by which two pieces may differ about the time of one token


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that was heard."""

    id: int
    confidence: float  # how sure the model was of it, 0 to 1
    start: float | None = None  # seconds from the file's beginning; None without a CTC head
    end: float | None = None


@dataclasses.dataclass
class Transcript:
    """What was heard of a file."""

    file: Path
    seconds: float = 0.0
    tokens: list[Token] = dataclasses.field(default_factory=list)
    # Without a CTC head: the tokens of each piece, with its bounds in seconds.
    parts: list[tuple[float, float, list[Token]]] = dataclasses.field(default_factory=list)
    error: str | None = None  # what is wrong with the file or the answer; a file that is cut short still has tokens
    silent: bool = True  # the file never leaves +-SILENCE
    pieces: int = 0  # pieces with something to hear
    doubted: int = 0  # pieces of which the decoder lost or doubled much of what CTC heard


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece that waits to be recognised."""

    file: Path
    start: float  # seconds from the file's beginning
    end: float
    last: bool  # the file ends with it
    x: Tensor | None  # features (frames, bins); None where there is nothing to hear
    error: str | None  # what is wrong with the file, told with its last piece


@dataclasses.dataclass
class _Heard:
    """What was heard of a piece."""

    tokens: list[Token] = dataclasses.field(default_factory=list)
    error: str | None = None
    doubted: bool = False  # the decoder heard much more or less than CTC


def features(samples: np.ndarray, rate: int, contract: FeatureContract) -> Tensor:
    """(frames, bins) of samples (n,) at any rate, normalised: the numbers that decoding a manifest computes."""
    x = extract(samples, rate, contract)
    return normalise(x[None], torch.tensor([len(x)]))[0] if contract.normalise == "utterance" and len(x) else x


def join(left: list[Token], right: list[Token], begin: float, end: float) -> list[Token]:
    """The tokens of two pieces that both heard the seconds from ``begin`` to ``end``, each token once.

    They are joined where they agree best: in the longest run of tokens that both have, one after another and at the
    same time, at the pair nearest the middle. Pieces that agree nowhere are cut between tokens: in the middle of the
    longest pause, as both together hear it, within the middle half of what they share.
    """
    i0 = next((i for i, token in enumerate(left) if token.start >= begin - SAME), len(left))
    j1 = next((j for j, token in enumerate(right) if token.start > end + SAME), len(right))
    pair = _agreement(left, i0, right[:j1], (begin + end) / 2)
    if pair is not None:
        joined = left[:pair[0] + 1] + right[pair[1] + 1:]
    else:
        middle = _longest_pause(left[i0:] + right[:j1], begin, end)
        joined = [t for t in left if t.start < middle] + [t for t in right if t.start >= middle]
    return _never_backwards(joined)


def _agreement(left: list[Token], i0: int, right: list[Token], middle: float) -> list[int] | None:
    """The pair (i, j) nearest ``middle`` in the longest run of tokens that left[i0:] and right have in common.

    None where they have no token in common at the same time (:data:`SAME`).
    """
    best, at = 0.0, None
    before: dict[int, tuple[float, int, int]] = {}  # by j: how far (i, j)'s run agrees, and its pair nearest the middle
    for i in range(i0, len(left)):
        row = {}
        for j in range(len(right)):
            apart = abs(left[i].start - right[j].start)
            if left[i].id != right[j].id or apart > SAME:
                continue
            agree, *pair = before.get(j - 1, (0.0, i, j))
            if abs(left[i].start - middle) < abs(left[pair[0]].start - middle):
                pair = [i, j]
            row[j] = (agree + 1.001 - apart / SAME, *pair)  # in a stammer, the pairs that lie nearest win
            if row[j][0] > best:
                best, at = row[j][0], pair
        before = row
    return at


def _longest_pause(tokens: list[Token], begin: float, end: float) -> float:
    """The middle of the longest pause between the starts of ``tokens``, within the middle half of begin to end."""
    quarter = (end - begin) / 4
    inner = sorted(t.start for t in tokens if begin + quarter < t.start < end - quarter)
    bounds = [begin + quarter, *inner, end - quarter]
    return sum(max(zip(bounds, bounds[1:]), key=lambda gap: (gap[1] - gap[0]))) / 2


def _never_backwards(tokens: list[Token]) -> list[Token]:
    """The tokens with starts that never fall: two pieces differ a little about the time of the same token."""
    for i in range(1, len(tokens)):
        if tokens[i].start < tokens[i - 1].start:
            start = tokens[i - 1].start
            tokens[i] = dataclasses.replace(tokens[i], start=start, end=max(start, tokens[i].end))
    return tokens


class LongRecogniser:
    """Files of any length to transcripts.

    Args:
        recogniser: with its language models.
        method: one of METHODS (speechlab/tasks/recogniser.py).
        weights: the weights of the method's scores (speechlab/tasks/search.py).
        chunk, overlap: in seconds; see the top of this file.
        guarded: take CTC's greedy answer for a piece that is doubted (see :class:`Transcript`). A decoder that learnt
            from short utterances ends early in longer ones without any sign of it.
    """

    def __init__(self, recogniser: Recogniser, method: str, weights: Mapping[str, Any] | None = None,
                 chunk: float = 20.0, overlap: float = 4.0, guarded: bool = False):
        if why := recogniser.lacks(method):
            raise UserError(f"method {method}: {why}", 2)
        if not chunk >= 1 or not 0 <= overlap <= chunk / 2:
            raise UserError(f"chunk = {chunk:g} s, overlap = {overlap:g} s: a chunk is at least a second, an overlap "
                            "at most half a chunk", 2)
        self.recogniser, self.method, self.weights = recogniser, method, weights or {}
        self.chunk, self.overlap, self.guarded = chunk, overlap, guarded
        self.search = Search(recogniser, Path())  # the weights are given: nothing is tuned
        self.timed = recogniser.model.head is not None
        self.frame = self._frame()

    def jobs(self, files: Iterable[Path]) -> Iterator[Job]:
        """Read the files: one job per piece for :meth:`transcribe`, so that progress can be counted."""
        contract = self.recogniser.contract
        for file in files:
            seconds, error = examine(file)
            error = None if (error or "").startswith("silent") else error  # no error: nothing is the right answer
            if error and not error.startswith("truncated"):
                yield Job(file, 0.0, seconds, True, None, error)
                continue
            try:
                for piece in pieces(file, self.chunk, self.overlap, cut=not self.timed):
                    audible = len(piece.samples) >= SHORTEST * piece.rate and np.ptp(piece.samples) >= 2 * SILENCE
                    x = features(piece.samples, piece.rate, contract) if audible else None
                    yield Job(file, piece.start, piece.end, piece.last, x, error if piece.last else None)
            except (soundfile.SoundFileError, OSError) as gone:  # the file has changed since it was examined
                yield Job(file, 0.0, 0.0, True, None, f"unreadable: {gone}")

    def transcribe(self, jobs: Iterable[Job]) -> Iterator[Transcript]:
        """What was heard of each file, in order."""
        found: Transcript | None = None
        for batch in self._batches(jobs):
            for job, heard in zip(batch, self._hear(batch)):
                found = found or Transcript(job.file)
                self._add(found, job, heard)
                if job.last:
                    yield found
                    found = None

    @staticmethod
    def _batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """The jobs in order, as many together as make up :data:`BATCH` seconds; they may be of several files."""
        waiting: list[Job] = []
        for job in jobs:
            together = [*waiting, job]
            longest = max(1.0, *(one.end - one.start for one in together))
            if waiting and longest * len(together) > BATCH:
                yield waiting
                together = [job]
            waiting = together
        if waiting:
            yield waiting

    def _add(self, found: Transcript, job: Job, heard: _Heard) -> None:
        """Add what was heard of a file's next piece."""
        before, found.seconds = found.seconds, job.end
        found.error = found.error or job.error or heard.error
        found.silent &= job.x is None
        found.pieces += job.x is not None
        found.doubted += heard.doubted
        if self.timed:
            shared = job.start < before - 1e-6
            found.tokens = join(found.tokens, heard.tokens, job.start, before) if shared else [
                *found.tokens, *heard.tokens]
        else:
            found.tokens += heard.tokens
            found.parts.append((job.start, job.end, heard.tokens))

    def _hear(self, jobs: list[Job]) -> list[_Heard]:
        """What was heard of each piece; nothing where it has no features."""
        answers = [_Heard() for _ in jobs]
        rows = [i for i, job in enumerate(jobs) if job.x is not None and len(job.x)]
        if rows:
            for i, heard in zip(rows, self._recognise([jobs[i] for i in rows])):
                answers[i] = heard
        return answers

    def _recognise(self, jobs: list[Job]) -> list[_Heard]:
        """What was heard of each piece, computed as one batch; each has features."""
        xs = [job.x for job in jobs]
        found = self.recogniser.encode({"x": pad_sequence(xs, batch_first=True),
                                        "x_lens": torch.tensor([len(x) for x in xs])})
        best = [hypotheses[0] for hypotheses in self.search(found, self.method, self.weights)]
        doubted = self._doubt(found, best)
        frames = _frames(found, best) if self.timed else []
        answers = []
        for row, (job, hypothesis) in enumerate(zip(jobs, best)):
            if hypothesis.error:
                tokens = []
            elif self.timed:
                tokens = self._timed(hypothesis.tokens, *frames[row], found.log_probs[row], job)
            else:
                sure = self._sure(found, row, hypothesis.tokens)
                tokens = [Token(*pair) for pair in zip(hypothesis.tokens, sure)]
            answers.append(_Heard(tokens, hypothesis.error, row in doubted))
        return answers

    def _doubt(self, found: Encoded, best: list[Hypothesis]) -> set[int]:
        """The rows whose answer is much longer or shorter than CTC's; if guarded, CTC's takes its place in ``best``."""
        doubted: set[int] = set()
        if not (self.timed and METHODS[self.method].attention):
            return doubted
        for row, plain in enumerate(ctc.greedy(found.log_probs, found.lengths.cpu())):
            size = len(plain.tokens)
            if not best[row].error and abs(len(best[row].tokens) - size) > max(1, DOUBT * size):
                doubted.add(row)
                best[row] = plain if self.guarded else best[row]
        return doubted

    def _timed(self, tokens: list[int], starts: list[int], ends: list[int], log_probs: Tensor, job: Job) -> list[Token]:
        """Tokens with their times in the file, and their mean posterior over these frames of log_probs (T', vocab)."""
        found = []
        for token, first, last in zip(tokens, starts, ends):
            times = (min(job.start + frame * self.frame, job.end) for frame in (first, last))
            found.append(Token(token, float(log_probs[first:last, token].exp().mean()), *times))
        return found

    @torch.no_grad()
    def _sure(self, found: Encoded, row: int, tokens: list[int]) -> list[float]:
        """The decoder's probability of each token, given the tokens before it."""
        decoder = self.recogniser.model.decoder
        given = torch.tensor([[BOUNDARY, *tokens]], device=found.memory.device)
        logits = decoder(found.memory[row:row + 1], found.mask[row:row + 1], given)[0, :-1]
        return logits.float().softmax(-1).gather(1, given[0, 1:, None])[:, 0].tolist()

    def _frame(self) -> float:
        """Seconds from one of the encoder's frames to the next: measured on inputs of 320 and of 640 frames."""
        contract = self.recogniser.contract
        sizes = torch.tensor([320, 640])
        x = torch.randn(2, 640, contract.dim, generator=torch.Generator().manual_seed(0))
        short, long = self.recogniser.encode({"x": x, "x_lens": sizes}).lengths.tolist()
        every = 320 / (long - short) if long > short else 640 / max(long, 1)
        return every * contract.shift_samples / contract.sample_rate


def _frames(found: Encoded, best: list[Hypothesis]) -> list[tuple[list[int], list[int]]]:
    """First frame and last (exclusive) of each token, by row: the search's own, or on CTC's best path through them."""
    sizes = found.lengths.cpu().numpy()
    frames = [(h.starts, h.ends) for h in best]
    unknown = []
    for row, (h, size) in enumerate(zip(best, sizes.tolist())):
        if len(h.starts) == len(h.tokens):
            continue
        if len(h.tokens) + sum(a == b for a, b in zip(h.tokens, h.tokens[1:])) <= size:
            unknown.append(row)
        else:  # a decoder alone may write more tokens than CTC has frames: nonsense, so spread them evenly
            starts = [i * size // len(h.tokens) for i in range(len(h.tokens))]
            frames[row] = starts, [start + 1 for start in starts]
    if unknown:
        aligned = token_frames(found.log_probs[unknown].numpy(), sizes[unknown], [best[row].tokens for row in unknown])
        for row, pair in zip(unknown, aligned):
            frames[row] = pair
    return frames
