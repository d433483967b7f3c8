"""What corpus modules share: an utterance as a lhotse cut, and many small jobs on threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lhotse import MonoCut

S, T = TypeVar("S"), TypeVar("T")


def utterance(id: str, path: str | Path, text: str | None = None, speaker: str | None = None,
              language: str | None = None, **custom: Any) -> MonoCut:
    """A whole audio file as a MonoCut with one supervision; ``custom`` fields go to the supervision.

    Only the file's header is read. If it can't be read, the cut is one sample long. No corpus module need care:
    speechlab.prepare opens every file, and leaves this one out and says why.
    """
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    path = os.path.abspath(path)
    try:
        header = soundfile.info(path)
        rate, samples, channels = header.samplerate, max(header.frames, 1), list(range(header.channels))
    except (soundfile.SoundFileError, OSError):
        rate, samples, channels = 16000, 1, [0]
    duration = samples / rate
    recording = Recording(id=id, sources=[AudioSource(type="file", channels=channels, source=path)],
                          sampling_rate=rate, num_samples=samples, duration=duration, channel_ids=channels)
    supervision = SupervisionSegment(id=id, recording_id=id, start=0.0, duration=duration, text=text, speaker=speaker,
                                     language=language, custom=custom or None)
    return MonoCut(id=id, start=0.0, duration=duration, channel=0, recording=recording, supervisions=[supervision])


def threaded(function: Callable[[S], T], items: Iterable[S], nj: int) -> Iterator[T]:
    """``map`` on ``nj`` threads, results in order. Threads are enough: soundfile and numpy release Python's lock."""
    if nj <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(nj)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, jobs that have not begun are dropped
