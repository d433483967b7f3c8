"""An invented language of sixteen syllables, spoken by voices made by code. It takes seconds to make, needs no network,
and is always the same.

Tests run whole recipes on it, and so can you without any download. Syllables differ in consonant, formant glide and
tone. Speakers differ in pitch and vocal tract. No speaker and no sentence of train is in dev or test.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechlab.corpora.cuts import threaded, utterance
from speechlab.corpora.voices import SAMPLE_RATE, Track, Voice, noise, seeded, speak
from speechlab.errors import UserError
from speechlab.files import atomic, write_text
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "sixteen made-up syllables spoken by ten made-up voices; made by code in seconds, for tests and first steps"
LICENSE = "none needed: made by code"

SPEAKERS = {"train": [f"synth{i:02d}" for i in range(6)], "dev": ["synth06", "synth07"], "test": ["synth08", "synth09"]}

_A, _I, _U, _E, _O, _Y = (780, 1250), (300, 2350), (320, 750), (500, 1150), (520, 880), (300, 1850)
# hanzi: (pinyin, consonant (kind, Hz of its hiss), formants at the vowel's start, at its end, does a nasal follow)
SYLLABLES: dict[str, tuple[str, tuple[str, int], tuple[int, int], tuple[int, int], bool]] = {
    "大": ("da4", ("stop", 3800), _A, _A, False),
    "地": ("di4", ("stop", 3800), _I, _I, False),
    "不": ("bu4", ("stop", 900), _U, _U, False),
    "天": ("tian1", ("aspirated", 4200), _I, (650, 1750), True),
    "人": ("ren2", ("murmur", 2600), (450, 1400), _E, True),
    "水": ("shui3", ("fricative", 3000), _U, (400, 2200), False),
    "火": ("huo3", ("fricative", 1300), _U, _O, False),
    "山": ("shan1", ("fricative", 3000), _A, (700, 1550), True),
    "木": ("mu4", ("nasal", 0), _U, _U, False),
    "月": ("yue4", ("none", 0), _Y, (550, 1750), False),
    "风": ("feng1", ("fricative", 6000), _E, (450, 950), True),
    "小": ("xiao3", ("fricative", 4600), _I, (700, 1000), False),
    "有": ("you3", ("none", 0), _I, (420, 800), False),
    "马": ("ma3", ("nasal", 0), _A, _A, False),
    "车": ("che1", ("aspirated", 2900), _E, _E, False),
    "四": ("si4", ("fricative", 6800), (400, 1450), (400, 1450), False),
}
# The pitch over a syllable, by the tone of Mandarin (55, 35, 214, 51 in Chao's tone letters).
_TONES = {"1": (1.15, 1.15), "2": (0.95, 1.2), "3": (0.88, 0.75, 0.95), "4": (1.3, 0.8)}


def fetch(root: Path) -> Path:
    """There is nothing to fetch. Make the folder ``root/synthetic`` and its mark ``.complete``, which stage 0 wants."""
    folder = Path(root) / "synthetic"
    if not (folder / ".complete").exists():
        write_text(folder / ".complete", "{}\n")
    return folder


def prepare(folder: Path, out: Path, nj: int = 1, train: int = 200, dev: int = 30, test: int = 40,
            seed: int = 0) -> dict[str, CutSet]:
    """Make ``train``, ``dev`` and ``test`` utterances of two to six syllables: 0.6-2 s, 16 kHz, 16 bit, in ``out/wav``.

    An utterance depends on its name and ``seed`` alone: if you ask for more utterances, the others stay the same. The
    supervision has ``text`` (hanzi), ``speaker``, ``language`` zh, and ``pinyin``. ``folder`` is not read.
    """
    from lhotse import CutSet

    jobs = []
    for split, count in {"train": train, "dev": dev, "test": test}.items():
        if count < len(SPEAKERS[split]):
            raise UserError(f"synthetic: {split}={count} utterances are too few for {len(SPEAKERS[split])} speakers")
        for index in range(count):
            speaker = SPEAKERS[split][index % len(SPEAKERS[split])]
            jobs.append((split, speaker, f"{speaker}-{split}-{index:05d}", seed))
    audio = Path(out) / "wav"
    cuts: dict[str, list] = {split: [] for split in SPEAKERS}
    made = threaded(lambda job: _make(audio, *job), jobs, nj)
    for cut, (split, *_) in zip(progress(made, "Making voices", total=len(jobs)), jobs):
        cuts[split].append(cut)
    return {split: CutSet.from_cuts(some) for split, some in cuts.items()}


def sentence(rng: np.random.Generator, held_out: bool) -> str:
    """Draw a sentence of two to six hanzi. Each hanzi has four likely successors, which a language model can learn.

    A hash of the sentence decides whether it belongs to train or is ``held_out`` (dev, test): no sentence is in both.
    """
    hanzi = list(SYLLABLES)
    while True:
        chosen = [int(rng.integers(len(hanzi)))]
        for _ in range(int(rng.integers(1, 6))):
            likely = (5 * chosen[-1] + 3 * int(rng.integers(4)) + 1) % len(hanzi)
            chosen.append(likely if rng.uniform() < 0.7 else int(rng.integers(len(hanzi))))
        text = "".join(hanzi[i] for i in chosen)
        if (hashlib.sha256(text.encode()).digest()[0] % 4 == 0) == held_out:
            return text


def syllable(hanzi: str, rng: np.random.Generator) -> Track:
    """The formant track of one syllable, 0.2-0.4 s, a little different each time."""
    pinyin, (kind, hertz), start, end, closed = SYLLABLES[hanzi]
    first, last = [tuple(f * rng.normal(1, 0.03) for f in (*vowel, 2500)) for vowel in (start, end)]
    frames = int(rng.integers(15, 22))
    parts = _consonant(kind, hertz, first, rng)
    parts.append(Track.line(frames, first, last, pitch=_TONES[pinyin[-1]]))
    if closed:
        parts.append(Track.line(6, (280, 1300, 2400), voiced=0.35, pitch=_TONES[pinyin[-1]][-1:]))
    return Track.join(parts)


def _consonant(kind: str, hertz: int, vowel: tuple[float, ...], rng: np.random.Generator) -> list[Track]:
    """The tracks before the vowel: closure and burst, hiss, voiced hiss, nasal murmur, or nothing."""
    extra = int(rng.integers(3))
    burst = Track.line(2, vowel, voiced=0, hiss=1.0, centre=hertz or 1)
    closure = Track.line(3 + extra, vowel, voiced=0)
    return {
        "none": [],
        "stop": [closure, burst],
        "aspirated": [closure, burst, Track.line(5, vowel, voiced=0, hiss=0.5, centre=hertz or 1)],
        "fricative": [Track.line(8 + extra, vowel, voiced=0, hiss=0.6, centre=hertz or 1)],
        "murmur": [Track.line(6 + extra, vowel, voiced=0.4, hiss=0.3, centre=hertz or 1)],
        "nasal": [Track.line(7 + extra, (260, 1100, 2300), voiced=0.4)],
    }[kind]


def _make(audio: Path, split: str, speaker: str, id: str, seed: int):
    """Write one utterance and return its cut."""
    import soundfile

    from speechlab.corpora.audio import below_full_scale

    rng = seeded("synthetic", seed, id)
    text = sentence(rng, held_out=split != "train")
    silence = [Track.line(int(rng.integers(8, 16)), (500, 1500, 2500), voiced=0) for _ in range(2)]
    track = Track.join([silence[0], *(syllable(hanzi, rng) for hanzi in text), silence[1]], smooth=3)
    sound = speak(Voice.of(speaker), track, rng) * rng.uniform(0.4, 1.0)
    sound += noise("pink", len(sound), rng) * 10 ** (rng.uniform(-35, -25) / 20)
    path = audio / speaker / f"{id}.wav"
    encoded = io.BytesIO()  # libsndfile would not tell why a write to disk failed
    soundfile.write(encoded, below_full_scale(sound), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with atomic(path) as aside:
        aside.write_bytes(encoded.getvalue())
    return utterance(id, path, text, speaker, "zh", pinyin=" ".join(SYLLABLES[hanzi][0] for hanzi in text))
