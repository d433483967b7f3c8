"""What runs and what does not: the rules of tools/stagelib/decide.py, one by one, through real little recipes."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess

import pytest
from stages_helper import recipe  # noqa: F401  (a fixture)

ALL = [".complete", "train.gz", "train", "best", "results.txt"]


def test_everything_then_nothing(recipe):
    first = recipe.run()
    assert recipe.ran() == ALL
    assert first.stdout.splitlines()[-2] == "done: exp/mini_a/results.txt"  # and the opening of that file
    second = recipe.run()
    assert recipe.ran() == []
    lines = second.stdout.splitlines()
    assert lines[:5] == ["stage 0: Fetch: done", "stage 1: Manifests: done", "stage 2: Fbank: done",
                         "stage 4: Train: done", "stage 6: Score: done"]
    assert lines[5].startswith("nothing to do")
    assert (recipe.folder / "config_was_resolved").read_text() == "x"  # once: the cache served the rest


def test_stage_enters_it_and_all_after_it(recipe):
    recipe.run()
    recipe.ran()
    again = recipe.run("--stage", "2")
    assert recipe.ran() == ["train", "best", "results.txt"]
    assert "stage 4: goes on from its checkpoint" in again.stdout
    recipe.run("--stage=2", "--stop_stage", "2")
    assert recipe.ran() == ["train"]
    recipe.run("--stage", "3", "--stop_stage", "100")  # a number that is left out here; Kaldi's "to the end"
    assert recipe.ran() == ["best", "results.txt"]


def test_stop_stage(recipe):
    recipe.run("--stop_stage", "1")
    assert recipe.ran() == ALL[:2]
    recipe.run()
    assert recipe.ran() == ALL[2:]


def test_several_steps_share_a_number(recipe):
    recipe.stages('''stage 3 "One" --out data/one -- python work.py data/one
                     stage 3 "Two" --out data/two -- python work.py data/two''')
    recipe.run("--stage", "3")
    assert recipe.ran() == ["one", "two"]


def test_a_changed_argument_and_its_reason(recipe):
    for value, reason in (("3", ""), ("4", "stage 1: --note was 3, is 4")):
        recipe.stages(f'stage 1 "One" --out data/one -- python work.py data/one --nj "$nj" --note {value}')
        assert reason in recipe.run().stdout
        assert recipe.ran() == ["one"]
    recipe.run("--nj", "7", "--ngpu", "0")  # changes no result
    assert recipe.ran() == []


def test_a_changed_config_and_its_reason(recipe):
    recipe.stages('stage 2 "Fbank" --conf features --out data/f -- python work.py data/f --config "$config"')
    recipe.run()
    assert "stage 2: num_mel_bins was 80, is 40" in recipe.run("--set", "features.num_mel_bins=40").stdout
    assert recipe.ran() == ["f", "f"]
    recipe.run("--set", "features.num_mel_bins=40", "--set", "model.d=9")  # a section that this stage does not read
    assert recipe.ran() == []


def test_a_key_younger_than_the_record_is_no_change_at_its_default(recipe):
    recipe.stages('stage 2 "Fbank" --conf features --out data/f -- python work.py data/f --config "$config"')
    recipe.run()
    recipe.run("--set", "features.dither=0")  # as if the key, and its default, had come with a newer speechlab
    assert recipe.ran() == ["f"]
    assert "stage 2: dither was not set, is 1" in recipe.run("--set", "features.dither=1").stdout
    assert recipe.ran() == ["f"]


def test_set_reaches_the_stages_that_read_the_config(recipe):
    recipe.run("--set", "train.epochs=3", "--stop_stage", "4")
    lines = (recipe.folder / "ran").read_text(encoding="utf-8").splitlines()
    assert ["--set train.epochs=3" in line for line in lines] == [False, False, True, True]


def test_two_configs_with_the_same_section_share_its_stage(recipe):
    shutil.copy(recipe.folder / "conf" / "a.yaml", recipe.folder / "conf" / "b.yaml")
    recipe.run()
    recipe.ran()
    recipe.run("--config", "conf/b.yaml")
    assert recipe.ran() == ["best", "results.txt"]


def test_a_changed_input(recipe):
    recipe.run()
    recipe.ran()
    manifest = recipe.folder / "data" / "mini" / "train.gz"
    os.utime(manifest, (1, 1))
    recipe.run()  # touched: the same content
    assert recipe.ran() == []
    assert recipe.record("data/mini/fbank80/.stages/2_fbank.json")["inputs"]["data/mini/train.gz"]["mtime_ns"] == 10**9
    manifest.write_text("other")
    assert "stage 2: data/mini/train.gz has changed" in recipe.run().stdout
    assert recipe.ran() == ["train"]  # and what it made is the same as before, so the training is not stale


def test_a_manifest_made_again_is_known_by_its_content(recipe):
    recipe.stages('stage 2 "Two" --in data/m.gz --out data/two -- python work.py data/two')
    manifest = recipe.folder / "data" / "m.gz"
    manifest.parent.mkdir()
    for text, mtime, ran in (("a", 1, ["two"]), ("a", 99999, []), ("b", 99999, ["two"])):
        with gzip.GzipFile(manifest, "wb", mtime=mtime) as file:
            file.write(text.encode())
        recipe.run()
        assert recipe.ran() == ran


def test_a_folder_and_a_pattern_as_inputs(recipe):
    recipe.stages('stage 2 "Two" --in data/in "data/d/*/hyp" --out data/two -- python work.py data/two')
    for name in ("in/a", "in/.hidden", "in/log/x", "d/m 1/hyp", "d/m 1/ref"):
        (recipe.folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (recipe.folder / "data" / name).write_text("1")
    recipe.run()
    assert recipe.ran() == ["two"]
    for name, ran in (("in/.hidden", []), ("in/log/x", []), ("d/m 1/ref", []), ("in/a", ["two"]),
                      ("d/m 1/hyp", ["two"])):
        (recipe.folder / "data" / name).write_text("22")
        recipe.run()
        assert recipe.ran() == ran, name
    (recipe.folder / "data" / "in" / "b").write_text("new")
    assert "data/in/b is new" in recipe.run().stdout


def test_a_huge_folder_as_an_input_goes_by_its_first_level(recipe):
    recipe.stages('stage 2 "Two" --in data/in --out data/two -- python work.py data/two')
    for number in range(250):
        path = recipe.folder / "data" / "in" / f"{number % 2}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for new, ran in (("in/0/0", ["two"]), ("in/0/0", []), ("in/2", ["two"])):
        (recipe.folder / "data" / new).touch()
        recipe.run()
        assert recipe.ran() == ran


def test_a_missing_output_is_made_again(recipe):
    recipe.run()
    recipe.ran()
    (recipe.folder / "data" / "mini" / "train.gz").unlink()
    assert "stage 1: data/mini/train.gz is gone" in recipe.run().stdout
    assert recipe.ran() == ["train.gz"]


def test_inputs_removed_to_make_room_make_nothing_stale(recipe):
    recipe.stages('stage 2 "Two" --in data/raw --out data/two -- python work.py data/two')
    (recipe.folder / "data").mkdir()
    (recipe.folder / "data" / "raw").write_text("1")
    recipe.run()
    (recipe.folder / "data" / "raw").unlink()
    assert "stage 2: Two: done" in recipe.run().stdout
    assert recipe.ran() == ["two"]


def test_missing_input_names_its_maker(recipe):
    done = recipe.run("--stage", "4", status=1)
    assert done.stderr == "error: stage 4 needs data/mini/fbank80/train, which stage 2 makes: ./run.sh --stage 2\n"
    done = recipe.run("--stage", "2", "--corpus", "other", status=1)
    assert done.stderr.endswith("which stage 1 makes: ./run.sh --corpus other --stage 1\n")
    recipe.stages('stage 1 "One" --in "$data_dir/manifest.tsv" --out data/one -- python work.py data/one')
    done = recipe.run("--data_dir", "nowhere", status=1)
    assert "nowhere/manifest.tsv, which is not there and no stage makes" in done.stderr
    recipe.stages('''stage 5 "Five" --out exp/decode/m -- true
                     stage 6 "Six" --in "exp/decode/*/hyp" --out exp/six -- true''')
    assert "which stage 5 makes" in recipe.run("--stage", "6", status=1).stderr
    assert not (recipe.folder / "exp").exists() and recipe.ran() == []


def test_failure_shows_the_log_and_passes_the_status_on(recipe):
    recipe.stages('''stage 1 "One" --out data/one -- python work.py data/one --say "the reason" --status 7
                     stage 2 "Two" --out data/two -- python work.py data/two''')
    done = recipe.run(status=7)
    assert "  | the reason\n" in done.stderr
    assert done.stderr.endswith("error: stage 1: One failed with status 7; log: data/log/1_one.log\n")
    assert recipe.ran() == ["one"]
    assert "stage 1: it failed with status 7" in recipe.run(status=7).stdout


def test_an_output_that_is_not_made_is_a_failure(recipe):
    recipe.stages('stage 1 "One" --out data/one data/other -- python work.py data/one')
    assert "ended without an error but did not make data/other" in recipe.run(status=1).stderr
    assert recipe.record("data/.stages/1_one.json")["status"] == "failed"


def test_outputs_without_a_record_are_taken_as_they_are(recipe):
    recipe.stages('stage 1 "One" --out data/one -- python work.py data/one')
    (recipe.folder / "data").mkdir()
    (recipe.folder / "data" / "one").write_text("by hand")
    assert "stage 1: One: done (taken as it is" in recipe.run().stdout
    recipe.stages('stage 1 "One" --out data/one -- python work.py data/one --note 2')
    assert "stage 1: --note was not given, is 2" in recipe.run().stdout  # from then on it is watched
    assert recipe.ran() == ["one"]


class TestTraining:
    def test_more_epochs_go_on_and_fewer_are_done(self, recipe):
        recipe.run()
        recipe.ran()
        assert "stage 4: epochs was 2, is 5: it goes on" in recipe.run("--set", "train.epochs=5").stdout
        assert recipe.ran() == ["best"]
        recipe.run("--set", "train.epochs=3")
        assert recipe.ran() == []

    def test_a_stale_one_is_kept(self, recipe):
        recipe.run()
        recipe.ran()
        best = recipe.folder / "exp" / "mini_a" / "checkpoints" / "best"
        best.write_text("weeks of work")
        for more in ([], ["--stage", "4"]):
            done = recipe.run("--set", "model.d=8", *more, status=1)
            assert done.stderr.splitlines() == [
                "error: stage 4: d was 4, is 8: the training in exp/mini_a was made otherwise, and is kept",
                "  a new one beside it: ./run.sh --set model.d=8 --tag NAME",
                "  a new one in its place (this one is moved to exp/mini_a.old-1): ./run.sh --set model.d=8 --force"]
            assert recipe.ran() == []
        recipe.run("--set", "model.d=8", "--tag", "big")  # what it offers
        assert recipe.ran() == ["best", "results.txt"]
        assert (recipe.folder / "exp" / "mini_a_big" / "results.txt").exists()
        assert best.read_text() == "weeks of work"

    def test_force_moves_the_old_one_aside(self, recipe):
        recipe.stages('stage 4 "Train" --train --conf model --out exp/a/checkpoints/best -- bash local/train.sh')
        (recipe.folder / "local").mkdir()
        (recipe.folder / "local" / "train.sh").write_text(
            "mkdir -p exp/a/checkpoints\necho forced=${SPEECHLAB_FORCE:-0} > exp/a/checkpoints/best\n")
        recipe.run()
        for number, sets in ((1, ["--set", "model.d=8"]), (2, [])):  # stale or not
            recipe.run(*sets, "--force")
            assert (recipe.folder / f"exp/a.old-{number}/checkpoints/best").exists()
            assert (recipe.folder / f"exp/a.old-{number}/.stages/4_train.json").exists()
            assert not (recipe.folder / f"exp/a.old-{number}/.stages/lock").exists()
            assert not (recipe.folder / "exp/a/.stages/lock").exists()
        assert (recipe.folder / "exp/a.old-1/checkpoints/best").read_text() == "forced=0\n"
        assert (recipe.folder / "exp/a/checkpoints/best").read_text() == "forced=1\n"

    def test_one_that_failed_before_its_first_checkpoint_is_not_in_the_way(self, recipe):
        recipe.stages('stage 4 "Train" --train --conf model --out exp/a/checkpoints/best -- false')
        recipe.run(status=1)
        recipe.stages('stage 4 "Train" --train --conf model --out exp/a/checkpoints/best '
                      '-- python work.py exp/a/checkpoints/best')
        recipe.run("--set", "model.d=8")
        assert recipe.ran() == ["best"]


def test_dry_run_shows_states_and_commands_and_runs_nothing(recipe):
    recipe.run("--stop_stage", "2")
    recipe.ran()
    before = sorted(str(path) for path in recipe.folder.rglob("*"))
    shown = recipe.run("--dry_run", "--stop_stage", "6").stdout
    assert "stage 2: Fbank: done\n" in shown
    assert "stage 4: Train: to do: it was not done before\n" in shown
    assert "stage 6: Score: to do: it was not done before\n" in shown
    assert sorted(str(path) for path in recipe.folder.rglob("*")) == before
    command = next(line for line in shown.splitlines() if "checkpoints/best" in line)
    assert recipe.ran() == []
    # exact: what it shows does what the stage would do
    subprocess.run(["bash", "-c", command.split("$ ", 1)[1]], cwd=recipe.folder, check=True, env=recipe.env)
    assert recipe.ran() == ["best"]


def test_dry_run_knows_that_a_later_stage_depends_on_an_earlier_one(recipe):
    recipe.run()
    (recipe.folder / "data" / "mini" / "train.gz").write_text("other")
    shown = recipe.run("--dry_run").stdout
    assert "stage 2: Fbank: to do: data/mini/train.gz has changed" in shown
    assert "stage 4: Train: done, unless stage 2 makes something else" in shown
    assert "stage 4: Train: stale, but kept: d was 4, is 8" in recipe.run("--dry_run", "--set", "model.d=8").stdout


def test_a_misspelt_config_key_ends_it_before_anything_runs(recipe):
    done = recipe.run("--set", "model.dd=8", status=2)
    assert done.stderr == "error: conf/a.yaml: unknown key 'model.dd'\n"
    assert recipe.ran() == []


def test_a_config_that_is_not_there(recipe):
    assert "there is no config" in recipe.run("--config", "conf/aa.yaml", status=2).stderr
    assert "did you mean conf/a.yaml?" in recipe.run("--config", "conf/aa.yaml", status=2).stderr


def test_code_that_changes_defaults_makes_the_cached_config_void(recipe):
    recipe.run("--stop_stage", "1")
    config = recipe.house / "speechlab" / "tasks" / "__main__.py"
    config.write_text(config.read_text(encoding="utf-8").replace('"fbank%d"', '"f%d"'), encoding="utf-8")
    recipe.run("--stop_stage", "2")
    assert (recipe.folder / "data" / "mini" / "f80" / "train").exists()


def test_code_at_any_depth_can_change_defaults(recipe, tmp_path):
    (tmp_path / "own").mkdir()
    (recipe.folder / "local").symlink_to(tmp_path / "own")  # as Kaldi's recipes share theirs
    resolved = 0
    for path in (None, recipe.house / "speechlab" / "tasks" / "asr" / "config.py",
                 recipe.house / "speechlab" / "a" / "b c" / "d" / "e.py", recipe.folder / "local" / "task.py",
                 recipe.folder / "local" / "语音" / "net.py"):
        for text in ("a = 1", "a = 2", "a = 2"):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            recipe.run("--stop_stage", "1")
        resolved += 2 if path else 1
        assert (recipe.folder / "config_was_resolved").read_text() == resolved * "x", path
    path.rename(path.with_name("other.py"))  # the same content under another name: another package
    recipe.run("--stop_stage", "1")
    assert (recipe.folder / "config_was_resolved").read_text() == (resolved + 1) * "x"
    (recipe.folder / "local" / "notes.txt").write_text("no code")
    recipe.run("--stop_stage", "1")
    assert (recipe.folder / "config_was_resolved").read_text() == (resolved + 1) * "x"


def test_moving_the_house_and_the_downloads_makes_nothing_stale(recipe, tmp_path):
    recipe.run()
    recipe.ran()
    new = tmp_path / "elsewhere"
    recipe.house.rename(new)
    done = recipe.run(cwd=new / "egs" / "little")
    assert "nothing to do" in done.stdout
    (new / "downloads").rename(tmp_path / "store")
    done = recipe.run(cwd=new / "egs" / "little", SPEECHLAB_DOWNLOADS=str(tmp_path / "store"))
    assert "nothing to do" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_shared_corpus_that_is_read_only(recipe, tmp_path):
    store = tmp_path / "store"
    (store / "mini").mkdir(parents=True)
    (store / "mini" / ".complete").write_text("x")
    store.chmod(0o555)
    try:
        recipe.run("--stop_stage", "1", SPEECHLAB_DOWNLOADS=str(store))
    finally:
        store.chmod(0o755)
    assert recipe.ran() == ["train.gz"]
