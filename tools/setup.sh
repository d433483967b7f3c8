#!/usr/bin/env bash
# Make .venv with every package that setup.py pins. You can repeat this safely (it ends at once when there is nothing to
# do), interrupt it anywhere (also by kill -9), and start it twice. It changes nothing but its own folder.
set -euo pipefail

usage() {
    cat <<'END'
Usage: tools/setup.sh [options]

  --extras A,B     extras of setup.py besides asr: tests, espnet
  --cpu            PyTorch's CPU build (from PyTorch's own index): 2 GB on disk instead of 5
  --espnet         ESPnet too: conf/e_branchformer.yaml and the benchmarks use it (needs a C++ compiler)
  --python PROGRAM the Python 3.10-3.12 to use (default: the best that is found)
  --venv DIR       the environment's folder (default: .venv in the repository)
  --check          install nothing; the exit status is 0 if there is nothing to do, else 1
  --help

SPEECHLAB_TORCH_INDEX  another address for --cpu, for instance a mirror
END
}

fail() { echo "error: $1" >&2; exit "${2:-1}"; }
say() { echo "setup: $1"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
torch_index=${SPEECHLAB_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
espnet_pin="espnet==202511"
extras="asr" cpu=false check=false python="" venv=$root/.venv

while [ $# -gt 0 ]; do
    case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case $1 in
        --help | -h) usage; exit 0 ;;
        --cpu) cpu=true; shift; continue ;;
        --check) check=true; shift; continue ;;
        --espnet) extras="$extras espnet"; shift; continue ;;
        --extras | --python | --venv) [ -n "${2:-}" ] || fail "setup.sh: $1 needs a value (setup.sh --help)" 2 ;;
        *) fail "setup.sh: unknown option '$1' (setup.sh --help)" 2 ;;
    esac
    case $1 in
        --extras) extras="$extras ${2//,/ }" ;;
        --python) python=$2 ;;
        --venv) venv=$2 ;;
    esac
    shift 2
done
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
for extra in $extras; do
    grep -q "^    \"$extra\": \[" "$root/setup.py" || fail "setup.sh: setup.py has no extra '$extra'" 2
done
[ "$(uname -s)" != Darwin ] || cpu=false # for a Mac there is only one build, and it has no CUDA anyway

# --- nothing to do? The stamp says what was installed; it is written last. ---
stamp=$venv/.speechlab
pins=$({ sed 's/ *#.*//' "$root/setup.py" | grep '==\|": \['; echo "$espnet_pin"; } | cksum | tr ' ' -)
have_pins="" have_root="" have_build="" have_extras=""
read_stamp() { { read -r have_pins; read -r have_root; read -r have_build; read -r have_extras; } <"$1" || true; }
if [ -f "$stamp" ]; then read_stamp "$stamp"; fi
up_to_date() {
    local extra
    [ -x "$venv/bin/python" ] && [ "$have_pins" = "$pins" ] && [ "$have_root" = "$root" ] || return 1
    [ "$have_build" = cpu ] || ! $cpu || return 1
    for extra in $extras; do case " $have_extras " in *" $extra "*) ;; *) return 1 ;; esac; done
}
if up_to_date; then
    $check || say "$venv is up to date"
    exit 0
fi
! $check || exit 1

# --- only one at a time: the lock is a link, because a link is made in one step and can name who made it ---
lock=$venv/.lock me=${HOSTNAME:-host}:$$
mkdir -p "$venv" 2>/dev/null && [ -w "$venv" ] || fail "$venv can't be written: choose another folder with --venv DIR"
if ! ln -s "$me" "$lock" 2>/dev/null; then
    owner=$(readlink "$lock") || owner="?"
    if [ "${owner%:*}" != "${HOSTNAME:-host}" ] || kill -0 "${owner##*:}" 2>/dev/null; then
        fail "tools/setup.sh is at work already (process ${owner##*:} on ${owner%:*}): wait for it; if it is gone, remove $lock"
    fi
    rm -f "$lock" # the process that made it was killed; the pip that it had started may still be at work
    child=$(cat "$venv/.child" 2>/dev/null) || child=""
    while [ -n "$child" ] && ps -p "$child" -o command= 2>/dev/null | grep -qF "$venv"; do kill "$child"; sleep 1; done
    ln -s "$me" "$lock" 2>/dev/null || fail "tools/setup.sh is at work already: wait for it"
