"""Interrupted runs, locks and logs: tools/stagelib/process.py and locks.py, by processes that are really killed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages_helper import TOOLS, gone, recipe  # noqa: F401  (recipe is a fixture)

STAGES = [0, 1, 2, 4, 6]
FILES = dict(zip(STAGES, [".complete", "train.gz", "train", "best", "results.txt"]))


def goes_on(recipe, stage: int) -> str:
    """After an interruption in ``stage``, a second run does it and what comes after, and a third nothing."""
    recipe.ran()
    (recipe.folder / "go on").touch()
    done = recipe.run("--pause", str(stage))
    assert recipe.ran() == [FILES[number] for number in STAGES[STAGES.index(stage):]]
    assert "nothing to do" in recipe.run("--pause", str(stage)).stdout
    return done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_the_whole_group_and_the_next_run_goes_on(recipe, stage):
    process = recipe.start("--pause", str(stage))
    pid = int(recipe.wait_for("pid").read_text())
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does; the stage is in another group
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted in stage {stage}" in err and f"./run.sh --pause {stage}" in err
    assert gone(pid)
    assert not list(recipe.house.rglob("lock"))
    out = goes_on(recipe, stage)
    assert ("stage 4: goes on from its checkpoint" if stage == 4 else f"stage {stage}: ") in out


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_of_everything_and_the_next_run_goes_on(recipe, stage):
    process = recipe.start("--pause", str(stage))
    pid = int(recipe.wait_for("pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert list(recipe.house.rglob("lock"))  # left behind
    goes_on(recipe, stage)
    assert not list(recipe.house.rglob("lock"))


def test_what_a_killed_run_left_behind_is_ended_first(recipe):
    process = recipe.start("--pause", "4")
    pid = int(recipe.wait_for("pid").read_text())
    process.kill()
    process.wait()
    second = recipe.start("--pause", "4")
    assert gone(pid)
    recipe.wait_for("exp/mini_a/checkpoints/saved")  # it was asked to end, not killed
    (recipe.folder / "go on").touch()
    out, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert f"ending pid {pid}, which a killed run left behind" in out


def test_helpers_that_ignore_ctrl_c_are_killed(recipe):
    recipe.stages('stage 1 "One" --out data/one -- local/one.sh')
    (recipe.folder / "local").mkdir()
    (recipe.folder / "local" / "one.sh").write_text(
        'trap "" INT\npython -c "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)" &\n'
        "echo $! > pid\nwait\n")
    process = recipe.start()
    pid = int(recipe.wait_for("pid").read_text())
    for _ in range(2):  # the second one does not wait for the ten seconds to end
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and gone(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_that_is_told_to_end_saves_and_is_waited_for(recipe, number):
    process = recipe.start("--pause", "4")
    recipe.wait_for("pid")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 85
    assert "stage 4: Train: saved, to be requeued" in err
    assert (recipe.folder / "exp/mini_a/checkpoints/saved").exists()
    goes_on(recipe, 4)


def test_slurms_notice_is_passed_on(recipe):
    recipe.stages('stage 4 "Train" --train --out exp/a/checkpoints/best -- python -c "'
                  'import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(85));'
                  ' open(\'pid\', \'w\').write(\'x\'); time.sleep(60)"')
    process = recipe.start()
    recipe.wait_for("pid")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 85


def test_sigterm_in_a_stage_that_does_not_save(recipe):
    recipe.stages('stage 1 "One" --out data/one -- bash -c "echo x > pid; exec sleep 60"')
    process = recipe.start()
    recipe.wait_for("pid")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert recipe.record("data/.stages/1_one.json")["status"] == "interrupted"


def test_a_killed_stage_says_so(recipe):
    recipe.stages('stage 1 "One" --out data/one -- bash -c "kill -9 \\$\\$"')
    assert "failed with status 137 (killed from outside, often for memory (" in recipe.run(status=137).stderr


@pytest.fixture
def small_group():
    """A control group of 300 MB (version 1 or 2), where we may make one."""
    made = []
    for top, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(top) / f"speechlab-test-{os.getpid()}"
        try:
            group.mkdir()
            made.append(group)
            (group / limit).write_text(str(300 << 20))
        except OSError:
            continue
        break
    else:
        pytest.skip("no control group can be made here")
    yield group
    for group in made:
        group.rmdir()


def test_a_stage_killed_for_memory_says_so_with_the_sizes(recipe, small_group):
    (recipe.folder / "eat.py").write_text("import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\n"
                                          "x = bytearray(b'x') * (1 << 30)\n")
    recipe.stages('stage 1 "One" --out data/one -- python eat.py')
    process = recipe.start()
    (small_group / "cgroup.procs").write_text(str(process.pid))  # the whole run, as in a Slurm job
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        time.sleep(0.02)
    for child in children:
        (small_group / "cgroup.procs").write_text(child)
    (recipe.folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "failed with status 137 (killed for memory: the kernel needed it back (this machine has " in err
    assert "this job may use 0.3 GB; a smaller batch" in err


def test_a_helper_left_in_the_background_does_not_hang_the_run(recipe):
    recipe.stages('stage 1 "One" --out data/one -- bash -c "sleep 60 & echo \\$! > pid; echo x > data/one"')
    recipe.run()
    assert gone(int((recipe.folder / "pid").read_text()))


class TestLocks:
    def test_a_second_run_on_a_folder_refuses(self, recipe):
        process = recipe.start("--pause", "4")
        recipe.wait_for("pid")
        recipe.ran()
        refused = recipe.run("--pause", "4", status=1)
        assert refused.stderr.startswith("error: another run is writing exp/mini_a (pid ")
        assert f"pid {process.pid} on {os.uname().nodename}, ./run.sh stage 4" in refused.stderr
        assert refused.stderr.count("\n") == 1 and recipe.ran() == []
        recipe.run("--tag", "b", "--stop_stage", "4")  # another experiment over the same data
        (recipe.folder / "go on").touch()
        process.communicate(timeout=30)
        assert process.returncode == 0

    def owner(self, recipe, **changes) -> Path:
        """A lock on data/ as a run by this (living) process would have made it, with ``changes``."""
        sys.path.insert(0, str(TOOLS))
        from stagelib.locks import began

        recipe.stages('stage 1 "One" --out data/one -- python work.py data/one')
        place = recipe.folder / "data" / ".stages" / "lock"
        place.mkdir(parents=True)
        owner = {"host": os.uname().nodename, "pid": os.getpid(), "began": began(os.getpid()), "what": "stage 1",
                 "since": "today", "child": 0, "child_began": "", **changes}
        (place / "owner.json").write_text(json.dumps(owner))
        return place

    def test_a_living_owner(self, recipe):
        self.owner(recipe)
        assert "another run is writing data" in recipe.run(status=1).stderr

    def test_on_another_host_nobody_can_tell(self, recipe):
        place = self.owner(recipe, host="node7", pid=1, began="")
        assert f"rm -r {place.relative_to(recipe.folder)}" in recipe.run(status=1).stderr

    def test_a_number_that_is_another_process_by_now(self, recipe):
        self.owner(recipe, began="long ago")
        recipe.run()
        assert recipe.ran() == ["one"]

    def test_a_process_that_took_over_the_childs_number_is_left_alone(self, recipe):
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
            self.owner(recipe, pid=2**22 + 1, began="x", child=other.pid, child_began="long ago")
            recipe.run()
            assert other.poll() is None
            other.kill()

    def test_one_that_was_cut_short(self, recipe):
        place = self.owner(recipe)
        (place / "owner.json").write_text("")
        os.utime(place, (1, 1))
        recipe.run()
        assert recipe.ran() == ["one"]

    def test_of_many_that_start_at_once_one_works(self, recipe):
        self.owner(recipe, pid=2**22 + 1, began="x")  # and a stale lock to be removed by one of them
        recipe.stages('stage 1 "One" --out data/one -- bash -c "echo x >> count; sleep 1; cp count data/one"')
        runs = [recipe.start() for _ in range(4)]
        for run in runs:
            run.communicate(timeout=60)
        assert (recipe.folder / "count").read_text() == "x\n"
        assert {run.returncode for run in runs} <= {0, 1} and any(run.returncode == 0 for run in runs)


class TestLogs:
    def test_a_bar_is_live_on_the_terminal_and_one_line_in_the_log(self, recipe):
        text = "10%<CR>50%<CR><ESC>[32m100%<ESC>[0m"
        recipe.stages(f'stage 1 "One" --out data/one -- python work.py data/one --say "{text}" --say "中文"')
        shown = subprocess.run(["./run.sh"], cwd=recipe.folder, env=recipe.env, capture_output=True, check=True).stdout
        assert b"10%\r50%\r\x1b[32m100%\x1b[0m\n" in shown
        log = (recipe.folder / "data/log/1_one.log").read_text(encoding="utf-8").splitlines()
        assert log[-2:] == ["100%", "中文"]

    def test_the_header_can_be_run_and_the_earlier_log_is_kept(self, recipe):
        recipe.stages('stage 1 "One" --out data/one -- python work.py data/one --say first --nj $nj')
        recipe.run("--nj", "1")
        recipe.run("--nj", "2", "--stage", "1")
        log = recipe.folder / "data" / "log" / "1_one.log"
        old, new = (path.read_text(encoding="utf-8") for path in (log.with_name("1_one.log.1"), log))
        assert "--nj 1" in old and "--nj 2" in new
        assert os.uname().nodename in new.splitlines()[0]
        recipe.ran()
        command = "\n".join(line[2:] for line in new.splitlines()[1:3])
        subprocess.run(["bash", "-c", command], check=True, cwd="/", env=recipe.env, stdout=subprocess.DEVNULL)
        assert recipe.ran() == ["one"]

    @pytest.mark.parametrize("terminal, wanted", [(True, "bar"), (False, "lines")])
    def test_progress_is_a_bar_where_a_person_looks(self, recipe, terminal, wanted):
        recipe.stages('stage 1 "One" --out data/one -- bash -c "echo \\$SPEECHLAB_PROGRESS > data/one"')
        master, slave = pty.openpty()
        subprocess.run(["./run.sh"], cwd=recipe.folder, env=recipe.env, check=True, stdout=subprocess.DEVNULL,
                       stderr=slave if terminal else subprocess.DEVNULL)
        os.close(master)
        os.close(slave)
        assert (recipe.folder / "data/one").read_text() == wanted + "\n"

    def test_a_reader_that_goes_away_does_not_stop_the_work(self, recipe):
        recipe.stages('stage 1 "One" --out data/one -- python work.py data/one --say 1 --say 2 --say 3')
        subprocess.run(["bash", "-c", "set -o pipefail; ./run.sh | head -n 1"], cwd=recipe.folder, env=recipe.env,
                       stdout=subprocess.DEVNULL, check=False)
        assert (recipe.folder / "data/one").exists()

    def test_a_full_disk_ends_the_log_and_not_the_work(self, tmp_path, capfd):
        sys.path.insert(0, str(TOOLS))
        from stagelib.process import Log

        log = Log(str(tmp_path / "x.log"), "")
        log.file = open("/dev/full", "wb", buffering=0)
        log.write(b"a\n")
        log.write(b"b\n")
        log.close()
        assert capfd.readouterr().out == "note: /dev/full: No space left on device: no more is logged\n"

    def test_hours_of_a_bar_do_not_fill_the_memory(self, tmp_path):
        sys.path.insert(0, str(TOOLS))
        from stagelib.process import Log

        log = Log(str(tmp_path / "x.log"), "")
        for number in range(20000):
            log.write(b"\r%d of 20000 files are done" % number)
        assert len(log.line) < 1 << 17
        log.write(b"\r\n\rlast")
        log.close()
        assert (tmp_path / "x.log").read_bytes() == b"19999 of 20000 files are done\nlast\n"
