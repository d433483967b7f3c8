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
bound=$'\n' # the folders bound so far, between line ends
binds=() # each one's real name and the name it is called by, in turn
lacking_it=false # could the last path not be bound?
strict=true # is a path that can't be bound an error? Not so for one that was only found among the arguments

whose() { # NAME: prints "image" (the container would be none without its own), "system" (bound if a person asks), "user"
    case ${1%/}/ in
        / | /bin/ | /dev/ | /etc/ | /lib/ | /lib64/ | /proc/ | /run/ | /sbin/ | /sys/ | /usr/ | /var/) echo image ;;
        /run/media/*) echo user ;; # disks that somebody has plugged in
        /bin/* | /dev/* | /etc/* | /lib/* | /lib64/* | /proc/* | /run/* | /sbin/* | /sys/* | /usr/*) echo system ;;
        *) echo user ;;
    esac
}

not_bound() { # PATH WHY: an error, or a line for what was only found among the arguments; sets `lacking_it`
    lacking_it=true
    ! $strict || fail "$1: $2"
    # A program is the image's; and what is not there, or no path at all ("--separator=/"), is the command's affair.
    if [ "$1" = / ] || [ ! -e "$1" ] || [ -c "$1" ] || { [ -f "$1" ] && [ -x "$1" ]; }; then return 0; fi
    # Certificates where every system has them: the image has its own there.
    case $1 in /etc/ssl/* | /etc/pki/* | /etc/ca-certificates/*) return 0 ;; esac
    echo "note: $1 is not there in the container: $2" >&2
}

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
        ! is_bound "$name" || continue
        case $(whose "$name") in
            image) not_bound "$1" "the container can't be given the host's $name: put it in a folder of its own"; return ;;
            system) $strict || { not_bound "$1" "it is the host's system; SPEECHLAB_BINDS=PATH binds it"; return; } ;;
        esac
        case $engine:$name in
            apptainer:*[,:\"]* | singularity:*[,:\"]*)
                not_bound "$name" "$engine can't bind a path with a colon, a comma or a quote"
                return ;;
        esac
        binds+=("$real" "$name")
        bound=$bound$name$'\n'
    done
}

is_bound() { # is this folder, or one above it, bound already?
    local folder=$1
    while [ -n "$folder" ]; do
        case $bound in *$'\n'"$folder"$'\n'*) return 0 ;; esac
        folder=${folder%/*}
    done
    return 1
}

bind_file() { # a file alone, under its own name, if its folder is the system's: certificates are often in /etc
    local path=$1 real=$1 next
    case $path in /*) ;; *) path=$PWD/$path ;; esac
    [ -e "$path" ] || return 0
    if [ ! -f "$path" ] || [ "$(whose "$(dirname "$path")")" = user ]; then bind "$path"; return; fi
    real=$path
    while [ -L "$real" ]; do
        next=$(readlink "$real")
        case $next in /*) real=$next ;; *) real=$(dirname "$real")/$next ;; esac
    done
    is_bound "$path" || { binds+=("$real" "$path"); bound=$bound$path$'\n'; }
}

links() { # FOLDER: a line for each link in it, to three folders deep: what it points to (d, f...), its folder, target, name
    if find "$1/" -maxdepth 0 -printf '' 2>/dev/null; then
        find "$1/" -maxdepth 3 -type l -printf '%Y\t%h\t%l\t%p\n' 2>/dev/null
    else # a Mac's find
        find "$1/" -maxdepth 3 -type l 2>/dev/null | while IFS= read -r path; do
            printf '?\t%s\t%s\t%s\n' "$(dirname "$path")" "$(readlink "$path")" "$path"
        done
    fi || true
}

bind_links() { # FOLDER [DEPTH]: what links in it point to; a corpus may have a link per utterance
    local kind folder target path places=$'\n'
    while IFS=$'\t' read -r kind folder target path; do
        [ -e "$path" ] || continue # a broken one is the command's affair
        case $target in /*) ;; */*) target=$folder/$target ;; *) continue ;; esac
        if [ "$kind" = f ]; then # of many links into one folder the first is enough
            case $places in *$'\n'"${target%/*}"$'\n'*) continue ;; esac
            places=$places${target%/*}$'\n'
        fi
        lacking_it=false
        bind "$path"
        if [ -d "$path" ] && [ "${2:-1}" -lt 3 ] && ! $lacking_it; then bind_links "$path" $((${2:-1} + 1)); fi
    done < <(links "$1")
}

bind_all() { # the arguments are the command's
    local path name
    case $root in *:*) fail "$root: PYTHONPATH can't hold a path with a colon: move this folder" ;; esac
    bind "$root"
    bind "$PWD"
    if [ -f "$root/.git" ] && read -r _ path <"$root/.git"; then # a worktree: its commit is known elsewhere
        case $path in /*/worktrees/*) bind "${path%/worktrees/*}" ;; esac
    fi
    for path in "${SPEECHLAB_DOWNLOADS:-}" "$cache" "${TMPDIR:-}" "${HF_HOME:-}" "${TORCH_HOME:-}" "${XDG_CACHE_HOME:-}"; do
        [ -z "$path" ] || [ "$path" = /tmp ] || bind "$path"
    done
    for path in "$root"/* "$PWD"/* "$PWD"/data/* "$PWD"/exp/* "${SPEECHLAB_DOWNLOADS:-$root/downloads}"/*; do
        if [ -L "$path" ] && [ -e "$path" ]; then bind "$path"; fi
    done
    set -f # the list is split at its colons, and nothing else happens to it
    IFS=:
    for path in ${SPEECHLAB_BINDS:-}; do [ -z "$path" ] || bind "$path"; done
    strict=false
    for path in ${SSL_CERT_DIR:-}; do [ ! -d "$path" ] || bind "$path"; done
    unset IFS
    set +f
    for name in SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS $(compgen -e PIP_); do
        case ${!name:-} in /*) ! asked_for "$name" || bind_file "${!name}" ;; esac
    done
    [ -z "$pip_conf" ] || bind_file "$pip_conf"
    # The corpus of --data_dir: every stage that hears audio reads it, whatever its arguments are.
    for path in "${SPEECHLAB_DATA_DIR:-}" "${@:2}"; do
        case $path in --*=* | *=/*) path=${path#*=} ;; esac # --data=DIR, --set data.noise=/DIR
        lacking_it=false
        case $path in
            "" | . | / | "$root" | "$PWD") continue ;;
            /*) bind "$path" ;;
        esac
        if [ -d "$path" ] && ! $lacking_it; then bind_links "$path"; fi
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
        PIP_* | SSL_CERT_FILE | SSL_CERT_DIR | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE) ;; # stage 0 fetches by pip and npm, too
        npm_config_registry | NPM_CONFIG_REGISTRY | NODE_EXTRA_CA_CERTS) ;;
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
    [ -z "$pip_conf" ] || settings+=("PIP_CONFIG_FILE=$pip_conf")
    settings+=(PYTHONNOUSERSITE=1 "SPEECHLAB_CONTAINER=$engine:$image")
    [ -z "$image_id" ] || settings+=("SPEECHLAB_IMAGE_ID=$image_id")
}

# --- the command lines ---
csv() { # one field
    case $1 in *[,\"]*) printf '"%s"' "$(printf %s "$1" | sed 's/"/""/g')" ;; *) printf %s "$1" ;; esac
}

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
    for ((i = 0; i < ${#binds[@]}; i += 2)); do
        case ${binds[i]}${binds[i + 1]} in # --volume is split at colons, --mount at commas, as CSV
            *:*) line+=(--mount "type=bind,$(csv "source=${binds[i]}"),$(csv "destination=${binds[i + 1]}")") ;;
            *) line+=(--volume "${binds[i]}:${binds[i + 1]}") ;;
        esac
    done
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
    local uid gid names settings pip_conf="" name
    uid=$(id -u) gid=$(id -g)
    # pip's settings of the host's home, such as a mirror: the home inside is another one.
    for name in "${XDG_CONFIG_HOME:-${HOME:-/nowhere}/.config}/pip/pip.conf" "${HOME:-/nowhere}/.pip/pip.conf"; do
        [ -n "$pip_conf" ] || [ -n "${PIP_CONFIG_FILE:-}" ] || [ ! -f "$name" ] || pip_conf=$name
    done
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
