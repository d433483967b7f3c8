"""Entry points and reporting know no task by its name, nor the files of one (speechlab/README.md, the seam)."""

import ast
from pathlib import Path

import pytest

from speechlab import tasks

ROOT = Path(__file__).resolve().parents[3] / "speechlab"
FILES = {"hyp.jsonl", "pred.jsonl", "worst.txt", "oracle"}


def named(code: str, names: set[str], spared: set[str] = frozenset()) -> list[str]:
    """Whole strings that are one of ``names`` and not ``spared``, and imports of a task's modules."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names - spared:
            found.append(node.value)
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        found += [m for m in modules if m.startswith("speechlab.tasks.") and m.split(".")[2] in names]
    return found


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "reporting").glob("*.py"))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_none_is_named(path):
    # The kinds of a data: address (image/png) are the web's words, in reporting alone.
    spared = {"image"} if path.parent.name == "reporting" else set()
    assert named(path.read_text(encoding="utf-8"), {*tasks.names(), *FILES}, spared) == []


def test_one_that_is_named_is_noticed():
    names = set(tasks.names())
    assert {"asr", "image", "lm"} <= names
    assert named("if task == 'asr': pass", names) == ["asr"]
    assert named("from speechlab.tasks.image import train", names) == [
        "speechlab.tasks.image", "speechlab.tasks.image.train"]
    assert named("from speechlab.tasks import lm", names) == ["speechlab.tasks.lm"]
    assert named("import speechlab.tasks.asr.train", names) == ["speechlab.tasks.asr.train"]
