"""The order of the rooms (pyproject.toml, [tool.importlinter]) is kept."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def lint(folder: Path) -> subprocess.CompletedProcess:
    code = "from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=folder, text=True, capture_output=True)


def test_imports_point_one_way():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_notices(tmp_path):
    """A leaf that imports from above, and a module without a place, are refused."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    house = tmp_path / "speechlab"
    for name in ("", "data", "models"):
        (house / name).mkdir()
        (house / name / "__init__.py").write_text("")
    for name in ("config", "cores", "errors", "files", "progress"):
        (house / f"{name}.py").write_text("")
    assert lint(tmp_path).returncode == 0
    (house / "models" / "net.py").write_text("import speechlab.data\n")
    assert "speechlab.models is not allowed to import speechlab.data" in lint(tmp_path).stdout
    (house / "models" / "net.py").write_text("import speechlab.config\n")  # beside it, not below
    assert "speechlab.models is not allowed to import speechlab.config" in lint(tmp_path).stdout
    (house / "models" / "net.py").write_text("import speechlab.errors\n")
    assert lint(tmp_path).returncode == 0
    (house / "attic.py").write_text("")
    assert "attic" in lint(tmp_path).stdout
