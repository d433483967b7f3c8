"""containers/lib/engines.sh: each engine's exact command line, what is bound, what goes in, and what is refused."""

import csv
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from test_cmd import Lab, error, lab  # noqa: F401  # lab is a fixture

CONTAINER = {"podman": "i:1", "docker": "i:1", "apptainer": "/images/一 a.sif", "singularity": "/images/一 a.sif"}
ENGINES = list(CONTAINER)
ID = "f" * 64


def engine_line(lab: Lab, engine: str, *command: str, **env: str) -> list[str]:
    """The command line that --dry_run prints, as a list, less what changes from run to run."""
    env = {"SPEECHLAB_ENGINE": engine, "SPEECHLAB_IMAGE": CONTAINER[engine], **env}
    done = lab.run("--dry_run", "--", *command, **env)
    assert done.returncode == 0, done.stderr
    words = [word for word in shlex.split(done.stdout) if word != "CUDA_VISIBLE_DEVICES="]
    if engine in ("podman", "docker"):
        name = words.index("--name")
        assert words[name + 1].startswith("speechlab-") and words[name + 3].startswith("speechlab.client=here:")
        words[name:name + 4] = []
    return words


def volumes(lab: Lab, *command: str, engine: str = "podman", **env: str) -> list[str]:
    words = engine_line(lab, engine, *(command or ("true",)), **env)
    return [words[i + 1] for i, word in enumerate(words) if word in ("--volume", "--bind")]


def small_shm(lab: Lab, blocks: int = 65536) -> None:
    lab.program("df", f"printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n"
                      f"/dev/a 9999999 0 9999999 0%% /\\nshm {blocks} 0 {blocks} 0%% /dev/shm\\n'")


# --- the lines, engine by engine, with and without GPUs ---

@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("engine, uid", [("podman", "1000"), ("podman", "0"), ("docker", "1000"), ("docker", "0")])
def test_podman_and_docker(lab, engine, uid, gpu):
    user = {"podman": [*(["--userns", "keep-id"] if uid != "0" else []), "--user", f"{uid}:{uid}"],
            "docker": ["--user", f"{uid}:{uid}"]}[engine]
    device = {"podman": ["--device", "nvidia.com/gpu=all"], "docker": ["--gpus", "all"]}[engine]
    expected = [
        engine, "run", "--rm", "--init", "--interactive", "--network", "host", "--security-opt", "label=disable",
        "--ipc", "host", *user, "--workdir", str(lab.recipe), "--volume", f"{lab.root}:{lab.root}",
        "--env", f"HOME={lab.root}/downloads/.cache/home", "--env", "USER=student", "--env", "CUDA_VISIBLE_DEVICES",
        "--env", "SPEECHLAB_ENGINE", "--env", "SPEECHLAB_IMAGE", "--env", "SPEECHLAB_NGPU",
        "--env", f"PYTHONPATH={lab.root}", "--env", "PYTHONNOUSERSITE=1", "--env", f"SPEECHLAB_CONTAINER={engine}:i:1",
        *(device if gpu else []), "i:1", "python", "-m", "x y", "你好", ""]
    found = engine_line(lab, engine, "python", "-m", "x y", "你好", "", TEST_UID=uid, USER="student",
                        PYTHONPATH=f"/opt/module/lib:{lab.root}", SPEECHLAB_PYTHON="/host/python",
                        SPEECHLAB_NGPU="2" if gpu else "0", CUDA_VISIBLE_DEVICES="0,3")
    assert found == expected


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("engine, prefix", [("apptainer", "APPTAINER"), ("singularity", "SINGULARITY")])
def test_apptainer(lab, engine, prefix, gpu):
    cache = f"{lab.root}/downloads/.cache"
    image = CONTAINER[engine]
    expected = [
        "env", f"{prefix}_CACHEDIR={cache}/apptainer", f"{prefix}_TMPDIR={cache}/tmp",
        f"{prefix}ENV_CUDA_VISIBLE_DEVICES={'0,3' if gpu else ''}", f"{prefix}ENV_SPEECHLAB_ENGINE={engine}",
        f"{prefix}ENV_SPEECHLAB_IMAGE={image}", f"{prefix}ENV_SPEECHLAB_NGPU={2 if gpu else 0}",
        f"{prefix}ENV_PYTHONPATH={lab.root}", f"{prefix}ENV_PYTHONNOUSERSITE=1",
        f"{prefix}ENV_SPEECHLAB_CONTAINER={engine}:{image}",
        engine, "exec", "--cleanenv", "--pid", "--home", f"{cache}/home", "--pwd", str(lab.recipe),
        "--bind", f"{lab.root}:{lab.root}", *(["--nv"] if gpu else []), image, "python", "-m", "x y", "你好", ""]
    found = engine_line(lab, engine, "python", "-m", "x y", "你好", "", PYTHONPATH=f"/opt/module/lib:{lab.root}",
                        SPEECHLAB_NGPU="2" if gpu else "0", CUDA_VISIBLE_DEVICES="0,3")
    assert [word for word in found if word != "CUDA_VISIBLE_DEVICES="] == expected


