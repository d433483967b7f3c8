"""HSK sentences, spoken by joining the recorded syllables of two voices: a small Mandarin corpus.

The sentences (hanzi and numbered pinyin, CC BY-SA 4.0) come from the Python package ``hsk-sentences-audio``, the
syllables (two speakers, 44.1 kHz ogg) from the Debian package ``gcin-voice``. Only data is taken out of them.

The voices are real, but the prosody is made by code, and the same recordings of syllables are heard in training and in
test. So the corpus teaches the pipeline, homophones and language models. Say this wherever you quote its error rate.
Tones are as the pinyin writes them: there is no other tone sandhi.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
from pypinyin import Style, pinyin
from pypinyin.style import convert

from ..errors import UserError
from ..progress import progress
from .audio import write_flac
from .cuts import utterance
from .fetch import File, Package, fetch_corpus
from .splice import SAMPLE_RATE, Syllable, level, speak, trim

if TYPE_CHECKING:
    from lhotse import CutSet

ABOUT = "Mandarin: 4,066 HSK sentences joined from two voices' recorded syllables, 2.4 h"
LICENSE = "sentences CC BY-SA 4.0; voice 3 GPL-3 or LGPL-3, voice 5 CC BY 3.0"

FILES = [
    File("hsk_sentences_audio-1.0.0-py3-none-any.whl", size=884413,
         sha256="9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
         package=Package("pip", "hsk-sentences-audio", "1.0.0"),
         members={"hsk_sentences_audio/data/sentences.json": "sentences.json"}),
    File("gcin-voice_0~20170223-3_all.deb", size=7740240,
         sha256="6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
         package=Package("apt-get", "gcin-voice", "0~20170223-3"),
         members={"usr/share/gcin-voice/ogg/": "ogg/"}),
]
SPEAKERS_SHARED = True  # two voices: both are in every split
VOICES = ("3", "5")  # the files' names in the package
# Factors of the speaking rate, which bring both voices nearer to how sentences are spoken: voice 3 was recorded with
# 0.39 s per syllable (slow), voice 5 with 0.25 s.
VOICE_RATE = {"3": 1.35, "5": 0.95}
TEST_SENTENCES, DEV_SENTENCES = 250, 200
# A neutral tone that was not recorded is made from the syllable's full tone: faster (a factor) and softer (dB).
NEUTRAL_RATE, NEUTRAL_DB = 1.35, -3.0


def fetch(root: Path) -> Path:
    """Fetch both packages' data to ``root/hsk_gcin``: ``sentences.json`` and ``ogg/<zhuyin + tone>/{3,5}.ogg``."""
    return fetch_corpus(root, "hsk_gcin", FILES, "choose a corpus that needs no apt: --corpus an4 (English, from its "
                                                 "university) or --corpus synthetic (made here)")


@dataclass(frozen=True)
class Sentence:
    """A sentence that both voices can speak."""

    id: str
    text: str  # hanzi only
    pinyin: str  # numbered (5 is the neutral tone), one syllable per character
    hsk_level: int
    spoken: tuple[tuple[str, bool], ...]  # for each character: the syllable's folder; is it a full tone made neutral?
    pauses: frozenset[int]  # indices of characters that punctuation follows


def zhuyin(syllable: str) -> tuple[str, int]:
    """Numbered pinyin as zhuyin and tone: ``"lü4"`` and ``"lv4"`` are ("ㄌㄩ", 4), erhua ``"r5"`` is ("ㄦ", 5).

    Raises a ValueError for what is not numbered pinyin.
    """
    base, tone = syllable[:-1].lower().replace("u:", "v").replace("ü", "v"), syllable[-1:]
    if tone not in "12345" or not base.isalpha():
        raise ValueError(f"not numbered pinyin: {syllable!r}")
    return ("ㄦ" if base == "r" else convert(base + "1", Style.BOPOMOFO, True)), int(tone)


def folder_of(letters: str, tone: int) -> str:
    """A syllable's folder in gcin-voice: zhuyin and the tone's digit. But tone 1 has no digit, and the neutral tone
    (pinyin's 5) has the digit 1."""
    return letters + {1: "", 5: "1"}.get(tone, str(tone))


def spoken_as(syllable: str, character: str, there: set[str]) -> tuple[str, bool] | None:
    """The folder (one of ``there``) that speaks a syllable, and whether it is a full tone in place of a neutral one.
    None if no folder can speak it.

    Few neutral tones were recorded (the particles). The others are made from the character's own full tone, or from any
    full tone if that was not recorded.
    """
    letters, tone = zhuyin(syllable)
    if folder_of(letters, tone) in there:
        return folder_of(letters, tone), False
    if tone != 5:
        return None
    own = [zhuyin(p) for p in pinyin(character, style=Style.TONE3, heteronym=True)[0] if p[-1] in "1234"]
    for candidate in [t for same, t in own if same == letters] + [4, 1, 3, 2]:
        if folder_of(letters, candidate) in there:
            return folder_of(letters, candidate), True
    return None


