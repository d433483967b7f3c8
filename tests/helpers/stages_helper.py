"""A made-up house with one little recipe, for the tests of tools/recipe.sh and tools/stages.py.

The tools are the real ones; cmd.sh, speechlab.tasks and the stages' work are stand-ins that need no package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from signals_helper import heard

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# Reads `section.key: value` lines; as the real one, it ends with 2 and one line for a key that is not known.
CONFIG = '''
import json, sys
path, *rest = sys.argv[1:]
open("config_was_resolved", "a").write("x")
pairs = [line.split(": ", 1) for line in open(path, encoding="utf-8").read().split("\\n") if line]
pairs += [word.split("=", 1) for flag, word in zip(rest, rest[1:]) if flag == "--set"]
known = {"features.num_mel_bins", "features.dither", "model.d", "model.log", "train.epochs", "train.max_minutes",
         "train.log_steps", "train.threads", "train.keep"}
resolved = {"features": {}, "model": {}, "train": {}}
for key, value in pairs:
    if key not in known:
        print(f"error: {path}: unknown key '{key}'", file=sys.stderr)
        raise SystemExit(2)
    section, name = key.split(".")
    resolved[section][name] = json.loads(value)
names = {"features": "fbank%d" % resolved["features"]["num_mel_bins"]}
print(json.dumps({"resolved": resolved, "names": names, "defaults": {"features": {"dither": 0}}}))
'''

# work.py OUT [--from IN] [--say TEXT] [--status N] [--pause]: notes that it ran, then writes OUT. With --pause it waits
# for the file "go on" after it has written a checkpoint; SIGTERM makes it save and end with 85, as a training does.
WORK = '''
import argparse, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
for name in ("from", "say", "status", "nj", "set", "note", "helper"):
    parser.add_argument("--" + name, action="append")
parser.add_argument("--config")
parser.add_argument("--pause", action="store_true")
args = parser.parse_args()
with open("ran", "a", encoding="utf-8") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
args.out.parent.mkdir(parents=True, exist_ok=True)
def save(number, frame):
    (args.out.parent / "saved").write_text("x")
    time.sleep(0.3)
    raise SystemExit(85)
signal.signal(signal.SIGTERM, save)
for text in args.say or []:
    print(text.replace("<CR>", "\\r").replace("<ESC>", "\\x1b"), flush=True)
if args.pause and not os.path.exists("go on"):
    (args.out.parent / "half").write_text("half")
    if args.helper:
        import subprocess
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "the-helper"])
    Path("pid").write_text(str(os.getpid()))
    while not os.path.exists("go on"):
        time.sleep(0.02)
if args.status:
    raise SystemExit(int(args.status[0]))
args.out.write_text("from " + " ".join(Path(p).read_text() for p in args.__dict__["from"] or []))
'''

CMD = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >> "$(dirname "$0")/calls"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""

HEAD = """#!/usr/bin/env bash
# A made-up recipe: it shows the rules.
source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"
option corpus mini "mini | other"
option_path config conf/a.yaml "what to train"
option_path data_dir "" "a folder of the user's"
option pause "" "which stage waits"
parse_options "$@"
pause() { if [ "$pause" = "$1" ]; then echo --pause; fi; }
"""

BODY = """
contract features
data=data/$corpus exp=${exp:-exp/${corpus}_$(stem "$config")$tag}
stage 0 "Fetch" --out "$downloads/$corpus/.complete" -- python work.py "$downloads/$corpus/.complete" $(pause 0)
stage 1 "Manifests" --in "$downloads/$corpus/.complete" --out "$data/train.gz" \\
  -- python work.py "$data/train.gz" --nj "$nj" $(pause 1)
stage 2 "Fbank" --conf features --in "$data/train.gz" --out "$data/$features/train" \\
  -- python work.py "$data/$features/train" --nj "$nj" $(pause 2)
stage 4 "Train" --gpu --ddp --train --conf features,model,train --in "$data/$features/train" \\
  --out "$exp/checkpoints/best" \\
  -- python work.py "$exp/checkpoints/best" $(pause 4)
stage 6 "Score" --in "$exp/checkpoints/*" --out "$exp/results.txt" -- python work.py "$exp/results.txt" $(pause 6)
run_stages
"""


class Recipe:
    """The little recipe in a house of its own; ``run`` returns a finished process with its text."""

    def __init__(self, house: Path):
        self.house = house
        self.folder = house / "egs" / "little"
        shutil.copytree(TOOLS / "stagelib", house / "tools" / "stagelib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("recipe.sh", "stages.py"):
            shutil.copy(TOOLS / name, house / "tools")
        config = "features.num_mel_bins: 80\nmodel.d: 4\ntrain.epochs: 2\n"
        for path, text in ((house / "containers" / "cmd.sh", CMD), (house / "speechlab" / "__init__.py", ""),
                           (house / "speechlab" / "tasks" / "__main__.py", CONFIG), (self.folder / "work.py", WORK),
                           (self.folder / "conf" / "a.yaml", config)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (house / "containers" / "cmd.sh").chmod(0o755)
        # stages.py may run on any Python; recipe.sh tries this place first
        (house / ".venv" / "bin").mkdir(parents=True)
        (house / ".venv" / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        self.write(HEAD + BODY)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SPEECHLAB_", "SLURM_"))}
        self.env["SPEECHLAB_PYTHON"] = os.path.realpath(sys.executable)

    def write(self, text: str) -> None:
        script = self.folder / "run.sh"
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)

    def stages(self, text: str) -> None:
        """The recipe with other stages."""
        self.write(HEAD + text + "\nrun_stages\n")

    def start(self, *arguments: str, cwd: Path | None = None, script: str = "./run.sh", **env: str) -> subprocess.Popen:
        return subprocess.Popen([script, *arguments], cwd=cwd or self.folder, env={**self.env, **env}, encoding="utf-8",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                preexec_fn=heard)

    def run(self, *arguments: str, status: int = 0, **more) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, f"status {process.returncode}, wanted {status}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, status, out, err)

    def ran(self) -> list[str]:
        """What work.py was asked to make since the last call."""
        note = self.folder / "ran"
        lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
        note.unlink(missing_ok=True)
        return [line.split(" --")[0].rpartition("/")[2] for line in lines]

    def record(self, *parts: str) -> dict:
        return json.loads(self.folder.joinpath(*parts).read_text(encoding="utf-8"))

    def wait_for(self, name: str) -> Path:
        path = self.folder / name
        for _ in range(1500):
            if path.exists() and path.stat().st_size:
                return path
            time.sleep(0.02)
        raise AssertionError(f"{path} does not appear")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe under a path with a space and hanzi, as all its tests may as well have."""
    return Recipe(tmp_path / "a 语音 house")


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
