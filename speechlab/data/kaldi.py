"""Makes Kaldi data directories from our manifests: ``python -m speechlab.data.kaldi export data/mini --to DIR``.

Each split becomes ``DIR/<split>`` with ``wav.scp``, ``text``, ``utt2spk``, ``spk2utt``, ``utt2dur``; if they apply,
``utt2lang`` and ``segments``; with ``--features``, ``feats.scp`` and ``utt2num_frames``. Kaldi's validate_data_dir.sh
wants these files sorted as bytes, by utterance and by speaker at the same time. So an utterance's name begins with its
speaker. ``speechlab_ids.json`` keeps the original of each name that had to be changed; ``--corpus kaldi`` reads it.
``--espnet`` adds what ESPnet's asr_train needs, and the command.

lhotse's own export is not used: it sends all files but plain WAV through ffmpeg, does not quote paths, and exports no
features.

Paths with blanks: in wav.scp they become ``cat 'a b.wav' |``, because scripts take only the second word of a line.
Entries of feats.scp can't be commands, but Kaldi's programs and kaldiio can read paths with blanks there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from speechlab.corpora.audio import below_full_scale
from speechlab.corpora.cuts import threaded
from speechlab.corpora.kaldi import IDS
from speechlab.data import espnet
from speechlab.data.manifests import read_cuts
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError, cli
from speechlab.features import audio, storage
from speechlab.features.resample import resample
from speechlab.files import atomic, write_json, write_text
from speechlab.progress import progress

if TYPE_CHECKING:
    from lhotse import MonoCut

SUFFIX = ".jsonl.gz"
FILES = ("wav.scp", "segments", "text", "utt2spk", "spk2utt", "utt2dur", "utt2lang", "feats.scp", "feats.ark",
         "utt2num_frames", IDS)  # an export removes those that it does not write: they would not match the others
_MARK = b"\0BFM \x04"  # the first bytes of a float matrix in an archive


class Name(NamedTuple):
    """The names of an utterance and its speaker in Kaldi's files."""

    utterance: str
    speaker: str


def export(data: Path, to: Path, features: str = "", splits: Iterable[str] = (), wav: int = 0,
           nj: int = 1) -> dict[str, list[MonoCut]]:
    """Write ``to/<split>`` for each of ``splits`` (default: all) of the folder ``data``; return the cuts by split.

    Args:
        features: a folder in ``data`` with stored features, which feats.scp shall name.
        wav: sample rate in Hz: write the sound of each utterance to ``to/<split>/wav``, as 16-bit mono WAV. 0: wav.scp
            names the files that there are.
        nj: how many files to write at once.
    Raises:
        UserError: there is no such split, no features for it, or sound that wav.scp can't name (say so to ``wav``).
    """
    there = sorted(path.name.removesuffix(SUFFIX) for path in data.glob("*" + SUFFIX) if path.name[0] != ".")
    if not there:
        raise UserError(f"no manifests ({data}/*{SUFFIX}): the recipe's manifest stage (--stage 1) makes them")
    wanted = list(dict.fromkeys(splits)) or there
    for split in wanted:
        if split not in there:
            raise UserError(f"{data} has no split {split}: there are {', '.join(there)}", 2)
    cuts = {split: sorted(read_cuts(data / f"{split}{SUFFIX}"), key=lambda cut: cut.id) for split in wanted}
    stored = {split: _stored(data / features, split, cuts[split]) for split in wanted} if features else {}
    names = name([cut for some in cuts.values() for cut in some])
    for split, some in cuts.items():
        if some:
            _write(to / split, some, names, stored.get(split), wav, nj)
    return cuts


def name(cuts: Iterable[MonoCut]) -> dict[str, Name]:
    """Kaldi's names by cut id. They have no blanks or slashes; and utterances sorted by name are sorted by speaker too.

    An id that does not begin with its speaker's name gets that name as a prefix. If this order is wrong (as for the
    speakers ``a`` and ``a-b``), speakers get numbers as names. An utterance of an unknown speaker is its own speaker,
    as is usual in Kaldi.
    """
    speakers = {cut.id: cut.supervisions[0].speaker for cut in cuts}
    ids = _plain(speakers)
    known = _plain(sorted({speaker for speaker in speakers.values() if speaker}))
    names = {}
    for id, speaker in speakers.items():
        plain = known.get(speaker or "", "")
        utterance = ids[id] if ids[id].startswith(plain) else f"{plain}-{ids[id]}"
        names[id] = Name(utterance, plain or utterance)
    order = sorted(names.values())
    if len({one.utterance for one in order}) == len(order) and order == sorted(order, key=lambda one: one[::-1]):
        return names
    number = {who: index for index, who in enumerate(sorted({speakers[id] or f"\0{id}" for id in speakers}))}
    for id, speaker in speakers.items():
        plain = f"spk{number[speaker or chr(0) + id]:0{len(str(len(number)))}d}"
        names[id] = Name(f"{plain}-{ids[id]}", plain if speaker else f"{plain}-{ids[id]}")
    return names


