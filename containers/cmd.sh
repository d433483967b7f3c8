#!/usr/bin/env bash
# Run one command here, or in a container; every stage of a recipe goes through this file.
# The command keeps its working folder, its paths, its exit status, and receives signals as if it were run directly.
set -euo pipefail

usage() {
    cat <<'END'
Usage: containers/cmd.sh [options] -- command [argument ...]

  --ngpu N         GPUs the command uses (default 0: it sees none)
  --engine E       none | auto | podman   (auto: podman if it is there and an image is named, else none)
  --image I        the engine's image
  --backend B      local | slurm   (slurm: as a job, whose log is shown and whose exit status is returned; Ctrl-C cancels it)
  --log FILE       write the command's output to FILE too
  --dry_run        print what would be run, and run nothing
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
SPEECHLAB_DOWNLOADS, absolute paths among the arguments, what symbolic links in the working folder, its data/ and exp/
point to; nothing of the host's system. A path is the same inside as outside.
Inside a container, the command is run as it is (SPEECHLAB_NESTED=1 says that this one can run containers itself).
SPEECHLAB_SLURM="K=V K=V"  as --slurm. SPEECHLAB_SLURM_CONF or containers/slurm.conf: your own slurm.conf, over
containers/slurm.conf.example. Inside a Slurm job, the command is run as it is, in that job.
apptainer and docker come with a later version.
END
}

fail() { # a failure, or with the status as second argument
    echo "error: $1" >&2
    exit "${2:-1}"
}

later() { fail "$1 comes with a later version: use $2" 2; }

quoted() { # the arguments as one line that a shell reads back as the same arguments
    local argument line=""
    for argument in "$@"; do
        case $argument in
            *[!A-Za-z0-9_./:=@%+,-]* | "") argument="'$(printf '%s' "$argument" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line $argument"
    done
    printf '%s\n' "${line# }"
}

# --- options ---
ngpu=${SPEECHLAB_NGPU:-0} engine=${SPEECHLAB_ENGINE:-none} image=${SPEECHLAB_IMAGE:-} backend=${SPEECHLAB_BACKEND:-local}
nodes=1 log="" dry_run=false procs=1 array="" requeue=false jobs=log/slurm slurm_options=()
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --help | -h) usage; exit 0 ;;
        --dry_run) dry_run=true; shift; continue ;;
        --requeue) requeue=true; shift; continue ;;
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
        --jobs) jobs=$value ;;
        *) fail "cmd.sh: unknown option '$name' (cmd.sh --help)" 2 ;;
    esac
done
[ $# -gt 0 ] || fail "cmd.sh: no command after -- (cmd.sh --help)" 2
case $ngpu in *[!0-9]* | "") fail "--ngpu '$ngpu': a number is needed" 2 ;; esac
case $nodes in *[!0-9]* | "" | 0) fail "--nodes '$nodes': a number from 1 is needed" 2 ;; esac
case $backend in
    local | slurm) ;;
    *) fail "--backend '$backend' is unknown: local, slurm" 2 ;;
esac
case $procs in *[!0-9]* | "" | 0) fail "--procs '$procs': a number from 1 is needed" 2 ;; esac
case $array in *[!0-9]* | 0) fail "--array '$array': a number from 1 is needed" 2 ;; esac
[ -z "$array" ] || [ "$((nodes * procs))" -eq 1 ] || fail "--array is for commands of one process: no --nodes, no --procs" 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ "$backend" = slurm ] && [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SPEECHLAB_NESTED:-}" ]; then
    echo "note: inside job $SLURM_JOB_ID: run here, in what it has; SPEECHLAB_NESTED=1 submits from inside" >&2
    backend=local
fi
if [ "$backend" = slurm ]; then
    # shellcheck source=containers/lib/slurm.sh
    source "$root/containers/lib/slurm.sh"
    slurm "$@" # does not return
fi
[ "$((nodes * procs))" -eq 1 ] || fail "--nodes $nodes and --procs $procs need --backend slurm" 2
case $engine in
    none | podman) ;;
    auto)
        engine=none
        if [ -n "$image" ]; then
            command -v podman >/dev/null || fail "--engine auto with an image: no engine here (looked for podman)"
            engine=podman
        fi ;;
    apptainer | singularity | docker) later "--engine $engine" "--engine podman or none" ;;
    *) fail "--engine '$engine' is unknown: none, auto, podman" 2 ;;
esac
inside=${APPTAINER_CONTAINER:-}
for file in /run/.containerenv /.dockerenv; do [ ! -e "$file" ] || inside=${inside:-$file}; done
if [ -n "$inside" ] && [ "$engine" != none ] && [ -z "${SPEECHLAB_NESTED:-}" ]; then
    ! command -v podman >/dev/null ||
        echo "note: inside a container ($inside): run without --engine $engine; SPEECHLAB_NESTED=1 nests" >&2
    engine=none
fi
[ "$engine" = none ] || [ -n "$image" ] || fail "--engine $engine needs --image (or SPEECHLAB_IMAGE)" 2

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

# --- the engine's command line ---
bound=: # the folders bound so far, between colons
volumes=()
strict=true # is a path that can't be bound an error? Not so for one that was only found among the arguments