def test_apptainer_under_its_old_name_has_its_own_variables(lab):
    lab.program("apptainer", "true")
    (lab.bin / "singularity").symlink_to("apptainer")
    assert any(word.startswith("APPTAINERENV_") for word in engine_line(lab, "singularity", "true"))


def test_docker_of_a_user_and_groups(lab):
    words = engine_line(lab, "docker", "true", DOCKER_HOST="unix:///run/user/1000/docker.sock")
    assert words[words.index("--user") + 1] == "0:0"
    lab.program("id", 'case $1 in -G) echo 1000 27 44 ;; *) echo 1000 ;; esac')
    words = engine_line(lab, "docker", "true")
    at = words.index("--user")
    assert words[at:at + 6] == ["--user", "1000:1000", "--group-add", "27", "--group-add", "44"]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_of_the_environment_goes_in(lab, engine):
    given = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "RANK": "1", "SLURM_JOB_ID": "7", "WANDB_API_KEY": "hush",
             "LD_LIBRARY_PATH": "/opt/module", "CONDA_PREFIX": "/opt/conda", "SLURM_CONF": "/etc/x", "PYTHONHOME": "/x"}
    text = " ".join(engine_line(lab, engine, "true", **given))
    assert all(name in text for name in ("NCCL_DEBUG", "OMP_NUM_THREADS", "RANK", "SLURM_JOB_ID", "PYTHONNOUSERSITE=1"))
    assert not any(name in text for name in ("hush", "LD_LIBRARY", "CONDA_", "SLURM_CONF", "PYTHONHOME"))


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_a_small_shm_is_not_shared(lab, engine):
    small_shm(lab)
    words = engine_line(lab, engine, "true")
    assert words[words.index("--shm-size") + 1] == "8g" and "--ipc" not in words
    small_shm(lab, 4 << 20)
    assert "--shm-size" not in engine_line(lab, engine, "true")


def test_umask_and_places(lab, tmp_path):
    lab.program("x", "true")
    base = tmp_path.resolve()
    (base / "big" / "tmp").mkdir(parents=True)
    env = {"PATH": str(lab.bin), "SPEECHLAB_ENGINE": "podman", "SPEECHLAB_IMAGE": "i", "SPEECHLAB_NESTED": "1"}
    done = subprocess.run(["bash", "-c", 'umask 027; exec bash "$0" --dry_run -- true', lab.cmd], cwd=lab.recipe,
                          env=env, text=True, capture_output=True, check=True)
    assert "--umask 0027" in done.stdout
    words = engine_line(lab, "apptainer", "true", SPEECHLAB_CACHE=f"{base}/big/cache", TMPDIR=f"{base}/big/tmp",
                        APPTAINER_TMPDIR="/scratch/me")
    assert words[1:3] == [f"APPTAINER_CACHEDIR={base}/big/cache/apptainer", "APPTAINER_TMPDIR=/scratch/me"]
    assert f"APPTAINERENV_TMPDIR={base}/big/tmp" in words and f"{base}/big:{base}/big" in words


@pytest.mark.skipif(os.getuid() == 0, reason="root can write everywhere")
def test_read_only_downloads_need_another_cache(lab, tmp_path):
    (tmp_path / "shared").mkdir(mode=0o555)
    words = engine_line(lab, "podman", "true", SPEECHLAB_DOWNLOADS=str(tmp_path / "shared"), TMPDIR="/tmp")
    assert "HOME=/tmp/speechlab-cache-1000/home" in words


