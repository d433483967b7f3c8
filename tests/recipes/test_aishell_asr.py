"""aishell_asr from nothing to a scored model, on the made-up corpus."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from lhotse import CutSet

METHODS = {"ctc_greedy", "ctc_beam", "ctc_beam_lm", "attention", "joint", "rescore"}
TASK, OPTIONS = "aishell_asr", ("--corpus", "synthetic", "--config", "conf/tiny.yaml")


def records(exp, kind):
    """The lines of one kind in metrics.jsonl."""
    return [r for line in (exp / "metrics.jsonl").read_text().splitlines() if (r := json.loads(line))["kind"] == kind]


def test_it_learns_and_says_so(trained):
    lab, exp, output = trained
    rows = json.loads((exp / "results.json").read_text())
    by_method = {row["method"]: row for row in rows if row["metric"] == "CER"}
    assert set(by_method) == METHODS
    for method, row in by_method.items():  # from 200 sentences the decoder alone learns little
        assert row["value"] < (90 if method in ("attention", "joint") else 15), output
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["n"] == 40 and row["n_failed"] == 0 and row["unit"] == "%" and row["list_hash"]
    epochs = records(exp, "epoch")
    assert epochs[0]["valid_cer"] > 80 > 20 > epochs[-1]["valid_cer"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 3
    text = (exp / "results.txt").read_text()
    assert "ctc_greedy" in text and by_method["ctc_greedy"]["list_hash"] in text and "ctc_greedy" in output


def test_what_a_run_leaves(trained):
    lab, exp, _ = trained
    for name in ("config.yaml", "env.json", "train.log", "metrics.jsonl", "curves.png", "samples.md", "results.txt",
                 "results.json", "checkpoints/final.pt"):
        assert (exp / name).stat().st_size > 0, name
    assert list((exp / "tensorboard").glob("events*"))
    assert (exp / "curves.png").read_bytes()[:4] == b"\x89PNG"
    env = json.loads((exp / "env.json").read_text())
    assert env["versions"]["torch"] == torch.__version__ and env["wall_seconds"] > 0 and env["parameters"] > 1000
    assert "speechlab.train" in env["command"]
    assert yaml.safe_load((exp / "config.yaml").read_text())["train"]["epochs"] == 24
    samples = (exp / "samples.md").read_text()
    assert "Epoch 1:" in samples and "Epoch 24:" in samples
    with open(lab.root / "egs" / TASK / "params_table.csv", encoding="utf-8-sig") as file:
        row = next(csv.DictReader(file))
    assert row["experiment"] == "synthetic_tiny" and float(row["first_loss"]) > float(row["last_loss"]) > 0
    weights = json.loads((exp / "decode" / "methods.json").read_text())
    assert set(weights) == METHODS and "dev" in weights["ctc_beam_lm"]["tuned_on"]
    for method in METHODS:
        folder = exp / "decode" / method / "test"
        for name in ("ref.trn", "hyp.trn"):
            assert len((folder / name).read_text().splitlines()) == 40
        assert (folder / "worst.txt").exists()


def test_again_there_is_nothing_to_do(trained):
    lab, exp, _ = trained
    before = {p: p.stat().st_mtime_ns for p in exp.rglob("*.pt")}
    status, output = lab.run(TASK, *OPTIONS)
    assert status == 0
    assert "speechlab.train" not in output and len(output.splitlines()) < 15, output
    assert {p: p.stat().st_mtime_ns for p in exp.rglob("*.pt")} == before


def test_entering_at_a_stage_and_another_beam(trained):
    lab, exp, _ = trained
    status, output = lab.run(TASK, *OPTIONS, "--stage", "6")
    assert status == 0 and "CER" in output
    status, output = lab.run(TASK, *OPTIONS, "--set", "decode.beam=3", "--dry_run")
    assert status == 0
    assert "decode.beam=3" in output
    status, output = lab.run(TASK, *OPTIONS, "--set", "model.d=32")
    assert status != 0 and "--tag" in output and "--force" in output, "a stale training is kept"


def test_a_changed_decode_section_is_what_is_done_and_why_is_kept(trained):
    """In the YAML, not by --set: stage 5 runs again, with what it says, and its log and record hold the reason."""
    lab, exp, _ = trained
    recipe = exp.parent.parent
    text = (recipe / "conf" / "tiny.yaml").read_text(encoding="utf-8")
    own = (*OPTIONS[:2], "--config", "conf/own.yaml", "--exp", str(exp), "--decode", "ctc_beam joint")
    try:
        text += "\ndecode: {nbest: 3, beam: 4, ctc_beam: 8}\n"
        (recipe / "conf" / "own.yaml").write_text(text, encoding="utf-8")
        status, output = lab.run(TASK, *own)
        assert status == 0 and "speechlab.train" not in output, output
        lines = [json.loads(line) for line in (exp / "decode/ctc_beam/test/hyp.jsonl").read_text().splitlines()]
        assert max(len(line.get("nbest", [1])) for line in lines) == 3
        assert set(json.loads((exp / "decode/methods.json").read_text())) == {"ctc_beam", "joint"}
        assert not (exp / "decode" / "attention").exists(), "what is not asked for any more is not scored any more"
        assert {row["method"] for row in json.loads((exp / "results.json").read_text())} == {"ctc_beam", "joint"}
        record = json.loads((exp / "decode/.stages/5_decode.json").read_text())
        assert "nbest was 16, is 3" in record["why"] and record["config"]["decode.nbest"] == 3
        assert f"# why: {record['why']}" in (exp / "decode/log/5_decode.log").read_text()
    finally:
        status, output = lab.run(TASK, *OPTIONS)  # as it was, for the tests that follow
        assert status == 0, output


def test_the_worst_can_be_heard_and_alignments_seen(trained):
    lab, exp, _ = trained
    found = json.loads((exp / "mistakes.json").read_text())
    assert {one["method"] for one in found["sets"]} == METHODS and {one["view"] for one in found["sets"]} == {"aligned"}
    first = next(one for one in found["sets"] if one["method"] == "attention")["items"][0]
    assert found["media"][first["clip"]].startswith("data:audio/") and first["picture"] in found["media"]
    pictures = sorted((exp / "attention").glob("epoch-*.png"))
    assert len(pictures) == 24
    page = (exp / "report.html").read_text(encoding="utf-8")
    assert found["media"][first["clip"]][:60] in page and len(page) < 6_000_000


def test_killed_while_training_it_goes_on(lab, trained):
    """kill -9 on everything in the middle of training, then the same command: the losses of an undisturbed run."""
    _, whole, _ = trained
    options = (*OPTIONS, "--tag", "killed", "--set", "train.save_minutes=0", "--stop_stage", "4")
    process = lab.start(TASK, *options)
    exp = lab.root / "egs" / TASK / "exp" / "synthetic_tiny_killed"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list((exp / "checkpoints").glob("step-6?.pt.sha256")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (exp / "checkpoints" / "final.pt").exists()
    status, output = lab.run(TASK, *options)
    assert status == 0, output
    assert "going on from" in output

    for folder in (exp, whole):
        assert len(records(folder, "epoch")) == 24
    # A line's loss is the mean since the last line, which a resume cuts short: weights say it without that.
    final = [torch.load(e / "checkpoints" / "final.pt", weights_only=True)["model"] for e in (whole, exp)]
    assert all(final[0][name].equal(final[1][name]) for name in final[0]), "to the last bit"


@pytest.mark.parametrize(("make", "status", "words"), [
    ("no_manifest", 1, ["manifest.tsv"]),
    ("missing_file", 1, ["gone.wav"]),
    ("empty_text", 1, ["text"]),
])
def test_bad_folders(lab, trained, tmp_path, make, status, words):
    cuts = CutSet.from_file(lab.root / "egs" / TASK / "data" / "synthetic" / "test.jsonl.gz")
    paths = [cut.recording.sources[0].source for cut in cuts][:12]
    rows = [f"{path}\t你好\tspk{i % 4}" for i, path in enumerate(paths)]
    folder = tmp_path / "my corpus"
    folder.mkdir()
    if make == "missing_file":
        rows.append("gone.wav\t你好\tspk1")
    if make == "empty_text":
        rows[3] = f"{paths[3]}\t\tspk3"
    if make != "no_manifest":
        (folder / "manifest.tsv").write_text("path\ttext\tspeaker\n" + "\n".join(rows) + "\n", encoding="utf-8")
    done, output = lab.run(TASK, "--corpus", "folder", "--data_dir", str(folder), "--config", "conf/tiny.yaml",
                           "--stop_stage", "1")
    assert done != 0, output
    for word in words:
        assert word in output
    assert "Traceback" not in output


def test_mistyped_keys_and_options(lab):
    for options, word in ((("--set", "train.epoch=3"), "did you mean 'epochs'"), (("--corpus",), "needs a value"),
                          (("--confg", "x"), "--config"), (("--stage", "three"), "needs a number"),
                          (("--config", "conf/none.yaml"), "no config")):
        status, output = lab.run(TASK, *OPTIONS[:2], *options)
        assert status == 2 and word in output and "Traceback" not in output, output
    status, output = lab.run(TASK, *OPTIONS[:2], "--corpus", "nothing")
    assert status != 0 and "nothing" in output


def test_help_lists_options_and_stages(lab):
    status, output = lab.run(TASK, "--help")
    assert status == 0
    for word in ("--corpus", "--ngpu", "Train", "Score", "Mandarin"):
        assert word in output


def test_the_number_of_processes_changes_no_result(lab, trained):
    """One core (one process, two batches a step) and two cores (two processes over gloo): the same losses to 1e-4."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core here")
    losses = {}
    for cores in (1, 2):
        exp = lab.root / f"cores{cores}"
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        command = [sys.executable, "-m", "speechlab.train", "conf/tiny.yaml", "--data", "data/synthetic",
                   "--exp", str(exp), "--set", "train.epochs=2", "--set", "train.amp=off", "--set", "model.dropout=0",
                   "--set", "train.log_steps=1"]
        done = subprocess.run(
            command, cwd=lab.root / "egs" / TASK, env={**lab.env, "PYTHONPATH": str(lab.root)}, text=True,
            capture_output=True, preexec_fn=lambda allowed=allowed: os.sched_setaffinity(0, allowed))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"cpu x {cores}" in done.stdout
        losses[cores] = [r["loss"] for r in records(exp, "step")]
    assert len(losses[1]) > 20
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)


