"""containers/cmd.sh --backend slurm on a Slurm of shell scripts: exact lines, statuses, signals, mistakes.

tests/containers/test_slurm.py has the real one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_helper import Cluster
from stages_helper import recipe  # noqa: F401  (a fixture)
from test_cmd import error


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path.resolve())


def notes(err: str) -> list[str]:
    """The lines on stderr that are no notes."""
    return [line for line in err.splitlines() if not line.startswith("note: ")]


def dry(cluster: Cluster, *arguments: str, **env: str) -> tuple[list[str], list[str]]:
    """sbatch's words, less those that change from run to run, and the lines of command.sh."""
    done = cluster.run("--dry_run", *arguments, **env)
    assert done.returncode == 0, done.stderr
    whole = done.stdout.splitlines()
    first = next(number for number, line in enumerate(whole) if line.startswith("sbatch "))
    lines = [line for line in whole[first + 2:] if line]
    words = shlex.split(whole[first])
    own = [word for word in words if word.startswith(("--job-name=", "--output="))]
    folder = words[-3]
    assert own[0] == f"--job-name={Path(folder).name}" and own[1].startswith(f"--output={folder}/log")
    assert folder.startswith(f"{cluster.recipe}/") and not Path(folder).exists()
    job = f"{cluster.root}/containers/lib/slurm_job.sh"
    assert words[-4] == words[-2] == job
    return [word for word in words[:-4] if word not in own] + [words[-1]], lines


