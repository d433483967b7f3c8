"""Recognition from a checkpoint alone, by a network that hears tones: token k is a tone at a frequency of its own."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechlab import config, infer, tasks
from speechlab.data.pieces import GAP, examine, pieces, quietest
from speechlab.data.tokens import Tokenizer
from speechlab.errors import UserError
from speechlab.tasks.asr import infer as hearing
from speechlab.tasks.asr import long_audio
from speechlab.tasks.asr.long_audio import Token, Transcript, join
from speechlab.tasks.asr.train import build_model
from speechlab.training import checkpoint

ROOT = Path(__file__).parents[3]
RATE = 16000
UNITS = "一二三四五六七八九十"
TONES = [300 * 1.25**k for k in range(len(UNITS))]  # Hz
NETWORK = textwrap.dedent("""
    from torch import nn
    class Tones(nn.Module):  # the mean of each four frames
        def __init__(self, input_size):
            super().__init__()
            self.output_size = input_size
        def forward(self, x, lengths):
            t = x.shape[1] // 4 * 4
            return x[:, :t].reshape(len(x), -1, 4, x.shape[2]).mean(2), lengths // 4
""")


def sound(text, pause=0.1, rate=RATE, seed=0):
    """(samples,): a tone of 0.12 s a character, a pause behind each, faint noise under all."""
    time = np.arange(round(0.12 * rate)) / rate
    loud, gap = 0.2 * np.sin(np.pi * time / 0.12), np.zeros(round(pause * rate))  # no clicks: all would hear them
    parts = [np.r_[loud * np.sin(2 * np.pi * TONES[UNITS.index(c)] * time), gap] for c in text]
    found = np.concatenate([np.zeros(round(0.1 * rate)), *parts])
    return found + 3e-4 * np.random.default_rng(seed).normal(size=len(found))


def texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(UNITS, k=rng.randint(3, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe's folder with its own network and the experiments ctc, joint and attention."""
    root = tmp_path_factory.mktemp("recipe")
    (root / "local").mkdir()
    (root / "local" / "model.py").write_text(NETWORK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(root), *sys.path])
        for name, share in (("ctc", 1.0), ("joint", 0.5), ("attention", 0.0)):
            made = tasks.from_dict({
                "task": "asr", "model": {"class": "local.model:Tones"}, "features": {"normalise": "none"},
                "loss": {"ctc": share}, "decode": {"beam": 2, "nbest": 2},
                **({"decoder": {"layers": 1, "heads": 2, "hidden": 16}} if share < 1 else {})})
            tokenizer = Tokenizer(["<blank>", "<unk>", *UNITS])
            torch.manual_seed(1)
            model = build_model(made, tokenizer, None, None)
            if model.head is not None:
                set_head(model.head)
            if model.decoder is not None:
                model.decoder.head.weight.data *= 20  # it learnt nothing, but is sure of it
            checkpoint.save(root / "exp" / name / "checkpoints" / "final.pt", {
                "model": model.state_dict(), "config": config.to_dict(made), "features": made.features.to_dict(),
                "tokens": tokenizer.state(), "auxiliary": None})
        forget()
    yield root
    forget()


def forget():
    for name in [n for n in sys.modules if n.split(".")[0] == "local"]:
        del sys.modules[name]


@torch.no_grad()
def set_head(head):
    """A unit's logit is its tone's energy over a threshold; blank's is 0, unknown's hopeless."""
    mel = lambda f: 1127 * np.log1p(np.asarray(f) / 700)  # noqa: E731
    centres = np.linspace(mel(20), mel(8000), 82)[1:-1]
    head.weight.zero_()
    head.bias.zero_()
    head.bias[1] = -100.0
    for k, tone in enumerate(TONES):
        head.weight[2 + k, int(np.abs(centres - mel(tone)).argmin())] = 1.0
        head.bias[2 + k] = -13.0


