"""Recognise audio files: ``python -m speechlab.infer EXP FILE_OR_FOLDER...``. Nothing but the checkpoint is needed.

Any sample rate, channels (averaged) and format that libsndfile reads; a folder is searched with all below it. A file of
more than --chunk seconds is heard in pieces (speechlab/tasks/long_audio.py); features are normalised over each piece.
Digital silence (below -80 dBFS for 0.2 s) is left out, and ends a piece.
(libsndfile believes an MP3's first header about its length: of a stream without one, or of MP3s put together with cat,
it may read a part only. Convert those.)

Output, a line a file in the order given: the path, a tab, the text; with --json an object of

  file, seconds
  text         null where the file could not be read, "" where nothing was said
  confidence   0 to 1: the tokens' mean; a token's is CTC's posterior of it, averaged over its frames (without a CTC
               head the decoder's probability of it). It is not calibrated: 0.9 is not right nine times in ten.
  segments     start, end, text, confidence: what stands between pauses (without CTC: a piece)
  tokens       token, start, end, confidence; times are where CTC's best path has the token, which is a moment within
               the sound rather than its edges; null without a CTC head
  error        null, or what is wrong with the file, which stderr tells too; what is there of a truncated file is heard

with times in seconds. Exit status: 0, or 1 if a file has an error.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import soundfile
import torch
from tqdm import tqdm

from speechlab.config import override
from speechlab.data.text import has_hanzi
from speechlab.data.tokens import SPACE, Tokenizer
from speechlab.decoding import arpa
from speechlab.errors import UserError, cli
from speechlab.files import atomic
from speechlab.progress import progress
from speechlab.tasks.long_audio import Job, LongRecogniser, Token, Transcript
from speechlab.tasks.recogniser import METHODS, METHODS_HELP, Recogniser
from speechlab.tasks.search import START
from speechlab.training import checkpoint, distributed

PAUSE = 0.8  # seconds without a token that end a segment
LONG = 60.0  # seconds of audio from which on progress is shown
# What is audio by its name; libsndfile does not read the last line, but whoever has such files must be told.
AUDIO = set(".wav .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc .wv "
            ".m4a .aac .wma .amr .mp4 .mka .webm .ape".split())
CONVERT = "libsndfile reads wav, flac, ogg, opus, mp3, aiff, au and others: convert it (ffmpeg -i FILE FILE.wav)"


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.infer", description=f"{__doc__}\n{METHODS_HELP}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="an experiment's folder, or a checkpoint")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files, and folders of them")
    parser.add_argument("--method", help="default: joint (but CTC's answer where the decoder lost or doubled more than "
                                         "a quarter of it), attention or ctc_greedy, the first that the model can do; "
                                         "with --lm, ctc_beam_lm if it can")
    parser.add_argument("--lm", type=Path, help="the folder of an n-gram language model (lm.arpa)")
    parser.add_argument("--neural_lm", type=Path, help="the experiment of a language model as a network (for rescore)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line: times, confidences, errors")
    parser.add_argument("--out", type=Path, help="a file for the output; it is there when all is done")
    parser.add_argument("--chunk", type=float, default=20.0, metavar="S",
                        help="longest piece (20); shorter if the model was trained on short utterances only")
    parser.add_argument("--overlap", type=float, default=4.0, metavar="S", help="that neighbouring pieces share (4)")
    parser.add_argument("--checkpoint", type=Path, help="default: EXP/checkpoints/final.pt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an override of the config's section decode (decode.beam=16)")
    parser.add_argument("--ngpu", type=int, default=int(os.environ.get("SPEECHLAB_NGPU", 0)), help="0 or 1")
    args = parser.parse_args(argv)
    if strange := [text for text in args.set if not text.startswith("decode.")]:
        raise UserError(f"--set {strange[0]}: only the section decode can be changed after training", 2)
    device = distributed.start(min(args.ngpu, 1)).device
    recogniser = load(args.exp, args.checkpoint, device, args.set)
    if args.lm:
        recogniser.lm = arpa.load(args.lm, recogniser.tokenizer.units)
    if args.neural_lm:
        recogniser.load_neural_lm(args.neural_lm)
    method = args.method or default_method(recogniser)
    long = LongRecogniser(recogniser, method, weights(args.exp, recogniser, method), args.chunk, args.overlap,
                          guarded=args.method is None)
    if (args.lm or args.neural_lm) and not METHODS[method].lm:
        able = [name for name in recogniser.methods() if METHODS[name].lm]
        raise UserError(f"method {method} weighs no language model: leave it out, or choose "
                        f"{' or '.join(able) or 'an n-gram one (--lm)'}", 2)
    files, bad = listed(args.audio)
    for text in bad:
        complain(text)
    with output(args.out) as out:
        found = [(write(out, found, recogniser.tokenizer, args.json), found.pieces, found.doubted)
                 for found in transcripts(long, files)]
    failed, heard, doubted = (sum(column) for column in zip(*found)) if found else (0, 0, 0)
    if doubted:
        instead = "CTC's answer stands there" if long.guarded else "try ctc_greedy"
        note(f"in {doubted} of {heard} pieces the decoder left out or doubled more than a quarter of what CTC heard "
             f"(did it learn from shorter ones? --chunk): {instead}")
    return 1 if failed or bad else 0


def load(exp: Path, path: Path | None, device: torch.device, sets: Sequence[str] = ()) -> Recogniser:
    """The recogniser in an experiment's folder or a checkpoint (``path``, if given; else its final one)."""
    if path is None and exp.is_dir():
        path = exp / "checkpoints" / "final.pt"
        earlier = sorted(path.parent.glob("epoch-*.pt"), key=lambda p: p.stat().st_mtime)
        if not path.exists() and earlier:
            raise UserError(f"{exp} has no checkpoints/final.pt: its training has not ended; "
                            f"--checkpoint {earlier[-1]} takes what there is")
        if not path.exists():
            raise UserError(f"{exp} is no experiment's folder: it has no checkpoints/final.pt")
    path = path or exp
    if not path.is_file():
        raise UserError(f"no experiment or checkpoint {path}")
    if path.with_name(path.name + ".sha256").exists():
        state = checkpoint.load(path)
    else:  # a checkpoint that was copied alone: the archive's own checksums must do
        try:
            state = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else None
        except (RuntimeError, pickle.UnpicklingError):
            state = None
        if state is None:
            raise UserError(f"{path} is no checkpoint, or a damaged one")
    if not isinstance(state, dict) or not {"model", "config", "features", "tokens"} <= set(state):
        task = state.get("config", {}).get("task") if isinstance(state, dict) else None
        raise UserError(f"{path} is no recogniser's checkpoint" + (f": its task is {task}" if task else ""))
    recipe = path.resolve().parent.parent.parent.parent  # <recipe>/exp/<name>/checkpoints: a network of its local/
    if str(state["config"]["model"].get("class", "")).startswith("local.") and (recipe / "local").is_dir():
        sys.path.insert(0, str(recipe))
    state["config"] = override(state["config"], sets)
    return Recogniser(state, device)