def read_sentences(path: Path, there: set[str]) -> list[Sentence]:
    """The sentences that can be spoken with the folders ``there``: each text once, in the file's order."""
    found: dict[str, Sentence] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        characters, pauses = [], set()
        for character in unicodedata.normalize("NFKC", entry["chinese"]):
            if unicodedata.category(character)[0] not in "PSZ":
                characters.append(character)
            elif characters:
                pauses.add(len(characters) - 1)
        text = "".join(characters)
        syllables = entry["pinyin_numbered"].replace("'", " ").replace("’", " ").split()
        hanzi = all(unicodedata.name(c, "").startswith("CJK UNIFIED IDEOGRAPH") for c in characters)
        if not text or not hanzi or len(syllables) != len(characters) or text in found:
            continue
        try:
            spoken = [spoken_as(s, c, there) for s, c in zip(syllables, characters)]
        except ValueError:
            continue
        if None not in spoken:
            found[text] = Sentence(entry["id"], text, " ".join(syllables), int(entry["hsk_level"]),
                                   tuple(spoken), frozenset(pauses))  # type: ignore[arg-type]
    return list(found.values())


def split_sentences(sentences: list[Sentence], test: int = TEST_SENTENCES,
                    dev: int = DEV_SENTENCES) -> dict[str, list[tuple[Sentence, str]]]:
    """Which voice says which sentence. Both voices say the test sentences; one voice says each of the others.

    Returns {"train": [(sentence, voice), ...], "dev": ..., "test_voice3": ..., "test_voice5": ...}. No sentence is in
    two of train, dev and test; the hash of its id decides where it is.
    """
    if len(sentences) < test + dev + 2:
        raise UserError(f"hsk_gcin: only {len(sentences)} sentences can be spoken, {test + dev + 2} are needed: "
                        "remove the download's folder and fetch it again")
    order = sorted(sentences, key=lambda s: hashlib.sha256(s.id.encode()).digest())
    alternate = [(s, VOICES[i % len(VOICES)]) for i, s in enumerate(order[test:])]
    return {"train": alternate[dev:], "dev": alternate[:dev],
            **{f"test_voice{voice}": [(s, voice) for s in order[:test]] for voice in VOICES}}


def prepare(folder: Path, out: Path, nj: int = 1) -> dict[str, CutSet]:
    """Speak all sentences into ``out/audio/<split>/*.flac`` (16 kHz mono) with ``nj`` processes.

    ``folder`` holds ``sentences.json`` and ``ogg/<zhuyin + tone>/{3,5}.ogg``. Returns a CutSet for each of train, dev,
    test_voice3 and test_voice5, in the order of :func:`split_sentences`; supervisions carry ``pinyin`` and
    ``hsk_level``. The same input gives the same samples, whatever ``nj`` is.
    """
    from lhotse import CutSet

    folder, out = Path(folder), Path(out)
    sentences_file, ogg = folder / "sentences.json", folder / "ogg"
    for path in (sentences_file, ogg):
        if not path.exists():
            raise UserError(f"hsk_gcin: {path} is missing: fetch it with python -m speechlab.corpora hsk_gcin")
    there = {d.name for d in ogg.iterdir() if all((d / f"{v}.ogg").is_file() for v in VOICES)}
    splits = split_sentences(read_sentences(sentences_file, there))
    needed = sorted({(name, v) for pairs in splits.values() for s, v in pairs for name, _ in s.spoken})
    jobs = [(s, v, out / "audio" / split / f"{s.id}_gcin{v}.flac") for split, ps in splits.items() for s, v in ps]
    with ProcessPoolExecutor(max(1, nj)) as pool:
        files = [ogg / name / f"{v}.ogg" for name, v in needed]
        bank = dict(zip(needed, pool.map(_load, progress(files, "syllables"), chunksize=64)))
    with ProcessPoolExecutor(max(1, nj), initializer=_share, initargs=(bank,)) as pool:
        for _ in progress(pool.map(_write, jobs, chunksize=16), "sentences spoken", total=len(jobs)):
            pass
    cuts = [utterance(path.stem, path, s.text, f"gcin{v}", "zh", pinyin=s.pinyin, hsk_level=s.hsk_level)
            for s, v, path in jobs]
    ends = np.cumsum([0] + [len(pairs) for pairs in splits.values()])
    return {split: CutSet.from_cuts(cuts[a:b]) for split, a, b in zip(splits, ends, ends[1:])}


def _load(path: Path) -> np.ndarray:
    """Read one syllable, (samples,) at 16 kHz: trimmed, levelled, without DC offset (that of voice 3 is large)."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"hsk_gcin: {path} can't be read ({error.error_string}): remove the download's folder and "
                        "fetch it again") from None
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE, quality="HQ")
    return level(trim(mono - mono.mean()))


_bank: dict[tuple[str, str], np.ndarray] = {}  # filled in each worker process: (folder, voice) -> samples


def _share(bank: dict[tuple[str, str], np.ndarray]) -> None:
    _bank.update(bank)


def say(sentence: Sentence, voice: str, bank: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
    """A sentence in one voice, shape (samples,), 16 kHz; seeded by the sentence's id and the voice."""
    seed = hashlib.sha256(f"{sentence.id}/{voice}".encode()).digest()[:8]
    syllables = [Syllable(bank[name, voice], VOICE_RATE[voice] * (NEUTRAL_RATE if borrowed else 1.0),
                          NEUTRAL_DB if borrowed else 0.0, index in sentence.pauses)
                 for index, (name, borrowed) in enumerate(sentence.spoken)]
    return speak(syllables, np.random.default_rng(int.from_bytes(seed, "big")))


def _write(job: tuple[Sentence, str, Path]) -> None:
    """Speak and store one sentence."""
    sentence, voice, path = job
    write_flac(path, say(sentence, voice, _bank), SAMPLE_RATE)
