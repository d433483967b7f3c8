"""A copy of the tree at a path with a space and hanzi, in which a recipe runs as its user runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """A copied tree; :meth:`run` calls a recipe's run.sh in it."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("egs", "tools", "containers", "speechlab"):
            shutil.copytree(ROOT / name, root / name, ignore=self._ignore)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SPEECHLAB_")}
        self.env = {**kept, "SPEECHLAB_PYTHON": sys.executable, "SPEECHLAB_DOWNLOADS": str(root / "downloads")}

    @staticmethod
    def _ignore(folder: str, names: list[str]) -> set[str]:
        made = {"data", "exp", "params_table.csv"} if Path(folder).parent.name == "egs" else set()
        return (made | {"__pycache__"}) & set(names)

    def start(self, task: str, *args: str, **env: str) -> subprocess.Popen:
        """Start ``egs/<task>/run.sh`` in a process group of its own."""
        return subprocess.Popen(
            ["bash", f"egs/{task}/run.sh", *args], cwd=self.root, env={**self.env, **env}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def run(self, task: str, *args: str, **env: str) -> tuple[int, str]:
        """Run it to its end: exit status and all that it printed."""
        process = self.start(task, *args, **env)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    root = tmp_path_factory.mktemp("lab") / "实验室 one"
    root.mkdir()
    return Lab(root)


@pytest.fixture(scope="module")
def trained(lab, request) -> tuple[Lab, Path, str]:
    """The module's recipe (``TASK``, ``OPTIONS``), run once from end to end: the tree, the experiment, the output."""
    task, options = request.module.TASK, request.module.OPTIONS
    status, output = lab.run(task, *options, "--nj", "2")
    assert status == 0, output
    config = Path(options[options.index("--config") + 1]).stem
    corpus = options[options.index("--corpus") + 1]
    return lab, lab.root / "egs" / task / "exp" / f"{corpus}_{config}", output
