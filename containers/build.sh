#!/usr/bin/env bash
# Build the image that containers/cmd.sh runs: podman's or docker's from containers/Dockerfile, a SIF for Apptainer from
# containers/speechlab.def or from an image that podman or docker has. Of the repository only setup.py's list goes in.
set -euo pipefail

usage() {
    cat <<'END'
Usage: containers/build.sh [options] [-- options for the engine's own build]

  --engine E    podman | docker | apptainer | singularity; auto (default): the first of these that is here
  --image I     what to make: a name (default localhost/speechlab); for Apptainer a file (default
                containers/speechlab.sif)
  --base B      what to build on: debian:bookworm-slim (default), any newer Debian or Ubuntu, or PyTorch's own image
                (pytorch/pytorch:2.11.0-..., whose torch is kept); for Apptainer a SIF or a folder as well
  --extras X    which of setup.py's extras go in (default asr; several: asr,sweep)
  --cpu         PyTorch's build without CUDA: 2 GB rather than 6
  --from IMAGE  Apptainer only: convert an image instead of building the definition: podman:NAME, docker:NAME, or a
                file of `podman save` or `docker save`
  --force       make it again, though it is there
  --dry_run     print the commands, and run nothing
  --help

Layers and temporary files of Apptainer lie in downloads/.cache/ (SPEECHLAB_CACHE, or APPTAINER_CACHEDIR and
APPTAINER_TMPDIR, move them); podman's and docker's where these keep their images.

  containers/build.sh                                                          podman or docker
  containers/build.sh --engine apptainer                                       as root, or with --fakeroot by itself
  containers/build.sh --engine apptainer --from podman:localhost/speechlab     needs neither
  containers/build.sh --engine podman -- --network=host
END
}

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

# --- options ---
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
engine=auto image="" base="" extras=asr index="" from="" force=false dry_run=false
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --help | -h) usage; exit 0 ;;
        --cpu) # the one place that knows PyTorch's index is setup.sh
            index=${SPEECHLAB_TORCH_INDEX:-$(sed -n 's/^torch_index=.*:-\(http[^}]*\)}$/\1/p' "$root/tools/setup.sh")}
            shift; continue ;;
        --force) force=true; shift; continue ;;
        --dry_run) dry_run=true; shift; continue ;;
        --*=*) name=${1%%=*} value=${1#*=}; shift ;;
        --engine | --image | --base | --extras | --from)
            [ $# -ge 2 ] && [ "$2" != -- ] || fail "$1 needs a value (build.sh --help)" 2
            name=$1 value=$2; shift 2 ;;
        *) fail "build.sh: unknown option '$1' (build.sh --help; the engine's own come after --)" 2 ;;
    esac
    case $name in
        --engine) engine=$value ;;
        --image) image=$value ;;
        --base) base=$value ;;
        --extras) extras=$value ;;
        --from) from=$value ;;
        *) fail "build.sh: unknown option '$name' (build.sh --help)" 2 ;;
    esac
done
case $engine in
    podman | docker | apptainer | singularity) ;;
    auto)
        engine=""
        for name in podman docker apptainer singularity; do
            if [ -z "$engine" ] && command -v "$name" >/dev/null; then engine=$name; fi
        done
        [ -n "$engine" ] || fail "no engine here: looked for podman, docker, apptainer, singularity"
        echo "build.sh: with $engine (--engine chooses)" >&2 ;;
    *) fail "--engine '$engine' is unknown: auto, podman, docker, apptainer, singularity" 2 ;;
esac
case $engine in podman | docker) [ -z "$from" ] || fail "--from is for --engine apptainer: $engine has that image" 2 ;; esac
[ -z "$from" ] || [ -z "$base$index" ] || fail "--from takes a finished image: --base and --cpu belong to its own build" 2
$dry_run || command -v "$engine" >/dev/null || fail "no program $engine on PATH: install it, or choose another --engine"

# shellcheck disable=SC1091
. "$root/containers/lib/places.sh"

run() { # run it, its output on stderr, or print it
    if $dry_run; then quoted "$@"; else "$@" >&2; fi
}

room() { # room FOLDER GB: enough free, or one line
    local free
    while [ ! -d "$1" ]; do set -- "$(dirname "$1")" "$2"; done
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$2" ] || fail "$1 has $free GB free, and the build needs $2: ${3:-make room}"
}
need=15
if [ -n "$index" ]; then need=5; fi