# --- what is bound ---

@pytest.mark.parametrize("engine", ["podman", "apptainer"])
def test_binds(lab, tmp_path, engine):
    base = tmp_path.resolve()
    for name in ("big/sets/mini", "big/exp", "downloads", "own data", "args/deep", "hop"):
        (base / name).mkdir(parents=True)
    (base / "own data" / "list.tsv").write_text("")
    (lab.recipe / "data").mkdir()
    (lab.recipe / "data" / "mini").symlink_to(base / "big" / "sets" / "mini")
    (base / "hop" / "exp").symlink_to("../big/exp")  # a link to a link, and a relative one
    (lab.recipe / "exp").symlink_to(base / "hop" / "exp")
    (lab.recipe / "broken").symlink_to(base / "gone" / "away")
    root = f"{lab.root}:{lab.root}"
    names = ("big/sets/mini", "hop", "big/exp", "downloads", "own data", "args")
    same = [f"{base / name}:{base / name}" for name in names]
    new, file = base / "args" / "new" / "deeper", base / "own data" / "list.tsv"
    found = volumes(lab, "python", "rel/path", str(new), f"--data_dir={file}", "/usr/bin/python3", "/nosuch",
                    engine=engine, SPEECHLAB_DOWNLOADS=str(base / "downloads"),
                    SPEECHLAB_BINDS=f"{base}/own data::{file}", TMPDIR="/tmp")
    assert found[0] == root and sorted(found[1:]) == sorted(same)


def test_a_folder_that_is_called_by_a_link_is_there_under_both_names(lab, tmp_path):
    base = tmp_path.resolve()
    (base / "real" / "in").mkdir(parents=True)
    (base / "alias").symlink_to(base / "real")
    found = volumes(lab, SPEECHLAB_BINDS=str(base / "alias" / "in"), TMPDIR="/tmp")
    assert found[1:] == [f"{base}/real/in:{base}/real/in", f"{base}/real/in:{base}/alias/in"]


def test_binds_that_would_break_the_container_are_refused(lab, tmp_path):
    podman = ["--engine", "podman", "--image", "i", "--dry_run", "--", "true"]
    for path, says in (("/etc", "the host's /etc"), ("/nosuch", "the host's /")):
        assert says in error(lab.run(*podman, SPEECHLAB_BINDS=path))
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a,b").mkdir()
    assert lab.run(*podman, SPEECHLAB_DOWNLOADS=f"{tmp_path}/a,b").returncode == 0
    for name in ("a,b", "a:b"):
        line = error(lab.run("--engine", "apptainer", *podman[2:], SPEECHLAB_DOWNLOADS=f"{tmp_path}/{name}"))
        assert f"{name}: apptainer can't bind a path with a colon, a comma or a quote" in line


def test_a_colon(lab, tmp_path):
    """podman's and docker's --mount takes it; Apptainer can't, and says so."""
    base = tmp_path.resolve()
    for name in ("2026-01-01 10:30", 'a:b,"c"'):
        (base / name).mkdir()
        words = engine_line(lab, "docker", "true", f"--data={base}/{name}", SPEECHLAB_DOWNLOADS=f"{base}/{name}")
        found = next(csv.reader([words[words.index("--mount") + 1]]))
        assert found == ["type=bind", f"source={base}/{name}", f"destination={base}/{name}"]
    for path in ("", "/new"):
        done = lab.run("--engine", "apptainer", "--image", "/i.sif", "--dry_run", "--", "true",
                       f"{base}/2026-01-01 10:30{path}")
        assert done.returncode == 0 and done.stdout.count("--bind") == 1  # the repository
        assert done.stderr == (f"note: {base}/2026-01-01 10:30 is not there in the container: apptainer can't bind a "
                               "path with a colon, a comma or a quote\n")
    for name in ("a", "a:b"):  # the second is bound: so the first is not yet
        (base / name).mkdir()
    assert f"{base}/a:{base}/a" in volumes(lab, "true", str(base / "a:b"), str(base / "a"))


