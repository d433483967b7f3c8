# shellcheck shell=bash disable=SC2034,SC2154  # $root is the caller's, $cache the caller's to use
# Sourced by cmd.sh, build.sh and doctor.sh: where caches and temporary files go, so that a small home stays small.

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

last_line() { printf '%s\n' "$1" | tail -n 1; } # what an engine's error comes down to

cache_place() { # sets $cache: SPEECHLAB_CACHE, else beside the downloads, else (they are read-only) a temporary folder
    local above
    cache=${SPEECHLAB_CACHE:-${SPEECHLAB_DOWNLOADS:-$root/downloads}/.cache}
    case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
    above=$cache
    while [ ! -e "$above" ]; do above=${above%/*} above=${above:-/}; done
    [ -w "$above" ] || cache=${TMPDIR:-/tmp}/speechlab-cache-$(id -u)
}

apptainer_places() { # exports the folders that Apptainer would have in the home or in /tmp otherwise
    cache_place
    export APPTAINER_CACHEDIR=${APPTAINER_CACHEDIR:-${SINGULARITY_CACHEDIR:-$cache/apptainer}}
    export APPTAINER_TMPDIR=${APPTAINER_TMPDIR:-${SINGULARITY_TMPDIR:-$cache/tmp}}
    # SingularityCE has its own names for the same; Apptainer would warn of two values that differ.
    export SINGULARITY_CACHEDIR=$APPTAINER_CACHEDIR SINGULARITY_TMPDIR=$APPTAINER_TMPDIR
}