fi
child=""
stop() { [ -z "$child" ] || kill "$child" 2>/dev/null || true; wait; exit "$1"; }
trap 'rm -rf "$venv/tmp"; rm -f "$lock"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM HUP

# --- what must be there, before anything is changed ---
unset PYTHONPATH PYTHONHOME            # pip would take another Python's packages for installed ones
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
in_range='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))'

find_python() { # sets $python, or says what was found instead
    local name found="" candidates="python3.11 python3.12 python3.10 python3 python" # the figures are measured with 3.11
    for name in ${python:-$candidates}; do
        if "$name" -c "$in_range" 2>/dev/null; then
            python=$name
            return
        fi
        found="$found${found:+, }$name: $("$name" -c 'import sys; print(sys.version.split()[0], end="")
try: import venv, ensurepip
except ImportError: print(" without its venv module (on Debian and Ubuntu: the package python3-venv)", end="")' 2>/dev/null ||
            printf 'not found')"
    done
    fail "Python 3.10, 3.11 or 3.12 with its venv module is needed ($found): install one, or name it with --python"
}

if [ -x "$venv/bin/python" ] && ! "$venv/bin/python" -c "$in_range" 2>/dev/null && [ ! -e "$venv/.incomplete" ]; then
    fail "$venv has a Python other than 3.10-3.12: remove it, or choose another folder with --venv DIR"
fi
if [ -s "$venv/.incomplete" ]; then read_stamp "$venv/.incomplete"; fi # the stamp from before the interrupted installation
# A stamp, or the mark of an unfinished installation, says that the folder is ours. Otherwise it must be an environment.
if [ ! -e "$stamp" ] && [ ! -e "$venv/.incomplete" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    [ -z "$(find "$venv" -mindepth 1 ! -name .lock 2>/dev/null | head -n 1)" ] ||
        fail "$venv is a folder with something else in it: choose another one with --venv DIR"
fi

free=$(df -Pk "$venv" | awk 'NR == 2 {printf "%d", $4 / 1048576}')
need=7 # measured: 5 GB at the end, and nearly 2 GB more while pip unpacks the wheels
if $cpu; then need=3; fi
if compgen -G "$venv/lib/python3*/site-packages/torch-*.dist-info" >/dev/null; then need=1; fi
[ "$free" -ge "$need" ] || fail "$venv: $free GB free on its disk, $need needed: free some, use --venv DIR on another disk, or \
--cpu (a third of the size)"
[ "$free" -ge 12 ] || export PIP_NO_CACHE_DIR=1 # pip's cache of the wheels takes 3 GB more
case " $extras " in *" espnet "*)
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        fail "--espnet compiles a package and found no C++ compiler (c++, g++): install one (Debian, Ubuntu: g++)" ;;
esac

# --- the environment ---
run() { # in the background: signals can be passed on to it, and if this script is killed, the next one finds it
    "$@" &
    child=$!
    echo "$child" >"$venv/.child"
    wait "$child"
}
pip() { run "$venv/bin/python" -m pip "$@"; }

# If pip was killed within a package, it would take that package for installed: remove what is not whole.
if [ -e "$venv/.incomplete" ] && [ -x "$venv/bin/python" ]; then
    "$venv/bin/python" - <<'END' || true
import csv, shutil, sysconfig
from pathlib import Path

site = Path(sysconfig.get_path("purelib"))
for info in site.glob("*.dist-info"):
    record = info / "RECORD"  # pip writes it last, over the wheel's own RECORD, which names no INSTALLER and no scripts
    rows = list(csv.reader(record.open(encoding="utf-8"))) if record.is_file() else []
    ended = any(name.endswith("/INSTALLER") for name, *_ in rows)
    files = [(site / name, int(size)) for name, _, size in rows if size]
    if not ended or not all(file.is_file() and file.stat().st_size == size for file, size in files):
        print("setup: was interrupted, is installed again:", info.stem)
        shutil.rmtree(info)
