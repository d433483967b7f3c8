#!/usr/bin/env bash
# Set up what is missing (only in .venv) and run the checks and tests.
set -uo pipefail

usage() {
    cat <<'END'
Usage: tools/test.sh [--containers] [--all] [--help] [-- PYTEST ARGUMENTS]

Runs ruff, shellcheck (if it is installed) and pytest. pytest checks the order of imports too (tests/unit/house).
  --containers  also the tests marked container: recipes in podman, in Apptainer and through Slurm.
                tests/containers/*_up.sh set these up: they install packages, and need root, apt-get and 15 GB.
                This takes ten minutes the first time, and later five.
  --all         also the tests marked long and those marked container
For instance: tools/test.sh -- -k fbank -x

SPEECHLAB_PYTHON names a Python that has all packages; then nothing is set up.
END
}

fail() { echo "error: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${SPEECHLAB_PYTHON:-}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") || exit 2 ;; esac
selected=(-m "not long and not container")
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --containers) selected=(-m "container or not long") ;;
        --all) selected=() ;;
        --) shift; break ;;
        *) fail "test.sh: unknown option '$1' (test.sh --help; pytest's own come after --)" 2 ;;
    esac
    shift
done
cd "$root" || exit 1
if [ -z "$python" ]; then
    tools/setup.sh --extras tests || exit
    python=$root/.venv/bin/python
fi
# The tests choose their own engine, image and Python; your own settings would change what they test.
unset SPEECHLAB_ENGINE SPEECHLAB_IMAGE SPEECHLAB_BACKEND SPEECHLAB_NGPU SPEECHLAB_PYTHON SPEECHLAB_BINDS SPEECHLAB_DOWNLOADS
# One thread per process: where other programs use the same cores, two threads wait for each other at every operation.
export PYTHONNOUSERSITE=1 PYTHONPATH=$root OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
PATH=$(dirname "$(command -v "$python")"):$PATH

failed=""
echo "== ruff"
"$python" -m ruff check . || failed="$failed ruff"
if command -v shellcheck >/dev/null; then
    echo "== shellcheck"
    find . \( -name '.venv*' -o -name .git -o -name downloads -o -path './egs/*/data' -o -path './egs/*/exp' \) -prune \
        -o -type f \( -name '*.sh' -o -path ./.ci/run \) -print0 | xargs -0 shellcheck || failed="$failed shellcheck"
else
    echo "== no shellcheck here: shell scripts are not checked"
fi
echo "== pytest"
"$python" -m pytest ${selected[@]+"${selected[@]}"} "$@"
status=$?
[ -z "$failed" ] || { echo "failed:$failed (see above)" >&2; [ "$status" -ne 0 ] || status=1; }
exit "$status"