def _plain(names: Iterable[str]) -> dict[str, str]:
    plain = {one: re.sub(r"[\s/\\]+", "-", one) for one in names}
    count = Counter(plain.values())
    return {one: short if count[short] == 1 else f"{short}-{hashlib.sha256(one.encode()).hexdigest()[:8]}"
            for one, short in plain.items()}


def _stored(folder: Path, split: str, cuts: list[MonoCut]) -> dict[str, MonoCut]:
    """The split's cuts with their stored features, by id."""
    path = folder / f"{split}{SUFFIX}"
    if not path.is_file():
        raise UserError(f"no {path}: run the recipe's feature stage (--stage 2), or name another folder with "
                        "--features")
    found = {cut.id: cut for cut in read_cuts(path)}
    lack = [cut.id for cut in cuts if cut.id not in found or not found[cut.id].has_features]
    if lack:
        raise UserError(f"{path} has no features of {len(lack)} utterances ({lack[0]}): make them again (--stage 2)")
    return found


def _write(to: Path, cuts: list[MonoCut], names: dict[str, Name], stored: dict[str, MonoCut] | None, wav: int,
           nj: int) -> None:
    """One data directory."""
    for file in FILES:
        (to / file).unlink(missing_ok=True)
    said = {cut.id: cut.supervisions[0] for cut in cuts}
    for cut in cuts:
        if len(cut.supervisions) != 1:
            raise UserError(f"utterance {cut.id} has {len(cut.supervisions)} supervisions, not one: it can't be "
                            "exported")
    parts = not wav and any(cut.start != 0 or cut.duration != cut.recording.duration or _channel(cut)
                            for cut in cuts)
    if wav:
        quieter: list[str] = []
        copies = threaded(lambda cut: _copy(to, cut, names[cut.id], wav, quieter), cuts, nj)
        jobs = progress(copies, "Writing WAV", len(cuts))
        sources = {names[cut.id].utterance: path for cut, path in zip(cuts, jobs)}
        if quieter:
            print(f"note: {len(quieter)} of {len(cuts)} utterances in {to.name} go above full scale, which 16 bits do "
                  f"not hold ({min(quieter)}): each was made quieter as a whole", file=sys.stderr)
    else:
        sources, recordings = _sources(cuts, None if parts else names)
        odd = [cut for cut in cuts if not _is_plain_wav(cut)]
        if odd:
            print(f"note: the sound of {len(odd)} of {len(cuts)} utterances in {to.name} is not mono WAV, which "
                  "Kaldi's own programs need (ESPnet does not): --wav writes copies", file=sys.stderr)
    tables: dict[str, dict[str, str]] = {
        "wav.scp": {id: entry(path) for id, path in sources.items()},
        "utt2spk": {one.utterance: one.speaker for one in (names[cut.id] for cut in cuts)},
        "spk2utt": {},
        "utt2dur": {names[cut.id].utterance: _seconds(cut.duration) for cut in cuts},
    }
    if parts:
        tables["segments"] = {names[cut.id].utterance: f"{recordings[cut.recording.id]} {_seconds(cut.start)} "
                                                       f"{_seconds(cut.start + cut.duration)}{_channel(cut)}"
                              for cut in cuts}
    if any(one.text is not None for one in said.values()):
        tables["text"] = {names[id].utterance: " ".join((one.text or "").split()) for id, one in said.items()}
    if all(one.language for one in said.values()):
        tables["utt2lang"] = {names[id].utterance: one.language for id, one in said.items()}
    if stored is not None:
        tables["feats.scp"] = _point(cuts, names, stored) or _archive(to, cuts, names, stored)
        tables["utt2num_frames"] = {names[cut.id].utterance: str(stored[cut.id].num_frames) for cut in cuts}
    for utterance, speaker in sorted(tables["utt2spk"].items()):
        tables["spk2utt"][speaker] = f"{tables['spk2utt'].get(speaker, '')} {utterance}".strip()
    changed = {names[id].utterance: [id, one.speaker] for id, one in said.items()
               if names[id] != (id, one.speaker or id)}
    if changed:
        write_json(to / IDS, changed)
    for file, rows in tables.items():  # Python sorts by code points, which gives the order of LC_ALL=C sort
        write_text(to / file, "".join(f"{id} {value}".rstrip() + "\n" for id, value in sorted(rows.items())))