def test_whose_a_path_is():
    code = 'eval "$(sed -n "/^whose() {/,/^}/p" "$1")"; for path in "${@:2}"; do whose "$path"; done'
    paths = {"/run/media/me/USB DISK/corpus": "user", "/run/media/me": "user", "/media/me/x": "user", "/mnt/x": "user",
             "/run/user/1000": "system", "/usr/share/corpora": "system", "/dev/shm/x": "system", "/usr": "image",
             "/": "image", "/run": "image", "/run/": "image", "/etc": "image", "/home/me": "user", "/var/data": "user"}
    script = Path(__file__).resolve().parents[3] / "containers" / "lib" / "engines.sh"
    done = subprocess.run(["bash", "-euc", code, "-", script, *paths], text=True, capture_output=True, check=True)
    assert dict(zip(paths, done.stdout.split())) == paths


def test_what_is_not_bound_is_said(lab, tmp_path):
    """Data among the arguments that lie in the host's system; programs, devices and what is not there are no data."""
    done = lab.run("--engine", "podman", "--image", "i", "--dry_run", "--", "true", "--data=/usr/share", "/usr/bin/env",
                   "/dev/null", "/usr/nosuch", "--separator=/", "/etc")
    assert done.returncode == 0
    assert done.stderr == (
        "note: /usr/share is not there in the container: it is the host's system; SPEECHLAB_BINDS=PATH binds it\n"
        "note: /etc is not there in the container: the container can't be given the host's /etc: put it in a folder of "
        "its own\n")
    assert "/usr/share:/usr/share" in volumes(lab, "true", "/usr/share", SPEECHLAB_BINDS="/usr/share")


class TestLinksInTheData:
    @pytest.fixture
    def base(self, tmp_path):
        base = tmp_path.resolve()
        for name in ("set", "disk1/wav", "disk2/a b", "disk3/deep", "disk4", "disk5", "disk6"):
            (base / name).mkdir(parents=True)
        for name in ("disk2/a b/1.wav", "disk2/a b/2.wav", "disk4/x.tsv"):
            (base / name).touch()
        (base / "set" / "wav").symlink_to(base / "disk1" / "wav")  # a folder
        (base / "set" / "spk").mkdir()
        for name in ("1.wav", "2.wav"):
            (base / "set" / "spk" / name).symlink_to(f"../../disk2/a b/{name}")  # files
        (base / "disk1" / "wav" / "more").symlink_to(base / "disk3" / "deep")  # in what a link points to
        (base / "set" / "list.tsv").symlink_to(base / "disk4" / "x.tsv")
        (base / "set" / "gone").symlink_to(base / "nosuch" / "x")
        (base / "set" / "spk" / "same.wav").symlink_to("1.wav")
        (base / "disk4" / "y.tsv").symlink_to(base / "disk5" / "y.tsv")
        (base / "set" / "y.tsv").symlink_to(base / "disk4" / "y.tsv")  # a chain
        (base / "disk5" / "y.tsv").touch()
        return base

    NAMES = ("set", "disk1/wav", "disk2/a b", "disk3/deep", "disk4")

    @pytest.mark.parametrize("posix", [False, True])
    @pytest.mark.parametrize("engine", ["podman", "apptainer"])
    def test_what_they_point_to_is_bound(self, lab, base, engine, posix):
        if posix:  # a find without -printf, as a Mac's
            real = (lab.bin / "find").resolve()
            lab.program("find", f'case "$*" in *-printf*) exit 1 ;; *) exec {real} "$@" ;; esac')
        found = volumes(lab, "python", "--from", str(base / "set"), engine=engine, TMPDIR="/tmp")
        assert sorted(found[1:]) == sorted(f"{base / name}:{base / name}" for name in (*self.NAMES, "disk5"))
        same = volumes(lab, "python", "x.py", engine=engine, TMPDIR="/tmp", SPEECHLAB_DATA_DIR=str(base / "set"))
        assert sorted(same) == sorted(found)
        found = volumes(lab, "python", "--set", f"data.noise={base / 'disk2'}", engine=engine, TMPDIR="/tmp")
        assert found[1:] == [f"{base / 'disk2'}:{base / 'disk2'}"]

    def test_in_a_folder_that_is_named_from_here_and_in_the_downloads(self, lab, base):
        (lab.recipe / "mine").mkdir()
        (lab.recipe / "mine" / "wav").symlink_to(base / "disk6")
        assert volumes(lab, "python", "--from", "mine", TMPDIR="/tmp")[1:] == [f"{base}/disk6:{base}/disk6"]
        (lab.root / "downloads").mkdir()
        (lab.root / "downloads" / "aishell").symlink_to(base / "disk4")
        assert volumes(lab, "true", TMPDIR="/tmp")[1:] == [f"{base}/disk4:{base}/disk4"]

    def test_a_link_into_the_hosts_system_is_said(self, lab, base):
        (base / "set" / "words").symlink_to("/usr/share")
        done = lab.run("--engine", "podman", "--image", "i", "--dry_run", "--", "true", str(base / "set"))
        assert done.returncode == 0 and done.stderr.startswith("note: ") and done.stderr.count("\n") == 1
        assert "words is not there in the container: it is the host's system" in done.stderr

    def test_a_link_to_itself_ends(self, lab, base):
        (base / "set" / "loop").symlink_to(".")
        (base / "set" / "up").symlink_to("..")
        (base / "set" / "round").symlink_to("round")
        assert f"{base}/disk6" not in engine_line(lab, "podman", "true", str(base / "set"))

    def test_a_link_per_utterance_is_quick(self, lab, base):
        """5,000 links into one folder are looked at without a process for each: only the first one is followed."""
        (base / "many").mkdir()
        for n in range(5000):
            (base / "many" / f"{n}.wav").symlink_to(base / "disk2" / "a b" / "1.wav")
        real = (lab.bin / "readlink").resolve()
        lab.program("readlink", f'echo x >>"{base}/calls"; exec {real} "$@"')
        found = volumes(lab, "true", str(base / "many"), TMPDIR="/tmp")
        assert found[1:] == [f"{base}/{name}:{base}/{name}" for name in ("many", "disk2/a b")]
        assert len((base / "calls").read_text().split()) < 10


