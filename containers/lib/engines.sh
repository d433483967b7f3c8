# shellcheck shell=bash disable=SC2154,SC2034  # $engine, $image, $ngpu, $root, $strict ... are cmd.sh's
# Sourced by cmd.sh: each engine's command line, in the array `line`, and what must be true before it is run.
# In all of them: the caller's user, folder and paths; an init or its like, so that signals reach the command and nothing
# outlives it; the host's network (torchrun's ports) and shared memory (data loaders); of the environment only what is
# listed below, so that a host's modules, conda and ~/.local don't leak in.

shm_wanted=1024 # MB; docker's own default of 64 kills data loaders with several workers

choose_engine() { # --engine auto: by what the image is and which programs are here; says what it took
    local name wanted
    engine=none
    if [ -z "$image" ]; then
        echo "note: --engine auto without --image: no container" >&2
        return
    fi
    if is_file_image; then wanted="apptainer singularity"; else wanted="podman docker"; fi
    for name in $wanted; do
        if [ "$engine" = none ] && command -v "$name" >/dev/null; then engine=$name; fi
    done
    [ "$engine" != none ] || fail "--engine auto with the image '$image': no engine here (looked for ${wanted/ / and })"
    echo "note: --engine auto: $engine, image $image" >&2
}

is_file_image() { # a SIF, a sandbox folder, or an address that Apptainer fetches
    case $image in *.sif | *.simg | *://*) return 0 ;; esac
    [ -e "$image" ]
}

# --- what is bound ---
bound=: # the folders bound so far, between colons
binds=() # each one's real name and the name it is called by, in turn
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
            *[,\"]*)
                case $engine in
                    apptainer | singularity)
                        ! $strict || fail "$name: $engine can't bind a path with a comma or a quote"
                        return 0 ;;
                esac ;;
        esac
        is_bound "$name" || { binds+=("$real" "$name"); bound="$bound$name:"; }
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