@pytest.fixture
def run(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(exp, *args, status=0):
        capsys.readouterr()
        assert infer.main([str(recipe / "exp" / exp), *map(str, args)]) == status
        return capsys.readouterr()
    return call


def objects(run, *args, status=0):
    return [json.loads(line) for line in run(*args, "--json", status=status).out.splitlines()]


def write(path, samples, rate=RATE, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **how)
    return path


def test_text_times_and_confidences(run, tmp_path):
    wav = write(tmp_path / "a b.wav", np.r_[sound("三一四"), sound("一五", pause=0.12)[RATE // 10:], sound("", seed=2),
                                            3e-4 * np.random.default_rng(3).normal(size=RATE), sound("九")])
    assert run("ctc", wav).out == f"{wav}\t三一四一五九\n"
    (found,) = objects(run, "ctc", wav)
    assert (found["file"], found["text"], found["error"]) == (str(wav), "三一四一五九", None)
    assert found["seconds"] == pytest.approx(soundfile.info(wav).duration, abs=1e-3)
    tokens = found["tokens"]
    assert [t["token"] for t in tokens] == list("三一四一五九")
    begins = [0.1, 0.32, 0.54, 0.76, 1.0]
    assert [t["start"] for t in tokens[:5]] == pytest.approx(begins, abs=0.05)
    assert [t["end"] for t in tokens[:5]] == pytest.approx([b + 0.12 for b in begins], abs=0.05)
    assert tokens[5]["start"] == pytest.approx(soundfile.info(wav).duration - 0.22, abs=0.03)
    assert all(0 < t["confidence"] <= 1 for t in tokens)
    assert found["confidence"] == pytest.approx(np.mean([t["confidence"] for t in tokens]), abs=1e-3)
    assert [s["text"] for s in found["segments"]] == ["三一四一五", "九"]  # a pause of more than a second
    assert (found["segments"][0]["start"], found["segments"][0]["end"]) == (tokens[0]["start"], tokens[4]["end"])


def test_a_confidence_is_the_mean_posterior_over_the_tokens_frames(run, recipe, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一"))
    (found,) = objects(run, "ctc", wav)
    recogniser = tasks.load(recipe / "exp" / "ctc")
    x = long_audio.features(soundfile.read(wav)[0], RATE, recogniser.contract)
    posterior = recogniser.encode({"x": x[None], "x_lens": torch.tensor([len(x)])}).log_probs[0].exp()
    for token in found["tokens"]:
        first, last = round(token["start"] / 0.04), round(token["end"] / 0.04)
        column = posterior[first:last, recogniser.tokenizer.units.index(token["token"])]
        assert last - first > 1 and token["confidence"] == pytest.approx(float(column.mean()), abs=1e-4)


def test_every_method_gives_times(run, recipe, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四一五"))
    (base,) = objects(run, "ctc", wav)
    for exp, *more in (("ctc", "--method", "ctc_beam"),
                       ("joint", "--set", "decode.ctc_weight=0.95", "--set", "decode.beam=8"),
                       ("joint", "--method", "ctc_greedy")):
        (found,) = objects(run, exp, wav, *more)
        assert found["text"] == base["text"] == "三一四一五", more
        assert [t["start"] for t in found["tokens"]] == pytest.approx([t["start"] for t in base["tokens"]], abs=0.05)
        assert found["confidence"] == pytest.approx(base["confidence"], abs=0.05)
    load = lambda exp: tasks.load(recipe / "exp" / exp)  # noqa: E731
    assert [hearing.default_method(load(exp)) for exp in ("ctc", "joint", "attention")] == [
        "ctc_greedy", "joint", "attention"]
    (found,) = objects(run, "joint", wav, "--method", "attention")  # a decoder that learnt nothing: still times
    assert all(0 <= t["start"] <= t["end"] <= found["seconds"] + 1e-3 for t in found["tokens"])


def test_a_decoder_that_loses_what_ctc_heard_is_not_believed(run, tmp_path):
    """By default; asked for by name, it answers as it would in decoding."""
    wav = write(tmp_path / "a.wav", sound("三一四一五九二六五三" * 4))
    alone = ("joint", wav, "--set", "decode.ctc_weight=0")  # a decoder that learnt nothing
    done = run(*alone)
    assert done.out.endswith("\t" + "三一四一五九二六五三" * 4 + "\n") and "CTC's answer stands there" in done.err
    done = run(*alone, "--method", "joint")
    assert len(done.out.split("\t")[1]) < 30 and "in 1 of 1 pieces" in done.err and "try ctc_greedy" in done.err
    (found,) = objects(run, *alone, "--method", "joint", "--chunk", "3", "--overlap", "1")
    assert [t["start"] for t in found["tokens"]] == sorted(t["start"] for t in found["tokens"])


def test_a_model_without_ctc_has_no_times_but_bounds_and_confidences(run, recipe, tmp_path):
    wav = write(tmp_path / "a.wav", np.r_[sound("三一四一五九"), sound("二六五")])
    (found,) = objects(run, "attention", wav, "--chunk", "1.5", "--overlap", "0.7")
    assert found["error"] is None and found["tokens"]
    assert all(t["start"] is None and t["end"] is None and 0 < t["confidence"] <= 1 for t in found["tokens"])
    bounds = [(s["start"], s["end"]) for s in found["segments"]]
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:]))  # cut, not overlapped
    assert "".join(s["text"] for s in found["segments"]) == found["text"]
    # The confidence is the decoder's probability of each token after those before it.
    (found,) = objects(run, "attention", write(tmp_path / "b.wav", sound("三一")))
    recogniser = tasks.load(recipe / "exp" / "attention")
    x = long_audio.features(soundfile.read(tmp_path / "b.wav")[0], RATE, recogniser.contract)
    heard = recogniser.encode({"x": x[None], "x_lens": torch.tensor([len(x)])})
    tokens = [recogniser.tokenizer.units.index(t["token"]) for t in found["tokens"]]
    given = [float(recogniser.model.decoder(heard.memory, heard.mask, torch.tensor([[0, *tokens[:i]]]))[0, -1]
                   .softmax(-1)[token].detach()) for i, token in enumerate(tokens)]
    assert [t["confidence"] for t in found["tokens"]] == pytest.approx(given, abs=1e-4)


def test_any_rate_channels_and_format(run, tmp_path):
    text = "三一四一五九"
    for name, rate, how in (("a.wav", 44100, {}), ("b.flac", 48000, {"subtype": "PCM_24"}), ("c.ogg", 44100, {}),
                            ("d.mp3", 22050, {}), ("e.opus", 48000, {"format": "OGG", "subtype": "OPUS"}),
                            ("深 f.aiff", 8000, {}), ("g.au", 11025, {}), ("h.WAV", 44101, {"subtype": "DOUBLE"})):
        up = soxr.resample(sound(text), RATE, rate)
        write(tmp_path / name, np.stack([1.5 * up, 0.5 * up], 1), rate, **how)
    (tmp_path / ".hidden.wav").write_bytes(b"not seen")
    (tmp_path / "notes.txt").write_text("passed over in a folder")
    found = objects(run, "ctc", tmp_path)
    assert [Path(f["file"]).name for f in found] == sorted(
        p.name for p in tmp_path.iterdir() if p.name not in (".hidden.wav", "notes.txt"))
    assert [f["text"] for f in found] == [text] * 8


def test_folders_links_and_what_is_left_out(tmp_path, capsys):
    """Linked folders are read, loops end, links to nothing are files that are missing, the rest is counted."""
    from speechlab.data.inputs import AUDIO, listed

    for name in ("a.wav", ".hidden.wav", ".ipynb_checkpoints/a-checkpoint.wav", "notes.txt"):
        write(tmp_path / "in" / name, sound("三")) if name.endswith(".wav") else (tmp_path / "in" / name).touch()
    write(tmp_path / "far" / "b.wav", sound("三"))
    for name, target in (("far", "far"), ("loop", "in"), ("gone.wav", "gone.wav"), ("gone", "gone")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    files, bad = listed([tmp_path / "in"], AUDIO, "audio file")
    assert [str(file.relative_to(tmp_path / "in")) for file in files] == ["a.wav", "far/b.wav", "gone.wav"] and not bad
    here = tmp_path / "in"
    assert capsys.readouterr().err.splitlines() == [
        f"note: 2 hidden files or folders under {here} (first: .hidden.wav): left out",
        f"note: 1 links to nothing under {here} (first: gone): left out",
        f"note: 1 links to folders that are read anyway under {here} (first: loop): left out"]
    assert listed([tmp_path / "far" / "..", tmp_path / "in"], [".nothing"], "audio file")[1]


def test_a_file_whose_name_is_not_utf8(run, tmp_path):
    """soundfile itself can't be asked for it by a string."""
    write(tmp_path / "in" / "a.wav", sound("三一四")).rename(tmp_path / "in" / os.fsdecode(b"caf\xe9\n.wav"))
    (found,) = objects(run, "ctc", tmp_path / "in")
    assert found["text"] == "三一四" and found["file"] == f"{tmp_path}/in/caf\\xe9\\n.wav" and found["error"] is None


def test_samples_at_an_odd_rate_take_no_gigabytes(monkeypatch):
    def never(*_):
        raise AssertionError("torchaudio's table for 44,101 Hz is larger than a machine's memory")
    monkeypatch.setattr("lhotse.augmentation.torchaudio.get_or_create_resampler", never)
    contract = tasks.from_dict({"task": "asr", "model": {"class": "speechlab.models.asr:Conformer"}}).features
    assert len(long_audio.features(sound("三", rate=44101), 44101, contract)) == pytest.approx(32, abs=1)


def test_features_are_those_of_decoding(tmp_path):
    """The same numbers, to the bit, as decoding reads from a manifest."""
    from lhotse import Recording

    from speechlab.data.speech import FeatureReader
    contract = tasks.from_dict({"task": "asr", "model": {"class": "speechlab.models.asr:Conformer"}}).features
    for name, rate, channels in (("a.wav", RATE, 1), ("b.flac", 44100, 2)):
        wav = write(tmp_path / name, np.stack([sound("三一四", rate=rate, seed=i) for i in range(channels)], 1), rate)
        cut = Recording.from_file(wav).to_cut()
        cut = cut if channels == 1 else cut.to_mono()[0]
        (piece,) = pieces(wav, 20, 4, cut=False)
        found = long_audio.features(piece.samples, piece.rate, contract).numpy()
        if channels == 1:
            assert np.array_equal(found, FeatureReader(contract, stored=False)(cut))
        else:
            from speechlab.features.fbank import extract, normalise
            x = extract(soundfile.read(wav, dtype="float32")[0].T, rate, contract)
            assert np.array_equal(found, normalise(x[None], torch.tensor([len(x)]))[0].numpy())


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """Twenty minutes of utterances, and what was said."""
    said = texts(700)
    gaps = [3e-4 * np.random.default_rng(i).normal(size=RATE // 3) for i in range(3)]
    samples = np.concatenate([np.r_[sound(t, seed=i), gaps[i % 3]] for i, t in enumerate(said)])
    folder = tmp_path_factory.mktemp("long")
    return write(folder / "long.wav", samples), said


def test_twenty_minutes_equal_their_utterances(run, long_file, tmp_path):
    wav, said = long_file
    assert soundfile.info(wav).duration > 1200
    alone = [run("ctc", write(tmp_path / f"{i}.wav", sound(said[i], seed=i))).out.split("\t")[1].strip()
             for i in range(0, 700, 70)]
    assert alone == said[::70]
    (found,) = objects(run, "ctc", wav)
    assert found["text"] == "".join(said)  # not a token doubled or lost at some 75 seams
    starts = [t["start"] for t in found["tokens"]]
    assert starts == sorted(starts)
    assert run("ctc", wav, "--chunk", "3", "--overlap", "1").out.split("\t")[1].strip() == "".join(said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
def test_memory_is_bounded(recipe, long_file):
    """Read whole, the file alone would be 150 MB (float64)."""
    wav, _ = long_file
    code = textwrap.dedent("""
        import re, sys
        from pathlib import Path
        from speechlab import infer
        exp, wav, short, out = sys.argv[1:]
        for file in (short, wav):
            assert infer.main([exp, file, "--out", out]) == 0
            print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
    """)  # getrusage's peak is the parent's where that was higher
    samples, _ = soundfile.read(wav, stop=100 * RATE)
    short, out = write(wav.with_name("short.wav"), samples), wav.with_name("out.txt")
    command = [sys.executable, "-c", code, str(recipe / "exp" / "ctc"), str(wav), str(short), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 25_000, (before, after)
    assert "seconds heard" in done.stderr and out.read_text(encoding="utf-8").count("\n") == 1


def test_interrupted(recipe, long_file):
    wav, _ = long_file
    names = []
    for i in range(5):
        names.append(wav.with_name(f"again{i}.wav"))
        os.symlink(wav, names[-1])
    command = [sys.executable, "-m", "speechlab.infer", str(recipe / "exp" / "ctc"), *map(str, names)]
    process = subprocess.Popen(  # whoever starts the tests in the background has Ctrl-C ignored, and what it starts too
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline().startswith(f"{names[0]}\t")  # a line comes as soon as its file is done
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err


# Joining two pieces' tokens

def heard(rng, truth, begin, end, jitter=0.08, ruin=0.35):
    """What a piece hears from ``begin`` to ``end`` of (id, time) pairs: unsure of times, and of all near its ends."""
    found = []
    for token, time in truth:
        if begin <= time < end:
            near = 0 < begin and time - begin < ruin or end - time < ruin
            if near and rng.random() < 0.5:
                if rng.random() < 0.5:
                    continue
                token = rng.randrange(20)
            start = min(max(time + rng.uniform(-jitter, jitter), begin), end)
            found.append(Token(token, 1.0, start, start + 0.04))
    return sorted(found, key=lambda t: t.start)


@pytest.mark.parametrize("kinds", [1, 2, 20])
def test_joined_pieces_have_every_token_once(kinds):
    """Even of one token only, said again and again: times tell which is which."""
    rng = random.Random(kinds)
    for _ in range(300):
        truth, time = [], 0.0
        while time < 20:
            time += rng.uniform(0.2, 0.6)
            truth.append((rng.randrange(kinds), time))
        left, right = heard(rng, truth, 0, 12), heard(rng, truth, 8, 21)
        whole = [token for token, _ in truth]
        joined = join(left, right, 8, 12)
        assert [t.id for t in joined][:-2] == whole[:len(joined) - 2] and abs(len(joined) - len(whole)) <= 1
        assert all(a.start <= b.start for a, b in zip(joined, joined[1:]))


def tokens(ids, *starts):
    return [Token(UNITS.index(c), 1.0, s, s + 0.04) for c, s in zip(ids, starts)]


def test_join_by_hand():
    read = lambda found: "".join(UNITS[t.id] for t in found)  # noqa: E731
    left, right = tokens("一二三四", 1, 6, 8, 9.6), tokens("九三四五", 6.2, 8.05, 9.5, 13)
    assert read(join(left, right, 6, 10)) == "一二三四五"  # they agree on 三四: what only one of them has is its own
    assert read(join(tokens("一二", 1, 7.95), tokens("二三", 8.05, 12), 6, 10)) == "一二三"  # one token at the middle
    # Nothing in common: the token that both hear about the middle, each otherwise, is there once.
    assert len(join(tokens("一二", 1, 7.98), tokens("五三", 8.02, 12), 6, 10)) == 3
    assert len(join(tokens("一二", 1, 8.02), tokens("五三", 7.98, 12), 6, 10)) == 3
    assert read(join(tokens("一二", 1, 7), [], 6, 10)) == "一二"
    assert read(join([], tokens("一二", 9, 11), 6, 10)) == "一二"
    # A word said twice: of equally long runs, the one whose times agree better.
    twice = join(tokens("一一", 8, 8.2), tokens("一一一", 8.02, 8.22, 8.42), 6, 10)
    assert [t.start for t in twice] == [8, 8.22, 8.42]
    assert [t.start for t in join(tokens("一一一", 7.8, 8, 8.2), tokens("一一", 8.02, 8.22), 6, 10)] == [7.8, 8, 8.22]
    # Within the run at the pair nearest the middle; what was said long before is not the same.
    near = join(tokens("一二三", 6.5, 7.9, 9.5), tokens("一二三", 6.51, 7.91, 9.51), 6, 10)
    assert [t.start for t in near] == [6.5, 7.9, 9.51]
    assert read(join(tokens("一二", 6.5, 7), tokens("一三", 9, 9.5), 6, 10)) == "一二一三"
    same = join(tokens("一二", 1, 8.1), tokens("二三", 7.9, 8.05), 6, 10)
    assert read(same) == "一二三" and same[2].start == 8.1  # never backwards


# Pieces

def test_pieces_share_or_are_cut_at_the_quietest_point(tmp_path):
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.normal(size=25 * RATE)
    samples[int(8.3 * RATE):int(8.6 * RATE)] *= 0.01
    wav = write(tmp_path / "a.flac", samples)
    whole = soundfile.read(wav)[0]
    found = list(pieces(wav, 10, 4, cut=False))
    assert [(p.start, p.end) for p in found] == [(0, 10), (6, 16), (12, 22), (18, 25)]
    assert [p.last for p in found] == [False, False, False, True]
    assert all(np.array_equal(p.samples, whole[round(p.start * RATE):round(p.end * RATE)]) for p in found)
    found = list(pieces(wav, 10, 4, cut=True))
    assert 8.3 < found[0].end < 8.6 and np.array_equal(np.concatenate([p.samples for p in found]), whole)
    assert [p.last for p in pieces(wav, 25, 4, cut=False)] == [True]  # ends just where the piece does
    assert quietest(np.zeros(0), RATE) == 0 and quietest(np.zeros(10), RATE) == 5


def test_silence_is_left_out_where_it_passes_a_pieces_end(tmp_path):
    """No sample of it begins or ends the next piece, and what was heard already is no piece of its own."""
    for said, silent in ((1.9, 3.05), (1.9, 0.15), (1.5, 0.4), (1.2, 2.0), (1.2, 1.1)):
        noise = 0.1 * np.random.default_rng(0).choice([-1, 1], size=round(said * RATE))
        wav = write(tmp_path / "a.wav", np.r_[noise, np.zeros(round(silent * RATE)), noise])
        found = list(pieces(wav, 2, 1, cut=False))
        if silent > GAP:
            assert [(len(p.samples), p.last) for p in found] == [(len(noise), False), (len(noise), True)]
            assert found[1].start == pytest.approx(said + silent) and found[1].samples[0]
        else:
            assert found[0].end == 2 and found[-1].end == pytest.approx(2 * said + silent)


def test_pieces_that_share_nothing_are_not_compared(run, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三" * 8))
    assert run("ctc", wav, "--chunk", "1.18", "--overlap", "0").out.endswith("\t" + "三" * 8 + "\n")  # cut in a pause


@pytest.mark.parametrize("chunk", [2, 5, 20])
def test_digital_silence_is_left_out(run, tmp_path, chunk):
    parts = [sound("三一四"), np.zeros(3 * RATE), sound("一五九", seed=1), np.zeros(RATE // 2), sound("二六", seed=2),
             np.zeros(7 * RATE)]
    wav = write(tmp_path / "a.wav", np.concatenate(parts))
    found = list(pieces(wav, chunk, 1, cut=False))
    assert all(np.abs(p.samples).max() > 0.1 for p in found[:-1])
    assert sum(len(p.samples) for p in found) < sum(map(len, parts[::2])) + 1.1 * RATE
    (found,) = objects(run, "ctc", wav, "--chunk", chunk, "--overlap", "1")
    assert found["text"] == "三一四一五九二六" and found["seconds"] == pytest.approx(len(np.concatenate(parts)) / RATE)
    starts = [t["start"] for t in found["tokens"]]
    assert (starts[0], starts[3]) == (pytest.approx(0.1, abs=0.05), pytest.approx(0.76 + 3.1, abs=0.05))


# What can't be done

def test_bad_files_are_named_and_the_others_done(run, tmp_path):
    good = sound("三一四")
    write(tmp_path / "good.wav", good)
    write(tmp_path / "silent.wav", np.zeros(RATE))
    write(tmp_path / "tenth.wav", sound("")[:RATE // 10])
    write(tmp_path / "short.wav", good[:500])
    write(tmp_path / "none.wav", good[:0])
    write(tmp_path / "nan.wav", np.where(np.arange(len(good)) == 99, np.nan, good), subtype="FLOAT")
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    whole = write(tmp_path / "whole.wav", sound("三一四一五九二六")).read_bytes()
    (tmp_path / "whole.wav").unlink()
    (tmp_path / "cut.wav").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "nothing").mkdir()
    more = [tmp_path / "x.raw", tmp_path / "missing.wav", tmp_path / "nothing"]
    done = run("ctc", tmp_path, *more, "--json", status=1)
    found = {Path(f["file"]).name: f for f in map(json.loads, done.out.splitlines())}
    errors = {name: f["error"].split(":")[0] for name, f in found.items() if f["error"]}
    assert errors == {"short.wav": "short", "none.wav": "empty", "nan.wav": "NaN", "empty.flac": "empty",
                      "text.wav": "unreadable", "x.m4a": "unreadable", "x.raw": "unreadable", "cut.wav": "truncated",
                      "missing.wav": "missing"}
    assert {name: f["text"] for name, f in found.items() if f["text"] is not None} == {
        "good.wav": "三一四", "silent.wav": "", "tenth.wav": "", "cut.wav": "三一四一"}  # what is there is heard
    lines = done.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 10 and "Traceback" not in done.err
    for name in errors:
        assert sum(f"{tmp_path / name}: " in line for line in lines) == 1
    assert f"error: {tmp_path / 'nothing'}: no audio file in this folder" in lines
    assert f"note: {tmp_path / 'silent.wav'}: silent, never above -80 dBFS" in lines
    assert "ffmpeg" in next(line for line in lines if "x.m4a" in line)
    out = run("ctc", tmp_path / "good.wav", tmp_path / "x.m4a", status=1).out
    assert out == f"{tmp_path / 'good.wav'}\t三一四\n"


def test_a_flac_that_breaks_off_is_heard_up_to_there(run, tmp_path):
    whole = write(tmp_path / "a.flac", sound("三一四一五九二六" * 4)).read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[:len(whole) * 3 // 4])
    (found,) = objects(run, "ctc", tmp_path / "a.flac", status=1)
    assert found["error"].startswith("truncated")
    assert len(found["text"]) > 12 and ("三一四一五九二六" * 4).startswith(found["text"])


def test_bad_experiments_and_options(run, recipe, tmp_path, capsys, monkeypatch):
    wav = write(tmp_path / "a.wav", sound("三"))
    (tmp_path / "exp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"model": {}, "config": {"task": "dance"}}, tmp_path / "dance.pt")
    final = recipe / "exp" / "ctc" / "checkpoints" / "final.pt"
    (tmp_path / "half.pt").write_bytes(final.read_bytes()[:5000])
    for exp, words in ((tmp_path / "exp", "no experiment's folder"), (tmp_path / "none", "no experiment or checkpoint"),
                       (tmp_path / "text.pt", "is no checkpoint"), (wav, "is no checkpoint"),
                       (tmp_path / "half.pt", "damaged")):
        assert words in run(exp, wav, status=1).err
    assert "no task 'dance'" in run(tmp_path / "dance.pt", wav, status=2).err
    (tmp_path / "exp" / "checkpoints" / "epoch-3.pt").write_bytes(final.read_bytes())
    assert "epoch-3.pt takes what there is" in run(tmp_path / "exp", wav, status=1).err
    monkeypatch.chdir(recipe)  # a checkpoint alone, elsewhere: its network's code is looked for here
    assert run(tmp_path / "exp", wav, "--checkpoint", tmp_path / "exp" / "checkpoints" / "epoch-3.pt").out
    for args, words in ((["--method", "rainbow"], "no search method"), (["--method", "joint"], "no attention decoder"),
                        (["--method", "ctc_beam_lm"], "no language model"), (["--chunk", "0.1"], "at least a second"),
                        (["--overlap", "11"], "at most half"), (["--set", "train.epochs=3"], "only the section decode"),
                        (["--set", "decode.beem=3"], "did you mean 'beam'")):
        assert words in run("ctc", wav, *args, status=2).err
    assert "no lm.json" in run("ctc", wav, "--lm", tmp_path, status=1).err.replace(str(tmp_path) + os.sep, "")


def test_from_python_as_from_the_shell(run, recipe, tmp_path):
    """speechlab.load(exp) on a path and on an array gives what infer --json gives."""
    wav = write(tmp_path / "a.wav", sound("三一四"), subtype="FLOAT")
    (said,) = objects(run, "ctc", wav)
    model = tasks.load(recipe / "exp" / "ctc")
    assert model(wav) == model(str(wav)) == said
    samples = soundfile.read(wav, dtype="float32")[0]
    assert model(samples, rate=RATE) == {**said, "file": None}
    assert model(np.stack([samples, samples]), rate=RATE)["text"] == "三一四"  # channels are averaged
    assert model((samples * 32767).astype(np.int16), rate=RATE)["text"] == "三一四"
    assert model(soxr.resample(samples, RATE, 44100), rate=44100)["text"] == "三一四"
    assert model(wav, method="ctc_beam")["text"] == "三一四" and list(model.methods()) == ["ctc_greedy", "ctc_beam"]
    for call, words in ((lambda: model(samples), "need their sample rate"), (lambda: model(wav, rate=8000), "its own"),
                        (lambda: model(tmp_path / "none.wav"), "no such file"),
                        (lambda: model(wav, method="joint"), "no attention decoder")):
        with pytest.raises(UserError, match=words):
            call()
    forget()


def test_a_language_model(run, recipe, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四"))
    words = "\n".join(f"-1.0\t{unit}" for unit in ("</s>", "<unk>", *UNITS))
    arpa = f"\\data\\\nngram 1={3 + len(UNITS)}\n\n\\1-grams:\n-99\t<s>\n{words}\n\n\\end\\\n"
    (tmp_path / "lm.arpa").write_text(arpa, encoding="utf-8")
    (tmp_path / "lm.json").write_text(json.dumps({"units": ["<blank>", "<unk>", *UNITS], "order": 1}))
    for given in (tmp_path, tmp_path / "lm.arpa"):
        done = run("ctc", wav, "--lm", given)
        assert done.out.endswith("\t三一四\n") and "not tuned" in done.err
    assert "not tuned" not in run("ctc", wav, "--lm", tmp_path, "--set", "decode.lm_weight=0.1", "--set",
                                  "decode.length_bonus=0").err
    assert "weighs no language model" in run("ctc", wav, "--lm", tmp_path, "--method", "ctc_greedy", status=2).err
    assert "tuned by the decode stage" in run("ctc", wav, "--lm", tmp_path, "--method", "rescore", status=1).err
    tuned = {"ctc_beam_lm": {"lm_weight": 0.2, "length_bonus": 1.0}}
    tuned["rescore"] = {**tuned["ctc_beam_lm"], "first": "ctc_beam_lm", "parts": {"ctc": 1.0, "lm": 0.3},
                        "rescore_bonus": 0.5}
    decoded = recipe / "exp" / "ctc" / "decode" / "methods.json"
    decoded.parent.mkdir()
    decoded.write_text(json.dumps(tuned))
    for method in tuned:
        done = run("ctc", wav, "--lm", tmp_path, "--method", method)
        assert done.out.endswith("\t三一四\n") and not done.err


def test_an_arpa_file_where_a_folder_is_meant(run, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四"))

    def arpa(path, units):
        path.parent.mkdir(parents=True, exist_ok=True)
        words = "\n".join(f"-1.0\t{unit}" for unit in ("</s>", "<unk>", *units))
        path.write_text(f"\\data\\\nngram 1={3 + len(units)}\n\n\\1-grams:\n-99\t<s>\n{words}\n\n\\end\\\n",
                        encoding="utf-8")
        return path

    weights = ("--set", "decode.lm_weight=0.1", "--set", "decode.length_bonus=0")
    alone = arpa(tmp_path / "other tool" / "mine.arpa", UNITS)  # nothing describes it: its words do
    assert run("ctc", wav, "--lm", alone, *weights).out == f"{wav}\t三一四\n"
    beside = arpa(tmp_path / "lm" / "lm.arpa", UNITS)
    (beside.parent / "lm.json").write_text(json.dumps({"units": ["<blank>", "<unk>", "a"], "order": 1}))
    for path, words in ((beside, "is over other units"), (arpa(tmp_path / "w.arpa", ["hello", "world"]), "other units"),
                        (wav, "is not an ARPA language model"), (tmp_path / "none.arpa", "no language model"),
                        (tmp_path / "none.arpa" / "x", "no language model")):
        done = run("ctc", wav, "--lm", path, *weights, status=1)
        assert words in done.err and done.err.count("\n") == 1 and done.err.startswith("error: "), done.err


def test_out_is_whole_or_not_there(run, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四"))
    assert run("ctc", wav, "--out", tmp_path / "new" / "out.tsv").out == ""
    assert (tmp_path / "new" / "out.tsv").read_text(encoding="utf-8") == f"{wav}\t三一四\n"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["out.tsv"]


def test_out_through_a_link(run, tmp_path):
    """The file that it leads to is written, there or not, and the link stays one."""
    wav = write(tmp_path / "a.wav", sound("三一四"))
    for name, text in (("old.tsv", "old"), ("new.tsv", None)):
        target, link = tmp_path / "store" / name, tmp_path / f"link-{name}"
        target.parent.mkdir(exist_ok=True)
        if text:
            target.write_text(text)
        link.symlink_to(Path("store") / name)
        assert run("ctc", wav, "--out", link).out == ""
        assert link.is_symlink() and target.read_text(encoding="utf-8") == f"{wav}\t三一四\n"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "leads back to itself" in run("ctc", wav, "--out", tmp_path / "loop", status=1).err
    assert (tmp_path / "loop").is_symlink()


def test_out_through_what_is_no_regular_file(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(exp, *args):
        assert infer.main([str(recipe / "exp" / exp), *map(str, args)]) == 0

    wav = write(tmp_path / "a.wav", sound("三一四"))
    wanted = f"{wav}\t三一四\n"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to fifo").symlink_to("fifo")
    for name in ("fifo", "to fifo"):
        reader = subprocess.Popen(["cat", str(tmp_path / "fifo")], stdout=subprocess.PIPE)
        run("ctc", wav, "--out", tmp_path / name)
        assert reader.communicate(timeout=30)[0].decode() == wanted and (tmp_path / "fifo").is_fifo()
    (tmp_path / "null").symlink_to("/dev/null")
    run("ctc", wav, "--out", tmp_path / "null")
    run("ctc", wav, "--out", "/dev/null")
    assert Path("/dev/null").is_char_device() and (tmp_path / "null").is_symlink()
    capfd.readouterr()
    (tmp_path / "shown").symlink_to("/dev/stdout")
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "shown", "-"):
        run("ctc", wav, "--out", name)
        assert capfd.readouterr().out == wanted, name
    assert (tmp_path / "shown").is_symlink() and not Path("-").exists()


def test_out_to_standard_output_that_is_a_file(recipe, tmp_path):
    """What stands in the file (>> FILE) stays there."""
    wav = write(tmp_path / "a.wav", sound("三一四"))
    (tmp_path / "all.tsv").write_text("before\n")
    with open(tmp_path / "all.tsv", "a") as out:
        subprocess.run([sys.executable, "-m", "speechlab.infer", str(recipe / "exp" / "ctc"), str(wav), "--out",
                        "/dev/stdout"], stdout=out, check=True, cwd=recipe, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "all.tsv").read_text(encoding="utf-8") == f"before\n{wav}\t三一四\n"


def test_a_folder_for_out_is_refused_before_anything_is_heard(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        done = run("ctc", tmp_path / "a.wav", "--out", folder, status=2)
        assert done.err == f"error: --out {folder} is a folder: name a file\n" and not done.out


def test_standard_input_and_pipes(recipe, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四"))
    other = write(tmp_path / "b.flac", sound("一五九"))
    infer_it = f"{sys.executable} -m speechlab.infer {recipe}/exp/ctc"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()

    def shell(command, status=0):
        done = subprocess.run(["bash", "-c", command], cwd=recipe, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == status, done.stderr
        assert not list((tmp_path / "tmp").iterdir()), "nothing stays"
        return done

    assert shell(f"cat {wav} | {infer_it} - {other}").stdout == f"-\t三一四\n{other}\t一五九\n"
    assert shell(f"{infer_it} /dev/stdin < {wav}").stdout == "-\t三一四\n"
    found = json.loads(shell(f"cat {other} | {infer_it} - - --json").stdout)  # once is enough
    assert (found["file"], found["text"], found["error"]) == ("-", "一五九", None)
    lines = shell(f"{infer_it} <(cat {wav}) <(cat {other})").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["三一四", "一五九"]
    assert all(line.startswith("/dev/fd/") for line in lines)
    done = shell(f"echo no audio | {infer_it} -", status=1)
    assert done.stderr.startswith("error: -: unreadable") and str(tmp_path) not in done.stderr
    assert done.stderr.count("\n") == 1
    assert shell(f"{infer_it} - < /dev/null", status=1).stderr.startswith("error: -: empty")


def test_a_fifo_by_its_name(run, tmp_path):
    wav = write(tmp_path / "a.wav", sound("三一四"))
    os.mkfifo(tmp_path / "fifo")
    writer = subprocess.Popen(["cp", str(wav), str(tmp_path / "fifo")])
    assert run("ctc", tmp_path / "fifo").out == f"{tmp_path / 'fifo'}\t三一四\n"
    assert writer.wait(timeout=30) == 0


def test_a_file_called_minus(run, tmp_path, monkeypatch):
    write(tmp_path / "a.wav", sound("三一四")).rename(tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    assert run("ctc", "./-").out == f"{tmp_path / '-'}\t三一四\n"


def test_a_terminal_is_no_audio(run, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert "that is a terminal" in run("ctc", "-", status=2).err


def test_words_are_not_split_and_pieces_are_joined_by_a_space():
    tokenizer = Tokenizer(["<blank>", "<unk>", "▁", "a", "b", "我", "们"])
    ids = tokenizer.encode("ab b我们")
    at = [0, 2, 4, 5, 7, 9]  # pauses everywhere
    found = Transcript(Path("x"), tokens=[Token(i, 0.5, t, t + 0.1) for i, t in zip(ids, at)])
    assert [s["text"] for s in hearing.record(found, tokenizer)["segments"]] == ["ab", "b", "我", "们"]
    close = [Token(4, 0.5, 0.0, 0.2), Token(2, 0.5, 0.3, 0.4), Token(4, 0.5, 0.95, 1.0)]
    assert len(hearing.split(close, tokenizer.units)) == 1  # 0.75 s without a word: the space is none
    for parts, text in ((("ab", "b我", "们a", "b"), "ab b我们a b"), (("", "a", ""), "a"), ((), "")):
        found = Transcript(Path("x"), parts=[(0, 1, [Token(i, 0.5) for i in tokenizer.encode(p)]) for p in parts])
        assert hearing.record(found, tokenizer)["text"] == text


def test_examine_a_file_of_unknown_kind(tmp_path):
    assert examine(tmp_path / "none.wav") == (0.0, "missing")