class TestFetchingInside:
    """Stage 0 fetches by pip and over TLS: as the host does."""

    @pytest.mark.parametrize("engine", ENGINES)
    def test_variables(self, lab, engine):
        given = {"PIP_INDEX_URL": "https://mirror/simple", "PIP_TRUSTED_HOST": "mirror", "SSL_CERT_DIR": "/x",
                 "SSL_CERT_FILE": "/nosuch/ca", "REQUESTS_CA_BUNDLE": "/nosuch/r.pem", "CURL_CA_BUNDLE": "/nosuch/c",
                 "https_proxy": "http://proxy:3128", "ALL_PROXY": "socks5://proxy:1080",
                 "npm_config_registry": "https://mirror"}
        words = engine_line(lab, engine, "true", **given, PIP_TARGET="/host", PIP_USER="1", PIP_PREFIX="/host")
        if engine in ("podman", "docker"):
            passed = {words[i + 1] for i, word in enumerate(words) if word == "--env"}
            assert set(given) <= passed
        else:
            prefix = {"apptainer": "APPTAINER", "singularity": "SINGULARITY"}[engine]
            assert {f"{prefix}ENV_{name}={value}" for name, value in given.items()} <= set(words)
        assert not any(name in " ".join(words) for name in ("PIP_TARGET", "PIP_USER", "PIP_PREFIX"))

    @pytest.mark.parametrize("engine", ["podman", "apptainer"])
    def test_a_password_in_an_address_is_not_shown(self, lab, engine):
        hidden = {"PIP_INDEX_URL": "https://me:hush@mirror/simple", "https_proxy": "http://me:hush@proxy:1"}
        assert "hush" not in " ".join(engine_line(lab, engine, "true", **hidden))
        lab.program(engine, 'case "$1" in image) echo x ;; run | exec) env ;; esac')
        lab.program("df", "true")
        done = lab.run("--engine", engine, "--image", str(lab.cmd), "--", "true", **hidden)
        prefix = "APPTAINERENV_" if engine == "apptainer" else ""
        assert f"{prefix}PIP_INDEX_URL=https://me:hush@mirror/simple\n" in done.stdout

    def test_files(self, lab, tmp_path):
        base = tmp_path.resolve()
        for name in ("certs", "real", "bundle", "home/.config/pip", "dir"):
            (base / name).mkdir(parents=True)
        (base / "real" / "ca.pem").touch()
        (base / "certs" / "ca.pem").symlink_to("../real/ca.pem")
        (base / "bundle" / "r.pem").touch()
        (base / "home" / ".config" / "pip" / "pip.conf").touch()
        words = engine_line(lab, "podman", "true", SSL_CERT_FILE=f"{base}/certs/ca.pem",
                            SSL_CERT_DIR=f"{base}/dir:/nosuch", REQUESTS_CA_BUNDLE=f"{base}/bundle/r.pem",
                            HOME=f"{base}/home", TMPDIR="/tmp", PIP_CERT="/etc/passwd", PIP_CLIENT_CERT="/nosuch")
        found = [words[i + 1] for i, word in enumerate(words) if word == "--volume"]
        folders = ("dir", "certs", "real", "bundle", "home/.config/pip")
        assert sorted(found[1:]) == sorted(["/etc/passwd:/etc/passwd", *(f"{base}/{x}:{base}/{x}" for x in folders)])
        assert f"PIP_CONFIG_FILE={base}/home/.config/pip/pip.conf" in words
        own = engine_line(lab, "podman", "true", HOME=f"{base}/home", PIP_CONFIG_FILE=f"{base}/bundle/r.pem")
        assert "PIP_CONFIG_FILE" in own and f"{base}/bundle:{base}/bundle" in own and "pip.conf" not in " ".join(own)

    @pytest.mark.skipif(not os.path.islink("/etc/mtab"), reason="no link in /etc to try it on")
    def test_a_file_of_the_system_is_bound_alone_and_by_the_name_it_has(self, lab):
        real = os.path.realpath("/etc/mtab") if os.path.isfile("/etc/mtab") else ""
        found = volumes(lab, SSL_CERT_FILE="/etc/mtab", TMPDIR="/tmp")
        assert len(found) == 2 and found[1].endswith(":/etc/mtab") and real


