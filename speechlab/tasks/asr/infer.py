"""Recognising audio files: text with times and confidences.

A file of more than --chunk seconds is heard in pieces (long_audio.py); features are normalised over each piece. Digital
silence (below -80 dBFS for 0.2 s) is left out, and ends a piece. (libsndfile believes an MP3's first header about its
length: of a stream without one, or of MP3s put together with cat, it may read a part only. Convert those.)

The record of a file has, with times in seconds:

  seconds
  text         null where the file could not be read, "" where nothing was said
  confidence   0 to 1: the tokens' mean; a token's is CTC's posterior of it, averaged over its frames (without a CTC
               head the decoder's probability of it). It is not calibrated: 0.9 is not right nine times in ten.
  segments     start, end, text, confidence: what stands between pauses (without CTC: a piece)
  tokens       token, start, end, confidence; times are where CTC's best path has the token, which is a moment within
               the sound rather than its edges; null without a CTC head
  error        null, or what is wrong with the file; what is there of a truncated file is heard
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from speechlab.data.inputs import audio_file, shown
from speechlab.data.text import has_hanzi
from speechlab.data.tokens import SPACE, Tokenizer
from speechlab.decoding import arpa
from speechlab.errors import UserError
from speechlab.progress import progress
from speechlab.tasks.asr.long_audio import Job, LongRecogniser, Token, Transcript
from speechlab.tasks.asr.recogniser import METHODS, Recogniser
from speechlab.tasks.asr.search import START
from speechlab.tasks.interface import Answer

PAUSE = 0.8  # seconds without a token that end a segment
LONG = 60.0  # seconds of audio from which on progress is shown
CHUNK, OVERLAP = 20.0, 4.0  # seconds
CONVERT = "libsndfile reads wav, flac, ogg, opus, mp3, aiff, au and others: convert it (ffmpeg -i FILE FILE.wav)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``infer`` for this task."""
    parser.add_argument("--lm", type=Path, help="the folder of an n-gram language model, or its lm.arpa")
    parser.add_argument("--neural_lm", type=Path, help="the experiment of a language model as a network (for rescore)")
    parser.add_argument("--chunk", type=float, default=CHUNK, metavar="S",
                        help="longest piece in seconds (20); shorter if the model was trained on short utterances only")
    parser.add_argument("--overlap", type=float, default=OVERLAP, metavar="S",
                        help="seconds that neighbouring pieces share (4)")


