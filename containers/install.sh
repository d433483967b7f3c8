#!/bin/sh
# What an image holds, step by step; containers/Dockerfile and containers/speechlab.def both run this, as root, inside.
#   install.sh system                  the distribution's packages
#   install.sh torch "PINS" [INDEX]    a virtual environment in /opt/speechlab with torch, or over the base's own torch
#   install.sh packages FOLDER EXTRAS  what setup.py in FOLDER asks for, without speechlab itself
set -eu

fail() {
    echo "install.sh: error: $1" >&2
    exit 1
}

case ${1:-} in
    system)
        command -v apt-get >/dev/null || fail "the base image has no apt-get: take a Debian or Ubuntu one"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update
        # git: an experiment's env.json names the commit.
        apt-get install --yes --no-install-recommends ca-certificates git python3 python3-venv
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
        # The repository is bound from outside, and may belong to somebody else.
        git config --system --add safe.directory '*'
        id -u lab >/dev/null 2>&1 || useradd --create-home lab
        ;;
    torch)
        # PyTorch's own image brings torch with its Python: the environment goes on top, and nothing is fetched twice.
        if python -c 'import torch' 2>/dev/null; then
            python -m venv --system-site-packages /opt/speechlab
        else
            /usr/bin/python3 -m venv /opt/speechlab
        fi
        /opt/speechlab/bin/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' ||
            fail "the base image's Python is $(/opt/speechlab/bin/python --version): 3.10-3.12 is needed"
        # shellcheck disable=SC2086  # a list of words
        /opt/speechlab/bin/pip install --no-cache-dir ${3:+--index-url "$3"} $2
        ;;
    packages)
        # They come with the package, which goes again: the bound repository is the only speechlab inside.
        /opt/speechlab/bin/pip install --no-cache-dir "$2[$3]"
        /opt/speechlab/bin/pip uninstall --yes speechlab
        /opt/speechlab/bin/pip freeze --all >/opt/speechlab/packages.txt
        # A virtual environment's programs keep the path they were made with; nothing else of it is written to.
        find /opt/speechlab -name '*.pyc' -path '*/site-packages/pip/*' -delete
        ;;
    *) fail "unknown step '${1:-}'" ;;
esac
