"""A recipe end to end in podman: the packages come from the image, everything else from this repository.

podman_up.sh brings podman and the image up (minutes and about 6 GB the first time). SPEECHLAB_TEST_IMAGE names an image
that is there already instead.
"""

import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.container, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
CMD = ROOT / "containers" / "cmd.sh"


@pytest.fixture(scope="session")
def podman() -> dict[str, str]:
    """The environment in which cmd.sh and run.sh use podman; skips where podman can't be had."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPEECHLAB_")}
    image = os.environ.get("SPEECHLAB_TEST_IMAGE")
    if image:
        return {**env, "SPEECHLAB_ENGINE": "podman", "SPEECHLAB_IMAGE": image, "SPEECHLAB_NESTED": "1"}
    done = subprocess.run([ROOT / "tests" / "containers" / "podman_up.sh"], env=env, text=True, capture_output=True)
    if done.returncode:
        pytest.skip(f"podman can't be brought up: {done.stderr.strip().splitlines()[-1]}")
    exports = shlex.split(done.stdout.strip().splitlines()[-1])[1:]
    return {**env, **dict(word.split("=", 1) for word in exports)}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A copy of the repository, at a path with a space and hanzi, its downloads on another disk behind a link."""
    root = tmp_path / "实验室 one"
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "data", "exp", "log", ".stages")
    for name in ("egs", "tools", "containers"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copytree(ROOT / "speechlab", root / "speechlab", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "big disk").mkdir()
    (root / "downloads").symlink_to(tmp_path / "big disk")
    return root


def run(podman: dict, *command: str | Path, cwd: Path = ROOT, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], cwd=cwd, env={**podman, **more}, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)


def containers() -> list[str]:
    return subprocess.run(["podman", "ps", "--quiet", "--filter", "label=speechlab.client"], text=True,
                          capture_output=True, check=True).stdout.split()


def test_the_images_python_in_the_hosts_folder(podman, tmp_path):
    code = ("import os, sys, torch; print(sys.executable); print(os.getcwd()); print(sys.argv[1:]); "
            "print(os.environ['SPEECHLAB_CONTAINER']); open('made 文件', 'w').write('x'); sys.exit(85)")
    done = run(podman, CMD, "--", "python", "-c", code, "a b", "你好", "", cwd=tmp_path)
    assert done.returncode == 85, done.stderr
    image = podman["SPEECHLAB_IMAGE"]
    expected = ["/opt/speechlab/bin/python", str(tmp_path), "['a b', '你好', '']", f"podman:{image}"]
    assert done.stdout.splitlines() == expected
    made = (tmp_path / "made 文件").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_end_the_container(podman, tmp_path, number):
    """A program that listens ends as it likes; one that does not, and would be PID 1 without --init, ends as well."""
    listens = ("import signal, sys, time\n"
               f"signal.signal({int(number)}, lambda *_: sys.exit(85))\n"
               "print('ready', flush=True); time.sleep(300)")
    deaf = "import time; print('ready', flush=True); time.sleep(300)"
    for code, statuses in ((listens, {85}), (deaf, {128 + number, 1, 130})):
        process = subprocess.Popen([CMD, "--", "python", "-c", code], env=podman, cwd=tmp_path, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=60) in statuses
        process.stdout.close()
    assert containers() == []


def test_the_container_of_a_killed_client_goes_at_the_next_start(podman, tmp_path):
    process = subprocess.Popen([CMD, "--", "sh", "-c", "echo ready; sleep 300"], env=podman, cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    assert len(containers()) == 1
    assert run(podman, CMD, "--", "true").returncode == 0
    for _ in range(100):
        if not containers():
            break
        time.sleep(0.1)
    assert containers() == []


def test_recipe(podman, lab, tmp_path):
    """run.sh --corpus synthetic with podman: a result, files that are ours, and nothing to do the second time."""
    recipe = lab / "egs" / "aishell_asr"
    exp = tmp_path / "else where" / "实验 1"
    exp.parent.mkdir()
    options = ["--corpus", "synthetic", "--exp", exp, "--set", "train.epochs=1"]
    done = run(podman, recipe / "run.sh", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "CER" in (exp / "results.txt").read_text()
    assert all(0 <= row["value"] for row in json.loads((exp / "results.json").read_text()) if row["metric"] == "CER")
    env = json.loads((exp / "env.json").read_text())
    assert podman["SPEECHLAB_IMAGE"] in str(env["container"])

    made = [path for folder in (recipe, exp, tmp_path / "big disk") for path in folder.rglob("*")]
    assert any((tmp_path / "big disk").rglob("*")), "nothing was fetched to the folder behind the link"
    foreign = [path for path in made if path.lstat().st_uid != os.getuid()]
    assert not foreign
    assert not (lab / ".venv").exists()  # nothing was installed for a run in an image

    # A path written inside is one outside.
    with gzip.open(recipe / "data" / "synthetic" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        sources = [json.loads(line)["recording"]["sources"][0]["source"] for line in file]
    assert sources and all(source.startswith(f"{lab}/") and Path(source).is_file() for source in sources)

    before = (exp / "results.txt").stat().st_mtime_ns
    again = run(podman, recipe / "run.sh", *options, cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    assert (exp / "results.txt").stat().st_mtime_ns == before
    assert containers() == []
