"""Options, --help, and which Python: tools/recipe.sh, tools/stagelib/plan.py and interpreter.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from stages_helper import BODY, HEAD, recipe  # noqa: F401  (recipe is a fixture)


@pytest.mark.parametrize("arguments, says", [
    (["--stgae", "3"], "run.sh: unknown option --stgae: did you mean --stage? (--help lists them)"),
    (["--corpsu=x"], "run.sh: unknown option --corpsu: did you mean --corpus? (--help lists them)"),
    (["--nj ngpu", "1"], "run.sh: unknown option --nj ngpu"),
    (["--stage"], "run.sh: --stage needs a value"),
    (["--nj", "--force"], "run.sh: --nj needs a value"),
    (["--stage", "three"], "run.sh: --stage needs a number, not 'three'"),
    (["--stage", "-1"], "run.sh: --stage needs a number, not '-1'"),
    (["--stage="], "run.sh: --stage needs a number, not ''"),
    (["--stage", "9"], "run.sh: there is no stage 9: the stages are 0, 1, 2, 4, 6"),
    (["--stage", "4", "--stop_stage", "2"], "run.sh: there is nothing from --stage 4 to --stop_stage 2"),
    (["--set", "lr"], "run.sh: --set needs key=value"),
    (["--tag", "a/b"], "run.sh: --tag is a part of a folder's name"),
    (["--force=maybe"], "run.sh: --force takes no value"),
    (["--force", "true"], "run.sh: unexpected argument 'true'"),
    (["mini"], "run.sh: unexpected argument 'mini'"),
    (["--sweep", "none.yaml"], "run.sh: there is no sweep"),
])
def test_a_wrong_use_is_one_line_and_exit_2(recipe, arguments, says):
    done = recipe.run(*arguments, status=2)
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1
    assert not done.stdout and recipe.ran() == []


def test_name_equals_value_and_dashes(recipe):
    recipe.run("--corpus=other", "--stop-stage=1", "--nj=3")
    assert (recipe.folder / "data" / "other" / "train.gz").exists()
    assert not (recipe.folder / "data" / "other" / "fbank80").exists()


def test_a_users_path_is_meant_from_where_it_is_typed(recipe, tmp_path):
    recipe.stages('stage 1 "One" --out "$data_dir/out" -- python work.py "$data_dir/out" --note "$data_dir"')
    (tmp_path / "my 数据").mkdir()
    recipe.run("--data_dir", "my 数据", cwd=tmp_path, script=str(recipe.folder / "run.sh"))
    assert (tmp_path / "my 数据" / "out").exists()
    recipe.write(HEAD + BODY)
    recipe.run("--exp", "e/1", "--config", "conf/a.yaml", cwd=tmp_path, script=str(recipe.folder / "run.sh"))
    assert (tmp_path / "e" / "1" / "results.txt").exists()  # and conf/a.yaml, which is not there, is the recipe's
    assert "/e/1_b/" in recipe.run("--exp", str(tmp_path / "e/1"), "--tag", "b", "--dry_run").stdout
    recipe.ran()
    recipe.run("--exp", str(tmp_path / "e/1"), "--config", str(recipe.folder / "conf/a.yaml"))
    assert recipe.ran() == []  # the same files by other names


def test_downloads_can_be_elsewhere(recipe, tmp_path):
    recipe.run("--stop_stage", "0", cwd=tmp_path, script=str(recipe.folder / "run.sh"), SPEECHLAB_DOWNLOADS="my store")
    assert (tmp_path / "my store" / "mini" / ".complete").exists()
    # A corpus is renamed into place, so nothing of ours may lie in its folder
    assert [path.name for path in (tmp_path / "my store" / "mini").iterdir()] == [".complete"]


def test_help_is_made_from_the_recipe(recipe):
    shown = recipe.run("--help", "--corpus", "other").stdout
    assert shown.startswith("A made-up recipe: it shows the rules.\n")
    for line in ("  --corpus    mini | other [mini]", "  2  Fbank", "  4  Train  (on the GPUs of --ngpu)",
                 "       reads data/other/train.gz", "       makes data/other/<features>/train",
                 "       makes ../../downloads/other/.complete", "       makes exp/other_a/results.txt"):
        assert line in shown.splitlines()
    assert "  --dry_run " in shown and "  --stop_stage " in shown
    assert not (recipe.folder / "config_was_resolved").exists() and not (recipe.folder / "data").exists()
    assert recipe.run("-h", "--corpus", "other").stdout == shown


@pytest.mark.parametrize("stages, says", [
    ('stage 1 "One" --ins a --out b -- true', "stage 1 One: unknown '--ins': did you mean --in?"),
    ('stage 1 "One" --in a -- true', "stage 1 One: it needs --out"),
    ('stage 1 "One" --out a', "stage 1 One: there must be '-- command' at its end"),
    ('stage one "One" --out a -- true', "stage one One: it begins with a number and a title"),
    ('stage 1 "One" --in "" --out a -- true', "stage 1 One: an empty path"),
    ('stage 2 "Two" --out a -- true\nstage 1 "One" --out b -- true', "the stages are not in order: [2, 1]"),
    ('stage 1 "One" --out a -- true\nstage 1 "One" --out b -- true', "two stages 1 are called 'One'"),
    ('stage 1 "One" --conf feature --out a -- true', "stage 1: --conf feature: the config has no such section"),
    ("", "there are no stages"),
])
def test_a_recipe_that_is_written_wrong(recipe, stages, says):
    recipe.stages(stages)
    assert says in recipe.run(status=2).stderr


def test_run_stages_must_not_be_forgotten(recipe):
    recipe.write(HEAD + 'stage 1 "One" --out a -- true\n')
    assert "it ended without run_stages" in recipe.run(status=2).stderr


def test_a_line_of_run_sh_that_fails_ends_it(recipe):
    recipe.write(HEAD + "false\n" + BODY)
    recipe.run(status=1)
    assert recipe.ran() == []


def test_a_stages_shell_script_stops_at_its_first_error(recipe):
    recipe.stages('stage 1 "One" --out data/one -- local/one.sh "a b"')
    (recipe.folder / "local").mkdir()
    (recipe.folder / "local" / "one.sh").write_text('echo "got $1"\nfalse\ntouch data/one\n')
    assert "got a b" in recipe.run(status=1).stdout
    (recipe.folder / "local" / "one.sh").write_text("python -c 'import sys; print(sys.executable)'\ntouch data/one\n")
    assert os.path.dirname(recipe.env["SPEECHLAB_PYTHON"]) in recipe.run().stdout


class TestCommand:
    """What a stage is run as."""

    def calls(self, recipe) -> list[str]:
        return (recipe.house / "containers" / "calls").read_text(encoding="utf-8").splitlines()

    def test_gpus_go_to_stages_that_ask_for_them(self, recipe):
        recipe.stages('''stage 1 "One" --out data/one -- bash -c "echo \\$SPEECHLAB_NGPU > data/one"
                         stage 2 "Two" --gpu --out data/two -- bash -c "echo \\$SPEECHLAB_NGPU > data/two"''')
        recipe.run("--ngpu", "2")
        assert [line.split(" bash")[0] for line in self.calls(recipe)] == ["--", "--ngpu 2 --"]
        assert [(recipe.folder / "data" / name).read_text() for name in ("one", "two")] == ["0\n", "2\n"]

    def test_several_gpus_are_the_commands_own_affair(self, recipe):
        """No torchrun, which would turn "saved, start me again" (85) into 1."""
        recipe.stages('stage 4 "Four" --gpu --ddp --train --out exp/a/checkpoints/b '
                      '-- python work.py exp/a/checkpoints/b --status 85')
        for ngpu in ("0", "1", "2"):
            assert "saved, to be requeued" in recipe.run("--ngpu", ngpu, status=85).stderr
        options = ["--", "--ngpu 1 --", "--ngpu 2 --"]
        assert [line.split(f" {recipe.env['SPEECHLAB_PYTHON']}")[0] for line in self.calls(recipe)] == options
        assert all(" work.py exp/a/checkpoints/b " in line for line in self.calls(recipe))

    def test_an_idle_gpu_is_mentioned(self, recipe, tmp_path):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        assert "--ngpu 1 uses it" not in recipe.run("--stop_stage", "1", PATH=path).stdout
        assert "--ngpu 1 uses it" in recipe.run("--stop_stage", "4", PATH=path).stdout
        assert "--ngpu 1 uses it" not in recipe.run("--stage", "4", "--ngpu", "1", PATH=path).stdout

    def test_the_package_is_found_from_any_house(self, recipe):
        recipe.stages('stage 1 "One" --out data/one -- bash -c \'echo "$PYTHONPATH" > data/one\'')
        recipe.run(PYTHONPATH="/other")
        assert (recipe.folder / "data" / "one").read_text() == f"{recipe.house}:/other\n"


def test_sweep(recipe, tmp_path):
    (tmp_path / "s.yaml").write_text("x")
    arguments = ("--corpus", "other", "--sweep", str(tmp_path / "s.yaml"), "--nj", "2")
    assert "speechlab/sweep.py, which is not in this version" in recipe.run(*arguments, status=2).stderr
    (recipe.house / "speechlab" / "sweep.py").write_text("import sys; print(sys.argv[1:])")
    words = [str(tmp_path / "s.yaml"), "--caller", str(recipe.folder), "--", str(recipe.folder / "run.sh"),
             "--corpus", "other", "--nj", "2"]
    assert recipe.run(*arguments).stdout == f"{words}\n"
    asked = json.loads(recipe.run(*arguments, SPEECHLAB_SWEEP_ASKS="1").stdout)
    assert asked["exp"] == str(recipe.folder / "exp" / "other_a") and asked["config"] == "conf/a.yaml"
    assert {"corpus", "config", "nj", "tag"} <= set(asked["options"])
    asked = json.loads(recipe.run(*arguments, "--exp", "x", "--tag", "t", SPEECHLAB_SWEEP_ASKS="1", cwd=tmp_path,
                                  script=str(recipe.folder / "run.sh")).stdout)
    assert asked["exp"] == str(tmp_path / "x_t")


class TestWhichPython:
    """stages.py's choice, made visible by a stage whose command shows it; torch and lhotse are empty folders."""

    SHOW = 'stage 1 "One" --out data/one -- python -c "import sys; open(\'data/one\', \'w\').write(sys.prefix)"'

    @pytest.fixture
    def house(self, recipe):
        recipe.stages(self.SHOW)
        del recipe.env["SPEECHLAB_PYTHON"]
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            recipe.env.pop(name, None)
        (recipe.folder / "bare").mkdir()
        for name in ("python", "python3"):  # an active Python without the packages
            (recipe.folder / "bare" / name).symlink_to(os.path.realpath(sys.executable))
        recipe.env["PATH"] = f"{recipe.folder / 'bare'}:/usr/bin:/bin"
        (recipe.house / ".venv" / "bin" / "python").unlink()
        return recipe

    def environment(self, where, packages=("torch", "lhotse"), **versions):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(where)], check=True)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        for name in packages:
            (where / "lib" / version / "site-packages" / name).mkdir()
            (where / "lib" / version / "site-packages" / name / "__init__.py").touch()
            if name in versions:
                (where / "lib" / version / "site-packages" / f"{name}-{versions[name]}.dist-info").mkdir()
        return str(where)

    def chosen(self, house, **env) -> str:
        house.run("--stage", "1", **env)
        return (house.folder / "data" / "one").read_text()

    def test_the_active_one_before_the_houses_own(self, house, tmp_path):
        own = self.environment(house.house / ".venv")
        assert self.chosen(house) == own
        active = self.environment(tmp_path / "active")
        assert self.chosen(house, VIRTUAL_ENV=active) == active
        assert self.chosen(house, CONDA_PREFIX=active) == active
        assert self.chosen(house, PATH=f"{active}/bin:{house.env['PATH']}") == active
        other = self.environment(tmp_path / "other", packages=())
        assert self.chosen(house, VIRTUAL_ENV=active, SPEECHLAB_PYTHON=f"{other}/bin/python") == other

    def test_one_with_half_of_the_packages_is_not_taken(self, house, tmp_path):
        own = self.environment(house.house / ".venv")
        assert self.chosen(house, VIRTUAL_ENV=self.environment(tmp_path / "active", ("torch",))) == own

    def test_one_with_other_versions_gives_way_to_the_houses_own(self, house, tmp_path):
        (house.house / "setup.py").write_text('CORE = [\n    "torch==2.11.0",  # x\n    "torchaudio==1",\n'
                                              '    "lhotse==1.33.0",\n]')
        active = self.environment(tmp_path / "active", torch="2.4.1+cu121", lhotse="1.33.0")
        python = f"{active}/bin/python"
        note = f"note: {python} has torch 2.4.1+cu121, and setup.py asks for 2.11.0"
        done = house.run(VIRTUAL_ENV=active)  # the only one
        assert done.stdout.count("note: ") == 1
        assert done.stdout.startswith(f"{note}: it is used all the same (tools/setup.sh makes .venv with these)\n")
        assert (house.folder / "data" / "one").read_text() == active
        assert f"# {note}" in house.run("--dry_run", "--stage", "1", VIRTUAL_ENV=active).stdout
        assert "note: " not in house.run(VIRTUAL_ENV=active).stdout  # nothing to do: nobody looks
        own = self.environment(house.house / ".venv", torch="2.11.0+cpu", lhotse="1.33.0")
        done = house.run("--stage", "1", VIRTUAL_ENV=active)
        assert done.stdout.startswith(f"{note}: {own}/bin/python is used (SPEECHLAB_PYTHON names another)\n")
        assert (house.folder / "data" / "one").read_text() == own
        assert self.chosen(house, VIRTUAL_ENV=active, SPEECHLAB_PYTHON=python) == active
        (house.house / ".venv" / ".incomplete").touch()  # not whole
        assert self.chosen(house, VIRTUAL_ENV=active) == active
        (house.house / ".venv" / ".incomplete").unlink()
        fit = self.environment(tmp_path / "fit", torch="2.11.0+cu130", lhotse="1.33.0")
        done = house.run("--stage", "1", VIRTUAL_ENV=fit)
        assert (house.folder / "data" / "one").read_text() == fit and "note: " not in done.stdout

    def test_versions_that_are_not_known_or_asked_for_from_python_itself(self, house, tmp_path):
        (house.house / "setup.py").write_text('    "torch==2.11.0",\n    "lhotse==1.33.0",\n')
        active = self.environment(tmp_path / "active")
        assert ("has torch of an unknown version and lhotse of an unknown version, and setup.py asks for 2.11.0 and "
                "1.33.0: " in house.run(VIRTUAL_ENV=active).stdout)
        own = self.environment(house.house / ".venv", torch="2.11.0", lhotse="1.33.0")
        assert self.chosen(house, VIRTUAL_ENV=active) == own
        # Packages elsewhere (a distribution's own folder, say): that Python is asked.
        empty = self.environment(tmp_path / "empty", packages=())
        self.environment(tmp_path / "old", torch="2.0", lhotse="1.33.0")
        site = next((tmp_path / "old").glob("lib/python3*/site-packages"))
        for info in site.glob("*.dist-info"):
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.name.split('-')[0]}\n"
                                           f"Version: {info.name.split('-')[1].removesuffix('.dist')}\n")
        done = house.run("--stage", "1", VIRTUAL_ENV=empty, PYTHONPATH=str(site))
        assert done.stdout.startswith(f"note: {empty}/bin/python has torch 2.0, and setup.py asks for 2.11.0: "
                                      f"{own}/bin/python is used")

    def test_setup_makes_one_after_saying_how_large_it_is(self, house):
        script = house.house / "tools" / "setup.sh"
        script.write_text(f'#!/usr/bin/env bash\nset -e\ncd "$(dirname "$0")/.."\n'
                          f'{sys.executable} -m venv --without-pip .venv\n'
                          'cd .venv/lib/python3.*/site-packages && mkdir torch lhotse\n')
        script.chmod(0o755)
        for env in ({"SLURM_JOB_ID": "7"}, {"APPTAINER_CONTAINER": "x.sif"}):
            assert "none is installed" in house.run(status=1, **env).stderr
        house.run("--dry_run")
        house.run("--help")
        assert not (house.house / ".venv" / "lib").exists()
        done = house.run()
        assert "about 5-6 GB" in done.stdout
        assert (house.folder / "data" / "one").read_text() == str(house.house / ".venv")

    def test_a_setup_that_fails(self, house):
        assert "is not there: install them" in house.run(status=1).stderr
        script = house.house / "tools" / "setup.sh"
        script.write_text("#!/bin/sh\necho no network >&2\nexit 3\n")
        script.chmod(0o755)
        assert "tools/setup.sh failed with status 3" in house.run(status=3).stderr

    def test_with_an_engine_the_images_python(self, house):
        (house.house / "containers" / "cmd.sh").write_text('#!/bin/sh\necho "$@"\nmkdir -p data\ntouch data/one\n')
        done = house.run(SPEECHLAB_ENGINE="podman", SPEECHLAB_IMAGE="i", SPEECHLAB_NESTED="1")
        assert "-- python -c " in done.stdout

    def test_a_wrong_speechlab_python(self, house):
        assert "SPEECHLAB_PYTHON=/none can't be run" in house.run(status=2, SPEECHLAB_PYTHON="/none").stderr


