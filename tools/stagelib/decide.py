"""Decides whether a stage must run, and runs the stages that must.

The rules (DESIGN: "What runs"), for a stage between --stage and --stop_stage:

    --stage was given              it runs again; a training goes on from its checkpoint
    an output is missing           it runs
    outputs, but no record         a person made them by hand or copied them here, as Kaldi's users do: they are taken
                                   as they are, and recorded, so that later changes are noticed
    begun, but not ended           it runs again; a training goes on from its checkpoint
    stale: something that it       it runs again. But a training is kept: the run stops and offers --tag or --force. If
    depends on has changed         only the number of epochs or minutes grew, the training goes on
    --force                        a training starts from the beginning; the old experiment is moved aside, not deleted
    otherwise                      it does not run. An input that was removed later (downloads, to make room) is no
                                   reason to run again

The reason why a stage runs is shown on the terminal and by --dry_run. It stays in the stage's record and at the top of
its log.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time

from stagelib import ending, interpreter, memory, process, state
from stagelib.locks import Lock, host
from stagelib.plan import Plan, Stage, Stop, short
from stagelib.terminal import say

DONE, RUN, KEEP = "done", "run", "keep"
FIRST = "it was not done before"
UNKNOWN = "there is no record of how it was made"


class Decision:
    """What to do with a stage.

    what: DONE (nothing), RUN, or KEEP (it is a stale training: stop).
    why: the reason; RUN and KEEP always have one.
    adopt: the outputs have no record yet: make one.
    """

    def __init__(self, what: str, why: str = "", adopt: bool = False):
        self.what, self.adopt = what, adopt
        self.why = why.replace("\n", "\\n")  # one line, even if a value of the config has several


def decide(stage: Stage, plan: Plan, config: dict | None, record: dict | None) -> Decision:
    """Apply the rules above. This reads files, but changes only ``record`` (its note of touched inputs)."""
    absent = [path for path in stage.outputs if not os.path.exists(path)]
    reasons, keys = [], {}
    if record and "inputs" in record:
        now = state.signature(stage, plan, config)
        reasons, keys = state.changes(record, now, state.defaults(stage, config))
        reasons += state.gone(stage, plan, record, now)
    entered = f"entered by --stage {plan.values['stage']}" if plan.values["stage"] else ""
    if stage.train:
        return _decide_training(stage, plan, entered, record, absent, reasons, keys)
    reasons = state.key_reasons(keys) + reasons
    unfinished = _unfinished(record, absent, plan)
    if entered:
        why = unfinished or (f"it was stale: {_few(reasons)}" if reasons else "" if record else UNKNOWN)
        return Decision(RUN, f"{entered}; {why}" if why else entered)
    if unfinished:
        return Decision(RUN, unfinished)
    if not record:
        return Decision(DONE, f"taken as it is: {UNKNOWN}", adopt=True)
    return Decision(RUN, _few(reasons)) if reasons else Decision(DONE)


def _decide_training(stage: Stage, plan: Plan, entered: str, record: dict | None, absent: list[str], reasons: list[str],
                     keys: dict[str, tuple]) -> Decision:
    more = {key: keys.pop(key) for key in state.GROWING if key in keys}
    reasons = state.key_reasons(keys) + reasons
    grown = _few(state.key_reasons({key: (old, new) for key, (old, new) in more.items() if _grows(old, new)}))
    begun, unfinished = _begun(stage), _unfinished(record, absent, plan)
    if plan.flag("force"):
        return Decision(RUN, "afresh (--force)" + (f"; it was stale: {_few(reasons)}" if begun and reasons else ""))
    if begun and reasons:
        return Decision(KEEP, _few(reasons))
    if begun and (entered or unfinished):
        why = "; ".join(filter(None, (entered, unfinished if unfinished != FIRST else UNKNOWN, grown)))
        return Decision(RUN, f"goes on from its checkpoint ({why})")
    if unfinished:
        return Decision(RUN, f"{entered}; {unfinished}" if entered else unfinished)
    if not record:
        return Decision(DONE, f"taken as it is: {UNKNOWN}", adopt=True)
    return Decision(RUN, f"{grown}: it goes on") if grown else Decision(DONE)


def _begun(stage: Stage) -> bool:
    """True if a training has left something to keep: there is a file beside its first output."""
    return any(True for _ in state.files_of(os.path.dirname(stage.outputs[0]) or "."))


def _grows(old: object, new: object) -> bool:
    """True if there are more epochs or minutes than before. No limit (null or 0) is more than any number."""
    number = [float(value) if isinstance(value, (int, float)) and value else float("inf") for value in (old, new)]
    return number[1] > number[0]


def _few(reasons: list[str]) -> str:
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _unfinished(record: dict | None, absent: list[str], plan: Plan) -> str:
    """Why the stage is not finished; "" if it is, or if its outputs are there without a record."""
    if not record:
        return FIRST if absent else ""
    if record["status"] == "done":
        return f"{short(absent[0], plan)} is gone" if absent else ""
    if record["status"] == "failed":
        return f"it failed with status {record.get('exit_status')}"
    return "it was not ended" if record["status"] != "unreadable" else "its record can't be read"


def full_command(stage: Stage, plan: Plan, python: str) -> list[str]:
    """The command that really runs: cmd.sh with the stage's command, the chosen Python and --set. A command that is
    marked --ddp starts its own processes on several GPUs (speechlab/training/distributed.py): torchrun would turn the
    status "saved, start me again" (85) into 1."""
    ngpu = int(plan.values["ngpu"]) if stage.gpu else 0
    slurm = os.environ.get("SPEECHLAB_BACKEND") == "slurm"
    command = list(stage.command)
    if command[0] == "python":
        command = [python, *command[1:]]
    elif command[0].endswith(".sh"):
        command = ["bash", "-euo", "pipefail", *command]  # as `set -euo pipefail`, even if the script does not say it
    if stage.conf:
        command += [word for pair in plan.sets for word in ("--set", pair)]
    cmd = os.path.join(plan.values["repo"], "containers", "cmd.sh")
    return [cmd, *(["--ngpu", str(ngpu)] if ngpu else []), *backend(stage, plan, ngpu, slurm), "--", *command]


def backend(stage: Stage, plan: Plan, ngpu: int, slurm: bool) -> list[str]:
    """cmd.sh's options that say where the stage runs.

    With Slurm, stages that are marked --gpu become a job, and those marked --array become an array of --nj tasks. Other
    stages are short or need the network: they run here. Slurm itself starts the processes that share a training, on all
    nodes in the same way.
    """
    nodes = os.environ.get("SPEECHLAB_NODES", "1") if stage.ddp else "1"
    more = ["--nodes", nodes] if nodes != "1" else []
    if not slurm:
        return more  # cmd.sh refuses --nodes without Slurm, and says so
    if not (stage.gpu or stage.array):
        return ["--backend", "local"]
    if stage.array:
        more = ["--array", str(max(1, int(plan.values["nj"])))]
    elif stage.ddp and ngpu > 1:
        more += ["--procs", str(ngpu)]
    if stage.train:
        more.append("--requeue")
    return ["--backend", "slurm", *more, "--jobs", os.path.join(os.path.dirname(stage.log_path), "slurm")]


def environment(stage: Stage, plan: Plan, python: str) -> dict[str, str]:
    """The environment variables that the stage's command gets in addition to ours."""
    env = {"SPEECHLAB_NGPU": plan.values["ngpu"] if stage.gpu else "0", "PYTHONUNBUFFERED": "1",
           "PYTHONPATH": os.environ.get("PYTHONPATH", plan.values["repo"]),
           "SPEECHLAB_PROGRESS": "bar" if sys.stderr.isatty() else "lines"}
    # PyTorch allocates and frees memory in each step. With small pages, page faults took a seventh of a step's time
    # (egs/mnist/RESULTS.md), so ask for huge ones. glibc 2.35 and newer do, if the kernel has them; others ignore this.
    env["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if sys.stderr.isatty():
        env["COLUMNS"] = str(shutil.get_terminal_size().columns)  # its output is our pipe: it can't ask the terminal
    if stage.train and plan.flag("force"):
        env["SPEECHLAB_FORCE"] = "1"
    if os.path.isabs(python):  # so that `python` in local/*.sh is the same one
        env["SPEECHLAB_PYTHON"] = python
        env["PATH"] = os.path.dirname(python) + os.pathsep + os.environ.get("PATH", "")
    return env


def check_inputs(stage: Stage, plan: Plan) -> str:
    """A line that says which input is missing and which stage makes it; "" if all are there."""
    for path in stage.inputs:
        if not state.matches(path):
            maker = plan.maker(path)
            if maker is None or maker is stage:
                return f"{stage.name} needs {short(path, plan)}, which is not there and no stage makes"
            line = plan.command_line("--stage", str(maker.number))
            return f"{stage.name} needs {short(path, plan)}, which {maker.name} makes: {line}"
    return ""


def stale_training(stage: Stage, plan: Plan, why: str) -> str:
    aside = _aside(stage.folder)
    return (f"{stage.name}: {why}: the training in {stage.folder} was made otherwise, and is kept\n"
            f"  a new one beside it: {plan.command_line('--tag', 'NAME', drop=('tag',))}\n"
            f"  a new one in its place (this one is moved to {aside}): {plan.command_line('--force')}")


def _aside(folder: str) -> str:
    number = 1
    while os.path.lexists(f"{folder}.old-{number}"):
        number += 1
    return f"{folder}.old-{number}"


def move_aside(stage: Stage) -> str:
    """For --force: rename the experiment to ``<exp>.old-N``. Returns its new name, or "" if there was no experiment."""
    if not any(name not in (".stages", "log") for name in os.listdir(stage.folder)):
        return ""
    aside = _aside(stage.folder)
    os.rename(stage.folder, aside)
    # The lock was moved with the folder. Move it back: it belongs to the folder that we are going to write.
    os.makedirs(os.path.join(stage.folder, ".stages"))
    os.rename(os.path.join(aside, ".stages", "lock"), os.path.join(stage.folder, ".stages", "lock"))
    return aside


def run(plan: Plan) -> int:
    """Run the stages that must run (with --dry_run, only show them), and return the exit status."""
    selected = plan.selected()
    config = None
    if any(stage.conf for stage in selected):
        if not plan.values["config"]:
            raise Stop("a stage has --conf, but there is no option named config", 2)
        config = interpreter.resolved_config(plan)
        for stage in selected:
            if config is not None:
                state.sections(stage, config)  # find a misspelt section now, not after an hour
    if plan.flag("dry_run"):
        return dry_run(plan, selected, config)
    child, worked = process.Child(), None
    for stage in selected:
        record = state.load(stage)
        decision = decide(stage, plan, config, record)
        if decision.what == DONE:
            _pass_over(stage, plan, config, record, decision)
            continue
        if decision.what == RUN:
            missing = check_inputs(stage, plan)
            if missing:
                raise Stop(missing)
        if not worked:
            _mention_gpu(plan, selected)
        with Lock(stage.lock_folders, f"{plan.values['run']} {stage.name}") as lock:
            # Now that we hold the lock, decide again: another run may have done the stage meanwhile.
            record = state.load(stage)
            decision = decide(stage, plan, config, record)
            if decision.what == DONE:
                _pass_over(stage, plan, config, record, decision)
            elif decision.what == KEEP:
                raise Stop(stale_training(stage, plan, decision.why))
            else:
                status = execute(stage, plan, config, decision, child, lock)
                if status:
                    return status
                worked = stage
    if worked:
        say("done: " + " ".join(short(path, plan) for path in worked.outputs))
    else:
        say(f"nothing to do ({plan.values['run']} --stage N does stage N and those after it again)")
    ending.answer(selected[-1], plan)
    return 0


def _pass_over(stage: Stage, plan: Plan, config: dict | None, record: dict | None, decision: Decision) -> None:
    say(f"{stage.name}: {stage.title}: done" + (f" ({decision.why})" if decision.why else ""))
    try:
        if decision.adopt:
            state.save(stage, "done", state.signature(stage, plan, config, with_content=True), by_hand=True)
        elif record and record.pop("touched", False):
            kept = {key: record.pop(key) for key in ("arguments", "config", "inputs")}
            state.save(stage, record.pop("status"), kept, **record)
    except OSError:
        pass  # we may not write here (e.g. into a corpus that others share): next time it is looked at again


def _mention_gpu(plan: Plan, selected: list[Stage]) -> None:
    """If a GPU is there but --ngpu is 0, say so."""
    if int(plan.values["ngpu"]) or not any(stage.gpu for stage in selected):
        return
    there = os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") \
        or (sys.platform == "darwin" and os.uname().machine == "arm64")
    if there:
        say("note: this machine seems to have a GPU, which stands idle: --ngpu 1 uses it")


def execute(stage: Stage, plan: Plan, config: dict | None, decision: Decision, child: process.Child, lock: Lock) -> int:
    """Run one stage. Returns 0, or the status to exit with; then the reason was shown."""
    python = interpreter.choose(plan)
    if plan.remark:
        say(plan.remark)
        plan.remark = ""
    if decision.why != FIRST:
        say(f"{stage.name}: {decision.why}")
    say(f"{stage.name}: {stage.title}")
    if stage.train and plan.flag("force"):
        aside = move_aside(stage)
        if aside:
            say(f"{stage.name}: the old experiment is now {aside}")
    command, env = full_command(stage, plan, python), environment(stage, plan, python)
    line = process.shown(command, plan.values["recipe"], plan.values["repo"])
    say(f"  $ {line}")
    now = state.signature(stage, plan, config, with_content=True)
    state.save(stage, "running", now, host=host(), why=decision.why)
    setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items() if name != "PATH")
    header = (f"# {time.strftime('%Y-%m-%d %H:%M:%S')} on {host()}\n# (cd {shlex.quote(plan.values['recipe'])} && "
              f"{setting} \\\n#  {line})\n# why: {decision.why}\n")
    log = process.Log(stage.log_path, header)
    start, kills = time.time(), memory.kills()
    try:
        status = child.run(command, {**os.environ, **env}, log, lock.child)
    finally:
        log.close()
        if child.signal and interpreter.engine():  # the signal may have killed the client only, not the container
            subprocess.run([command[0], "--clean"], stdin=subprocess.DEVNULL)
    killed = f" ({memory.reason(kills)})" if status == 137 and not child.signal else ""
    return conclude(stage, plan, now, decision.why, status, child.signal, round(time.time() - start, 1), killed)


