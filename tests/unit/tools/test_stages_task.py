"""Another task is another training, also where the network and all sections are the same."""

import sys
from pathlib import Path
from types import SimpleNamespace

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def test_the_task_is_part_of_a_trainings_signature(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    from stagelib import state

    train = SimpleNamespace(name="stage 4", conf=["model"], train=True)
    decode = SimpleNamespace(name="stage 5", conf=["model"], train=False)
    config = {"task": "local.b", "model": {"d": 8}}
    assert state.sections(train, config) == {"model.d": 8, "task": "local.b"}
    assert state.sections(decode, config) == {"model.d": 8}
    now = {"arguments": [], "inputs": {}, "config": state.sections(train, config)}
    record = {"arguments": [], "inputs": {}, "config": {"model.d": 8, "task": "local.a"}}
    assert state.changes(record, now) == ([], {"task": ("local.a", "local.b")})
    del record["config"]["task"]  # a record of an older version has none
    assert state.changes(record, now) == ([], {})
