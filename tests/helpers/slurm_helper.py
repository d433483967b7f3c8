"""A Slurm made of five shell scripts: sbatch starts the job's script here, files say what the others answer.

In ``slurm/``: ``sbatch``, ``scancel`` and ``scontrol`` (what they were called with), ``state`` (``JobState=...
Reason=...`` for scontrol to say; otherwise it is seen from the process), ``silent`` (there: the controller does not
answer), ``refuse`` (what sbatch says instead of taking a job), ``pending`` (there: sbatch starts nothing), ``banner``
(what sbatch says instead of a bare 7), ``queue`` (what squeue says).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from signals_helper import heard
from test_cmd import CMD, Lab

DOWN = "error: Unable to contact slurm controller (connect failure)"
SBATCH = r'''
printf '%s\n' "$@" >>"$S/sbatch"; echo "--" >>"$S/sbatch"
[ ! -f "$S/refuse" ] || { cat "$S/refuse" >&2; exit 1; }
[ ! -f "$S/down" ] || { rm "$S/down"; echo "$DOWN" >&2; exit 1; }
array="" procs=1 output=""
while case $1 in --*) true ;; *) false ;; esac; do
    case $1 in
        --output=*) output=$(printf '%s' "${1#--output=}" | sed 's/%%/%/g') ;;
        --array=*) array=${1#--array=1-}; array=${array%%%*} ;;
        --ntasks-per-node=*) procs=${1#*=} ;;
    esac
    shift
done
if [ -f "$S/banner" ]; then cat "$S/banner"; else echo 7; fi
[ ! -f "$S/pending" ] || exit 0
# --export=NONE: the script finds what Slurm sets and a login has, here no Slurm (/usr/bin may have a real srun)
if [ "${SBATCH_EXPORT:-ALL}" = NONE ]; then
    for name in $(compgen -e); do unset "$name"; done
    export SLURM_EXPORT_ENV=NONE PATH=$S.login
fi
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n1 SLURM_NTASKS=$procs SLURM_JOB_NUM_NODES=1
if [ -n "$array" ]; then
    for n in $(seq "$array"); do
        SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$n SLURM_ARRAY_TASK_COUNT=$array \
            setsid env --default-signal bash "$@" >"${output%.%a}.$n" 2>&1 </dev/null & echo $! >>"$S/pids"
    done
else
    setsid env --default-signal bash "$@" >>"$output" 2>&1 </dev/null & echo $! >"$S/pids"
fi
'''
SCONTROL = r'''
echo "$*" >>"$S/scontrol"
case $1 in requeue) [ -f "$S/requeues" ]; exit ;; esac
case "$*" in *hostnames*) cat "$S/hostnames"; exit ;; *"show node"*) cat "$S/node"; exit ;; esac
[ ! -f "$S/silent" ] || { echo "$DOWN" >&2; exit 1; }
[ ! -f "$S/gone" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
state=COMPLETED reason=None
[ ! -f "$S/pending" ] || { state=PENDING reason=Resources; }
for pid in $(cat "$S/pids" 2>/dev/null); do ! kill -0 "$pid" 2>/dev/null || state=RUNNING; done
[ ! -f "$S/cancelled" ] || [ "$state" = RUNNING ] || state=CANCELLED
extra="JobState=$state Reason=$reason"
[ ! -f "$S/state" ] || extra=$(cat "$S/state")
echo "JobId=7 JobName=x UserId=a(1) $extra Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 \
RunTime=00:00:01 TimeLimit=00:05:00 NodeList=n1 MinMemoryNode=800M"
'''
SCANCEL = r'''
echo "$*" >>"$S/scancel"
case $1 in
    --batch) [ ! -f "$S/pending" ] && kill -USR1 "$(cat "$S/pids")" ;;
    *)
        touch "$S/cancelled"; rm -f "$S/pending"
        for pid in $(cat "$S/pids" 2>/dev/null); do kill -TERM "$pid" 2>/dev/null; done; true ;;
esac
'''
SRUN = r'''
echo "$*" >>"$S/srun"
if [ "${SLURM_EXPORT_ENV:-ALL}" != ALL ]; then
    for name in $(compgen -e); do case $name in PATH | SLURM_*) ;; *) unset "$name" ;; esac; done
fi
while case $1 in --*) true ;; *) false ;; esac; do shift; done
trap 'kill -USR1 $pids' USR1
for n in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & pids="${pids:-} $!"; done
status=0
for pid in $pids; do
    while :; do wait "$pid"; one=$?; kill -0 "$pid" 2>/dev/null || break; done
    [ "$one" -le "$status" ] || status=$one
done
exit "$status"
'''
TOOLS = "head tail wc date cut setsid rm mv seq compgen env touch cat kill".split()


class Cluster(Lab):
    """test_cmd's lab with Slurm's programs on its PATH."""

    def __init__(self, base: Path):
        super().__init__(base)
        shutil.copytree(CMD.parent / "lib", self.root / "containers" / "lib", dirs_exist_ok=True)
        shutil.copy(CMD.parent / "slurm.conf.example", self.root / "containers")
        self.slurm = base / "slurm"
        self.slurm.mkdir()
        for name in TOOLS:
            if shutil.which(name) and not (self.bin / name).exists():
                (self.bin / name).symlink_to(shutil.which(name))
        shutil.copytree(self.bin, base / "slurm.login", symlinks=True)  # a login's PATH on a node, without Slurm
        for name, body in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("scancel", SCANCEL), ("srun", SRUN),
                           ("squeue", 'cat "$S/queue" 2>/dev/null; exit 0')):
            self.program(name, f"S='{self.slurm}' DOWN='{DOWN}'\n{body}")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        kept = {key: value for key, value in os.environ.items() if key in ("LANG", "LC_ALL", "TMPDIR")}
        kept |= {"PATH": str(self.bin), "HOSTNAME": "here", "SPEECHLAB_NESTED": "1", "SPEECHLAB_SLURM_POLL": "0.1"}
        return subprocess.Popen(["bash", self.cmd, "--backend", "slurm", *arguments], cwd=self.recipe,
                                env={**kept, **env}, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heard)

    def say(self, name: str, text: str = "") -> None:
        """Write one of the files by which a test tells the programs what to do."""
        (self.slurm / name).write_text(text)

    def calls(self, name: str) -> list[str]:
        path = self.slurm / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, path: Path, text: str = "") -> str:
        for _ in range(500):
            if path.exists() and text in path.read_text():
                return path.read_text()
            time.sleep(0.02)
        raise AssertionError(f"{path} does not get {text!r}")

    def jobs(self) -> list[Path]:
        """The folders of all jobs."""
        return sorted((self.recipe / "log" / "slurm").glob("*/"))