def conclude(stage: Stage, plan: Plan, now: dict, why: str, status: int, signal: int, seconds: float,
             killed: str) -> int:
    """Record and show how the stage ended. Returns the status to exit with (0: go on).

    why: why the stage was run. killed: why its process was killed, if that is known.
    """
    absent = [path for path in stage.outputs if not os.path.exists(path)]
    again = plan.command_line()
    if status == 0 and not absent:
        state.save(stage, "done", now, seconds=seconds, why=why)
        if not signal:
            say(f"{stage.name}: {stage.title}: made in {seconds:.0f} s")
            return 0
    elif signal or status == process.REQUEUE:
        state.save(stage, "interrupted", now, exit_status=status, why=why)
    else:
        state.save(stage, "failed", now, exit_status=status, why=why)
    if status == process.REQUEUE:
        print(f"{stage.name}: {stage.title}: saved, to be requeued; it goes on with: {again}", file=sys.stderr)
        return process.REQUEUE
    if signal:
        print(f"\ninterrupted in {stage.name}: {stage.title}; it goes on with: {again}", file=sys.stderr)
        return 128 + signal
    sys.stderr.write(process.tail(stage.log_path))
    if status == 0:
        print(f"error: {stage.name}: {stage.title} ended without an error but did not make {short(absent[0], plan)}; "
              f"log: {stage.log_path}", file=sys.stderr)
        return 1
    print(f"error: {stage.name}: {stage.title} failed with status {status}{killed}; log: {stage.log_path}",
          file=sys.stderr)
    return status


