#!/usr/bin/env bash
# Bring podman up on a Debian machine that has nothing of it, without an image registry, and build the image of
# containers/Dockerfile. Progress goes to stderr; the last lines on stdout are what to export:
#   eval "$(tests/containers/podman_up.sh)"
# Safe to repeat: what is there is kept. Needs root only for what is missing (apt-get, debootstrap).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
state=${SPEECHLAB_PODMAN_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/speechlab/podman}
base=localhost/bookworm:min
image=${SPEECHLAB_IMAGE:-localhost/speechlab:test}
suite=bookworm
packages="podman runc buildah catatonit fuse-overlayfs uidmap slirp4netns netavark aardvark-dns
    containernetworking-plugins iptables debootstrap"

say() { echo "podman_up: $1" >&2; }
fail() { say "error: $1"; exit 1; }

if ! command -v podman >/dev/null || ! command -v debootstrap >/dev/null; then
    [ "$(id -u)" -eq 0 ] || fail "podman and debootstrap are missing, and only root can install them"
    command -v apt-get >/dev/null || fail "podman is missing, and there is no apt-get to install it"
    say "installing podman"
    apt-get update -qq >&2 || fail "apt-get update failed: no network?"
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $packages >&2 || fail "apt-get failed"
fi

mkdir -p "$state"
# A machine without CAP_SYS_RESOURCE can't raise limits, which podman's defaults do; cgroups may be missing likewise.
cat >"$state/containers.conf" <<'END'
[containers]
default_ulimits=["nofile=1024:1024","nproc=4096:4096"]
[engine]
runtime="runc"
END
export CONTAINERS_CONF=$state/containers.conf

if ! podman image exists "$base"; then
    say "making $base"
    tree=$(mktemp -d "$state/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    debootstrap --variant=minbase "$suite" "$tree" >&2 || fail "debootstrap failed"
    tar -C "$tree" -c . | podman import - "$base" >&2
fi

# The image is as new as the files that it is made of.
recipe=$(cat "$root/setup.py" "$root/containers/Dockerfile" "$root/containers/install.sh" | cksum | tr ' ' -)
if [ "$(podman image inspect --format '{{index .Labels "speechlab.recipe"}}' "$image" 2>/dev/null)" != "$recipe" ]; then
    say "building $image: Python, torch and the rest, about 6 GB"
    # The host's way to its package registry (a mirror, a certificate, folders of wheels) serves the build, and leaves
    # nothing in the image but an empty /etc/pip.conf. Written aside, since pip's own files may hold more.
    host=$(mktemp -d "$state/pip.XXXXXX")
    trap 'rm -rf "${tree:-}" "$host"' EXIT
    python3 - "$host" >"$host/volumes" <<'END'
import re
import shutil
import subprocess
import sys
from pathlib import Path

host = Path(sys.argv[1])
lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout.splitlines()
options = {}
for line in lines:  # :env:.x='y' comes last and wins, as it does in pip
    name, _, value = line.partition("=")
    options[name.rpartition(".")[2]] = value.strip("'\"")
for option in ("cert", "constraint"):  # files
    if options.get(option):
        shutil.copy(options[option], host / option)
        options[option] = f"/run/pip-host/{option}"
text = "".join(f"{name} = {value}\n" for name, value in options.items())
(host / "pip.conf").write_text("[global]\n" + text)
folders = {Path(name) for name in re.findall(r"(?:(?<=file://)|(?<=[= ]))(/[^\s']+)", text)}
for folder in sorted(folder.parent if folder.name == "simple" else folder for folder in folders):
    if folder.is_dir():  # an index's pages, in simple/, point to files beside it
        print(f"{folder}:{folder}:ro")
END
    volumes=(--volume "$host/pip.conf:/etc/pip.conf:ro" --volume "$host:/run/pip-host:ro")
    while read -r volume; do volumes+=(--volume "$volume"); done <"$host/volumes"
    nice "$root/containers/build.sh" --engine podman --base "$base" --image "$image" --force -- --network=host \
        --label "speechlab.recipe=$recipe" "${volumes[@]}" || fail "podman build failed"
    podman image prune --force >/dev/null # the image that this one replaces
fi
podman run --rm "$image" python -c "import torch, lhotse" || fail "$image does not run"

printf 'export CONTAINERS_CONF=%q SPEECHLAB_IMAGE=%q SPEECHLAB_ENGINE=podman SPEECHLAB_NESTED=1\n' "$CONTAINERS_CONF" "$image"