class TestLines:
    @pytest.mark.parametrize("options, asked, last", [
        ([], ["--cpus-per-task=4", "--nodes=1", "--ntasks-per-node=1"], "false"),
        (["--requeue"], ["--cpus-per-task=4", "--signal=B:USR1@180", "--nodes=1", "--ntasks-per-node=1"], "true"),
        (["--ngpu", "2", "--procs", "2", "--nodes", "3"],
         ["--cpus-per-task=4", "--gres=gpu:2", "--nodes=3", "--ntasks-per-node=2"], "false"),
        (["--array", "8"], ["--cpus-per-task=1", "--nodes=1", "--ntasks-per-node=1", "--array=1-8"], "false"),
        (["--array", "8", "--slurm", "max_jobs_run=3"],
         ["--cpus-per-task=1", "--nodes=1", "--ntasks-per-node=1", "--array=1-8%3"], "false"),
        (["--slurm", "mem=32G", "--slurm=time=2-0", "--slurm", "account=lab", "--slurm", "partition=a b"],
         ["--partition=a b", "--account=lab", "--time=2-0", "--mem=32G", "--cpus-per-task=4", "--nodes=1",
          "--ntasks-per-node=1"], "false"),
    ])
    def test_sbatch(self, cluster, options, asked, last):
        words, _ = dry(cluster, *options, "--", "true")
        assert words == ["sbatch", "--requeue", "--parsable", f"--chdir={cluster.recipe}", "--open-mode=append", *asked,
                         last]

    def test_what_the_environment_asks_for_and_what_the_command_line_does(self, cluster):
        words, _ = dry(cluster, "--slurm", "mem=2G", "--", "true", SPEECHLAB_SLURM="mem=1G num_threads=8")
        assert {"--mem=2G", "--cpus-per-task=8"} <= set(words) and "--mem=1G" not in words

    @pytest.mark.parametrize("engine", [[], ["--engine", "podman", "--image", "i:1"]])
    @pytest.mark.parametrize("ngpu", ["0", "2"])
    def test_command(self, cluster, engine, ngpu):
        command = ["python", "-m", "speechlab.train", "a b", "你好", "it's"]
        _, lines = dry(cluster, "--ngpu", ngpu, *engine, "--", *command, SPEECHLAB_DOWNLOADS="/data 盘/d",
                       SPEECHLAB_BACKEND="slurm", SPEECHLAB_PROGRESS="bar", SPEECHLAB_SLURM="mem=1G", OTHER="no")
        assert lines[0] == "#!/usr/bin/env bash"
        exports = dict(word.split("=", 1) for line in lines[2:-1] for word in shlex.split(line)[1:])
        assert exports == {"SPEECHLAB_DOWNLOADS": "/data 盘/d", "SPEECHLAB_NESTED": "1", "PATH": str(cluster.bin),
                           "SPEECHLAB_BACKEND": "local", "SPEECHLAB_PROGRESS": "lines",
                           **{name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL")}}
        assert shlex.split(lines[-1]) == ["exec", str(cluster.cmd), "--backend", "local", "--ngpu", ngpu,
                                          "--engine", *(engine[1:] or ["none"]), "--", *command]

    def test_a_dry_run_shows_the_engines_line(self, cluster):
        done = cluster.run("--dry_run", "--engine", "podman", "--image", "i:1", "--", "true")
        line = next(line for line in done.stdout.splitlines() if line.startswith("# on the node: "))
        assert "podman run" in line and line.endswith("i:1 true")

    def test_a_percent_in_a_path_is_no_pattern(self, cluster):
        done = cluster.run("--dry_run", "--jobs", "a%j", "--", "true")
        assert f"{cluster.recipe}/a%%j/true-" in done.stdout


class TestConf:
    def test_the_users_lines_go_first_and_the_rest_stays(self, cluster):
        (cluster.root / "containers" / "slurm.conf").write_text(
            "# ours\ncommand sbatch --export=ALL\ndefault partition=gpu\ndefault num_threads=8\n"
            "option gpu=* -p big --gres=gpu:a100:$0  # theirs\noption gpu=0 -p small\noption mem=0\n"
            "option qos=* --qos $0\n")
        words, _ = dry(cluster, "--ngpu", "2", "--slurm", "qos=long", "--slurm", "mem=0", "--", "true")
        assert words[1:3] == ["--export=ALL", "--parsable"]
        assert words[5:-1] == ["--qos", "long", "--cpus-per-task=8", "--partition=gpu", "-p", "big",
                               "--gres=gpu:a100:2", "--nodes=1", "--ntasks-per-node=1"]
        assert "-p small" in cluster.run("--dry_run", "--", "true").stdout

    def test_a_file_of_kaldis(self, cluster, tmp_path):
        file = tmp_path / "kaldi 的.conf"
        file.write_text("command sbatch --export=PATH\noption time=* --time $0\noption mem=* --mem-per-cpu $0\n"
                        "option mem=0\noption num_threads=* --cpus-per-task $0 --ntasks-per-node=1\n"
                        "default gpu=0\noption gpu=0 -p shared\noption gpu=* -p gpu --gres=gpu:$0\n"
                        "option max_jobs_run=*     # Do nothing")
        words, _ = dry(cluster, "--slurm", "mem=4G", "--ngpu=1", "--", "true", SPEECHLAB_SLURM_CONF=str(file))
        assert words[1] == "--export=PATH"
        assert words[5:-1] == ["--mem-per-cpu", "4G", "--cpus-per-task", "4", "--ntasks-per-node=1", "-p", "gpu",
                               "--gres=gpu:1", "--nodes=1", "--ntasks-per-node=1"]

    def test_a_file_from_windows(self, cluster):
        lines = ("\ufeffcommand sbatch --export=ALL", "", "# a remark", "default num_threads=8",
                 "option gpu=* -p gpu --gres=gpu:$0", "option gpu=0 -p small\r")
        (cluster.root / "containers" / "slurm.conf").write_bytes("\r\n".join(lines).encode())
        words, _ = dry(cluster, "--ngpu", "2", "--", "true")
        assert words[1] == "--export=ALL"
        assert words[5:-1] == ["--cpus-per-task=8", "-p", "gpu", "--gres=gpu:2", "--nodes=1", "--ntasks-per-node=1"]
        assert "small" in dry(cluster, "--", "true")[0]

    @pytest.mark.parametrize("text, arguments, says", [
        ("optoin a=1\n", [], "line 1: 'optoin a=1'"),
        ("\noption a\n", [], "line 2"),
        ("default a=1 b\n", [], "line 1"),
        ("", ["--slurm", "qos=1"], "no line 'option qos=*"),
        ("", ["--slurm", "mem"], "NAME=VALUE"),
        ("", ["--slurm", "gpu=1"], "options of its own"),
    ])
    def test_mistakes(self, cluster, text, arguments, says):
        (cluster.root / "containers" / "slurm.conf").write_text(text)
        assert says in error(cluster.run(*arguments, "--dry_run", "--", "true"), 2)

    def test_a_file_that_is_not_there(self, cluster):
        assert "no such file" in error(cluster.run("--", "true", SPEECHLAB_SLURM_CONF="/nosuch"), 2)


class TestJobs:
    def test_status_log_folder_and_arguments(self, cluster):
        code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['SPEECHLAB_X']); sys.exit(7)"
        words = ["a b", "你好", "it's", "$HOME", ""]
        done = cluster.run("--", sys.executable, "-c", code, *words, SPEECHLAB_X="x y\n'z")
        assert done.returncode == 7, done.stderr
        first, rest = done.stdout.split("\n", 1)
        assert first.startswith("# job 7 on n1") and rest == f"{words} {cluster.recipe} x y\n'z\n"
        assert notes(done.stderr) == []
        folder, = cluster.jobs()
        assert {path.name for path in folder.iterdir()} == {"command.sh", "log", "status"}  # and no `job`: it is over
        assert cluster.calls("scancel") == []

    def test_log_goes_to_a_file_too(self, cluster):
        done = cluster.run("--log", "x.log", "--", "sh", "-c", "echo 你好")
        assert "你好\n" in done.stdout and "你好\n" in (cluster.recipe / "x.log").read_text()

    def test_the_log_is_shown_while_the_job_runs(self, cluster):
        process = cluster.start("--", "sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.05; done; echo last")
        assert process.stdout.readline().startswith("# job") and process.stdout.readline() == "first\n"
        (cluster.recipe / "go").touch()
        assert process.communicate(timeout=30)[0] == "last\n" and process.returncode == 0

    @pytest.mark.parametrize("name", ["sbatch", "scontrol", "scancel"])
    def test_no_client(self, cluster, name):
        (cluster.bin / name).unlink()
        assert f"no {name} on PATH" in error(cluster.run("--", "true"))

    def test_a_refusal_is_one_line_and_leaves_nothing(self, cluster):
        cluster.say("refuse", "sbatch: error: invalid partition specified: x\n"
                    "sbatch: error: Batch job submission failed: Invalid partition name specified\n")
        line = error(cluster.run("--slurm", "partition=x", "--", "true"))
        assert "invalid partition specified: x; Invalid partition name specified (asked: --partition=x" in line
        assert cluster.jobs() == []

    @pytest.mark.parametrize("said", [
        "7;cluster1\n", "Welcome to HPC 2026!\n\n  3 of 40 nodes are free\n7\n", "7\nSee you in 5 minutes\n", "7\r\n",
        "Submitted batch job 7\n", "1\nSubmitted batch job 7 on cluster big\nBye\n", "12\n7"])
    def test_sbatch_that_says_more(self, cluster, said):
        cluster.say("banner", said)
        done = cluster.run("--", "sh", "-c", "exit 3")
        assert done.returncode == 3 and "job 7 is submitted" in done.stderr and notes(done.stderr) == []
        assert "--oneliner show job 7" in cluster.calls("scontrol")[0]

    def test_sbatch_that_names_no_job(self, cluster):
        cluster.say("banner", "queued it for you\n")
        cluster.say("queue", "Welcome!\n7\n")  # it is there under our name
        assert cluster.run("--", "sh", "-c", "exit 3").returncode == 3
        cluster.say("queue", "Welcome!\n")
        line = error(cluster.run("--", "true"))
        assert "names no job" in line and "squeue --name=true-" in line
        assert line.endswith("it said: queued it for you\n")
        assert len(cluster.jobs()) == 2  # which may be at work, and needs its folder

    @pytest.mark.parametrize("procs", ["1", "2"])
    def test_sbatch_that_hands_on_no_environment(self, cluster, procs):
        """SBATCH_EXPORT=NONE, and then srun hands on none either."""
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SPEECHLAB_X", "HF_HOME", "https_proxy", "HOME")
        code = (f"import os; names = {names};"
                " print('has', *(os.environ.get(name, '-') for name in names), flush=True)")
        done = cluster.run("--procs", procs, "--", sys.executable, "-c", code, SBATCH_EXPORT="NONE", SPEECHLAB_X="x",
                           HF_HOME="/models", https_proxy="http://proxy:1", HOME="/home/me", WANDB_API_KEY="hush",
                           HTTP_PROXY="http://me:pass@proxy:1")
        assert done.returncode == 0, done.stderr
        has = sorted(line for line in done.stdout.splitlines() if line.startswith("has"))
        rest = "x /models http://proxy:1 /home/me"
        assert has == ([f"has - - - {rest}"] if procs == "1" else [f"has {n} 2 127.0.0.1 {rest}" for n in (0, 1)])
        written = next(iter(cluster.jobs())).joinpath("command.sh").read_text()
        assert "hush" not in written and "me:pass" not in written

    def test_the_last_few_are_kept(self, cluster):
        jobs = cluster.recipe / "log" / "slurm"

        def old(name: str, *files: str) -> str:
            (jobs / name).mkdir(parents=True)
            for file in files:
                (jobs / name / file).write_text("5")
            os.utime(jobs / name, (1e9 + len(made), 1e9 + len(made)))
            made.append(name)
            return name

        made: list[str] = []
        kept = {old("not_submitted_yet", "command.sh", "sbatch.err"), old("own", "notes"),
                *(old(f"x{n:02}", "command.sh", "log", "status") for n in range(14))}
        old("cancelled", "command.sh", "cancelled"), old("array 一", "command.sh", "log.1", "status.1")
        os.utime(jobs / "cancelled", (1, 1)), os.utime(jobs / "array 一", (2, 2))
        assert cluster.run("--dry_run", "--", "sh", "-c", ":").returncode == 0 and len(cluster.jobs()) == len(made)
        assert cluster.run("--", "sh", "-c", ":").returncode == 0
        there = {path.name for path in cluster.jobs()}
        new = {name for name in there if name.startswith("sh-")}
        assert len(new) == 1 and there - new == kept - {f"x{n:02}" for n in range(5)}

    def test_the_folder_of_a_job_at_work_is_kept(self, cluster):
        """By the function itself: a job of ours in the same folder would be waited for first."""
        jobs = cluster.recipe / "jobs"
        for n in range(12):
            (jobs / str(n)).mkdir(parents=True)
            for name in ("command.sh", "log", "job")[:2 + (n == 0)]:
                (jobs / str(n) / name).touch()
            os.utime(jobs / str(n), (1e9 + n, 1e9 + n))
        script = cluster.root / "containers" / "lib" / "slurm.sh"
        code = 'eval "$(sed -n "/^prune() {/,/^}/p" "$1")"; jobs=$2 keep=10; prune'
        subprocess.run(["bash", "-euc", code, "-", script, jobs], check=True)
        assert {path.name for path in jobs.iterdir()} == {"0", *map(str, range(3, 12))}

    def test_a_controller_that_is_away_for_a_moment(self, cluster):
        cluster.say("down")
        done = cluster.run("--", "sh", "-c", "exit 3")
        assert done.returncode == 3 and "does not answer" in done.stderr and notes(done.stderr) == []
        assert cluster.calls("sbatch").count("--") == 2

    def test_a_controller_that_stays_away(self, cluster):
        cluster.say("silent")
        process = cluster.start("--", "sh", "-c", "while [ ! -e go ]; do sleep 0.1; done; exit 4",
                                SPEECHLAB_SLURM_PATIENCE="2")
        _, err = process.communicate(timeout=30)
        line, = notes(err)
        assert process.returncode == 1 and "has not answered for 2 s: job 7 may still be at work" in line
        assert cluster.calls("scancel") == []  # it may well go on
        (cluster.slurm / "silent").unlink()
        (cluster.recipe / "go").touch()
        again = cluster.run("--", "sh", "-c", "while [ ! -e go ]; do sleep 0.1; done; exit 4")
        assert again.returncode in (0, 4) and cluster.calls("sbatch").count("--") <= 2

    def test_inside_a_job_the_command_is_run_as_it_is(self, cluster):
        done = cluster.run("--", "sh", "-c", "exit 3", SLURM_JOB_ID="5", SPEECHLAB_NESTED="")
        assert done.returncode == 3 and "inside job 5" in done.stderr and cluster.calls("sbatch") == []


class TestEnds:
    @pytest.mark.parametrize("state, says", [
        ("OUT_OF_MEMORY Reason=OutOfMemory", "killed for memory on n1: it had 800M"),
        ("TIMEOUT Reason=TimeLimit", "time limit, 00:05:00"),
        ("NODE_FAIL Reason=NodeDown", "lost its node (n1)"),
        ("CANCELLED Reason=None", "was cancelled, and not from here"),
        ("PREEMPTED Reason=None", "make room"),
    ])
    def test_what_only_slurm_knows(self, cluster, state, says):
        cluster.say("state", f"JobState={state}")
        cluster.say("pending")
        done = cluster.run("--", "true")
        assert says in error(subprocess.CompletedProcess([], done.returncode, "", "\n".join(notes(done.stderr)) + "\n"))

    @pytest.mark.parametrize("code", [
        "echo 'slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch.'; exit 1", "kill -9 $$"])
    def test_killed_for_memory(self, cluster, code):
        done = cluster.run("--", "sh", "-c", code)
        assert done.returncode in (1, 137) and "memory: it had 800M" in notes(done.stderr)[-1]

    def test_a_job_that_is_gone_without_a_word(self, cluster):
        cluster.say("pending")
        cluster.say("gone")
        done = cluster.run("--", "true")
        assert done.returncode == 1 and "is gone, and left no status" in done.stderr

    def test_held_after_a_failed_launch(self, cluster):
        cluster.say("pending")
        cluster.say("state", "JobState=PENDING Reason=launch_failed_requeued_held")
        done = cluster.run("--", "true")
        assert done.returncode == 1 and "can't be started" in notes(done.stderr)[0]
        cluster.wait_for(cluster.slurm / "scancel", "7")


class TestSignals:
    LISTENS = ("import signal, sys, time\n"
               "def save(n, f): print('saved', n, flush=True); sys.exit(85)\n"
               "for n in (signal.SIGUSR1, signal.SIGTERM): signal.signal(n, save)\n"
               "print('ready', flush=True); time.sleep(60)")

    def begun(self, cluster, *options: str) -> subprocess.Popen:
        process = cluster.start(*options, "--", sys.executable, "-c", self.LISTENS)
        assert process.stdout.readline().startswith("# job") and process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 85), (signal.SIGHUP, 85)])
    def test_running(self, cluster, number, status):
        process = self.begun(cluster, "--requeue")
        # As a terminal and tools/stages.py do: Ctrl-C to the whole group, the others to the command alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == status and "saved 10" in out and "job 7 is cancelled" in err, (out, err)
        assert "requeue 7" not in cluster.calls("scontrol")

    def test_running_what_does_not_save(self, cluster):
        process = cluster.start("--", "sh", "-c", "echo ready; exec sleep 60")
        process.stdout.readline(), process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130 and cluster.calls("scancel") == ["7"]

    def test_pending(self, cluster):
        cluster.say("pending")
        process = cluster.start("--requeue", "--", "true")
        cluster.wait_for(cluster.slurm / "scontrol", "show job 7")
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and "is cancelled" in err and cluster.calls("scancel")[-1] == "7"
        assert not list(cluster.jobs()[0].glob("job"))

    def test_while_sbatch_is_at_work(self, cluster):
        """Ctrl-C goes to the whole group, sbatch among it; the job that it makes all the same is cancelled."""
        cluster.program("sbatch", f"cd '{cluster.slurm}'; echo x >begun; sleep 1; touch pending; echo 7")
        process = cluster.start("--", "true")
        cluster.wait_for(cluster.slurm / "begun")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130 and cluster.calls("scancel") == ["7"]

    def test_slurms_notice_to_us_goes_to_the_job(self, cluster):
        process = self.begun(cluster, "--requeue")
        process.send_signal(signal.SIGUSR1)  # this Slurm refuses to requeue: no file `requeues`
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 85 and "saved 10" in out and "does not requeue job 7" in out

    def test_a_killed_runs_job_is_followed_or_ended(self, cluster):
        process = self.begun(cluster, "--requeue")
        process.kill()
        process.communicate()
        second = cluster.start("--requeue", "--", sys.executable, "-c", self.LISTENS)
        assert second.stdout.readline().startswith("# job") and second.stdout.readline() == "ready\n"
        assert cluster.calls("sbatch").count("--") == 1
        second.kill()
        second.communicate()
        done = cluster.run("--", "sh", "-c", ":")  # another command in this folder
        assert done.returncode == 0 and "waiting for its end" in done.stderr
        assert cluster.calls("sbatch").count("--") == 2 and cluster.calls("scancel")


