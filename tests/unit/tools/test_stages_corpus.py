"""The recipes' own run.sh, and what recipe.sh does for them: which corpus, text and folders. Nothing is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from stages_helper import recipe  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[3]
EGS = ROOT / "egs"
RECIPES = sorted(path.parent.name for path in EGS.glob("*/run.sh"))

# A config is JSON here, and a section's name is said in it.
CONFIG = """
import json, sys
names = json.load(open(sys.argv[1]))
sections = "features tokens lm data model decoder loss optim train decode".split()
print(json.dumps({"resolved": {name: {} for name in sections}, "names": names}))
"""

SHOW = """
choose_corpus
stage 1 "One" --in "$whole" --out "data/$name/one" -- show "$module" "$raw"
"""


@pytest.fixture
def asr(recipe):
    """The house with egs/aishell_asr/run.sh as its recipe, and two configs that differ in their tokens."""
    recipe.write((EGS / "aishell_asr" / "run.sh").read_text(encoding="utf-8"))
    (recipe.house / "speechlab" / "tasks" / "__main__.py").write_text(CONFIG)
    for name, tokens in (("conformer", "char-aaaa"), ("bpe", "bpe-bbbb"), ("an4", "char-aaaa")):
        names = {"features": "fbank80-1111", "tokens": tokens, "lm": "lm-2222"}
        (recipe.folder / "conf" / f"{name}.yaml").write_text(json.dumps(names))
    return recipe


def commands(recipe, *arguments: str, **more) -> dict[str, list[str]]:
    """``{title: words of its command}`` by --dry_run."""
    lines = recipe.run(*arguments, "--dry_run", **more).stdout.splitlines()
    return {lines[i - 1].split(": ")[1]: shlex.split(line.partition("$ ")[2]) for i, line in enumerate(lines)
            if line.startswith("  $")}


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_sh_is_a_page_to_read(name):
    lines = (EGS / name / "run.sh").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    text = "\n".join(lines)
    for paragraph in text.split("\n\n"):
        numbers = set(re.findall(r"stage (\d) \"", paragraph))
        assert len(numbers) <= 1, paragraph
        assert not numbers or re.match("# [A-Z]", paragraph), paragraph
    assert {int(n) for n in re.findall(r"stage (\d) \"", text)} >= {0, 1, 4, 5, 6}


def test_two_configs_whose_tokens_differ_share_no_language_model(asr):
    ngram, decode = "N-gram language model", "Decode"
    made = {}
    for config in ("conformer", "bpe"):
        found = commands(asr, "--config", f"conf/{config}.yaml", "--corpus", "synthetic")
        made[config] = value(found[ngram], "--to")
        assert value(found[ngram], "--tokens") == str(Path(made[config]).parent)
        assert value(found[decode], "--lm") == made[config]
    assert made == {"conformer": "data/synthetic/char-aaaa/lm-2222", "bpe": "data/synthetic/bpe-bbbb/lm-2222"}


def test_more_text_has_a_folder_of_its_own(asr, tmp_path):
    text = tmp_path / "我的 text.txt"
    text.write_text("x")
    for corpus, given, folder, wanted in (
            ("mini", "auto", "lm-2222-text", "../../downloads/zh_text/text.txt"), ("mini", "none", "lm-2222", None),
            ("an4", "auto", "lm-2222", None), ("an4", str(text), r"lm-2222-我的 text\.txt-[0-9a-f]{4}", str(text)),
            ("mini", text.name, r"lm-2222-我的 text\.txt-[0-9a-f]{4}", str(text))):
        found = commands(asr, "--corpus", corpus, "--lm_text", given, cwd=tmp_path, script=str(asr.folder / "run.sh"))
        words = found["N-gram language model"]
        assert re.fullmatch(folder, Path(value(words, "--to")).name)
        assert (value(words, "--text") if "--text" in words else None) == wanted
        assert ("Fetch text for the language model" in found) == (wanted is not None and "zh_text" in wanted)
    done = asr.run("--lm_text", "none.txt", status=2)
    assert done.stderr == "run.sh: --lm_text none.txt: no such file\n"


def test_what_the_recipes_call(asr):
    found = commands(asr, "--corpus", "synthetic")
    for title, module in (("Tokens", "speechlab.tasks.asr.tokens"),
                          ("N-gram language model", "speechlab.tasks.asr.ngram"), ("Decode", "speechlab.decode")):
        words = found[title]
        assert value(words, "-m") == module and "conf/conformer.yaml" in words
    assert value(found["Decode"], "--config") == "conf/conformer.yaml"
    assert "decode.beam=3" in commands(asr, "--corpus", "synthetic", "--set", "decode.beam=3")["Decode"]


class TestChoosing:
    WORDS = ('mini=hsk_gcin an4 folder:manifest.tsv:"a table with columns" kaldi:wav.scp '
             'pics=image_folder::"class folders" any:')

    @pytest.fixture
    def chooser(self, recipe):
        recipe.write('#!/usr/bin/env bash\n# A title.\n'
                     'source "$(dirname "$0")/../../tools/recipe.sh"\n'
                     f'option_corpus {self.WORDS}\nparse_options "$@"{SHOW}run_stages\n')
        return recipe

    def chosen(self, recipe, *arguments: str) -> tuple[str, str]:
        """(module, where it lies)"""
        words = commands(recipe, *arguments)["One"]
        return tuple(words[words.index("show") + 1:])

    def test_by_name(self, chooser):
        assert self.chosen(chooser) == ("hsk_gcin", "../../downloads/hsk_gcin")
        assert self.chosen(chooser, "--corpus", "an4") == ("an4", "../../downloads/an4")
        assert self.chosen(chooser, "--corpus", "new") == ("new", "../../downloads/new")  # the module says what it is
        shown = chooser.run("--help", "--corpus", "an4").stdout
        assert "       reads ../../downloads/an4/.complete" in shown and "       makes data/an4/one" in shown

    def test_the_help(self, chooser):
        shown = chooser.run("--help").stdout
        assert "  --corpus    mini | an4 | folder, kaldi, pics, any (with --data_dir) [mini]\n" in shown
        assert ("  --data_dir  a corpus on disk: manifest.tsv (folder), wav.scp (kaldi), class folders (pics), "
                "a folder (any), or the published files\n") in shown
        script = chooser.folder / "run.sh"
        chooser.write(script.read_text(encoding="utf-8").replace(self.WORDS, "one two=deux"))
        shown = chooser.run("--help").stdout
        assert "  --corpus    one | two [one]\n" in shown
        assert "  --data_dir  a corpus on disk: the published files\n" in shown

    def test_published_on_disk(self, chooser, tmp_path):
        assert self.chosen(chooser, "--corpus", "an4", "--data_dir", str(tmp_path)) == ("an4", str(tmp_path))
        shown = chooser.run("--help", "--corpus", "an4", "--data_dir", str(tmp_path)).stdout
        assert f"       reads {tmp_path}\n" in shown and "       makes data/an4/one\n" in shown

    def test_ones_own(self, chooser, tmp_path):
        """Its folders' name has a hash of its place, which must stay: people's data and experiments lie there."""
        folder = tmp_path / "我 data"
        (folder / "train").mkdir(parents=True)
        for corpus in ("folder", "kaldi", "pics", "any"):
            assert chooser.run("--corpus", corpus, status=2).stderr == (
                f"run.sh: --corpus {corpus} needs --data_dir DIR (see README.md)\n")
            chooser.run("--help", "--corpus", corpus)
        assert chooser.run("--corpus", "folder", "--data_dir", str(folder), status=2).stderr == (
            f"run.sh: no manifest.tsv in {folder}: it must be a table with columns (see README.md)\n")
        (folder / "manifest.tsv").touch()
        cksum = subprocess.run(["cksum"], input=str(folder), text=True, capture_output=True, check=True).stdout
        name = f"我 data-{int(cksum.split()[0]) & 65535:04x}"
        for corpus, module, whole in (("folder", "folder", "/manifest.tsv"), ("kaldi", "kaldi", "/*/wav.scp"),
                                      ("pics", "image_folder", ""), ("any", "any", "")):
            arguments = ("--corpus", corpus, "--data_dir", str(folder))
            assert self.chosen(chooser, *arguments) == (module, str(folder))
            shown = chooser.run("--help", *arguments).stdout.splitlines()
            assert f"       reads {folder}{whole}" in shown and f"       makes data/{name}/one" in shown
        for place in ("train/wav.scp", "wav.scp"):
            (folder / place).touch()
            shown = chooser.run("--corpus", "kaldi", "--data_dir", str(folder), "--dry_run").stdout
            assert "stage 1: One: to do: it was not done before\n" in shown
        assert f"reads {folder}/wav.scp" in chooser.run("--help", "--corpus", "kaldi", "--data_dir", str(folder)).stdout


def test_a_corpus_on_disk_is_told_to_every_stage(recipe, tmp_path):
    """By SPEECHLAB_DATA_DIR, for containers: its audio is read by stages that do not have it among their arguments."""
    recipe.write('#!/usr/bin/env bash\n# A title.\nsource "$(dirname "$0")/../../tools/recipe.sh"\n'
                 'option_corpus mini any:\nparse_options "$@"\nchoose_corpus\n'
                 'stage 1 "One" --out data/one -- bash -c \'echo "${SPEECHLAB_DATA_DIR-none}" > data/one\'\n'
                 'run_stages\n')
    (tmp_path / "my 数据").mkdir()
    (recipe.folder / "mine").mkdir()
    for arguments, wanted in ((("--corpus", "any", "--data_dir", f"{tmp_path}/my 数据"), f"{tmp_path}/my 数据"),
                              (("--corpus", "any", "--data_dir", "mine"), f"{recipe.folder}/mine"), ((), "none")):
        recipe.run("--stage", "1", *arguments, SPEECHLAB_DATA_DIR="/of/another/run")
        assert (recipe.folder / "data" / "one").read_text(encoding="utf-8") == f"{wanted}\n"


class TestALink:
    def test_to_run_sh(self, recipe, tmp_path):
        link = tmp_path / "go.sh"
        link.symlink_to(recipe.folder / "run.sh")
        recipe.run("--stop_stage", "1", cwd=tmp_path, script="./go.sh")
        assert (recipe.folder / "data" / "mini" / "train.gz").exists()
        assert "(./go.sh --stage N" in recipe.run("--stop_stage", "1", cwd=tmp_path, script="./go.sh").stdout
        assert recipe.run("--help", cwd=tmp_path, script="./go.sh").stdout.startswith("A made-up recipe")
        assert recipe.run("--x", cwd=tmp_path, script="./go.sh", status=2).stderr.startswith("go.sh: unknown option")

    def test_in_another_recipes_place_is_that_recipes(self, recipe):
        other = recipe.house / "egs" / "other"
        other.mkdir()
        (other / "run.sh").symlink_to("../little/run.sh")
        (other / "conf").symlink_to("../little/conf")
        (other / "work.py").write_text((recipe.folder / "work.py").read_text(encoding="utf-8"), encoding="utf-8")
        recipe.run("--stop_stage", "1", cwd=other)
        assert (other / "data" / "mini" / "train.gz").exists() and not (recipe.folder / "data").exists()

    def test_where_readlink_has_no_f(self, recipe, tmp_path):
        """macOS before 12.3: a link to run.sh does not work, and all else does, without a word of readlink's."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "readlink").write_text("#!/bin/sh\necho 'readlink: illegal option -- f' >&2\nexit 1\n")
        (tmp_path / "bin" / "readlink").chmod(0o755)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        assert recipe.run("--stop_stage", "1", PATH=path).stderr == ""
        script = str(recipe.folder / "run.sh")
        assert "nothing to do" in recipe.run("--stop_stage", "1", cwd=tmp_path, script=script, PATH=path).stdout
        (recipe.folder / "link.sh").symlink_to("run.sh")
        assert "nothing to do" in recipe.run("--stop_stage", "1", script="./link.sh", PATH=path).stdout


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_a_clone_that_turns_line_ends_into_windows(recipe, tmp_path):
    """core.autocrlf: .gitattributes says that our files keep theirs."""
    shutil.copy(ROOT / ".gitattributes", recipe.house)
    (recipe.house / ".gitignore").write_text(".venv\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(recipe.house)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", str(recipe.house), str(clone)], check=True)
    files = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 10 and not [path for path in files if b"\r" in path.read_bytes()]
    recipe.house, recipe.folder = clone, clone / "egs" / "little"
    assert "done: exp/mini_a/results.txt" in recipe.run().stdout