# --- podman, docker ---
if [ "$engine" = podman ] || [ "$engine" = docker ]; then
    image=${image:-localhost/speechlab}
    if ! $dry_run; then
        if ! $force && "$engine" image inspect "$image" >/dev/null 2>&1; then
            echo "build.sh: $engine has $image already (--force makes it again)" >&2
            exit 0
        fi
        case $engine in podman) store='{{.Store.GraphRoot}}' ;; *) store='{{.DockerRootDir}}' ;; esac
        store=$("$engine" info --format "$store" 2>/dev/null) || fail "$engine doesn't answer: see what '$engine info' says"
        [ ! -d "$store" ] || room "$store" $need "$engine system prune, or move its storage"
    fi
    # Only what the Dockerfile copies: the repository may hold gigabytes of data, and not each engine reads .dockerignore.
    context=$(mktemp -d "${TMPDIR:-/tmp}/speechlab-build.XXXXXX")
    trap 'rm -rf "$context"' EXIT
    mkdir -p "$context/containers" "$context/speechlab"
    cp "$root/setup.py" "$context/"
    cp "$root/speechlab/__init__.py" "$context/speechlab/"
    cp "$root/containers/install.sh" "$context/containers/"
    arguments=(--build-arg "EXTRAS=$extras")
    [ -z "$base" ] || arguments+=(--build-arg "BASE=$base")
    [ -z "$index" ] || arguments+=(--build-arg "TORCH_INDEX=$index")
    run "$engine" build "${arguments[@]}" -t "$image" -f "$root/containers/Dockerfile" "$@" "$context" ||
        fail "$engine build failed: its last lines above say why"
    $dry_run || echo "build.sh: made; now: SPEECHLAB_ENGINE=$engine SPEECHLAB_IMAGE=$image egs/mnist/run.sh" >&2
    exit 0
fi

# --- Apptainer ---
image=${image:-$root/containers/speechlab.sif}
case $image in /*) ;; *) image=$PWD/$image ;; esac
if ! $force && ! $dry_run && [ -e "$image" ]; then
    echo "build.sh: $image is there already (--force makes it again)" >&2
    exit 0
fi
apptainer_places
work=$APPTAINER_TMPDIR/build.$$
if ! $dry_run; then
    mkdir -p "$APPTAINER_CACHEDIR" "$work" "$(dirname "$image")"
    trap 'rm -rf "$work" "$image.part"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    room "$work" $need "SPEECHLAB_CACHE=/a/larger/disk"
fi
arguments=(--force "$@" "$image.part")
if [ -n "$from" ]; then
    case $from in
        podman:* | docker:*)
            source=${from%%:*} name=${from#*:}
            $dry_run || command -v "$source" >/dev/null || fail "--from $from: no program $source on PATH"
            $dry_run || "$source" image inspect "$name" >/dev/null 2>&1 ||
                fail "$source has no image '$name': containers/build.sh --engine $source --image $name"
            format=()
            [ "$source" = docker ] || format=(--format docker-archive)
            run "$source" save ${format[@]+"${format[@]}"} --output "$work/image.tar" "$name" || fail "$source save failed"
            from=$work/image.tar ;;
        *) $dry_run || [ -f "$from" ] || fail "--from '$from': podman:NAME, docker:NAME, or a file of podman save" 2 ;;
    esac
    arguments=(--disable-cache "${arguments[@]}" "docker-archive:$from") # what is converted once needs no copy of its layers
else
    bootstrap=docker
    if [ -e "$base" ]; then
        bootstrap=localimage
        case $base in /*) ;; *) base=$PWD/$base ;; esac
    fi
    options=(--build-arg "BOOTSTRAP=$bootstrap" --build-arg "EXTRAS=$extras")
    [ -z "$base" ] || options+=(--build-arg "BASE=$base")
    [ -z "$index" ] || options+=(--build-arg "TORCH_INDEX=$index")
    [ "$(id -u)" -eq 0 ] || options+=(--fakeroot)
    arguments=("${options[@]}" "${arguments[@]}" "$root/containers/speechlab.def")
fi
cd "$root" # the definition's %files are meant from here
run "$engine" build "${arguments[@]}" || fail "$engine build failed: its last lines above say why; without root and \
--fakeroot build with podman, and convert: build.sh --engine $engine --from podman:localhost/speechlab"
$dry_run && exit 0
# What env.json names as the image; hashed once here, not at every stage.
if command -v sha256sum >/dev/null; then sum=sha256sum; else sum="shasum -a 256"; fi
rm -f "$image.sha256" "$image" # in this order: no image stands beside another's sum
mv "$image.part" "$image"
(cd "$(dirname "$image")" && $sum "$(basename "$image")" >"$image.sha256")
echo "build.sh: made; now: SPEECHLAB_ENGINE=$engine SPEECHLAB_IMAGE=$(quoted "$image") egs/mnist/run.sh" >&2
