"""Finds the Python that the stages run on, and the resolved config, which only that Python can read.

Both take time (a Python must start, or gigabytes be installed), so they are looked for only when they are needed. A run
with nothing to do reads the config from its cache and starts no second Python.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys

from stagelib.plan import Plan, Stop, nearest
from stagelib.state import DEFAULTS, write
from stagelib.terminal import say

NEEDED = ("speechlab", "torch", "lhotse")  # torch alone is not enough: many people have a PyTorch for other work
ENGINES = {"apptainer", "singularity", "podman", "docker"}
SIZE = "5-6 GB"


def inside_container() -> str:
    """The container that we are in, if it has its own packages for us; otherwise "".

    A Docker container that is used like a machine (for development, or CI) is not meant: there .venv is used, as on any
    machine. cmd.sh and our images set SPEECHLAB_CONTAINER.
    """
    for name in ("SPEECHLAB_CONTAINER", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "container"):
        if os.environ.get(name):
            return os.environ[name]
    return "podman" if os.path.exists("/run/.containerenv") else ""


def engine() -> str:
    """The container engine that cmd.sh will use; "" if none. With an engine, `python` is that of the image, and none is
    needed here. As in cmd.sh: inside a container, a command runs without an engine, unless SPEECHLAB_NESTED is set."""
    name = os.environ.get("SPEECHLAB_ENGINE") or "none"
    wanted = name in ENGINES or (name == "auto" and os.environ.get("SPEECHLAB_IMAGE"))
    inside = inside_container() or os.path.exists("/.dockerenv")
    return name if wanted and (not inside or os.environ.get("SPEECHLAB_NESTED")) else ""


def pins(repo: str) -> dict[str, str]:
    """{package: version} of those of NEEDED that setup.py pins (the tests ran with these). What can't be read is left
    out."""
    try:
        with open(os.path.join(repo, "setup.py"), encoding="utf-8") as file:
            found = re.findall(r'^ *"([a-z]+)==([0-9][^"; ]*)"', file.read(), re.M)
    except OSError:
        return {}
    return {name: version for name, version in found if name in NEEDED}


def versions(python: str) -> dict[str, str] | None:
    """{package: version} of the packages that ``python`` would find ("?": unknown version); None if it lacks one.

    The names of its folders are looked at first; if they don't tell, it is asked. No package is imported: torch alone
    takes seconds.
    """
    if not os.access(python, os.X_OK):
        return None
    prefix = os.path.dirname(os.path.dirname(python))
    for folder in glob.glob(os.path.join(glob.escape(prefix), "lib", "python3*", "site-packages")):
        if all(os.path.isdir(os.path.join(folder, name)) for name in NEEDED[1:]):
            return {name: _version(folder, name) for name in NEEDED[1:]}
    code = f"""import sys, importlib.util as u, importlib.metadata as m
if not all(u.find_spec(name) for name in {NEEDED}): sys.exit(1)
for name in {NEEDED[1:]}:
    try: print(name, m.version(name))
    except m.PackageNotFoundError: print(name, "?")"""
    try:
        done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    except OSError:
        return None
    return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else None


def _version(folder: str, name: str) -> str:
    """Of an installed package, by its folder of metadata: torch-2.11.0+cpu.dist-info."""
    for kind in ("dist-info", "egg-info"):
        for path in glob.glob(os.path.join(glob.escape(folder), f"{name}-[0-9]*.{kind}")):
            return os.path.basename(path)[len(name) + 1:-len(kind) - 1].split("-")[0]
    return "?"


def misfits(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The packages of another version than is asked for; a build (+cpu, +cu130) makes no difference."""
    return [name for name, version in wanted.items() if name in found and found[name].split("+")[0] != version]


def choose(plan: Plan, setup: bool = True) -> str:
    """The Python for the stages. It is the first of these: SPEECHLAB_PYTHON; the active one, if it has the packages;
    .venv; a new .venv, which is installed now. But a Python whose packages have the versions of setup.py goes before
    one that has others. If one with others is taken, ``plan.remark`` says so.

    With ``setup=False`` (--dry_run) nothing is installed; the answer may be "python", for one that is not there yet.
    """
    if not plan.python:
        plan.python = _choose(plan, setup)
    return plan.python


def _choose(plan: Plan, setup: bool) -> str:
    if engine():
        return "python"
    named = os.environ.get("SPEECHLAB_PYTHON")
    if named:
        found = shutil.which(named)
        if not found:
            raise Stop(f"SPEECHLAB_PYTHON={named} can't be run: name a Python 3.10-3.12, or unset it", 2)
        return found
    active = [os.path.join(os.environ[name], "bin", "python") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")
              if os.environ.get(name)]
    repo = plan.values["repo"]
    own = os.path.join(repo, ".venv", "bin", "python")
    wanted, others = pins(repo), {}
    # A setup that was interrupted leaves .incomplete. Then setup.sh must go on with it.
    whole = not os.path.exists(os.path.join(repo, ".venv", ".incomplete"))
    for python in [*active, shutil.which("python3"), shutil.which("python"), *([own] if whole else [])]:
        found = versions(python) if python and python not in others and (python != own or whole) else None
        if found and not misfits(found, wanted):
            plan.remark = _remark(others, wanted, python)
            return python
        if found:
            others[python] = found
    if others:
        plan.remark = _remark(others, wanted, "")
        return next(iter(others))
    if not setup:
        return "python"
    lacking = f"no Python here has {' and '.join(NEEDED[1:])}"
    if inside_container():
        raise Stop(f"{lacking}, and inside a container none is installed: use an image that has them (containers/), "
                   "or run tools/setup.sh yourself")
    if os.environ.get("SLURM_JOB_ID"):
        raise Stop(f"{lacking}, and in a Slurm job none is installed: run tools/setup.sh on the login node first")
    script = os.path.join(repo, "tools", "setup.sh")
    if not os.path.exists(script):
        raise Stop(f"{lacking}, and {script} is not there: install them, or name a Python by SPEECHLAB_PYTHON")
    say(f"{lacking}: tools/setup.sh installs them into {os.path.dirname(os.path.dirname(own))} (about {SIZE}, once)")
    status = subprocess.run([script], stdin=subprocess.DEVNULL).returncode
    if status:
        raise Stop(f"tools/setup.sh failed with status {status}: mend what it says above, then run this again", status)
    if not versions(own):
        raise Stop(f"tools/setup.sh ended, but {own} still lacks {' or '.join(NEEDED[1:])}")
    return own


