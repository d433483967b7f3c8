#!/usr/bin/env bash
# Bring Apptainer up on a Debian machine that has none, and make a SIF of podman's image (podman_up.sh's). Progress goes
# to stderr; the last line on stdout is what to export:
#   eval "$(tests/containers/apptainer_up.sh)"
# Safe to repeat: what is there is kept. Needs root for what is missing.
#
# Debian 12 has no Apptainer, and sid's wants a newer C library. So it is installed in a tree of Debian 13, and a program
# `apptainer` in the state's bin/ enters that tree in a mount namespace of its own: what is Debian's comes from the tree,
# all other folders (/work, /home, /tmp ...) are the host's. It is one chain of exec, so that signals, exit status and
# process id are Apptainer's own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
state=${SPEECHLAB_APPTAINER_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/speechlab/apptainer}
sif=${SPEECHLAB_TEST_SIF:-$state/speechlab.sif}
tree=$state/tree
suite=trixie newer=sid

say() { echo "apptainer_up: $1" >&2; }
fail() { say "error: $1"; exit 1; }

if command -v apptainer >/dev/null && [ "$(command -v apptainer)" != "$state/bin/apptainer" ]; then
    say "with the machine's own $(apptainer --version)"
    mkdir -p "$state"
else
    [ "$(id -u)" -eq 0 ] || fail "there is no apptainer here, and only root can install it"
    command -v unshare >/dev/null || fail "there is no apptainer here, and no unshare to enter a tree that has it"
    if ! command -v debootstrap >/dev/null; then
        command -v apt-get >/dev/null || fail "there is no apptainer here, and no apt-get to install it"
        apt-get update -qq >&2 || fail "apt-get update failed: no network?"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends debootstrap >&2 || fail "apt-get failed"
    fi
    if [ ! -e "$tree/.complete" ]; then
        free=$(mkdir -p "$state" && df -Pk "$state" | awk 'NR==2 {print int($4 / 1048576)}')
        [ "$free" -ge 10 ] || fail "$state has $free GB free, and 10 are needed"
        say "making a tree of Debian $suite with $newer's apptainer"
        rm -rf "$tree"
        debootstrap --variant=minbase "$suite" "$tree" >&2 || fail "debootstrap failed"
        # The machine's own way to Debian's packages; debootstrap wrote which mirror it found.
        mirror=$(awk '/^deb / { print $2; exit }' "$tree/etc/apt/sources.list")
        [ ! -d /etc/ssl/certs ] || cp -rL /etc/ssl/certs "$tree/etc/ssl/" 2>/dev/null || true
        printf 'deb %s %s main\n' "$mirror" "$newer" >"$tree/etc/apt/sources.list.d/newer.list"
        printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' "$newer" >"$tree/etc/apt/preferences.d/newer"
        # An old clock or an old mirror is no reason to have no test.
        printf 'APT::Default-Release "%s";\nAcquire::Check-Valid-Until "false";\n' "$suite" >"$tree/etc/apt/apt.conf.d/90suite"
        cp /etc/resolv.conf "$tree/etc/resolv.conf" 2>/dev/null || true
        cp /etc/hosts "$tree/etc/hosts" 2>/dev/null || true
        chroot "$tree" sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq \
            --no-install-recommends squashfs-tools uidmap fuse2fs fuse3 squashfuse apptainer/$newer" >&2 ||
            fail "apptainer can't be installed in the tree"
        # As for podman: a machine without CAP_SYS_RESOURCE can't raise limits.
        sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$tree/etc/apptainer/apptainer.conf"
        rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
        touch "$tree/.complete"
    fi
    mkdir -p "$state/bin" "$state/mnt"
    # Inside `unshare --mount`: the tree becomes /, with the host's kernel folders, and all that is not the system's.
    cat >"$state/enter.sh" <<END
#!/bin/sh
set -eu
here=\$PWD
mount --bind '$tree' '$state/mnt'
for folder in /* ; do
    case \$folder in
        /bin|/boot|/etc|/lib|/lib32|/lib64|/libx32|/lost+found|/media|/mnt|/sbin|/usr|/var) continue ;;
    esac
    if [ ! -L "\$folder" ] && [ -d "\$folder" ]; then
        [ -d "$state/mnt\$folder" ] || mkdir "$state/mnt\$folder"
        mount --rbind "\$folder" "$state/mnt\$folder"
    fi
done
cd '$state/mnt'
mkdir -p .host
pivot_root . .host
cd /
umount -l /.host
cd "\$here" 2>/dev/null || true
exec "\$@"
END
    cat >"$state/bin/apptainer" <<END
#!/bin/sh
exec unshare --mount --propagation private sh '$state/enter.sh' /usr/bin/apptainer "\$@"
END
    chmod +x "$state/enter.sh" "$state/bin/apptainer"
    PATH=$state/bin:$PATH
    say "$(apptainer --version)" || fail "the apptainer in $tree does not start"
fi

if [ -z "${SPEECHLAB_TEST_SIF:-}" ]; then
    # The image: podman's, since no image registry is needed for that one. As new as what it is made of.
    recipe=$(cat "$root/setup.py" "$root/containers/Dockerfile" "$root/containers/install.sh" | cksum | tr ' ' -)
    if [ ! -e "$sif" ] || [ "$(cat "$sif.recipe" 2>/dev/null)" != "$recipe" ]; then
        exports=$("$root/tests/containers/podman_up.sh") || fail "podman, whose image the SIF is made of, can't be brought up"
        podman_image=$(eval "$exports" && printf %s "$SPEECHLAB_IMAGE")
        say "making $sif of podman's $podman_image"
        # The quickest compression: the file is for a test on this machine.
        CONTAINERS_CONF=${CONTAINERS_CONF:-$(eval "$exports" && printf %s "$CONTAINERS_CONF")} SPEECHLAB_CACHE=$state/cache \
            nice "$root/containers/build.sh" --engine apptainer --from "podman:$podman_image" --image "$sif" --force -- \
            --mksquashfs-args "-comp lz4 -processors ${SPEECHLAB_JOBS:-2}" || fail "the SIF can't be built"
        rm -rf "$state/cache"
        printf %s "$recipe" >"$sif.recipe"
    fi
fi
apptainer exec --cleanenv "$sif" python -c "import torch, lhotse" || fail "$sif does not run"

printf 'export PATH=%q SPEECHLAB_IMAGE=%q SPEECHLAB_ENGINE=apptainer SPEECHLAB_NESTED=1\n' "$PATH" "$sif"