for rest in site.glob("~*"):  # folders that pip was going to remove
    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
END
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if [ -e "$venv/pyvenv.cfg" ] && [ ! -e "$venv/.incomplete" ]; then # someone else's environment, without pip
        "$venv/bin/python" -m ensurepip >/dev/null || fail "$venv has no pip: remove it, or choose another folder with --venv DIR"
    else
        find_python
        say "making $venv ($("$python" -V)); it will take $([ "$need" -eq 3 ] && echo 2 || echo 5) GB"
        touch "$venv/.incomplete"
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock ! -name .incomplete -exec rm -rf {} +
        run "$python" -m venv "$venv" || fail "$python could not make $venv"
    fi
fi

torch_pin=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' "$root/setup.py")
torch=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null) || torch=""
case $torch in
    "") ;;
    "$torch_pin"+cpu) cpu=true ;;
    "$torch_pin" | "$torch_pin"+*) ! $cpu || fail "$venv has PyTorch's CUDA build, and a torch that may be in use is not \
replaced: remove $venv, or choose another folder with --venv DIR" ;;
    *) fail "$venv has torch $torch, $torch_pin is needed, and a torch that may be in use is not replaced: remove $venv, or \
choose another folder with --venv DIR" ;;
esac

mkdir -p "$venv/tmp"
export TMPDIR=$venv/tmp # pip unpacks gigabytes there, so it must be on the disk whose free space was checked
reach() { # NAME VERSION OPTIONS: fail unless pip sees this version of this package
    "$venv/bin/python" -m pip index versions "$1" --retries 0 --timeout 20 "${@:3}" >"$venv/tmp/reach" 2>&1 || true
    grep -q "[ (]$2[,+)]\|[ (]$2\$" "$venv/tmp/reach" || fail "no $1 $2 from the package registry (${*:3}${3:+; }pip says: $(
        grep -E 'ERROR|Available' "$venv/tmp/reach" | head -n 1 | cut -c 1-200)): is the network up? a proxy (HTTPS_PROXY) \
or a mirror (pip config list) wrong?"
}
reach tqdm "$(sed -n 's/.*"tqdm==\([0-9.]*\)".*/\1/p' "$root/setup.py")"
[ -n "$torch" ] || ! $cpu || reach torch "$torch_pin" --index-url "$torch_index"

for extra in $have_extras; do # extras that are installed stay
    case " $extras " in *" $extra "*) ;; *) ! grep -q "^    \"$extra\": \[" "$root/setup.py" || extras="$extras $extra" ;; esac
done
# shellcheck disable=SC2086  # a list of words
extras=$(printf '%s\n' $extras | sort -u | tr '\n' ' ')
if [ -e "$stamp" ]; then mv "$stamp" "$venv/.incomplete"; else touch "$venv/.incomplete"; fi
cd "$root"
failed="pip failed, as said above; the same command goes on from here"
say "1 of 2: pip"
pip install --quiet --retries 2 "pip>=25.1" || fail "$failed"
say "2 of 2: PyTorch and the other requirements of setup.py (extras: $extras)"
if $cpu && [ -z "$torch" ]; then
    pip install --index-url "$torch_index" "torch==$torch_pin+cpu" "torchaudio==$torch_pin+cpu" || fail "$failed"
fi
list=${extras% }
pip install --editable ".[${list// /,}]" || fail "$failed"
case " $extras " in *" espnet "*)
    say "and $espnet_pin, without the requirement that pip refuses"
    pip install --no-deps "$espnet_pin" || fail "$failed" ;;
esac

build=default
if $cpu; then build=cpu; fi
printf '%s\n' "$pins" "$root" "$build" "$extras" >"$venv/tmp/stamp"
mv "$venv/tmp/stamp" "$stamp"
rm -f "$venv/.incomplete" "$venv/.child"
say "$venv is ready"
