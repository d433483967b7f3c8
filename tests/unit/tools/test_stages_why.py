"""Why a stage was run: on the terminal, by --dry_run, in its log's head and in its record. What is said last."""

from __future__ import annotations

import json

import pytest
from stages_helper import recipe  # noqa: F401  (a fixture)

FBANK = 'stage 2 "Fbank" --conf features --out data/f -- python work.py data/f --config "$config"'
TRAIN = ('stage 4 "Train" --train --conf model,train --out exp/a/checkpoints/best '
         '-- python work.py exp/a/checkpoints/best --config "$config"')
FIRST = "it was not done before"


def told(recipe, stage: str, *arguments: str, status: int = 0, record: str = "data/.stages/2_fbank.json") -> str:
    """Why ``stage`` is run: the same by --dry_run, in the log's head, in the record, and (but for FIRST) on stdout."""
    shown = recipe.run(*arguments, "--dry_run").stdout
    dry = next(line for line in shown.splitlines() if line.startswith(stage)).partition(": to do: ")[2]
    out = recipe.run(*arguments, status=status).stdout.splitlines()
    why = recipe.record(record)["why"]
    log = (recipe.folder / record.replace(".stages", "log").replace(".json", ".log")).read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if line.startswith("# why:")] == [f"# why: {why}"] == [f"# why: {dry}"]
    assert (f"{stage.split(':')[0]}: {why}" in out) == (why != FIRST)
    return why


class TestAStage:
    def test_not_done_before(self, recipe):
        recipe.stages(FBANK)
        assert told(recipe, "stage 2: Fbank") == FIRST

    def test_entered(self, recipe):
        recipe.stages(FBANK)
        assert told(recipe, "stage 2: Fbank", "--stage", "2") == f"entered by --stage 2; {FIRST}"
        assert told(recipe, "stage 2: Fbank", "--stage=0") == "entered by --stage 0"
        assert told(recipe, "stage 2: Fbank", "--stage", "2", "--set", "features.num_mel_bins=40") == (
            "entered by --stage 2; it was stale: num_mel_bins was 80, is 40")
        (recipe.folder / "data" / ".stages" / "2_fbank.json").unlink()
        assert told(recipe, "stage 2: Fbank", "--stage", "2") == (
            "entered by --stage 2; there is no record of how it was made")

    def test_stale(self, recipe):
        recipe.stages(FBANK)
        recipe.run()
        assert told(recipe, "stage 2: Fbank", "--set", "features.num_mel_bins=40") == "num_mel_bins was 80, is 40"

    def test_a_file_of_many_is_gone(self, recipe):
        """Of an input with a star, one that is no more there; and not where all of them are."""
        recipe.stages('stage 2 "Fbank" --in "data/d*/x" --out data/f -- python work.py data/f')
        for name in ("da", "db", "other"):
            (recipe.folder / "data" / name).mkdir(parents=True)
            (recipe.folder / "data" / name / "x").write_text(name)
        recipe.run()
        (recipe.folder / "data" / "other" / "x").unlink()
        assert "nothing to do" in recipe.run().stdout
        (recipe.folder / "data" / "da" / "x").unlink()
        assert told(recipe, "stage 2: Fbank") == "data/da/x is gone"
        assert "nothing to do" in recipe.run().stdout  # and it is remembered
        (recipe.folder / "data" / "db" / "x").unlink()
        assert "nothing to do" in recipe.run().stdout

    def test_a_value_of_several_lines_is_one_line_of_the_log(self, recipe):
        recipe.stages(FBANK)
        recipe.run("--set", 'features.dither="a"')
        assert told(recipe, "stage 2: Fbank", "--set", 'features.dither="a\\nb"') == "dither was a, is a\\nb"

    def test_gone(self, recipe):
        recipe.stages(FBANK)
        recipe.run()
        (recipe.folder / "data" / "f").unlink()
        assert told(recipe, "stage 2: Fbank") == "data/f is gone"
        (recipe.folder / "data" / "f").unlink()
        assert told(recipe, "stage 2: Fbank", "--stage", "2") == "entered by --stage 2; data/f is gone"

    def test_failed(self, recipe):
        recipe.stages(FBANK + " --status 7")
        assert told(recipe, "stage 2: Fbank", status=7) == FIRST
        recipe.stages(FBANK)
        assert told(recipe, "stage 2: Fbank") == "it failed with status 7"

    def test_the_record_keeps_it_when_an_input_is_only_touched(self, recipe):
        recipe.stages('stage 2 "Fbank" --in data/in --out data/f -- python work.py data/f')
        (recipe.folder / "data").mkdir()
        for _ in range(2):
            (recipe.folder / "data" / "in").write_text("1")
            recipe.run()
            assert recipe.record("data/.stages/2_fbank.json")["why"] == FIRST


