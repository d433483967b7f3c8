"""What corpus modules share: an utterance as a lhotse cut, and many small jobs on threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lhotse import MonoCut, MultiCut, Recording

S, T = TypeVar("S"), TypeVar("T")


def utterance(id: str, path: str | Path, text: str | None = None, speaker: str | None = None,
              language: str | None = None, **custom: Any) -> MonoCut | MultiCut:
    """A whole audio file as a cut with one supervision; ``custom`` fields go to the supervision.

    The cut is a MonoCut; for a file of several channels it is a MultiCut, which is heard as the mean of its channels.
    Only the file's header is read. If it can't be read, the cut is one sample long. No corpus module need care:
    speechlab.prepare opens every file, and leaves this one out and says why.
    """
    import soundfile
    from lhotse import Recording
    from lhotse.audio import AudioSource

    path = os.path.abspath(path)
    try:
        header = soundfile.info(os.fsencode(path))  # soundfile itself encodes only UTF-8
        rate, samples, channels = header.samplerate, max(header.frames, 1), list(range(header.channels))
    except (soundfile.SoundFileError, OSError):
        rate, samples, channels = 16000, 1, [0]
    duration = samples / rate
    recording = Recording(id=id, sources=[AudioSource(type="file", channels=channels, source=path)],
                          sampling_rate=rate, num_samples=samples, duration=duration, channel_ids=channels)
    return part(id, recording, 0.0, duration, text=text, speaker=speaker, language=language, custom=custom or None)


def part(id: str, recording: Recording, start: float, duration: float, channel: int | None = None,
         **said: Any) -> MonoCut | MultiCut:
    """A part of a recording, in seconds, as a cut with one supervision, whose fields are ``said``.

    channel: which one is heard, counted from 0; None: the mean of all.
    """
    from lhotse import MonoCut, MultiCut, SupervisionSegment

    heard: Any = channel if channel is not None else recording.channel_ids
    heard = heard[0] if isinstance(heard, list) and len(heard) == 1 else heard
    supervision = SupervisionSegment(id=id, recording_id=recording.id, start=0.0, duration=duration, channel=heard,
                                     **said)
    kind = MultiCut if isinstance(heard, list) else MonoCut
    return kind(id=id, start=start, duration=duration, channel=heard, recording=recording, supervisions=[supervision])


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