@pytest.mark.parametrize("given, says", [
    ("/", "is /, and the recipe lies in it"),
    *((above, "and the recipe lies in it") for above in (".", "./", "..", "../..", "link", "../little")),
    *((own, f"{own.strip('./').split('/')[0]}/ is the recipe's own")
      for own in ("conf", "./conf/", "conf/a", "local", "data", "data/mini", "figures/x")),
    ("exp/../conf", "conf/ is the recipe's own"), ("exp", "is the folder of all experiments"), ("run.sh", "is a file"),
])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_experiments_folder_is_its_own(recipe, given, says, force):
    (recipe.folder / "link").symlink_to(recipe.folder)
    (recipe.folder / "exp").mkdir()
    before = sorted(recipe.folder.rglob("*"))
    done = recipe.run("--exp", given, *force, status=2)
    assert done.stderr.startswith("run.sh: --exp ") and says in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith("(exp/NAME)") and not done.stdout
    assert recipe.ran() == [] and sorted(recipe.folder.rglob("*")) == before


def test_a_folder_of_the_recipe_may_be_a_link(recipe, tmp_path):
    (tmp_path / "store").mkdir()
    (recipe.folder / "data").symlink_to(tmp_path / "store")
    assert "data/ is the recipe's own" in recipe.run("--exp", str(tmp_path / "store"), status=2).stderr


def test_other_folders_are_an_experiments(recipe, tmp_path):
    for given in ("exp/a", "conf_a", "datas", str(tmp_path / "elsewhere" / "a"), "../other"):
        recipe.run("--exp", given, "--dry_run")
