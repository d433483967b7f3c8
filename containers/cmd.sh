#!/usr/bin/env bash
# Run one command here, or in a container; every stage of a recipe goes through this file.
# The command keeps its working folder, its paths, its exit status, and receives signals as if it were run directly.
set -euo pipefail

usage() {
    cat <<'END'
Usage: containers/cmd.sh [options] -- command [argument ...]

  --ngpu N         GPUs the command uses (default 0: it sees none)
  --engine E       none | auto | apptainer | singularity | podman | docker
                   (auto: none without an image; for a SIF, a folder or docker://... Apptainer, for a name podman or docker)
  --image I        the engine's image: a file for Apptainer, a name for podman and docker (containers/build.sh makes them)
  --backend B      local | slurm   (slurm: as a job, whose log is shown and whose exit status is returned; Ctrl-C cancels it)
  --log FILE       write the command's output to FILE too
  --dry_run        print what would be run, and run nothing
  --doctor         instead of a command: look at engine, image, GPU, disks..., and say what mends what is wrong
  --clean          instead of a command: remove containers whose client was killed (podman, docker)
  --help
With --backend slurm:
  --nodes N        nodes (default 1)
  --procs N        processes of the command on each node (default 1); where there are several in all, each finds RANK,
                   LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as from torchrun
  --array N        the command as N tasks, with SPEECHLAB_SHARD=1/N ... N/N; before them once, here, with 0/N (lay out
                   what they share), and after them once without (put together what they made)
  --requeue        the command saves on SIGUSR1 and ends with 85: then the job goes back into the queue
  --slurm K=V      an option of slurm.conf, such as mem=32G or time=2-0 (repeatable)
  --jobs DIR       where jobs have their scripts and logs: a folder that the nodes see too (default log/slurm)

SPEECHLAB_ENGINE, SPEECHLAB_IMAGE, SPEECHLAB_BACKEND and SPEECHLAB_NGPU say the same as the options.
SPEECHLAB_BINDS=A:B  further paths that the container needs. Bound always: this repository, the working folder,
SPEECHLAB_DOWNLOADS, SPEECHLAB_DATA_DIR (run.sh --data_dir), absolute paths among the arguments; what symbolic links in
the working folder, its data/ and exp/, the downloads, and in folders among the arguments point to; certificates
(SSL_CERT_FILE ...) and pip's files; nothing else of the host's system. A path is the same inside as outside.
SPEECHLAB_CACHE=DIR  the home inside and Apptainer's caches and temporary files (default downloads/.cache; your own home
is not used). APPTAINER_CACHEDIR, APPTAINER_TMPDIR and TMPDIR are kept where you set them.
Inside a container, the command is run as it is (SPEECHLAB_NESTED=1 says that this one can run containers itself).
SPEECHLAB_SLURM="K=V K=V"  as --slurm. SPEECHLAB_SLURM_CONF or containers/slurm.conf: your own slurm.conf, over
containers/slurm.conf.example. Inside a Slurm job, the command is run as it is, in that job.
END
}

fail() { # a failure, or with the status as second argument
    echo "error: $1" >&2
    exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC1091
. "$root/containers/lib/places.sh"
# shellcheck disable=SC1091
. "$root/containers/lib/engines.sh"

# --- options ---
ngpu=${SPEECHLAB_NGPU:-0} engine=${SPEECHLAB_ENGINE:-none} image=${SPEECHLAB_IMAGE:-} backend=${SPEECHLAB_BACKEND:-local}
nodes=1 log="" dry_run=false instead="" procs=1 array="" requeue=false jobs=log/slurm slurm_options=()
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --help | -h) usage; exit 0 ;;
        --dry_run) dry_run=true; shift; continue ;;
        --doctor | --clean) instead=${1#--}; shift; continue ;;
        --requeue) # shellcheck disable=SC2034  # lib/slurm.sh reads it, and --jobs below
            requeue=true; shift; continue ;;
        --*=*) name=${1%%=*} value=${1#*=}; shift ;;
        --ngpu | --engine | --image | --backend | --nodes | --log | --procs | --array | --slurm | --jobs)
            [ $# -ge 2 ] && [ "$2" != -- ] || fail "$1 needs a value (cmd.sh --help)" 2
            name=$1 value=$2; shift 2 ;;
        *) fail "cmd.sh: unknown option '$1': the command comes after -- (cmd.sh --help)" 2 ;;
    esac
    case $name in
        --ngpu) ngpu=$value ;;
        --engine) engine=$value ;;
        --image) image=$value ;;
        --backend) backend=$value ;;
        --nodes) nodes=$value ;;
        --log) log=$value ;;
        --procs) procs=$value ;;
        --array) array=$value ;;
        --slurm) slurm_options+=("$value") ;;
        --jobs) # shellcheck disable=SC2034
            jobs=$value ;;
        *) fail "cmd.sh: unknown option '$name' (cmd.sh --help)" 2 ;;
    esac