def _sources(cuts: list[MonoCut], names: dict[str, Name] | None) -> tuple[dict[str, str], dict[str, str]]:
    """{Kaldi's name of a recording: its file}, and {lhotse's id of a recording: Kaldi's name}. With ``names``, each
    recording is one utterance and has its name."""
    files: dict[str, str] = {}
    for cut in cuts:
        kinds = [source.type for source in cut.recording.sources]
        if kinds != ["file"]:
            raise UserError(f"the sound of {cut.id} is not one file ({', '.join(kinds)}): --wav writes it to one")
        path = os.path.abspath(cut.recording.sources[0].source)
        if files.setdefault(cut.recording.id, path) != path:
            raise UserError(f"two files are recording {cut.recording.id}: {path} and {files[cut.recording.id]}; --wav "
                            "writes each utterance to a file of its own")
    if names is not None:
        return {names[cut.id].utterance: os.path.abspath(cut.recording.sources[0].source) for cut in cuts}, {}
    plain = _plain(files)
    return {plain[id]: path for id, path in files.items()}, plain


def entry(path: str) -> str:
    """The entry of wav.scp for a file: its path, or ``cat PATH |`` if Kaldi would take the path for two words, a path
    with an offset, or one with a range."""
    if "\n" in path:
        raise UserError(f"{path!r} has a line break in its name: no line of wav.scp can name it")
    return f"cat {shlex.quote(path)} |" if re.search(r"[\s|]|:\d+$|\]$", path) else path


def _seconds(value: float) -> str:
    """``value`` to a nanosecond, without zeros at the end. That is exact to the sample at any rate."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _channel(cut: MonoCut) -> str:
    """The fifth field of segments: the place of the one channel that is heard of several, else nothing."""
    there = cut.recording.channel_ids
    heard = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if len(there) == 1 or heard == there:
        return ""
    if len(heard) > 1:
        raise UserError(f"utterance {cut.id} is {len(heard)} of {len(there)} channels, which segments can't say: --wav "
                        "writes their mean")
    return f" {there.index(heard[0])}"


def _is_plain_wav(cut: MonoCut) -> bool:
    return cut.recording.num_channels == 1 and cut.recording.sources[0].source.lower().endswith(".wav")


def _copy(to: Path, cut: MonoCut, named: Name, rate: int, quieter: list[str]) -> str:
    """Write the utterance's sound as features hear it (channels averaged, resampled) in 16 bits; return the path.

    Args:
        quieter: receives the utterance's name if its sound had to be scaled down.
    """
    import soundfile

    samples, had = audio.read(cut)
    if samples.dtype != np.int16 or len(samples) > 1 or had != rate:  # else sound of 16 bits stays as it is, to the bit
        scale = 32768.0 if samples.dtype == np.int16 else 1.0
        mixed = samples.astype(np.float64).mean(0) / scale
        mixed = resample(mixed, had, rate) if had != rate else mixed
        fit = below_full_scale(mixed)
        if fit is not mixed:
            quieter.append(named.utterance)
        samples = np.clip(np.rint(fit * 32768.0), -32768, 32767).astype(np.int16)[None]
    encoded = io.BytesIO()  # libsndfile would not tell why a write to disk failed
    soundfile.write(encoded, samples[0], rate, format="WAV", subtype="PCM_16")
    path = to.absolute() / "wav" / f"{named.utterance}.wav"
    with atomic(path) as aside:
        aside.write_bytes(encoded.getbuffer())
    return str(path)


def _point(cuts: list[MonoCut], names: dict[str, Name], stored: dict[str, MonoCut]) -> dict[str, str] | None:
    """The entries of feats.scp that name our own archives. None if some features can't be named: they are not in
    Kaldi's form, or not of a whole utterance."""
    places: dict[str, str] = {}
    by_file: dict[str, list[tuple[str, str]]] = {}
    for cut in cuts:
        one, made = stored[cut.id], stored[cut.id].features
        if made.storage_type != storage.ArkWriter.name or (made.start, made.duration) != (one.start, one.duration):
            return None
        by_file.setdefault(made.storage_path, []).append((made.storage_key, names[cut.id].utterance))
    for path, some in by_file.items():
        try:
            with open(path, "rb") as file:
                for key, utterance in some:
                    file.seek(int(key))
                    if file.read(len(_MARK)) != _MARK:
                        raise UserError(f"{path} has no matrix at {key}: make the features again (--stage 2)")
                    places[utterance] = f"{os.path.abspath(path)}:{key}"
        except FileNotFoundError:
            raise UserError(f"no stored features {path}: make them again (--stage 2)") from None
    return places


