"""cmd.sh and recipes in real engines: the packages come from the image, everything else from this repository."""

import contextlib
import csv
import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.container, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
CMD = ROOT / "containers" / "cmd.sh"
MNIST = ["--corpus", "synthetic", "--config", "conf/tiny.yaml"]


def gone(engine, mark: str) -> bool:
    """Nothing of the engine's is left, or soon is not."""
    for _ in range(100):
        if not engine.left(mark):
            return True
        time.sleep(0.1)
    return False


def test_the_images_python_in_the_hosts_folder(engine, tmp_path):
    code = ("import os, sys, torch; print(sys.executable); print(os.getcwd()); print(sys.argv[1:]); "
            "print(os.environ['SPEECHLAB_CONTAINER']); print(os.environ['SPEECHLAB_IMAGE_ID'][:4]); "
            "print(os.environ['HOME']); open('made 文件', 'w').write('x'); sys.exit(85)")
    done = engine.run(CMD, "--", "python", "-c", code, "a b", "你好", "", cwd=tmp_path, PYTHONPATH="/opt/host/modules")
    assert done.returncode == 85, done.stderr
    assert done.stdout.splitlines() == [
        "/opt/speechlab/bin/python", str(tmp_path), "['a b', '你好', '']", f"{engine.name}:{engine.image}", "sha2",
        f"{engine.env['SPEECHLAB_CACHE']}/home"]
    made = (tmp_path / "made 文件").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_end_the_container(engine, tmp_path, number):
    """A program that listens ends as it likes; one that does not, and may be PID 1 but for --init, ends as well."""
    listens = ("import signal, sys, time\n"
               f"signal.signal({int(number)}, lambda *_: sys.exit(85))\n"
               "print('ready', flush=True); time.sleep(300.125)")
    deaf = "import time; print('ready', flush=True); time.sleep(300.125)"
    for code, statuses in ((listens, {85}), (deaf, {128 + number, -number, 1, 130})):
        process = engine.start(CMD, "--", "python", "-c", code, cwd=tmp_path)
        assert process.stdout.readline() == "ready\n"
        # podman 4.3 drops a signal that comes before it has seen the container run, as on a busy machine just after the
        # start: sent again until it is heard.
        for _ in range(12):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                break
        ended = process.poll()
        process.kill()  # nothing if it has ended
        process.stdout.close()
        assert ended in statuses
    assert gone(engine, "sleep(300.125)")


def test_the_container_of_a_killed_client_goes(engine, tmp_path):
    """With podman at the next start or by --clean; Apptainer's goes at once."""
    process = engine.start(CMD, "--", "sh", "-c", "echo ready; sleep 300.25; true", cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    if engine.name == "podman":
        assert engine.left("300.25")
        assert engine.run(CMD, "--clean").returncode == 0
    assert gone(engine, "300.25")


def test_a_foreign_image(engine, tmp_path):
    if engine.name == "podman":
        image = "localhost/bookworm:min"
    else:
        image = tmp_path / "foreign"  # a folder is an image too; of a small one, only sh and its libraries
        made = ('cd "$0" && mkdir bin proc sys dev tmp etc && cp /bin/sh bin/ && '
                'ldd /bin/sh | grep -o "/[^ ]*" | xargs -I@ cp --parents @ .')
        image.mkdir()
        subprocess.run(["sh", "-c", made, image], check=True)
    done = engine.run(CMD, "--image", image, "--", "python", "x.py", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"the image {image} has no python: make one that has: containers/build.sh" in done.stderr


def test_doctor(engine, tmp_path):
    done = engine.run(CMD, "--doctor", cwd=tmp_path)
    assert done.returncode == 0 and "nothing is broken" in done.stdout, done.stdout
    assert engine.name in done.stdout and "/opt/speechlab/bin/python" in done.stdout


def test_two_processes(engine, tmp_path):
    """torchrun and gloo inside."""
    (tmp_path / "sum.py").write_text(
        "import sys, torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
        "x = torch.tensor([dist.get_rank() + 1.0])\ndist.all_reduce(x)\n"
        "sys.stdout.write(f'sum {x.item()}\\n')\ndist.destroy_process_group()\n")  # one write: the other writes as well
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = engine.run(CMD, "--", *torchrun, "sum.py", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum 3.0") == 2


def test_mnist_in_two_processes(engine, lab):
    """The recipe's own two processes, and the table of the day: engine, GPUs, PyTorch's version."""
    recipe = lab / "egs" / "mnist"
    done = engine.run(recipe / "run.sh", *MNIST, "--set", "train.accum=2", cwd=lab)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    exp = recipe / "exp" / "synthetic_tiny"
    env = json.loads((exp / "env.json").read_text())
    assert (env["engine"], env["container"], env["gpus"]) == (engine.name, engine.image, 0)
    assert env["image_id"].startswith("sha256:") and len(env["image_id"]) == 71
    if len(os.sched_getaffinity(0)) > 1:
        assert "cpu x 2" in (exp / "train.log").read_text()
    with open(recipe / "params_table.csv", encoding="utf-8", newline="") as file:
        row, = csv.DictReader(file)
    assert row["engine"] == engine.name and row["torch"].startswith("2.11.0") and row["gpus"] == "0"
    results = json.loads((exp / "results.json").read_text())
    assert all(row["value"] > 90 for row in results if row["metric"] == "accuracy")
    again = engine.run(recipe / "run.sh", *MNIST, "--set", "train.accum=2", cwd=lab)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    assert gone(engine, str(lab))


def test_ctrl_c_leaves_no_container_and_the_run_goes_on(engine, lab):
    """At three points: while the first container starts, in a stage, in the training."""
    recipe = lab / "egs" / "mnist"
    options = [*MNIST, "--set", "train.epochs=4", "--set", "train.accum=2"]
    for wait_for, seconds in (("$ ", 0.3), ("stage 1: ", 0.3), ("epoch 2 step", 0)):
        process = engine.start(recipe / "run.sh", *options, cwd=lab)
        for line in process.stdout:
            if wait_for in line:
                break
        else:
            pytest.fail(f"no '{wait_for}' was seen")
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.stdout.close()
        assert process.wait(timeout=60) == 130
        assert gone(engine, str(lab))
    done = engine.run(recipe / "run.sh", *options, cwd=lab)
    assert done.returncode == 0 and "goes on from its checkpoint" in done.stdout, done.stdout[-3000:] + done.stderr


def test_aishell_asr(engine, lab, tmp_path):
    """run.sh --corpus synthetic: a result, files that are ours, and nothing to do the second time."""
    recipe = lab / "egs" / "aishell_asr"
    exp = tmp_path / "else where" / "实验 1"
    exp.parent.mkdir()
    options = ["--corpus", "synthetic", "--exp", exp, "--set", "train.epochs=1"]
    done = engine.run(recipe / "run.sh", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "CER" in (exp / "results.txt").read_text()
    assert all(0 <= row["value"] for row in json.loads((exp / "results.json").read_text()) if row["metric"] == "CER")
    assert json.loads((exp / "env.json").read_text())["engine"] == engine.name

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
    again = engine.run(recipe / "run.sh", *options, cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    assert (exp / "results.txt").stat().st_mtime_ns == before
    assert gone(engine, str(lab))
