"""tools/setup.sh with a Python that only writes down what it is asked: what is checked, in which order, and said."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A Python that can make an environment (of itself) and "install" (torch leaves its dist-info); all calls go to $LOG.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >>"$LOG"
here=$(cd "$(dirname "$0")/.." && pwd)
case "$1 ${2:-} ${3:-}" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
    "-m pip --version") ;;
    "-m pip index") [ -z "${OFFLINE:-}" ] || { echo "ERROR: No matching distribution found for $4"; exit 1; }
        echo "Available versions: ${VERSIONS:-4.99, 4.70.1, 2.11.0+cpu, 2.10.0+cpu}" ;;
    "-m pip install")
        if [ -n "${KILL:-}" ]; then sleep 0.1; kill -9 "$PPID"; exit; fi
        case "$*" in *--editable*) mkdir -p "$here/lib/python3.11/site-packages/torch-2.dist-info" ;; esac ;;
    "-V "*) echo "Python 3.11.0" ;;
    -c*importlib.metadata*) [ -z "${TORCH:-}" ] && exit 1 || echo "$TORCH" ;;
    -c*sys.exit*) [ -z "${OLD:-}" ] ;;
    -c*sys.version*) printf 3.9.1 ;;
    - | "-  ") cat >/dev/null ;;
esac
"""
TOOLS = ("bash env sed dirname basename readlink uname id tr grep mkdir cp mv rm ln ls cat touch sleep head tail "
         "sort cksum find awk ps cut g++").split()