def dry_run(plan: Plan, selected: list[Stage], config: dict | None) -> int:
    """Show each stage's state and exact command. What an earlier stage would make again counts as changed."""
    python = interpreter.choose(plan, setup=False)
    if plan.remark:
        say("# " + plan.remark)
    env = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment(selected[0], plan, python).items()
                   if name in ("PYTHONPATH", "SPEECHLAB_PYTHON"))
    say(f"# in {plan.values['recipe']}, with {env}")
    if config is None and any(stage.conf for stage in selected):
        say("# no Python with the packages is set up yet (tools/setup.sh): the config was not looked at")
    anew: list[Stage] = []
    for stage in selected:
        decision = decide(stage, plan, config, state.load(stage))
        makers = [plan.maker(path) for path in stage.inputs]
        source = next((maker for maker in makers if maker in anew), None)
        missing = check_inputs(stage, plan) if source is None else ""
        if decision.what == KEEP:
            shows = "stale, but kept: " + decision.why + " (--tag or --force)"
        elif decision.what == DONE and source is None:
            shows = "done" + (f" ({decision.why})" if decision.why else "")
        elif decision.what == DONE:
            shows = f"done, unless {source.name} makes something else"
        else:
            shows = f"to do: {decision.why}" + (f"; but {missing}" if missing else "")
            anew.append(stage)
        gpu = f" SPEECHLAB_NGPU={plan.values['ngpu']}" if stage.gpu else ""
        say(f"{stage.name}: {stage.title}: {shows}")
        line = process.shown(full_command(stage, plan, python), plan.values["recipe"], plan.values["repo"])
        say(f"  ${gpu} {line}")
    return 0