done
[ $# -gt 0 ] || [ -n "$instead" ] || fail "cmd.sh: no command after -- (cmd.sh --help)" 2
case $ngpu in *[!0-9]* | "") fail "--ngpu '$ngpu': a number is needed" 2 ;; esac
case $nodes in *[!0-9]* | "" | 0) fail "--nodes '$nodes': a number from 1 is needed" 2 ;; esac
case $backend in
    local | slurm) ;;
    *) fail "--backend '$backend' is unknown: local, slurm" 2 ;;
esac
case $procs in *[!0-9]* | "" | 0) fail "--procs '$procs': a number from 1 is needed" 2 ;; esac
case $array in *[!0-9]* | 0) fail "--array '$array': a number from 1 is needed" 2 ;; esac
case $engine in
    none | auto | apptainer | singularity | podman | docker) ;;
    *) fail "--engine '$engine' is unknown: none, auto, apptainer, singularity, podman, docker" 2 ;;
esac
[ -z "$array" ] || [ "$((nodes * procs))" -eq 1 ] || fail "--array is for commands of one process: no --nodes, no --procs" 2
if [ "$instead" = doctor ]; then
    # shellcheck disable=SC1091
    . "$root/containers/lib/doctor.sh"
    doctor
    exit
elif [ "$instead" = clean ]; then
    for engine in podman docker; do ! command -v $engine >/dev/null || remove_orphans 2>/dev/null || true; done
    exit 0
fi
if [ "$backend" = slurm ] && [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SPEECHLAB_NESTED:-}" ]; then
    echo "note: inside job $SLURM_JOB_ID: run here, in what it has; SPEECHLAB_NESTED=1 submits from inside" >&2
    backend=local
fi
if [ "$backend" = slurm ]; then
    # shellcheck disable=SC1091
    source "$root/containers/lib/slurm.sh"
    slurm "$@" # does not return
fi
[ "$((nodes * procs))" -eq 1 ] || fail "--nodes $nodes and --procs $procs need --backend slurm" 2
inside=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}}
for file in /run/.containerenv /.dockerenv; do [ ! -e "$file" ] || inside=${inside:-$file}; done
if [ -n "$inside" ] && [ "$engine" != none ] && [ -z "${SPEECHLAB_NESTED:-}" ]; then
    ! command -v "$engine" >/dev/null ||
        echo "note: inside a container ($inside): run without --engine $engine; SPEECHLAB_NESTED=1 nests" >&2
    engine=none
fi
[ "$engine" != auto ] || choose_engine
[ "$engine" = none ] || [ -n "$image" ] || fail "--engine $engine needs --image (or SPEECHLAB_IMAGE): containers/build.sh makes one" 2

# --- GPUs ---
need_gpus() { # exits unless $ngpu of them are usable; says what was looked for
    local found=0 device smi="not found"
    if [ "$(uname -sm)" = "Darwin arm64" ] && [ "$ngpu" -eq 1 ] && [ "$engine" = none ]; then return; fi # MPS
    if command -v nvidia-smi >/dev/null; then
        found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
        smi="lists $found"
    fi
    if [ "$found" -eq 0 ]; then
        for device in /dev/nvidia[0-9]*; do [ ! -e "$device" ] || found=$((found + 1)); done
    fi
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # the user's choice of devices limits what is here
        device=$(printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '^[^-]') || true
        [ "$device" -ge "$found" ] || found=$device
        smi="$smi, CUDA_VISIBLE_DEVICES='$CUDA_VISIBLE_DEVICES'"
    fi
    [ "$found" -ge "$ngpu" ] || fail "--ngpu $ngpu: $found usable GPU(s): looked for CUDA (nvidia-smi $smi; \
/dev/nvidia*) and for a Mac's MPS (this is $(uname -sm)); --ngpu 0 uses the CPU"
}

if [ "$ngpu" -eq 0 ]; then
    export CUDA_VISIBLE_DEVICES=
elif ! $dry_run; then
    need_gpus
fi
export SPEECHLAB_NGPU=$ngpu

# --- the command line ---
if [ "$engine" = none ]; then
    line=("$@")
else
    find_image
    engine_line "$@"
fi
if $dry_run; then
    [ "$ngpu" -gt 0 ] || printf 'CUDA_VISIBLE_DEVICES= '
    quoted "${line[@]}"
    exit 0
fi
[ "$engine" = none ] || ready "$@"
command -v "${line[0]}" >/dev/null || fail "no such command: ${line[0]}" 127
if [ -n "$log" ]; then
    mkdir -p "$(dirname "$log")"
    exec > >(trap '' INT TERM HUP; exec tee "$log") 2>&1 # tee outlives the command, to hear its last words
fi
exec "${line[@]}" # no shell stays between the caller and the command: signals and exit status are the command's own