class TestArrays:
    SHARD = 'echo "$SPEECHLAB_SHARD" >>shards; echo "shard $SPEECHLAB_SHARD"'

    def test_layout_tasks_and_the_whole(self, cluster):
        done = cluster.run("--array", "3", "--", "sh", "-c", self.SHARD)
        assert done.returncode == 0, done.stderr
        shards = (cluster.recipe / "shards").read_text().split("\n")
        assert shards[0] == "0/3" and sorted(shards[1:4]) == ["1/3", "2/3", "3/3"] and shards[4:] == ["", ""]
        assert "3 of 3 tasks have ended" in done.stderr

    def test_one_that_fails_speaks_for_all(self, cluster):
        code = self.SHARD + '; case $SPEECHLAB_SHARD in 2/3) exit 4 ;; [13]/3) exec sleep 60 ;; esac'
        done = cluster.run("--array", "3", "--", "sh", "-c", code)
        folder, = cluster.jobs()
        assert done.returncode == 4
        line = f"error: job 7_2 of 3 failed with status 4; its log: {folder}/log.2"
        assert notes(done.stderr)[-2:] == ["shard 2/3", line]
        assert cluster.calls("scancel") == ["7"]

    def test_a_layout_that_fails(self, cluster):
        assert cluster.run("--array", "3", "--", "sh", "-c", "exit 5").returncode == 5
        assert cluster.calls("sbatch") == []