def default_method(recogniser: Recogniser) -> str:
    """The best method that needs nothing more than is there; times (where CTC is) and confidences come with each.

    Of CTC's searches without a language model the greedy one: the beam hardly ever finds better (0.05 % CER in
    egs/aishell_asr/RESULTS.md).
    """
    order = ("ctc_beam_lm",) * (recogniser.lm is not None) + ("joint", "attention", "ctc_greedy")
    return next(method for method in order if recogniser.lacks(method) is None)


def weights(exp: Path, recogniser: Recogniser, method: str) -> dict[str, Any]:
    """The weights of a method with a language model: the config's, else those that decoding tuned, else common ones."""
    if method not in METHODS or not METHODS[method].lm:
        return {}
    folder = exp if exp.is_dir() else exp.parent.parent
    try:
        tuned = json.loads((folder / "decode" / "methods.json").read_text(encoding="utf-8")).get(method)
    except (OSError, ValueError):
        tuned = None
    if tuned is None and method == "rescore":
        raise UserError("method rescore: its weights are tuned by the decode stage, and there are none in "
                        f"{folder / 'decode' / 'methods.json'}")
    given = {name: getattr(recogniser.config.decode, name) for name in START}
    missing = [name for name in START if given[name] is None]
    if missing and tuned is None:
        note(f"{', '.join(missing)} not tuned: {', '.join(f'{START[n]:g}' for n in missing)}; the decode stage tunes "
             "them, --set decode.lm_weight=... gives them")
    return {**START, **(tuned or {}), **{name: value for name, value in given.items() if value is not None}}


def listed(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The audio files that are meant, each once, in order; and what is wrong with the rest."""
    files: dict[Path, None] = {}
    bad = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO and file.is_file()
                           and not any(part.startswith(".") for part in file.relative_to(path).parts))
            files.update(dict.fromkeys(found))
            if not found:
                bad.append(f"{path}: no audio file in this folder")
        else:
            files[path] = None  # whatever its name: libsndfile looks into it
    return list(files), bad


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
        return soundfile.info(str(file)).duration
    except (soundfile.SoundFileError, OSError, TypeError):  # said when its turn comes
        return 0.0


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there when it is whole."""
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")  # hanzi, whatever the locale
        yield sys.stdout
        return
    with atomic(path) as aside, open(aside, "w", encoding="utf-8") as file:
        yield file


def write(out: TextIO, found: Transcript, tokenizer: Tokenizer, as_json: bool) -> bool:
    """Write a file's line; True if it has an error."""
    name = os.fsencode(found.file).decode("utf-8", "backslashreplace")
    read = found.seconds > 0 and (found.error is None or bool(found.tokens))
    spoken = record(found, tokenizer)
    if found.error:
        hint = f"; {CONVERT}" if found.error.startswith("unreadable: Format") else ""
        complain(f"{name}: {found.error.replace('missing', 'no such file')}{hint}")
    elif found.silent:
        note(f"{name}: silent, never above -80 dBFS")
    if as_json:
        whole = {"file": name, "seconds": round(found.seconds, 3), **spoken, "error": found.error}
        tqdm.write(json.dumps(whole if read else {**whole, "text": None}, ensure_ascii=False), file=out)
    elif read:
        tqdm.write(f"{name}\t{spoken['text']}", file=out)
    out.flush()
    return found.error is not None


def complain(text: str) -> None:
    """A line on stderr, above a progress bar if there is one."""
    tqdm.write(f"error: {text}", file=sys.stderr)


def note(text: str) -> None:
    """As :func:`complain`, of what is no error."""
    tqdm.write(f"note: {text}", file=sys.stderr)


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


if __name__ == "__main__":
    raise SystemExit(main())
