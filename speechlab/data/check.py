"""Is this audio fit to learn from? Every file is decoded once, with soundfile, before anything trains on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

SILENCE = 1e-4  # -80 dBFS: samples that stay within +- this (without their DC offset) hold no speech
SHORTEST = 0.1  # seconds
_TOLERANCE = 0.025  # seconds that may be missing of the length in the header (MP3 pads); lhotse tolerates as much
_BLOCK = 1 << 20  # samples decoded at once; this bounds the memory for a file of an hour
_UNKNOWN_LENGTH = 0x7F000000  # bytes; a file written into a pipe claims 2 to 4 GB: its writer could not know the length
# These lines of libsndfile's log of a header say that samples are missing. Their numbers are bytes of the samples (WAV,
# AIFF, AU, SVX, WVE) or of the whole file (W64, RF64); a few bytes less are no loss.
_SHORT = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
                    r"|^Data length (\d+) should be (\d+)", re.MULTILINE)
Part = tuple[float, float] | tuple[float, float, "Sequence[int] | None"]


def check_audio(path: str | Path, parts: Iterable[Part], silence: bool = False) -> list[str | None]:
    """For each part of the file: a short reason why it can't be used; None if it can.

    A reason begins with one of: missing, empty, unreadable, truncated, short, silent, NaN, channel. With ``silence``, a
    silent part is accepted.

    Args:
        parts: for each, its start and duration in seconds, and perhaps the channels (counted from 0) whose mean is
            heard. None: all channels.
    """
    path, parts = Path(path), list(parts)
    if not path.is_file():
        return ["missing"] * len(parts)
    if path.stat().st_size == 0:
        return ["empty: 0 bytes"] * len(parts)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # soundfile itself encodes only UTF-8
            whole = _cut_short(file) or (None if file.frames else "empty: no samples")
            return [whole or _check_part(file, part, silence) for part in parts]
    except (soundfile.SoundFileError, OSError) as error:
        return [f"unreadable: {_why(error)}"] * len(parts)


def check_partner(path: str | Path, rate: int, seconds: float, part: tuple[float, float]) -> str | None:
    """Why this file can't be the partner of another one (e.g. its clean version); None if it can.

    Args:
        rate: the other file's sample rate in Hz; this one's must be the same.
        seconds: the other file's length; this one's must be the same to within 25 ms.
        part: start and duration, in seconds, of the part that is used of both files. :func:`check_audio` checks it.
    """
    try:
        header = soundfile.info(os.fsencode(path))
    except (soundfile.SoundFileError, OSError):
        header = None
    if header and header.frames:  # otherwise check_audio says what is wrong
        if header.samplerate != rate:
            return f"its sample rate is {header.samplerate} Hz, not {rate}"
        longer = header.frames / rate - seconds
        if abs(longer) > _TOLERANCE + 1e-9:
            return f"it is {abs(longer):.3f} s {'longer' if longer > 0 else 'shorter'}"
        part = (part[0], min(part[1], header.frames / rate - part[0]))
    return check_audio(path, [part])[0]


def _cut_short(file: soundfile.SoundFile) -> str | None:
    """A reason if the file holds less than its header says, else None. libsndfile reads what is there, and for most
    formats it does not complain."""
    log = file.extra_info
    for numbers in _SHORT.findall(log):
        promised, there = (int(number) for number in numbers if number)
        if there + 16 < promised < _UNKNOWN_LENGTH:
            return f"truncated: {there} of {promised} bytes of samples are there"
    no_end = "Last page lacks an end-of-stream" in log or "without an End-Of-Stream flag" in log  # Vorbis's, Opus's
    if no_end and "Junk after the last page" in log:
        return "truncated: the last Ogg page is cut"
    if re.search(r"Seems to be a truncated file|File seems to be truncated", log):  # VOC, MAT4
        return "truncated: fewer samples are there than the header promises"
    promised = _promised(file, log)
    if file.frames < promised < _UNKNOWN_LENGTH:
        return f"truncated: {file.frames} of {promised} samples are there"
    return None


def _promised(file: soundfile.SoundFile, log: str) -> int:
    """How many samples per channel the header of a NIST or AVR file promises; 0 for other formats."""
    found = None
    if file.format == "AVR":
        found = re.search(r"^  Frames +: (\d+)", log, re.MULTILINE)
    elif file.format == "NIST":  # of which libsndfile logs nothing: names and values in ASCII, a line each
        with open(file.name, "rb") as raw:
            found = re.search(r"^sample_count\s+-i\s+(\d+)", raw.read(1024).decode("latin-1"), re.MULTILINE)
    return int(found[1]) if found else 0


def _check_part(file: soundfile.SoundFile, part: Part, silence: bool) -> str | None:
    (start, duration), channels = part[:2], part[2] if len(part) > 2 else None
    rate = file.samplerate
    if channels and max(channels) >= file.channels:
        return f"channel: there is no channel {max(channels)}, counted from 0, among {file.channels}"
    first, count = round(start * rate), round(duration * rate)
    missing = first + count - file.frames
    if missing > _TOLERANCE * rate:
        return f"truncated: ends {missing / rate:.2f} s before the utterance does"
    if count < SHORTEST * rate:
        return f"short: {duration:.3f} s"
    got, low, high = 0, np.inf, -np.inf
    try:
        file.seek(first)
        for block in _blocks(file, count):
            # As features hear it: channels of opposite phase add up to silence.
            mixed = (block[:, channels] if channels else block).mean(axis=1)
            if not np.isfinite(mixed).all():
                return "NaN: samples that are not finite numbers"
            got, low, high = got + len(mixed), min(low, mixed.min()), max(high, mixed.max())
    except soundfile.SoundFileError as error:
        return f"truncated: {_why(error)}"  # the header was good, but not all that it describes can be decoded
    if count - got > _TOLERANCE * rate:
        return f"truncated: {got / rate:.2f} of {duration:.2f} s are there"
    if high - low < 2 * SILENCE and not silence:
        return "silent: never above -80 dBFS"
    return None


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[np.ndarray]:
    """Yield the next ``count`` samples (fewer if the file ends) in blocks, (samples, channels) float32."""
    while count > 0:
        block = file.read(min(count, _BLOCK), dtype="float32", always_2d=True)
        if not len(block):
            return
        count -= len(block)
        yield block


def _why(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).rstrip(".")