def infer(recogniser: Recogniser, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[Answer]:
    """What was heard of each file, in order; pieces of several files are computed together."""
    long = listener(recogniser, args.method, args.lm, args.neural_lm, args.chunk, args.overlap)
    for found in transcripts(long, list(paths)):
        yield answer(found, long)


def hear(recogniser: Recogniser, source: Any, rate: int | None = None, method: str | None = None,
         lm: Path | None = None, neural_lm: Path | None = None, chunk: float = CHUNK,
         overlap: float = OVERLAP) -> dict[str, Any]:
    """The record of one file or array (see above).

    Raises:
        UserError: for what can't be read at all.
    """
    long = listener(recogniser, method, lm, neural_lm, chunk, overlap)
    with audio_file(source, rate) as path:
        (found,) = long.transcribe(long.jobs([path]))
        made = answer(found, long)
    if made.line is None:
        raise UserError(made.complaint or f"{path} can't be read")
    return made.record if isinstance(source, (str, Path)) else {**made.record, "file": None}


def listener(recogniser: Recogniser, method: str | None, lm: Path | None, neural_lm: Path | None, chunk: float,
             overlap: float) -> LongRecogniser:
    """The recogniser with its language models, ready for files of any length."""
    if lm:
        recogniser.lm = arpa.load(Path(lm), recogniser.tokenizer.units)
    if neural_lm:
        recogniser.load_neural_lm(Path(neural_lm))
    name = method or default_method(recogniser)
    long = LongRecogniser(recogniser, name, weights(recogniser, name), chunk, overlap, guarded=method is None)
    if (lm or neural_lm) and not METHODS[name].lm:
        able = [other for other in recogniser.methods() if METHODS[other].lm]
        raise UserError(f"method {name} weighs no language model: leave it out, or choose "
                        f"{' or '.join(able) or 'an n-gram one (--lm)'}", 2)
    return long


def default_method(recogniser: Recogniser) -> str:
    """The best method that needs nothing more than is there; times (where CTC is) and confidences come with each.

    Of CTC's searches without a language model the greedy one: the beam hardly ever finds better (0.05 % CER in
    egs/aishell_asr/RESULTS.md).
    """
    order = ("ctc_beam_lm",) * (recogniser.lm is not None) + ("joint", "attention", "ctc_greedy")
    return next(method for method in order if recogniser.lacks(method) is None)


def weights(recogniser: Recogniser, method: str) -> dict[str, Any]:
    """The weights of a method with a language model: the config's, else those that decoding tuned, else common ones."""
    if method not in METHODS or not METHODS[method].lm:
        return {}
    tuned_in = (recogniser.exp or Path()) / "decode" / "methods.json"
    try:
        tuned = json.loads(tuned_in.read_text(encoding="utf-8")).get(method)
    except (OSError, ValueError):
        tuned = None
    if tuned is None and method == "rescore":
        raise UserError(f"method rescore: its weights are tuned by the decode stage, and there are none in {tuned_in}")
    given = {name: getattr(recogniser.config.decode, name) for name in START}
    missing = [name for name in START if given[name] is None]
    if missing and tuned is None:
        note(f"{', '.join(missing)} not tuned: {', '.join(f'{START[n]:g}' for n in missing)}; the decode stage tunes "
             "them, --set decode.lm_weight=... gives them")
    return {**START, **(tuned or {}), **{name: value for name, value in given.items() if value is not None}}


def transcripts(long: LongRecogniser, files: list[Path]) -> Iterator[Transcript]:
    """What was heard of each file; progress is shown where there is much to hear."""
    total = sum(map(_seconds, files))
    jobs = long.jobs(files)
    return long.transcribe(counted(jobs, round(total)) if total > LONG else jobs)


def counted(jobs: Iterator[Job], total: int) -> Iterator[Job]:
    """The jobs, while progress tells how many of ``total`` seconds of audio are done with."""
    seconds = iter(progress(range(total), "seconds heard"))
    done, before = 0.0, 0.0
    for job in jobs:
        yield job
        done += job.end - before
        before = 0.0 if job.last else job.end
        for _ in itertools.islice(seconds, int(done)):
            done -= 1
    collections.deque(seconds, 0)  # to the end


def _seconds(file: Path) -> float:
    try:
        return soundfile.info(os.fsencode(file)).duration
    except (soundfile.SoundFileError, OSError, TypeError):  # said when its turn comes
        return 0.0


def answer(found: Transcript, long: LongRecogniser) -> Answer:
    """A transcript as what is printed of it."""
    name = shown(found.file)
    read = found.seconds > 0 and (found.error is None or bool(found.tokens))
    spoken = record(found, long.recogniser.tokenizer)
    whole = {"file": name, "seconds": round(found.seconds, 3), **spoken, "error": found.error}
    made = Answer(whole if read else {**whole, "text": None}, f"{name}\t{spoken['text']}" if read else None)
    if found.error:
        hint = f"; {CONVERT}" if found.error.startswith("unreadable: Format") else ""
        made.complaint = f"{name}: {found.error.replace('missing', 'no such file')}{hint}"
    elif found.silent:
        made.notes.append(f"{name}: silent, never above -80 dBFS")
    if found.doubted:
        instead = "CTC's answer stands there" if long.guarded else "try ctc_greedy"
        made.notes.append(f"{name}: in {found.doubted} of {found.pieces} pieces the decoder left out or doubled "
                          f"more than a quarter of what CTC heard (did it learn from shorter ones? --chunk): {instead}")
    return made


def record(found: Transcript, tokenizer: Tokenizer) -> dict[str, Any]:
    """text, confidence, segments and tokens of --json."""
    def read(tokens: list[Token]) -> str:
        return tokenizer.decode(token.id for token in tokens)

    if found.parts:
        segments = [(start, end, tokens) for start, end, tokens in found.parts if tokens]
        text = ""
        for part in (read(tokens) for _, _, tokens in segments):
            apart = not (tokenizer.kind == "char" and has_hanzi(text[-1:]) and has_hanzi(part[:1]))
            text += " " * bool(text and part and apart) + part
    else:
        segments = [(tokens[0].start, tokens[-1].end, tokens) for tokens in split(found.tokens, tokenizer.units)]
        text = read(found.tokens)
    return {
        "text": text,
        "confidence": _mean(found.tokens),
        "segments": [{"start": _round(start), "end": _round(end), "text": read(tokens), "confidence": _mean(tokens)}
                     for start, end, tokens in segments],
        "tokens": [{"token": tokenizer.units[t.id], "start": _round(t.start), "end": _round(t.end),
                    "confidence": round(t.confidence, 4)} for t in found.tokens],
    }


def split(tokens: list[Token], units: Sequence[str]) -> list[list[Token]]:
    """Tokens with times as segments: a pause ends one, but not within a word."""
    spaced = any(unit.startswith(SPACE) for unit in units)
    segments: list[list[Token]] = []
    last: Token | None = None  # that is more than a space
    for token in tokens:
        unit = units[token.id]
        if last is not None:
            word = units[segments[-1][-1].id] == SPACE or unit.startswith(SPACE) or has_hanzi(units[last.id] + unit)
            if unit != SPACE and token.start - last.end >= PAUSE and (word or not spaced):
                segments.append([])
        else:
            segments = segments or [[]]
        segments[-1].append(token)
        last = last if unit == SPACE else token
    return segments


def _mean(tokens: list[Token]) -> float | None:
    return round(sum(token.confidence for token in tokens) / len(tokens), 4) if tokens else None


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def note(text: str) -> None:
    """A line on stderr, above a progress bar if there is one."""
    tqdm.write(f"note: {text}", file=sys.stderr)