class TestTheJobsOwnScript:
    """slurm_job.sh, as Slurm would start it."""

    def job(self, cluster, command: str, *, requeue: str = "true", notice: int = 0, **env: str) -> tuple[str, str]:
        """What it says, and the status that it leaves."""
        folder = cluster.recipe / "job 一"
        folder.mkdir(exist_ok=True)
        (folder / "command.sh").write_text(command)
        script = cluster.root / "containers" / "lib" / "slurm_job.sh"
        whole = {"PATH": str(cluster.bin), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", **env}
        process = subprocess.Popen(["bash", script, folder, script, requeue], env=whole, text=True,
                                   cwd=cluster.recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if notice:
            cluster.wait_for(cluster.recipe / "ready")
            process.send_signal(notice)
        out = process.communicate(timeout=30)[0]
        status = folder / "status"
        return out, status.read_text().strip() if status.exists() else ""

    SAVES = shlex.join(["exec", sys.executable, "-c",
                        TestSignals.LISTENS.replace("print('ready'", "open('ready', 'w').write('x'); print('ready'")])

    def test_saved_goes_back_into_the_queue(self, cluster):
        cluster.say("requeues")
        out, status = self.job(cluster, self.SAVES, notice=signal.SIGUSR1)
        assert "saved 10" in out and status == "" and "requeue 7" in cluster.calls("scontrol")

    @pytest.mark.parametrize("notice, requeue, cancelled", [
        (signal.SIGTERM, "true", False), (signal.SIGUSR1, "false", False), (signal.SIGUSR1, "true", True)])
    def test_but_not_when_the_job_is_to_end(self, cluster, notice, requeue, cancelled):
        cluster.say("requeues")
        if cancelled:
            (cluster.recipe / "job 一").mkdir()
            (cluster.recipe / "job 一" / "cancelled").touch()
        _, status = self.job(cluster, self.SAVES, notice=notice, requeue=requeue)
        assert status == "85" and cluster.calls("scontrol") == []

    def test_a_notice_before_the_program_listens_does_not_kill_it(self, cluster):
        out, status = self.job(cluster, "echo x >ready; sleep 1; echo done", notice=signal.SIGUSR1)
        assert status == "0" and "done" in out

    def test_not_for_ever(self, cluster):
        cluster.say("requeues")
        assert self.job(cluster, "exit 85", SLURM_RESTART_COUNT="100")[1] == "85"

    def test_an_old_status_is_removed(self, cluster):
        assert self.job(cluster, "exit 3")[1] == "3"
        cluster.say("requeues")
        assert self.job(cluster, "exit 85")[1] == ""

    ECHO = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT"'

    def test_processes_find_their_places(self, cluster):
        out, status = self.job(cluster, self.ECHO, SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="3")
        assert status == "0" and {"0 0 2 127.0.0.1 10007", "1 1 2 127.0.0.1 10007"} <= set(out.splitlines())
        assert cluster.calls("srun")[0].startswith("--kill-on-bad-exit=1 --cpus-per-task=3 bash")

    def test_all_saved_is_saved_and_one_failed_is_failed(self, cluster):
        cluster.say("requeues")
        assert self.job(cluster, "exit 85", SLURM_NTASKS="2")[1] == ""
        assert cluster.calls("scontrol") == ["requeue 7"]
        assert self.job(cluster, 'exit "$((RANK * 9))"', SLURM_NTASKS="2")[1] == "9"

    @pytest.mark.parametrize("known, address, wanted", [
        ("n1=10.0.0.1", "n1", "10.0.0.1"),
        ("n1=127.0.1.1 n1.lab=10.0.0.2", "n1.lab", "10.0.0.2"),  # Debian gives a host's own name to the loopback
        ("10.0.0.3=10.0.0.3", "10.0.0.3", "10.0.0.3"),
        ("n1=127.0.1.1", "n1", ""),
        ("", "n1", ""),
        ("n1=127.0.0.1", "127.0.0.1", ""),
    ])
    def test_where_nodes_meet(self, cluster, known, address, wanted):
        cluster.say("hostnames", "n1\nn2\n")
        cluster.say("node", f"NodeName=n1 Arch=x NodeAddr={address} NodeHostName=n1\n")
        cluster.program("getent", f'for p in {known}; do [ "${{p%%=*}}" != "$2" ] || echo "${{p#*=}} STREAM"; done')
        out, status = self.job(cluster, self.ECHO, SLURM_NTASKS="2", SLURM_JOB_NUM_NODES="2")
        if wanted:
            assert status == "0" and f"0 0 2 {wanted} 10007" in out
        else:
            assert status == "1" and out.count("error: n1, the first of 2 nodes, has no address but ") == 1
            assert self.job(cluster, self.ECHO, SLURM_NTASKS="2", SLURM_JOB_NUM_NODES="2",
                            SPEECHLAB_MASTER_ADDR="10.9.9.9")[1] == "0"


class TestStages:
    """What tools/stagelib makes of SPEECHLAB_BACKEND=slurm."""

    def calls(self, recipe) -> list[str]:
        lines = (recipe.house / "containers" / "calls").read_text(encoding="utf-8").splitlines()
        return [line.split(" -- ")[0].removesuffix(" --") for line in lines]

    def test_who_goes_where(self, recipe):
        recipe.stages('stage 1 "Make" --out data/m -- python work.py data/m\n'
                      'stage 2 "Fbank" --array --out data/f -- python work.py data/f --nj "$nj"\n'
                      'stage 4 "Train" --gpu --ddp --train --out exp/a/checkpoints/b '
                      '-- python work.py exp/a/checkpoints/b\n'
                      'stage 5 "Decode" --gpu --out exp/a/d -- python work.py exp/a/d')
        recipe.run("--ngpu", "2", "--nj", "3", SPEECHLAB_BACKEND="slurm", SPEECHLAB_NODES="2")
        assert self.calls(recipe) == [
            "--backend local", "--backend slurm --array 3 --jobs data/log/slurm",
            "--ngpu 2 --backend slurm --nodes 2 --procs 2 --requeue --jobs exp/a/log/slurm",
            "--ngpu 2 --backend slurm --jobs exp/a/log/slurm"]
        shutil.rmtree(recipe.folder / "exp")
        again = recipe.run("--nj", "9", "--ngpu", "1")  # here
        assert "stage 2: Fbank: done" in again.stdout
        assert self.calls(recipe)[4:] == ["--ngpu 1", "--ngpu 1"]

    def test_an_array_is_told_of_by_help(self, recipe):
        recipe.stages('stage 2 "Fbank" --array --out data/f -- python work.py data/f')
        assert "2  Fbank  (under Slurm: an array of --nj tasks)" in recipe.run("--help").stdout
