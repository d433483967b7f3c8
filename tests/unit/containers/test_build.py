"""containers/build.sh: the exact commands and one line for each mistake; the image's pins are setup.py's."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = "bash sh env sed dirname basename id mkdir mktemp cp cat rm mv df awk sha256sum".split()


class House:
    """A copy of what build.sh reads, and a PATH that holds only what a test puts there."""

    def __init__(self, base: Path):
        self.root, self.bin = base / "实验室 one", base / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "containers", self.root / "containers", ignore=shutil.ignore_patterns("*.sif*"))
        for name in ("tools/setup.sh", "setup.py", "speechlab/__init__.py"):
            (self.root / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.program("id", "echo 1000")

    def program(self, name: str, body: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", self.root / "containers" / "build.sh", *arguments], cwd=self.root, text=True,
                              env={"PATH": str(self.bin), **env}, stdin=subprocess.DEVNULL, capture_output=True)

    def lines(self, *arguments: str, **env: str) -> list[list[str]]:
        done = self.run("--dry_run", *arguments, **env)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path.resolve())


def error(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["containers/Dockerfile", "containers/speechlab.def"])
def test_the_pins_are_those_of_setup_py(name):
    pins = re.findall(r'"(torch(?:audio)?==[0-9.]+)"', (ROOT / "setup.py").read_text())
    assert re.search(r'TORCH="(.+)"', (ROOT / name).read_text())[1].split() == pins


def test_dockerfile_and_definition_have_the_same_steps():
    steps = [re.findall(r"install\.sh (system|torch|packages)", (ROOT / "containers" / name).read_text())
             for name in ("Dockerfile", "speechlab.def")]
    assert steps == [["system", "torch", "packages"]] * 2


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_podman_and_docker(house, engine):
    (line,) = house.lines("--engine", engine)
    assert line[:-1] == [engine, "build", "--build-arg", "EXTRAS=asr", "-t", "localhost/speechlab",
                         "-f", f"{house.root}/containers/Dockerfile"]
    (line,) = house.lines("--engine", engine, "--base=pytorch/pytorch:x", "--extras", "asr,sweep", "--image", "a:1",
                          "--cpu", "--", "--network=host", SPEECHLAB_TORCH_INDEX="file:///轮 子")
    assert line[2:-1] == ["--build-arg", "EXTRAS=asr,sweep", "--build-arg", "BASE=pytorch/pytorch:x", "--build-arg",
                          "TORCH_INDEX=file:///轮 子", "-t", "a:1", "-f", f"{house.root}/containers/Dockerfile",
                          "--network=host"]


def test_the_context_holds_what_the_dockerfile_copies_and_goes_again(house):
    context = house.root / "context"
    house.program("podman", f'''case $1 in
        image) exit 1 ;;
        info) echo /nowhere ;;
        build) echo "${{@: -1}}" >'{context}'; cd "${{@: -1}}" && printf '%s\\n' */* *.py >'{context}.files' ;;
    esac''')
    done = house.run("--engine", "podman")
    assert done.returncode == 0 and "SPEECHLAB_IMAGE=localhost/speechlab" in done.stderr, done.stderr
    files = Path(f"{context}.files").read_text().split()
    assert files == ["containers/install.sh", "speechlab/__init__.py", "setup.py"]
    assert all(name in (ROOT / "containers" / "Dockerfile").read_text() for name in files)
    assert not Path(context.read_text().strip()).exists()


def test_apptainer(house):
    cache = f"{house.root}/downloads/.cache"
    (line,) = house.lines("--engine", "apptainer")
    assert line == ["apptainer", "build", "--build-arg", "BOOTSTRAP=docker", "--build-arg", "EXTRAS=asr", "--fakeroot",
                    "--force", f"{house.root}/containers/speechlab.sif.part", f"{house.root}/containers/speechlab.def"]
    base = house.root / "base 一"
    base.mkdir()
    (line,) = house.lines("--engine", "singularity", "--base", "base 一", "--image", "b.sif", "--", "--nv")
    assert line[2:] == ["--build-arg", "BOOTSTRAP=localimage", "--build-arg", "EXTRAS=asr",
                        "--build-arg", f"BASE={base}", "--fakeroot", "--force", "--nv", f"{house.root}/b.sif.part",
                        f"{house.root}/containers/speechlab.def"]
    save, build = house.lines("--engine", "apptainer", "--from", "podman:localhost/speechlab")
    tar = save[save.index("--output") + 1]
    assert save == ["podman", "save", "--format", "docker-archive", "--output", tar, "localhost/speechlab"]
    assert tar.startswith(f"{cache}/tmp/build.")
    assert build == ["apptainer", "build", "--disable-cache", "--force", f"{house.root}/containers/speechlab.sif.part",
                     f"docker-archive:{tar}"]
    save, _ = house.lines("--engine", "apptainer", "--from", "docker:x", APPTAINER_TMPDIR="/scratch")
    assert save[:3] == ["docker", "save", "--output"] and save[3].startswith("/scratch/build.")


def test_a_sif_has_its_sum_beside_it_and_half_a_one_is_no_image(house):
    house.program("apptainer", 'for i; do case $i in *.part) echo content >"$i" ;; esac; done')
    done = house.run("--engine", "apptainer", "--image", "一 a.sif")
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["sha256sum", "-c", "一 a.sif.sha256"], cwd=house.root, capture_output=True).returncode == 0
    assert "there already" in house.run("--engine", "apptainer", "--image", "一 a.sif").stderr
    house.program("apptainer", 'for i; do case $i in *.part) echo half >"$i"; exit 1 ;; esac; done')
    assert "apptainer build failed" in error(house.run("--engine", "apptainer", "--image", "b.sif"))
    assert sorted(path.name for path in house.root.glob("*.sif*")) == ["一 a.sif", "一 a.sif.sha256"]
    assert list((house.root / "downloads" / ".cache" / "tmp").iterdir()) == []


def test_mistakes(house):
    for arguments, says in ((["--engine", "lxc"], "'lxc'"), (["--engin"], "--engin"), (["--base"], "needs a value"),
                            (["--engine", "podman", "--from", "x"], "--from is for"),
                            (["--engine", "apptainer", "--from", "x", "--cpu"], "--from takes a finished image")):
        assert says in error(house.run(*arguments), 2)
    assert "no engine here" in error(house.run())
    assert "no program docker" in error(house.run("--engine", "docker"))
    house.program("apptainer", "true")
    assert "no program podman" in error(house.run("--engine", "apptainer", "--from", "podman:x"))
    house.program("podman", "exit 1")
    assert "podman has no image 'x'" in error(house.run("--engine", "apptainer", "--from", "podman:x"))
    assert "docker save" in house.run("--help").stdout
    house.program("df", "printf 'h\\nx 1 1 1048576 1%% /\\n'")
    assert "1 GB free, and the build needs 15" in error(house.run("--engine", "apptainer"))
    house.program("podman", "case $1 in image) exit 1 ;; info) echo no daemon >&2; exit 1 ;; esac")
    assert "podman doesn't answer" in error(house.run("--engine", "podman"))
