"""speechlab: learn and do speech machine learning, one staged recipe a task.

From Python as from the shell (everything is imported when it is asked for):

    model = speechlab.load("exp/mini_conformer")       # an experiment's model
    model("talk.wav")["text"]                          # what `infer --json` gives; model.methods() names the ways
    speechlab.train("conf/tiny.yaml", data="data/mini", exp="exp/mine", sets={"optim.lr": 1e-3})
    speechlab.features("a.wav")                        # (frames, bins)
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"
__all__ = ["features", "load", "train"]


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Let the module ``name`` be called as ``function``: ``speechlab.train`` is a module, and what one does with it."""

    class Callable_(types.ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return function(*args, **options)

    sys.modules[name].__class__ = Callable_
    sys.modules[name].__wrapped__ = function  # what help() and a notebook's `?` show
    sys.modules[name].__signature__ = None


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("speechlab.tasks").load
    if name in ("features", "train"):
        return importlib.import_module(f"speechlab.{name}")
    raise AttributeError(f"module 'speechlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