# --- the engine and the image ---

def test_auto(lab):
    done = lab.run("--engine", "auto", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, "note: --engine auto without --image: no container\n")
    for image, looked, programs in (("i", "podman and docker", ("docker", "podman")),
                                    ("i.sif", "apptainer and singularity", ("singularity", "apptainer")),
                                    ("docker://i", "apptainer and singularity", ())):
        if programs:
            assert f"looked for {looked}" in error(lab.run("--engine", "auto", "--image", image, "--", "true"))
        for name in programs:  # the second is preferred
            lab.program(name, "true")
            done = lab.run("--engine", "auto", "--image", image, "--dry_run", "--", "true")
            assert done.stderr == f"note: --engine auto: {name}, image {image}\n" and f"{name} " in done.stdout


def test_no_engine_and_no_image_say_so(lab):
    for engine in ENGINES:
        assert f"no program {engine}" in error(lab.run("--engine", engine, "--image", "i", "--", "true"))
    lab.program("podman", "echo 'Error: inspecting object: i: image not known' >&2; exit 125")
    line = error(lab.run("--engine", "podman", "--image", "i", "--", "true"))
    assert "no image 'i'" in line and "containers/build.sh --engine podman --image i" in line
    lab.program("docker", "echo 'Cannot connect to the Docker daemon at x. Is it running?' >&2; exit 1")
    assert "docker doesn't answer: Cannot connect" in error(lab.run("--engine", "docker", "--image", "i", "--", "true"))
    lab.program("apptainer", "true")
    assert "no such image file: a.sif" in error(lab.run("--engine", "apptainer", "--image", "a.sif", "--", "true"))


def test_the_images_id_goes_in(lab, tmp_path):
    lab.program("podman", f'[ "$1" != image ] || echo {ID}')
    assert f"SPEECHLAB_IMAGE_ID=sha256:{ID}" in engine_line(lab, "podman", "true")
    lab.program("docker", f'[ "$1" != image ] || echo sha256:{ID}')
    assert f"SPEECHLAB_IMAGE_ID=sha256:{ID}" in engine_line(lab, "docker", "true")
    lab.program("apptainer", "true")
    sif = tmp_path / "a b.sif"
    sif.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(range(16)) + b"data")
    line = engine_line(lab, "apptainer", "true", SPEECHLAB_IMAGE=str(sif))
    assert "APPTAINERENV_SPEECHLAB_IMAGE_ID=sif:000102030405060708090a0b0c0d0e0f" in line
    Path(f"{sif}.sha256").write_text(f"{ID}  a b.sif\n")
    line = engine_line(lab, "apptainer", "true", SPEECHLAB_IMAGE=str(sif))
    assert f"APPTAINERENV_SPEECHLAB_IMAGE_ID=sha256:{ID}" in line
    os.utime(sif, (4e9, 4e9))  # newer than its sum: another image
    assert "IMAGE_ID=sif:" in " ".join(engine_line(lab, "apptainer", "true", SPEECHLAB_IMAGE=str(sif)))