bind_all() { # the arguments are the command's
    local path
    bind "$root"
    bind "$PWD"
    if [ -f "$root/.git" ] && read -r _ path <"$root/.git"; then # a worktree: its commit is known elsewhere
        case $path in /*/worktrees/*) bind "${path%/worktrees/*}" ;; esac
    fi
    for path in "${SPEECHLAB_DOWNLOADS:-}" "$cache" "${TMPDIR:-}" "${HF_HOME:-}" "${TORCH_HOME:-}" "${XDG_CACHE_HOME:-}"; do
        [ -z "$path" ] || [ "$path" = /tmp ] || bind "$path"
    done
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
}

# --- what of the environment goes in ---
asked_for() { # NAME: is this a variable by which a person tells our programs something?
    case $1 in
        SPEECHLAB_NESTED | SPEECHLAB_PYTHON | SPEECHLAB_CONTAINER | SPEECHLAB_IMAGE_ID) return 1 ;;
        PIP_USER | PIP_TARGET | PIP_PREFIX | PIP_ROOT | PIP_PYTHON) return 1 ;; # where the host installs
        SPEECHLAB_* | NCCL_* | GLOO_* | TORCH_* | PYTORCH_* | OMP_* | MKL_* | HF_* | WANDB_* | PYTHONUNBUFFERED) ;;
        GLIBC_TUNABLES | TZ | XDG_CACHE_HOME) ;;
        http_proxy | https_proxy | all_proxy | no_proxy | HTTP_PROXY | HTTPS_PROXY | ALL_PROXY | NO_PROXY) ;;
        PIP_* | SSL_CERT_FILE | SSL_CERT_DIR | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE) ;; # stage 0 fetches by pip, too
        *) return 1 ;;
    esac
}

is_secret() { # NAME: one that is not to be shown, nor written down
    case $1 in *KEY* | *TOKEN* | *SECRET* | *PASSWORD*) return 0 ;; esac
    case ${!1} in *://*@*) return 0 ;; esac # a name and a password in an address
    return 1
}

environment() { # sets the arrays `names` (to be passed with the value they have) and `settings` (NAME=value)
    local name path kept=""
    names=() settings=()
    for name in $(compgen -e); do
        case $name in
            CUDA_VISIBLE_DEVICES | CUDA_DEVICE_ORDER | CUDA_LAUNCH_BLOCKING | MASTER_ADDR | MASTER_PORT | RANK | \
                LOCAL_RANK | WORLD_SIZE | LOCAL_WORLD_SIZE | SLURM_JOB_ID | SLURM_PROCID | SLURM_LOCALID | SLURM_NODEID | \
                SLURM_NTASKS | SLURM_CPUS_PER_TASK | SLURM_ARRAY_TASK_ID | SLURM_RESTART_COUNT | SLURM_JOB_NODELIST | \
                COLUMNS | TMPDIR) names+=("$name") ;;
            *) ! asked_for "$name" || names+=("$name") ;;
        esac
    done
    IFS=:
    set -f
    for path in ${PYTHONPATH:-}; do # what is inside as well; a module system's is not, or is another Python's
        if [ -n "$path" ] && is_bound "$path"; then kept="$kept:$path"; fi
    done
    set +f
    unset IFS
    [ -z "$kept" ] || settings+=("PYTHONPATH=${kept#:}")
    settings+=(PYTHONNOUSERSITE=1 "SPEECHLAB_CONTAINER=$engine:$image")
    [ -z "$image_id" ] || settings+=("SPEECHLAB_IMAGE_ID=$image_id")
}

# --- the command lines ---
podman_line() { # podman and docker
    local i name
    line=("$engine" run --rm --init --interactive) # --init: signals reach the command, nothing is left over
    line+=(--name "speechlab-$$-$RANDOM" --label "speechlab.client=${HOSTNAME:-host}:$$")
    line+=(--network host --security-opt label=disable) # torchrun's ports; SELinux
    if [ -n "$shm" ] && [ "$shm" -lt "$shm_wanted" ]; then line+=(--shm-size 8g); else line+=(--ipc host); fi
    # The files written belong to whoever runs this. A daemon that is itself a user's has that user as its root.
    if [ "$engine" = podman ]; then
        [ "$uid" -eq 0 ] || line+=(--userns keep-id)
        line+=(--user "$uid:$gid")
        [ "$(umask)" = 0022 ] || line+=(--umask "$(umask)")
    else
        case ${DOCKER_HOST:-} in
            unix:///run/user/*) line+=(--user 0:0) ;;
            *) line+=(--user "$uid:$gid")
               for name in $(id -G); do [ "$name" = "$gid" ] || line+=(--group-add "$name"); done ;;
        esac
    fi
    line+=(--workdir "$PWD")
    for ((i = 0; i < ${#binds[@]}; i += 2)); do line+=(--volume "${binds[i]}:${binds[i + 1]}"); done
    line+=(--env "HOME=$cache/home" --env "USER=${USER:-user}") # USER: a uid that the image doesn't know has no name
    for name in ${names[@]+"${names[@]}"}; do line+=(--env "$name"); done
    for name in "${settings[@]}"; do line+=(--env "$name"); done
    if [ "$ngpu" -gt 0 ]; then
        if [ "$engine" = podman ]; then line+=(--device nvidia.com/gpu=all); else line+=(--gpus all); fi
    fi
    line+=("$image" "$@")
}

apptainer_line() { # apptainer and singularity
    local i name prefix=APPTAINER
    # Apptainer may be called singularity; SingularityCE knows variables of its own name alone.
    if [ "$engine" = singularity ]; then
        case $(readlink "$(command -v singularity)" 2>/dev/null || true) in *apptainer*) ;; *) prefix=SINGULARITY ;; esac
    fi
    apptainer_places
    line=(env "${prefix}_CACHEDIR=$APPTAINER_CACHEDIR" "${prefix}_TMPDIR=$APPTAINER_TMPDIR")
    # Not --env: it splits values at commas. A secret is not put where --dry_run would show it.
    for name in ${names[@]+"${names[@]}"}; do
        if is_secret "$name"; then export "${prefix}ENV_$name=${!name}"; else line+=("${prefix}ENV_$name=${!name}"); fi
    done
    for name in "${settings[@]}"; do line+=("${prefix}ENV_$name"); done
    # --pid: when the client is killed with SIGKILL, the kernel ends all that it started; nothing is left over.
    line+=("$engine" exec --cleanenv --pid --home "$cache/home" --pwd "$PWD")
    for ((i = 0; i < ${#binds[@]}; i += 2)); do line+=(--bind "${binds[i]}:${binds[i + 1]}"); done
    [ "$ngpu" -eq 0 ] || line+=(--nv)
    line+=("$image" "$@")
}

engine_line() { # the whole command into `line`; the arguments are the command
    local uid gid names settings
    uid=$(id -u) gid=$(id -g)
    cache_place
    look_at_disks
    bind_all "$@"
    environment
    case $engine in
        podman | docker) podman_line "$@" ;;
        *) apptainer_line "$@" ;;
    esac
}

# --- before it is run ---
look_at_disks() { # sets $shm, the size of /dev/shm in MB, or ""; ends where no temporary file can be written
    local tmp=${TMPDIR:-/tmp} name size free where
    shm=""
    while read -r name size _ free _ where; do
        case $name in Filesystem | "") continue ;; esac
        if [ "$where" = /dev/shm ]; then
            shm=$((size / 1024))
        elif [ "$free" -lt 20480 ] && ! $dry_run; then
            fail "$tmp is full ($((free / 1024)) MB free): make room there, or TMPDIR=/a/larger/disk"
        fi
    done <<<"$(df -Pk "$tmp" /dev/shm 2>/dev/null || true)"
    case $engine in apptainer | singularity) ;; *) return 0 ;; esac
    if [ -n "$shm" ] && [ "$shm" -lt "$shm_wanted" ] && ! $dry_run; then
        echo "note: /dev/shm holds $shm MB, and $engine uses the host's: data loaders may die (bus error): \
mount -o remount,size=8G /dev/shm as root" >&2
    fi
}

find_image() { # the image is there, or one line; sets $image_id. With --dry_run what can't be known stays empty
    local answer uuid sum
    image_id=""
    command -v "$engine" >/dev/null || {
        ! $dry_run || return 0
        fail "--engine $engine: no program $engine on PATH: install it (containers/README.md), or use --engine none"
    }
    case $engine in
        podman | docker)
            if answer=$("$engine" image inspect --format '{{.Id}}' "$image" 2>&1); then
                image_id=${answer##*[!a-z0-9:]}
                case $image_id in sha256:*) ;; *) image_id=sha256:$image_id ;; esac
                return
            fi
            $dry_run && return
            case $answer in
                *"not known"* | *[Nn]"o such"*)
                    fail "$engine has no image '$image': containers/build.sh --engine $engine --image $image, or $engine pull it" ;;
                *) fail "$engine doesn't answer: $(last_line "$answer")" ;;
            esac ;;
        *)
            case $image in *://*) return ;; esac
            if [ ! -e "$image" ]; then
                $dry_run && return
                fail "no such image file: $image: containers/build.sh --engine $engine --image $image"
            fi
            [ -f "$image" ] || return 0 # a folder: nothing names its contents
            # Hashing gigabytes at every stage is too dear: the sum that build.sh left, else the UUID in the SIF's header.
            if [ -f "$image.sha256" ] && [ ! "$image" -nt "$image.sha256" ]; then
                read -r sum _ <"$image.sha256"
                image_id=sha256:$sum
            elif uuid=$(od -A n -t x1 -j 48 -N 16 "$image" 2>/dev/null | tr -d ' \n'); then
                image_id=sif:$uuid
            fi ;;
    esac
}

# Whether an image has what the stages need costs a container: asked once an image, and remembered.
lacking='command -v python >/dev/null || { echo lacks:python; exit 0; }
python -c "import importlib.util as u; print(\"lacks:\" + \" \".join(n for n in (\"torch\", \"lhotse\") if not u.find_spec(n)))"'

check_packages() { # ends with one line where `python` is asked for and the image has none, or not ours
    local key mark answer
    [ "$1" = python ] || return 0
    key=${image_id:-$(printf %s "$image" | cksum)}
    mark=$cache/checked/$(printf %s "$key" | tr -c 'a-z0-9\n' -)
    [ ! -e "$mark" ] || return 0
    case $engine in
        podman | docker) answer=$("$engine" run --rm --network none "$image" sh -c "$lacking" 2>&1) ;;
        *) answer=$("$engine" exec --cleanenv --home "$cache/home" "$image" sh -c "$lacking" 2>&1) ;;
    esac || fail "the image $image can't be run: $(last_line "$answer")"
    answer=$(printf '%s\n' "$answer" | sed -n 's/^lacks://p') # engines have their own notes to give
    [ -z "$answer" ] || fail "the image $image has no ${answer// / and no }: make one that has: containers/build.sh"
    mkdir -p "$cache/checked" && : >"$mark"
}

ready() { # all that can be said before the engine says it less clearly; the arguments are the command
    mkdir -p "$cache/home" || fail "$cache can't be written: SPEECHLAB_CACHE=/a/folder/of/yours"
    case $engine in
        podman | docker) remove_orphans ;;
        *) mkdir -p "$APPTAINER_CACHEDIR" "$APPTAINER_TMPDIR" || fail "$APPTAINER_TMPDIR can't be written" ;;
    esac
    if [ "$engine" = podman ] && [ "$ngpu" -gt 0 ]; then
        grep -qs 'nvidia.com/gpu' /etc/cdi/* /var/run/cdi/* || fail "--ngpu $ngpu in podman: no CDI description of the \
GPUs in /etc/cdi or /var/run/cdi: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    fi
    check_packages "$@"
}

remove_orphans() { # containers whose client was killed with SIGKILL, which no one could pass on to them
    local id client labels='{{index .Labels "speechlab.client"}}'
    [ "$engine" = podman ] || labels='{{.Label "speechlab.client"}}'
    "$engine" ps --all --filter label=speechlab.client --format "{{.ID}} $labels" |
    while read -r id client; do
        [ "${client%:*}" = "${HOSTNAME:-host}" ] || continue
        kill -0 "${client##*:}" 2>/dev/null || "$engine" rm --force "$id" >/dev/null || true
    done
}