def aishell_tree(lab, root, counts):
    """A corpus in AISHELL-1's own layout, of the made-up corpus' recordings."""
    import soundfile

    lines = []
    for part, (count, speaker) in counts.items():
        cuts = list(CutSet.from_file(lab.root / "egs" / TASK / "data" / "synthetic" / f"{part}.jsonl.gz"))[:count]
        for i, cut in enumerate(cuts):
            name = f"BAC009{speaker}W{121 + i:04d}"
            path = root / "data_aishell" / "wav" / part / speaker / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, cut.load_audio()[0], 16000, subtype="PCM_16")
            lines.append(f"{name} {' '.join(cut.supervisions[0].text)}\n")
    (root / "data_aishell" / "transcript").mkdir()
    (root / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
    (root / "resource_aishell").mkdir()
    return root


def test_aishell_on_disk_goes_through_every_stage(lab, trained, tmp_path):
    counts = {"train": (60, "S0002"), "dev": (8, "S0724"), "test": (9, "S0764")}
    root = aishell_tree(lab, tmp_path / "AISHELL 1", counts)
    status, output = lab.run(TASK, "--corpus", "aishell", "--data_dir", str(root), "--config", "conf/tiny.yaml",
                             "--set", "train.epochs=2")
    assert status == 0, output
    rows = json.loads((lab.root / "egs" / TASK / "exp" / "aishell_tiny" / "results.json").read_text())
    assert {(row["test_set"], row["method"], row["n"]) for row in rows if row["metric"] == "CER"} == {
        ("test", method, 9) for method in METHODS}


def test_the_default_config_trains_decodes_and_scores(lab, trained):
    """Its parts that the tiny one has not: Muon, the second target, the factored head, time halved, EMA, averaging."""
    status, output = lab.run(TASK, "--corpus", "synthetic", "--set", "train.epochs=3", "--set", "train.average=2",
                             "--set", "model.d=64", "--set", "model.hidden=96", "--set", "data.max_duration=20")
    assert status == 0, output
    exp = lab.root / "egs" / TASK / "exp" / "synthetic_conformer"
    state = torch.load(exp / "checkpoints" / "final.pt", weights_only=True)
    assert len(state["epochs"]) == 2 and state["auxiliary"]["kind"] == "phone" and "head.shared" in state["model"]
    assert (exp / "results.txt").exists()


def test_cross_entropy_alone_and_a_language_model_as_a_network(lab, trained):
    (lab.root / "more.txt").write_text("你好\n", encoding="utf-8")
    small = ("model.d=32", "model.layers=1", "decoder.layers=1", "train.epochs=1")
    status, output = lab.run(TASK, "--corpus", "synthetic", "--config", "conf/transformer_ce.yaml",
                             *(word for pair in small for word in ("--set", pair)),
                             "--lm_text", str(lab.root / "more.txt"), "--lm_conf", "conf/lm_transformer.yaml")
    assert status == 0, output
    assert "method ctc_greedy passed over: the model has no CTC head" in output
    exp = lab.root / "egs" / TASK / "exp" / "synthetic_transformer_ce"
    weights = json.loads((exp / "decode" / "methods.json").read_text())
    assert set(weights) == {"attention", "rescore"}
    assert set(weights["rescore"]["parts"]) == {"attention", "lm", "neural_lm"}
    assert list((lab.root / "egs" / TASK / "data" / "synthetic").glob("*/lm-*-more.txt-*/lm.arpa"))


def test_kaldi_directories_in_and_out(lab, trained, tmp_path):
    command = [sys.executable, "-m", "speechlab.data.kaldi", "export", "data/synthetic", "--to"]
    done = subprocess.run([*command, str(tmp_path / "kaldi")], cwd=lab.root / "egs" / TASK, text=True,
                          env={**lab.env, "PYTHONPATH": str(lab.root)}, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    status, output = lab.run(TASK, "--corpus", "kaldi", "--data_dir", str(tmp_path / "kaldi"), "--config",
                             "conf/tiny.yaml", "--stop_stage", "3")
    assert status == 0, output
    assert "train: 200 utterances" in output


def test_a_checkpoint_cut_in_half(lab, trained):
    _, exp, _ = trained
    final = exp / "checkpoints" / "final.pt"
    whole = final.read_bytes()
    final.write_bytes(whole[: len(whole) // 2])
    try:
        status, output = lab.run(TASK, *OPTIONS, "--stage", "5")
        assert status != 0 and "final.pt is damaged" in output and "Traceback" not in output, output
    finally:
        final.write_bytes(whole)


def test_no_gpu_is_said(lab, trained):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    status, output = lab.run(TASK, *OPTIONS, "--ngpu", "1", "--tag", "gpu", "--stage", "4")
    assert status != 0 and "GPU" in output and "Traceback" not in output, output