def _archive(to: Path, cuts: list[MonoCut], names: dict[str, Name], stored: dict[str, MonoCut]) -> dict[str, str]:
    """Write features of another form to ``to/feats.ark`` by kaldiio; return the entries of feats.scp."""
    import kaldiio

    order = sorted(cuts, key=lambda cut: names[cut.id])
    with atomic(to / "feats.ark") as aside:
        with open(aside, "wb") as file:
            places = {}
            for cut in progress(order, "Writing feats.ark", len(order)):
                utterance = names[cut.id].utterance
                start = file.tell() + len(utterance.encode()) + 1
                kaldiio.save_ark(file, {utterance: np.asarray(stored[cut.id].load_features(), dtype=np.float32)})
                places[utterance] = f"{to.absolute() / 'feats.ark'}:{start}"
    return places


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.data.kaldi", description="Kaldi data directories.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "export", help="write them of our manifests", description="Write a Kaldi data directory for each split.")
    command.add_argument("data", type=Path, help="the folder of the manifests, e.g. data/mini")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="a data directory DIR/SPLIT each; files "
                         "of the same names there are replaced")
    command.add_argument("--features", default="", metavar="NAME", help="name these stored features too (feats.scp): a "
                         "folder in DATA, e.g. fbank80-4a31")
    command.add_argument("--splits", nargs="+", default=[], metavar="SPLIT", help="default: all")
    command.add_argument("--wav", type=int, nargs="?", const=16000, default=0, metavar="HZ", help="write each "
                         "utterance as 16-bit mono WAV at this rate (16000), which Kaldi's own programs can read")
    command.add_argument("--espnet", action="store_true", help="also what ESPnet's asr_train needs, in DIR/espnet")
    command.add_argument("--tokens", default="", metavar="NAME", help="for --espnet: which token list, a folder in "
                         "DATA, e.g. char-0088 (default: the only one)")
    command.add_argument("--nj", type=int, default=1, help="how many files to write at once")
    args = parser.parse_args(argv)
    tokens = Tokenizer.load(_token_folder(args.data, args.tokens)) if args.espnet else None
    cuts = export(args.data, args.to, args.features, args.splits, args.wav, args.nj)
    for split, some in cuts.items():
        print(f"{args.to / split}: {len(some)} utterances, {sum(cut.duration for cut in some) / 3600:.3f} h")
    if tokens is not None:
        used = [cut for split in ("train", "dev") for cut in cuts.get(split, ())]
        rate = 0 if args.features else args.wav or _one_rate(used)
        script = espnet.write(args.to.absolute(), tokens, rate)
        print(f"ESPnet trains on it with\n\n{script.read_text(encoding='utf-8').split(chr(10), 2)[2]}\n"
              f"which is {script} (further options of asr_train may follow)")
    return 0


def _token_folder(data: Path, name: str) -> Path:
    if name:
        return data / name
    found = sorted(path.parent for path in data.glob("*/tokens.json"))
    if len(found) != 1:
        raise UserError(f"{data} has {len(found) or 'no'} token lists"
                        + (f" ({', '.join(path.name for path in found)}): say which with --tokens" if found
                           else ": the recipe's token stage (--stage 3) makes one"))
    return found[0]


def _one_rate(cuts: list[MonoCut]) -> int:
    """The sample rate in Hz that all sound has. UserError unless ESPnet can read it: whole mono files of one rate."""
    rates = sorted({cut.recording.sampling_rate for cut in cuts})
    parts = any(cut.start != 0 or cut.duration != cut.recording.duration for cut in cuts)
    if len(rates) > 1 or parts or any(cut.recording.num_channels > 1 for cut in cuts):
        what = "parts of files" if parts else f"of {len(rates)} rates" if len(rates) > 1 else "of several channels"
        raise UserError(f"ESPnet trains on whole mono files of one rate, and some of this sound is {what}: --wav "
                        "writes it as such, or --features gives ESPnet those")
    return rates[0] if rates else 0


if __name__ == "__main__":
    raise SystemExit(main())