def _remark(others: dict[str, dict[str, str]], wanted: dict[str, str], taken: str) -> str:
    """A line about the first Python that has other versions than ``wanted``; ``taken`` instead, or "" if it is used."""
    for python, found in others.items():
        names = misfits(found, wanted)
        has = " and ".join(f"{name} {found[name].replace('?', 'of an unknown version')}" for name in names)
        line = f"note: {python} has {has}, and setup.py asks for {' and '.join(wanted[name] for name in names)}"
        if taken:
            return f"{line}: {taken} is used (SPEECHLAB_PYTHON names another)"
        return f"{line}: it is used all the same (tools/setup.sh makes .venv with these)"
    return ""


def resolved_config(plan: Plan) -> dict | None:
    """The resolved config as nested dictionaries, with its defaults under the key ``state.DEFAULTS``. None in a dry run
    that has no Python to resolve it.

    It is read from data/.cache (where recipe.sh, too, finds the names of sections). If it is not there,
    ``python -m speechlab.tasks`` makes it, and it is kept there. If the config is wrong, the run ends with the message
    and status of that program.
    """
    config, key = plan.values["config"], plan.values["key"]
    cache = os.path.join("data", ".cache", f"config-{key}")
    try:
        with open(cache + ".json", encoding="utf-8") as file:
            answer = json.load(file)
            return {**answer["resolved"], DEFAULTS: answer.get("defaults", {})}
    except (OSError, ValueError, KeyError):
        pass
    if not os.path.isfile(config):
        there = {os.path.basename(path): path for path in sorted(glob.glob("conf/*.yaml"))}
        near = nearest(config, list(there.values())) or nearest(os.path.basename(config), list(there))
        if os.path.basename(config) in there:  # the right name, without its folder
            near = f": did you mean {there[os.path.basename(config)]}?"
        raise Stop(f"there is no config {config}{near or '; there are ' + ', '.join(there.values())}", 2)
    python = choose(plan, setup=not plan.flag("dry_run"))
    if plan.flag("dry_run") and python == "python" and not engine():
        return None
    wrap = [os.path.join(plan.values["repo"], "containers", "cmd.sh"), "--backend", "local", "--"] if engine() else []
    sets = [word for pair in plan.sets for word in ("--set", pair)]
    done = subprocess.run([*wrap, python, "-m", "speechlab.tasks", config, *sets, "--json"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)  # the program has said why, in one line
    try:
        answer = json.loads(done.stdout[done.stdout.index("{"):])
        names = "".join(f"{section}={name}\n" for section, name in answer["names"].items())
        resolved = {**answer["resolved"], DEFAULTS: answer.get("defaults", {})}
    except (ValueError, KeyError, AttributeError):
        raise Stop(f"python -m speechlab.tasks gave no JSON for {config}: {done.stdout[:200]!r}") from None
    write(cache + ".json", json.dumps(answer, ensure_ascii=False))
    write(cache + ".names", names)
    return resolved


def sweep(plan: Plan) -> int:
    """Let ``python -m speechlab.sweep FILE --caller DIR -- run.sh <the user's other options>`` take over.

    It runs this recipe once per trial. Before, it asks the recipe (by SPEECHLAB_SWEEP_ASKS) which experiment and which
    config the options mean; the recipe answers with a line of JSON.
    """
    file, repo = plan.values["sweep"], plan.values["repo"]
    if not os.path.isfile(file):
        there = sorted(glob.glob("conf/sweep/*.yaml"))
        near = nearest(os.path.basename(file), [os.path.basename(path) for path in there])
        raise Stop(f"there is no sweep {file}{near or ('; there are ' + ', '.join(there) if there else '')}", 2)
    if os.environ.get("SPEECHLAB_SWEEP_ASKS"):
        say(json.dumps({"exp": os.path.abspath(plan.values["exp"]), "config": plan.values["config"],
                        "options": sorted({*plan.own, *plan.common})}))
        return 0
    if not os.path.exists(os.path.join(repo, "speechlab", "sweep.py")):
        raise Stop("--sweep needs speechlab/sweep.py, which is not in this version", 2)
    python = choose(plan)
    sys.stdout.flush()
    script = os.path.join(plan.values["recipe"], plan.values["script"])
    ngpu = ["--ngpu", plan.values["ngpu"]] if plan.values["ngpu"] not in ("", "0") else []
    # If an engine is named, the whole sweep runs in one container: inside it, stages run without the engine.
    wrap = [os.path.join(repo, "containers", "cmd.sh"), *ngpu, "--"] if engine() else []
    command = [*wrap, python, "-m", "speechlab.sweep", os.path.abspath(file), "--caller", plan.values["caller"],
               "--", script, *_without_sweep(plan.arguments)]
    os.execvp(command[0], command)
    return 1  # never reached


def _without_sweep(arguments: list[str]) -> list[str]:
    rest, words = [], list(arguments)
    while words:
        word = words.pop(0)
        if word == "--sweep":
            words.pop(0)
        elif not word.startswith("--sweep="):
            rest.append(word)
    return rest
