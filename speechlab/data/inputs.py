"""What a person gives to ``infer``, or to a model in Python: files, folders of files, arrays."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.errors import UserError
from speechlab.files import shown, walk

# Suffixes of audio files. libsndfile can't read those of the second line; a person who has such files must be told.
AUDIO = frozenset(".wav .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc .wv "
                  ".m4a .aac .wma .amr .mp4 .mka .webm .ape".split())
IMAGES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .ppm .pgm".split())
STDIN = Path("/dev/stdin")  # what ``-`` stands for

MOST_CHANNELS = 64  # an array with more rows than that, and fewer columns, lies the other way round
HIGHEST_RATE = 1_000_000  # Hz


def listed(paths: Sequence[Path], suffixes: Collection[str], what: str) -> tuple[list[Path], list[str]]:
    """The files that ``paths`` name, each once and in order; and a line for each path that is wrong.

    A folder, with all below it and behind its links, is searched for files with one of ``suffixes``. A link with such a
    suffix that leads nowhere counts as a file that is missing. What else is left out of a folder is counted on stderr.
    A file may have any name. ``what`` the files are is for the lines.
    """
    files: dict[Path, None] = {}
    bad = []
    for path in paths:
        if path.is_dir():
            walked = walk(path)
            found = [file for file in sorted(walked.files + walked.dangling) if file.suffix.lower() in suffixes]
            walked.dangling = [link for link in walked.dangling if link not in found]
            for note in walked.notes():
                print(f"note: {note}", file=sys.stderr)
            files.update(dict.fromkeys(found))
            if not found:
                bad.append(f"{shown(path)}: no {what} in this folder")
        else:
            files[path] = None
    return list(files), bad


@contextlib.contextmanager
def spooled(files: Sequence[Path]) -> Iterator[tuple[list[Path], dict[str, str]]]:
    """Files that can be read from any place, more than once: what comes through a pipe is kept for the time being.

    Returns:
        The paths to read, in order; and what those of pipes stand for (``-`` for standard input), by path.
    Raises:
        UserError: standard input is meant, and it is a terminal.
    """
    paths, names = [], {}
    with contextlib.ExitStack() as stack:
        for number, path in enumerate(files):
            if path != STDIN and not path.is_fifo():
                paths.append(path)
                continue
            name = "-" if path == STDIN else shown(path)
            if path == STDIN and sys.stdin.isatty():
                raise UserError("- is standard input, and that is a terminal: send a file into it (infer EXP - < FILE)",
                                2)
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{number}-input"
            with contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else open(path, "rb") as source:
                try:
                    with open(place, "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                except OSError as error:
                    error.filename = error.filename or str(place)
                    raise
            paths.append(place)
            names[str(place)] = name
        yield paths, names


@contextlib.contextmanager
def audio_file(source: Any, rate: int | None) -> Iterator[Path]:
    """Yield a path to read. It is ``source`` itself, or a temporary file with the samples ``source``: (n,) or
    (channels, n), full scale 1.

    Raises:
        UserError: an array without its ``rate`` in Hz or with more than two dimensions; a path with a rate.
    """
    if isinstance(source, (str, os.PathLike)):
        if rate is not None:
            raise UserError("a file says its own sample rate: leave rate out")
        yield Path(source)
        return
    samples = _samples(source)
    if rate is None:
        raise UserError("samples need their sample rate: model(samples, rate=16000)")
    try:
        rate = int(rate)
    except (TypeError, ValueError):
        raise UserError(f"the sample rate must be a number of Hz, not {rate!r}") from None
    if not 0 < rate <= HIGHEST_RATE:
        raise UserError(f"a sample rate of {rate} Hz: it must be from 1 to {HIGHEST_RATE}")
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array.wav"
        soundfile.write(path, np.atleast_2d(samples).T.astype(np.float32), rate, subtype="FLOAT")
        yield path


def _samples(source: Any) -> np.ndarray:
    """An array as samples (n,) or (channels, n) of floats with full scale 1."""
    if hasattr(source, "detach"):  # torch's; numpy has no bfloat16
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    samples = np.asarray(source)
    kind = samples.dtype
    if samples.ndim not in (1, 2) or kind.kind not in "iuf":
        raise UserError(f"samples must be (n,) or (channels, n) real numbers, not {kind} of shape {samples.shape}")
    if samples.ndim == 2 and samples.shape[0] > MOST_CHANNELS >= samples.shape[1]:
        raise UserError(f"samples must be (n,) or (channels, n), not {samples.shape}: transpose them (samples.T)")
    if kind.kind == "i" and kind.itemsize > 4:  # numpy's own integers: nobody knows what full scale is
        raise UserError(f"samples of {kind} have no known full scale: give int16, int32, or floats with full scale 1")
    if kind.kind == "i":  # a common mistake: samples of int16 scale taken for floats
        samples = samples / float(np.iinfo(kind).max + 1)
    elif kind.kind == "u":
        raise UserError(f"samples of {kind} have no known zero: give int16, int32, or floats with full scale 1")
    if not np.isfinite(samples).all():
        raise UserError("NaN: samples that are not finite numbers")
    return samples


def picture(source: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The image ``source`` as uint8 of ``shape`` (height, width, channels): scaled, and its middle cut out.

    ``source`` is a path, or pixels (H, W), (H, W, 1) or (H, W, 3) of uint8.

    Raises:
        UserError: ``source`` can't be read as a picture.
    """
    from PIL import Image

    from speechlab.corpora.image_folder import read_image

    if isinstance(source, (str, os.PathLike)):
        found = read_image(Path(source), shape)
        if isinstance(found, str):
            raise UserError(f"{source}: {'no such file' if not Path(source).exists() else found}")
        return found
    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UserError(f"pixels must be uint8 (H, W), (H, W, 1) or (H, W, 3), not {pixels.dtype} of {pixels.shape}")
    if not pixels.size:
        raise UserError(f"no pixels: {pixels.shape}")
    with contextlib.closing(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)) as image, \
            tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array.png"
        image.save(path)
        found = read_image(path, shape)
    assert not isinstance(found, str), found
    return found