bind() { # bind a path's folder, or the nearest that exists above it, under the name it is called by and its real one
    local path=$1 real name
    case $path in /*) ;; *) path=$PWD/$path ;; esac
    while [ -L "$path" ] && [ -e "$path" ]; do # every step of a chain of links has to be there inside
        real=$(readlink "$path")
        case $real in /*) ;; *) real=$(dirname "$path")/$real ;; esac
        bind "$(dirname "$path")"
        path=$real
    done
    while [ ! -d "$path" ]; do path=$(dirname "$path"); done # for a file its folder: files are replaced by renaming
    real=$(cd "$path" && pwd -P)
    for name in "$real" "$(cd "$path" && pwd -L)"; do
        case ${name%/}/ in
            / | /bin/ | /dev/ | /etc/ | /lib/ | /lib64/ | /proc/ | /run/ | /sbin/ | /sys/ | /usr/ | /var/)
                ! $strict || fail "$1: the container can't be given the host's $name: put it in a folder of its own"
                return 0 ;;
            /bin/* | /dev/* | /etc/* | /lib/* | /lib64/* | /proc/* | /run/* | /sbin/* | /sys/* | /usr/*)
                $strict || return 0 ;;
            *:*)
                ! $strict || fail "$name: $engine can't bind a path with a colon"
                return 0 ;;
        esac
        is_bound "$name" || { volumes+=(--volume "$real:$name"); bound="$bound$name:"; }
    done
}

is_bound() { # is this folder, or one above it, bound already?
    local folder=$1
    while [ -n "$folder" ]; do
        case $bound in *":$folder:"*) return 0 ;; esac
        folder=${folder%/*}
    done
    return 1
}

podman_line() { # puts the whole command into the array `line`
    local path name
    bind "$root"
    bind "$PWD"
    [ -z "${SPEECHLAB_DOWNLOADS:-}" ] || bind "$SPEECHLAB_DOWNLOADS"
    for path in "$root"/* "$PWD"/* "$PWD"/data/* "$PWD"/exp/*; do
        if [ -L "$path" ] && [ -e "$path" ]; then bind "$path"; fi
    done
    set -f # the list is split at its colons, and nothing else happens to it
    IFS=:
    for path in ${SPEECHLAB_BINDS:-}; do [ -z "$path" ] || bind "$path"; done
    unset IFS
    set +f
    strict=false
    for path in "${@:2}"; do
        case $path in /* | --*=/*) bind "/${path#*/}" ;; esac
    done

    line=(podman run --rm --init --interactive)                    # --init: signals reach the command, nothing is left over
    line+=(--name "speechlab-$$-$RANDOM" --label "speechlab.client=${HOSTNAME:-host}:$$")
    line+=(--network host --ipc host --security-opt label=disable) # torchrun's ports; workers' shared memory; SELinux
    [ "$(id -u)" -eq 0 ] || line+=(--userns keep-id)               # the files written belong to whoever runs this
    line+=(--workdir "$PWD" "${volumes[@]}" --env HOME=/tmp --env PYTHONNOUSERSITE=1)
    for name in $(compgen -e SPEECHLAB_) PYTHONPATH PYTHONUNBUFFERED CUDA_VISIBLE_DEVICES OMP_NUM_THREADS MKL_NUM_THREADS \
        RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_RESTART_COUNT; do
        [ -z "${!name+set}" ] || [ "$name" = SPEECHLAB_NESTED ] || [ "$name" = SPEECHLAB_PYTHON ] || line+=(--env "$name")
    done
    line+=(--env "SPEECHLAB_CONTAINER=podman:$image")
    [ "$ngpu" -eq 0 ] || line+=(--device nvidia.com/gpu=all)
    line+=("$image" "$@")
}

remove_orphans() { # containers whose client was killed with SIGKILL, which no one could pass on to them
    local id client
    podman ps --filter label=speechlab.client --format '{{.ID}} {{index .Labels "speechlab.client"}}' |
    while read -r id client; do
        [ "${client%:*}" = "${HOSTNAME:-host}" ] || continue
        kill -0 "${client##*:}" 2>/dev/null || podman rm --force "$id" >/dev/null || true
    done
}

if [ "$engine" = none ]; then
    line=("$@")
else
    podman_line "$@"
fi
if $dry_run; then
    [ "$ngpu" -gt 0 ] || printf 'CUDA_VISIBLE_DEVICES= '
    quoted "${line[@]}"
    exit 0
fi
if [ "$engine" = podman ]; then
    command -v podman >/dev/null || fail "--engine podman: no program podman on PATH: install it, or use --engine none"
    podman image exists "$image" || fail "podman has no image '$image': build it from containers/Dockerfile, or podman pull it"
    if [ "$ngpu" -gt 0 ]; then
        ls /etc/cdi/nvidia* /var/run/cdi/nvidia* >/dev/null 2>&1 || fail "--ngpu $ngpu in podman: no CDI description of the \
GPUs in /etc/cdi or /var/run/cdi: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    fi
    remove_orphans
fi
command -v "${line[0]}" >/dev/null || fail "no such command: ${line[0]}" 127
if [ -n "$log" ]; then
    mkdir -p "$(dirname "$log")"
    exec > >(trap '' INT TERM HUP; exec tee "$log") 2>&1 # tee outlives the command, to hear its last words
fi
exec "${line[@]}" # no shell stays between the caller and the command: signals and exit status are the command's own