class House:
    """A repository with setup.sh alone, and a PATH with the Python above, a df that says what is free, and no compiler
    but the one that a test wants."""

    def __init__(self, base: Path):
        self.root, self.bin, self.log = base / "实验室 one", base / "bin", base / "log"
        (self.root / "tools").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "setup.py", self.root)
        self.script = shutil.copy(ROOT / "tools" / "setup.sh", self.root / "tools")
        for name in TOOLS:
            if shutil.which(name):
                (self.bin / name).symlink_to(shutil.which(name))
        self.program("python3.11", PYTHON)
        self.program("df", "#!/usr/bin/env bash\necho head; echo disk 9 9 $((${FREE:-50} * 1048576)) 9% /")
        self.venv = self.root / ".venv"
        self.stamp = self.venv / ".speechlab"

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def setup(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        """Run it; ``calls`` is then what the Python was asked this time, in order, less the questions of -c."""
        self.log.write_text("")
        whole = {"PATH": str(self.bin), "HOSTNAME": "here", "LOG": str(self.log), **env}
        done = subprocess.run(["bash", self.script, *arguments], env=whole, cwd=self.bin, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.installs = [line for line in self.log.read_text().splitlines() if line.startswith("-m pip install")]
        return done


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def error(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


def ready(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0 and "is ready" in done.stdout, (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("arguments, says", [
    (["--gpu"], "--gpu"), (["--extras"], "--extras needs a value"), (["--extras", "nosuch"], "no extra 'nosuch'"),
    (["--extras=tests,"], ""), (["now"], "'now'"), (["--venv="], "--venv needs"),
])
def test_wrong_usage(house, arguments, says):
    if arguments == ["--extras=tests,"]:
        ready(house.setup(*arguments))  # a comma too many harms no one
        return
    assert says in error(house.setup(*arguments), 2)
    assert not house.venv.exists()


def test_help(house):
    assert house.setup("--help").stdout.startswith("Usage: tools/setup.sh")


def test_from_nothing_then_nothing_to_do(house):
    assert house.setup("--check").returncode == 1 and not house.venv.exists()
    ready(house.setup())
    assert house.installs[-1] == "-m pip install --editable .[asr]"
    assert sorted(path.name for path in house.venv.iterdir()) == [".speechlab", "bin", "lib", "pyvenv.cfg"]
    done = house.setup()
    assert (done.returncode, house.log.read_text()) == (0, "") and "up to date" in done.stdout  # not even Python runs
    assert house.setup("--check").returncode == 0


def test_what_makes_it_work_again(house):
    ready(house.setup())
    assert house.setup("--check", "--extras", "tests").returncode == 1
    ready(house.setup("--extras", "tests"))
    assert house.installs[-1] == "-m pip install --editable .[asr,tests]"
    pins = house.root / "setup.py"
    text = pins.read_text()
    pins.write_text(text + "\n# a remark, with == in it\n")
    assert house.setup("--check").returncode == 0
    pins.write_text(text.replace("jiwer==4", "jiwer==5"))
    assert house.setup("--check").returncode == 1
    ready(house.setup(TORCH="2.11.0"))
    assert house.installs[-1] == "-m pip install --editable .[asr,tests]"  # the extras that were there stay
    house.root.rename(house.root.with_name("moved"))  # the scripts of an environment hold its path
    house.script = house.root.with_name("moved") / "tools" / "setup.sh"
    assert house.setup("--check").returncode == 1


def test_killed_in_the_middle_goes_on(house):
    assert house.setup("--extras", "tests", KILL="1").returncode == -9
    assert (house.venv / ".lock").is_symlink() and (house.venv / ".incomplete").exists()
    assert house.setup("--check").returncode == 1
    ready(house.setup("--extras", "tests"))
    assert "-m venv" not in house.log.read_text() and not (house.venv / ".incomplete").exists()


def test_killed_while_adding_keeps_what_was_asked_before(house):
    ready(house.setup("--extras", "tests"))
    assert house.setup("--espnet", KILL="1").returncode == -9
    assert house.setup("--check").returncode == 1  # numpy may be half replaced: not whole, even for what was there
    ready(house.setup())
    assert house.installs[-1] == "-m pip install --editable .[asr,tests]"


def test_an_environment_killed_at_its_birth_is_made_again(house):
    (house.venv / "bin").mkdir(parents=True)
    (house.venv / ".incomplete").write_text("")
    (house.venv / "pyvenv.cfg").write_text("")
    ready(house.setup())
    assert "-m venv" in house.log.read_text()


def test_two_at_once(house):
    house.venv.mkdir()
    for owner in (f"here:{os.getpid()}", "elsewhere:1"):
        (house.venv / ".lock").unlink(missing_ok=True)
        (house.venv / ".lock").symlink_to(owner)
        assert "at work" in error(house.setup())
        assert house.log.read_text() == "" and os.readlink(house.venv / ".lock") == owner


def test_disk(house):
    line = error(house.setup(FREE="6"))
    assert "6 GB free" in line and "7 needed" in line
    assert not house.installs and not (house.venv / "bin").exists()
    ready(house.setup("--cpu", FREE="6", SPEECHLAB_TORCH_INDEX="http://x/cpu"))


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has one build")
def test_cpu(house):
    ready(house.setup("--cpu", SPEECHLAB_TORCH_INDEX="http://mirror/cpu"))
    assert house.installs[-2] == "-m pip install --index-url http://mirror/cpu torch==2.11.0+cpu torchaudio==2.11.0+cpu"
    assert house.setup("--check").returncode == 0 and house.setup("--check", "--cpu").returncode == 0
    ready(house.setup("--extras", "tests", TORCH="2.11.0+cpu"))  # an added extra does not change the build
    assert house.stamp.read_text().splitlines()[2] == "cpu"


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has one build")
@pytest.mark.parametrize("arguments, torch", [(["--cpu"], "2.11.0"), ([], "2.10.0"), ([], "2.12.0+cpu")])
def test_torch_is_never_replaced(house, arguments, torch):
    ready(house.setup())
    house.stamp.write_text("old pins\n")
    assert "not replaced" in error(house.setup(*arguments, TORCH=torch))
    assert not house.installs


def test_no_network(house):
    line = error(house.setup(OFFLINE="1"))
    assert "registry" in line and "No matching distribution found for versions" in line and "HTTPS_PROXY" in line
    assert "torch 2.11.0 from" in error(house.setup("--cpu", VERSIONS="4.70.1, 2.13.0+cpu, 12.11.0, 2.11.01"))
    assert not house.installs


def test_no_python(house):
    assert "python3.11: 3.9.1" in error(house.setup(OLD="1"))
    assert "nosuchpython: not found" in error(house.setup("--python", "nosuchpython"))
    assert not house.installs


def test_a_folder_with_something_else_in_it_is_left_alone(house):
    (house.root / "thesis").mkdir()
    (house.root / "thesis" / "chapter1.tex").write_text("words")
    assert "something else" in error(house.setup("--venv", str(house.root / "thesis")))
    assert [path.name for path in (house.root / "thesis").iterdir()] == ["chapter1.tex"]


def test_espnet_needs_a_compiler(house):
    ready(house.setup("--espnet"))
    assert house.installs[-2:] == ["-m pip install --editable .[asr,espnet]",
                                   "-m pip install --no-deps espnet==202511"]
    (house.bin / "g++").unlink()
    shutil.rmtree(house.venv)
    assert "C++ compiler" in error(house.setup("--espnet"))


def test_half_installed_packages_are_found(house):
    """The Python inside setup.sh that looks for them, in a real environment with made packages."""
    code = re.search(r"<<'END' \|\| true\n(.*?)\nEND\n", Path(house.script).read_text(), re.S)[1]
    venv.create(house.venv, with_pip=False)
    site = next(house.venv.glob("lib/python3*/site-packages"))
    for name, row in {"whole": "whole/a.py,sha256=x,3", "cut": "cut/a.py,sha256=x,9", "gone": "gone/b.py,,3",
                      "wheels_own": "wheels_own/a.py,sha256=x,3", "norecord": None}.items():
        (site / name).mkdir()
        (site / name / "a.py").write_text("abc")
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        if row:
            (info / "INSTALLER").write_text("pip\n")
            last = "RECORD,," if name == "wheels_own" else "INSTALLER,sha256=x,4"
            (info / "RECORD").write_text(f"{row}\n{name}-1.0.dist-info/{last}\n")
    (site / "~orch").mkdir()
    subprocess.run([house.venv / "bin" / "python", "-"], input=code, text=True, check=True)
    assert [path.name for path in site.glob("*.dist-info")] == ["whole-1.0.dist-info"]
    assert not (site / "~orch").exists()


def run_tests(house: House, *arguments: str, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """tools/test.sh (a copy) with the Python above; and what it asked it to do."""
    shutil.copy(ROOT / "tools" / "test.sh", house.root / "tools")
    house.log.write_text("")
    whole = {"PATH": str(house.bin), "HOSTNAME": "here", "LOG": str(house.log), **env}
    done = subprocess.run(["bash", house.root / "tools" / "test.sh", *arguments], env=whole, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    wanted = re.compile("-m (ruff|pytest|pip install --e)")
    return done, [line for line in house.log.read_text().splitlines() if wanted.match(line)]


def test_test_sh(house):
    done, calls = run_tests(house)
    assert done.returncode == 0, done.stderr
    assert calls == ["-m pip install --editable .[asr,tests]", "-m ruff check .",
                     "-m pytest -m not long and not container"]
    assert run_tests(house, "--all", "--", "-k", "a b")[1] == ["-m ruff check .", "-m pytest -k a b"]
    house.program("own", PYTHON.replace('"-V ', '"-m ruff check") exit 1 ;;\n    "-V '))
    done, calls = run_tests(house, SPEECHLAB_PYTHON=str(house.bin / "own"))
    assert (done.returncode, len(calls)) == (1, 2) and "failed: ruff" in done.stderr  # pytest runs all the same
    assert run_tests(house, "--fast")[0].returncode == 2
    assert run_tests(house, "--help")[0].stdout.startswith("Usage: tools/test.sh")
