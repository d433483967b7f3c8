"""cmd.sh --doctor: what is broken for the chosen options, and the line that mends it."""

import shutil
from pathlib import Path

import pytest
from test_cmd import Lab, lab  # noqa: F401  # a fixture

ID = "f" * 64
SEEN = {"python": "/opt/speechlab/bin/python 3.11.2", "torch": "2.11.0+cu130", "file": "/opt/x/torch/__init__.py",
        "cuda": "13.0", "gpus": "0", "names": "", "nccl": "2.28.9", "shm": "64000", "user": ""}


@pytest.fixture
def doctor(lab: Lab):
    for name in ("df", "awk", "head"):
        (lab.bin / name).symlink_to(shutil.which(name))
    (lab.root / "home").mkdir()

    def run(*options: str, seen: dict[str, str] | None = None, **env: str) -> tuple[int, dict[str, str]]:
        """The exit status, and each row's state, finding and mending line by its name."""
        answer = "\\n".join(f"{key}={value}" for key, value in {**SEEN, **(seen or {})}.items())
        lab.program("podman", f'''case "$1" in
            --version) echo podman version 9 ;;
            image) echo {ID} ;;
            run) printf '{answer}\\n' ;;
        esac''')
        env = {"HOME": f"{lab.root}/home", "SPEECHLAB_CACHE": f"{lab.root}/cache", "TEST_UID": "0", **env}
        done = lab.run("--doctor", *options, **env)
        rows, name = {}, ""
        for line in done.stdout.splitlines()[1:]:
            if "  mend: " in line:
                rows[name] += line.strip()
            else:
                name = line[6:18].strip()
                rows[name] = line[:6].strip() + " " + line[19:]
        return done.returncode, rows
    # The image has been looked at before: a container's answer is the probe's alone.
    (lab.root / "cache" / "checked").mkdir(parents=True)
    (lab.root / "cache" / "checked" / f"sha256-{ID}").touch()
    run.lab = lab
    return run


PODMAN = ("--engine", "podman", "--image", "i")


def test_all_is_well(doctor):
    status, rows = doctor(*PODMAN)
    assert status == 0, rows
    assert rows["engine"] == "ok podman is chosen; here: podman version 9" and ID in rows["image"]
    assert rows["torch"].startswith("ok 2.11.0+cu130") and rows["NCCL"] == "ok 2.28.9"
    assert {"home", "cache", "temporary", "disk", "/dev/shm", "user-site", "Slurm", "CDI", "CUDA"} <= set(rows)
    assert not any(row.startswith("BAD") for row in rows.values())


def test_no_engine_no_image_no_client(doctor):
    status, rows = doctor("--engine", "docker", "--image", "i")
    assert status == 1 and rows["engine"].startswith("BAD docker is not here") and "mend:" in rows["engine"]
    assert "torch" not in rows, "there is nobody to ask"
    status, rows = doctor("--engine", "podman")
    assert status == 1 and rows["image"].startswith("BAD none is named") and "build.sh --engine podman" in rows["image"]


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_a_gpu_is_asked_for_and_none_is_there(doctor):
    status, rows = doctor(*PODMAN, "--ngpu", "1")
    assert status == 1 and rows["GPU driver"].startswith("BAD no GPU") and "--ngpu 0" in rows["GPU driver"]
    assert rows["torch"].startswith("ok")


def gpu(doctor, driver: str) -> None:
    doctor.lab.program("nvidia-smi", f'case "$*" in *driver*) echo {driver} ;; '
                       '*) echo "GPU 0: NVIDIA A (UUID: 1)" ;; esac')
    # /etc/cdi is the machine's; here it has a description.
    doctor.lab.program("grep", 'case "$*" in *nvidia.com/gpu*) exit 0 ;; *) exec /bin/grep "$@" ;; esac')


def test_an_old_driver_and_a_torch_that_sees_nothing(doctor):
    gpu(doctor, "550.54")
    status, rows = doctor(*PODMAN, "--ngpu", "1")
    assert status == 1 and rows["GPU driver"].startswith("ok 550.54, 1 GPU(s): GPU 0: NVIDIA A;")
    assert rows["GPU in torch"].startswith("BAD torch sees 0") and "driver 580 or newer" in rows["CUDA"]
    assert rows["CUDA"].startswith("BAD")
    gpu(doctor, "580.65")
    status, rows = doctor(*PODMAN, "--ngpu", "1", seen={"gpus": "1", "names": "NVIDIA A"})
    assert rows["GPU in torch"] == "ok 1: NVIDIA A" and rows["CUDA"].startswith("ok")
    status, rows = doctor(*PODMAN, "--ngpu", "1", seen={"gpus": "1", "cuda": "", "torch": "2.11.0+cpu"})
    assert status == 1 and "without --cpu" in rows["CUDA"]


def test_leaks_and_small_places(doctor):
    lab = doctor.lab
    leak = lab.root / "home" / ".local" / "lib" / "python3.11" / "site-packages" / "torch"
    leak.mkdir(parents=True)
    status, rows = doctor(*PODMAN, seen={"shm": "64"})
    assert status == 0 and "not seen inside" in rows["user-site"]
    assert rows["/dev/shm"].startswith("note 64 MB") and "remount" in rows["/dev/shm"]
    lab.program("df", "printf 'h\\n/dev/a 99 90 9 91%% /\\n'")
    status, rows = doctor(*PODMAN)
    assert status == 1 and rows["temporary"].startswith("BAD") and rows["cache"].startswith("note")
    assert "SPEECHLAB_CACHE=" in rows["cache"] and rows["home"].startswith("note")


def test_slurm(doctor):
    doctor.lab.program("sbatch", "echo slurm-wlm 22.05")
    doctor.lab.program("sinfo", "echo 'gpu* up 2 nodes'")
    assert doctor(*PODMAN)[1]["Slurm"] == "ok slurm-wlm 22.05; partitions: gpu* up 2 nodes"
    doctor.lab.program("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    status, rows = doctor(*PODMAN)
    assert status == 0 and rows["Slurm"].startswith("note a client, but no controller: slurm_load")


def test_a_user_without_subordinate_ids(doctor):
    status, rows = doctor(*PODMAN, TEST_UID="54321")
    assert status == 1 and "no subordinate ids" in rows["engine"] and "usermod" in rows["engine"]


def test_which_python_without_an_engine(doctor):
    """As tools/stagelib/interpreter.py chooses: the one with setup.py's torch before an active one with another."""
    root = doctor.lab.root
    (root / "setup.py").write_text('    "torch==2.11.0",\n')

    def python(folder: str, torch: str) -> str:
        path = root / folder / "bin" / "python"
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = "\\n".join(f"{key}={value}" for key, value in {**SEEN, "python": folder, "torch": torch}.items())
        path.write_text('#!/usr/bin/env bash\ncase "$*" in *importlib.metadata*) '
                        f"echo {torch} ;; *) printf '{answer}\\n' ;; esac\n")
        path.chmod(0o755)
        return str(path)

    active = python("active", "2.4.0")
    env = {"VIRTUAL_ENV": str(root / "active")}
    assert doctor("--engine", "none", **env)[1]["torch"].startswith("ok 2.4.0")  # better than none
    python(".venv", "2.11.0+cpu")
    assert doctor("--engine", "none", **env)[1]["torch"].startswith("ok 2.11.0+cpu")
    assert doctor("--engine", "none", SPEECHLAB_PYTHON=active, **env)[1]["torch"].startswith("ok 2.4.0")