class TestATraining:
    def told(self, recipe, *arguments: str) -> str:
        return told(recipe, "stage 4: Train", *arguments, record="exp/a/.stages/4_train.json")

    def test_its_reasons(self, recipe):
        recipe.stages(TRAIN)
        assert self.told(recipe) == FIRST
        assert self.told(recipe, "--stage", "4") == "goes on from its checkpoint (entered by --stage 4)"
        assert self.told(recipe, "--set", "train.epochs=3") == "epochs was 2, is 3: it goes on"
        assert self.told(recipe, "--set", "train.epochs=4", "--stage", "4") == (
            "goes on from its checkpoint (entered by --stage 4; epochs was 3, is 4)")
        best = recipe.folder / "exp" / "a" / "checkpoints" / "best"
        best.rename(best.with_name("step-1"))
        assert self.told(recipe) == "goes on from its checkpoint (exp/a/checkpoints/best is gone)"

    def test_afresh(self, recipe):
        recipe.stages(TRAIN)
        assert self.told(recipe, "--force") == "afresh (--force)"
        assert self.told(recipe, "--force") == "afresh (--force)"
        assert self.told(recipe, "--force", "--set", "model.d=8") == "afresh (--force); it was stale: d was 4, is 8"
        assert recipe.record("exp/a.old-1/.stages/4_train.json")["why"] == "afresh (--force)"

    def test_checkpoints_of_somebody_elses(self, recipe):
        recipe.stages(TRAIN)
        (recipe.folder / "exp" / "a" / "checkpoints").mkdir(parents=True)
        (recipe.folder / "exp" / "a" / "checkpoints" / "step-1").write_text("x")
        assert self.told(recipe) == "goes on from its checkpoint (there is no record of how it was made)"


class TestKeysThatChangeNoResult:
    @pytest.mark.parametrize("pair", ["train.log_steps=5", "train.threads=2", "train.keep=9"])
    def test_by_their_full_path(self, recipe, pair):
        recipe.stages(TRAIN)
        recipe.run()
        assert "nothing to do" in recipe.run("--set", pair).stdout

    def test_a_models_own_argument_of_such_a_name_counts(self, recipe):
        recipe.stages(TRAIN)
        recipe.run("--set", "model.log=1")
        assert "log was 1, is 2: the training in exp/a" in recipe.run("--set", "model.log=2", status=1).stderr

    def test_an_older_record_that_holds_them(self, recipe):
        recipe.stages(TRAIN)
        recipe.run()
        path = recipe.folder / "exp" / "a" / ".stages" / "4_train.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record["config"]["train.threads"] = 1
        path.write_text(json.dumps(record))
        assert "nothing to do" in recipe.run().stdout


class TestTheAnswer:
    OPENING = "test_a: ctc_beam_lm, CER 9.42 % (7.97 - 11.01)\ntest_b: 中文, CER 1.00 %\n"
    SCORE = 'stage 6 "Score" --out "$exp/results.txt" "$exp/results.json" -- bash results/copy.sh "$exp"'

    @pytest.fixture
    def scored(self, recipe):
        """A recipe whose last stage copies what lies in results/."""
        recipe.stages('exp=${exp:-exp/a}\nstage 5 "Decode" --out "$exp/d" -- python work.py "$exp/d"\n' + self.SCORE)
        (recipe.folder / "results").mkdir()
        (recipe.folder / "results" / "copy.sh").write_text('cp results/*.txt results/*.json "$1"\n'
                                                           '[ ! -f results/report.html ] || cp results/*.html "$1"\n')
        self.write(recipe, self.OPENING + "\ntable\n", json="[]")
        return recipe

    def write(self, recipe, text: str, json: str = "[]", report: str = "") -> None:
        (recipe.folder / "results" / "results.txt").write_text(text, encoding="utf-8")
        (recipe.folder / "results" / "results.json").write_text(json)
        if report:
            (recipe.folder / "results" / "report.html").write_text(report)

    def test_is_the_last_that_is_said(self, scored):
        assert scored.run().stdout.endswith("done: exp/a/results.txt exp/a/results.json\n" + self.OPENING)
        self.write(scored, self.OPENING + "\ntable\n", report="<html>")
        end = self.OPENING + "report: exp/a/report.html\n"
        assert scored.run("--stage", "6").stdout.endswith("results.json\n" + end)
        again = scored.run().stdout
        assert again.endswith("does stage N and those after it again)\n" + end)
        assert "test_a" not in scored.run("--dry_run").stdout and "report:" not in scored.run("--dry_run").stdout
        assert "report:" not in scored.run("--stop_stage", "5").stdout  # not what was asked for

    def test_of_an_experiment_elsewhere(self, scored, tmp_path):
        self.write(scored, self.OPENING + "\n", report="<html>")
        exp = tmp_path / "my 实验"
        assert scored.run("--exp", str(exp)).stdout.endswith(f"{self.OPENING}report: {exp}/report.html\n")
        inside = scored.house / "exp here"
        assert scored.run("--exp", str(inside)).stdout.endswith(f"report: {inside}/report.html\n")

    @pytest.mark.parametrize("text, said", [
        ("# experiment: a\n# config: b\n\ntable\n", ""),  # of an earlier version
        ("", ""), ("\ntable\n", ""), ("one line", "one line\n"), ("a\n \nb\n", "a\n"),
        ("".join(f"{n}\n" for n in range(100)), "".join(f"{n}\n" for n in range(20)))])
    def test_no_more_than_an_opening(self, scored, text, said):
        self.write(scored, text)
        assert scored.run().stdout.endswith("done: exp/a/results.txt exp/a/results.json\n" + said)

    def test_not_of_a_run_that_failed(self, scored):
        scored.run()
        scored.stages('exp=exp/a\nstage 6 "Score" --out "$exp/results.txt" -- false')
        assert "test_a" not in scored.run(status=1).stdout