@pytest.mark.parametrize("engine", ["podman", "apptainer"])
def test_a_foreign_image_is_one_line_and_ours_is_looked_at_once(lab, engine, tmp_path):
    image = "i"
    if engine == "apptainer":
        image = str(tmp_path / "i.sif")
        Path(image).write_bytes(bytes(64))
    calls = tmp_path / "calls"
    for answer, says in (("python", "has no python:"), ("torch lhotse", "has no torch and no lhotse:")):
        lab.program(engine, f'case "$1" in image) echo {ID} ;; run | exec) echo "lacks:{answer}"; echo INFO >&2 ;; '
                            'esac')
        line = error(lab.run("--engine", engine, "--image", image, "--", "python", "x.py"))
        assert says in line and "containers/build.sh" in line
    lab.program(engine, f'''case "$1" in
        image) echo {ID} ;;
        run | exec) case "$*" in *find_spec*) echo looked >>'{calls}' ;; *) echo ran; exit 7 ;; esac ;;
    esac''')
    for _ in range(2):
        done = lab.run("--engine", engine, "--image", image, "--", "python", "x.py")
        assert (done.returncode, done.stdout, done.stderr) == (7, "ran\n", "")
    assert calls.read_text() == "looked\n"
    if engine == "podman":
        other = ID.replace("f", "e")
        lab.program(engine, f'case "$1" in image) echo {other} ;; run) echo no good >&2; exit 125 ;; esac')
        assert "can't be run: no good" in error(lab.run("--engine", engine, "--image", image, "--", "python", "x.py"))


def test_a_full_tmp_and_a_small_shm(lab):
    lab.program("podman", f'case "$1" in image) echo {ID} ;; esac')
    lab.program("df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n/dev/a 99 90 9 91%% /\\n'")
    podman = ["--engine", "podman", "--image", "i", "--", "true"]
    assert "/tmp is full (0 MB free)" in error(lab.run(*podman, TMPDIR="/tmp"))
    small_shm(lab)
    lab.program("apptainer", "true")
    sif = lab.recipe / "i.sif"
    sif.write_bytes(bytes(64))
    done = lab.run("--engine", "apptainer", "--image", "i.sif", "--", "true")
    assert done.returncode == 0 and "/dev/shm holds 64 MB" in done.stderr and done.stderr.count("\n") == 1


def test_podman_gpu_without_cdi(lab):
    lab.program("podman", f'case "$1" in image) echo {ID} ;; esac')
    lab.program("nvidia-smi", "echo 'GPU 0: NVIDIA A (UUID: GPU-1)'")
    lab.program("grep", 'case "$*" in *cdi*) exit 2 ;; *) exec /bin/grep "$@" ;; esac')
    line = error(lab.run("--ngpu", "1", "--engine", "podman", "--image", "i", "--", "true"))
    assert "nvidia-ctk cdi generate" in line


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_containers_left_by_a_killed_run_are_removed(lab, engine):
    dead = subprocess.Popen(["true"])
    dead.wait()
    lab.program(engine, f'''case "$1" in
        image) echo {ID} ;;
        ps) printf 'c1 here:{dead.pid}\\nc2 here:{os.getpid()}\\nc3 elsewhere:{dead.pid}\\n' ;;
        rm) echo "removed $3" >&2 ;;
        run) echo ran ;;
    esac''')
    done = lab.run("--engine", engine, "--image", "i", "--", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "removed c1\n")
    lab.program(engine, f'case "$1" in ps) echo "c1 here:{dead.pid}" ;; rm) echo "removed $3" ;; esac')
    assert lab.run("--clean").returncode == 0
