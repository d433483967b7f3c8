"""The tasks, each a folder of its own: what joins model, data, loss and judgement.

``find("asr")`` is the object ``TASK`` of speechlab/tasks/asr; ``find("local.pitch")`` that of ``local/pitch.py`` in a
recipe. What a task offers: speechlab/tasks/interface.py. A config names its task (``task: asr``), and so does a
checkpoint.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab.config import convert, nearest, override, read_yaml, settings, to_dict
from speechlab.errors import UserError
from speechlab.files import read_json

if TYPE_CHECKING:
    import torch

    from speechlab.tasks.interface import Model, Task

__all__ = ["at", "find", "from_dict", "load", "load_config", "locate", "names", "of", "read_state"]

# What a config may import. A config is data that people pass around: it must not be able to call just anything.
IMPORTABLE = ("speechlab", "espnet2", "torchaudio", "torch.nn", "transformers", "speechbrain", "local")


# -- a recipe's own modules -------------------------------------------------------------------------------------------


_on_path = ""  # the recipe's folder that `at` has put on sys.path


def at(recipe: str | Path | None, fresh: bool = False) -> None:
    """From here on, ``local`` is the folder ``local/`` of this recipe (None: of the working folder, where recipes run).

    Another recipe's ``local`` that was imported before is forgotten: one notebook may look at several recipes.
    ``fresh``: so is this one's, which may have been edited since.
    """
    global _on_path
    folder = str(Path(recipe or ".").resolve())
    there = sys.modules.get("local")
    # The first: folders without __init__.py are one package for Python, the working folder's local/ among them.
    if there is not None and (fresh or os.path.join(folder, "local") != os.path.realpath(list(there.__path__)[0])):
        for name in [n for n in sys.modules if n == "local" or n.startswith("local.")]:
            del sys.modules[name]
    if _on_path in sys.path:
        sys.path.remove(_on_path)
    _on_path = folder if os.path.isdir(os.path.join(folder, "local")) else ""
    if _on_path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        importlib.import_module("local")  # so that nobody looks for it in the working folder, another recipe perhaps


def enter(*recipes: str | Path | None) -> Path:
    """:func:`at` the first of these folders that has a ``local/``; the working folder if none has. Returns it."""
    found = next((Path(place) for place in recipes if place and (Path(place) / "local").is_dir()), Path.cwd())
    at(found)
    return found


def recipe_of(exp: str | Path) -> Path | None:
    """The recipe in which an experiment lies (``<recipe>/exp/<name>``); None if it lies elsewhere."""
    exp = Path(exp).resolve()
    return exp.parent.parent if exp.parent.name == "exp" else None


def locate(path: str) -> Any:
    """The object at ``package.module:Name``; only modules under :data:`IMPORTABLE` are imported.

    Raises:
        UserError: a path of another form, a module outside of the list, a name that is not there.
    """
    module, colon, name = path.partition(":")
    if not colon or not name.isidentifier():
        raise UserError(f"class '{path}' is not of the form package.module:Name")
    if not any(module == prefix or module.startswith(prefix + ".") for prefix in IMPORTABLE):
        raise UserError(f"class '{path}': only modules of {', '.join(IMPORTABLE)} may be named in a config; "
                        "put a class of your own into the recipe's local/ folder")
    if module.split(".")[0] == "local" and "local" not in sys.modules:
        at(None)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"class '{path}': no module '{error.name}' (is the package installed?)") from error
    if not hasattr(found, name):
        raise UserError(f"class '{path}': {module} has no '{name}'{nearest(name, dir(found))}")
    return getattr(found, name)


# -- tasks by name ----------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The tasks of this package: its folders."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def find(name: str, where: str = "config") -> Task:
    """The task called ``name``: a folder of this package, or ``local.x``, a module of the recipe's own.

    Raises:
        UserError: (status 2) with ``where`` the name stands and which tasks there are.
    """
    own = name.startswith("local.") and all(part.isidentifier() for part in name.split("."))
    if not own and name not in names():
        raise UserError(f"{where}: no task '{name}'{nearest(name, names())}; there are {', '.join(names())}, and "
                        "local.NAME for a recipe's own local/NAME.py", 2)
    full = name if own else f"{__name__}.{name}"
    if own and "local" not in sys.modules:
        at(None)
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if not own or error.name not in ("local", full):
            raise
        raise UserError(f"{where}: task '{name}': there is no {full.replace('.', '/')}.py in "
                        f"{_on_path or Path.cwd()}", 2) from None
    task = getattr(module, "TASK", None)
    parts = dict.fromkeys(["Config", "metrics", "trainable", "load", *dir(task)])
    if lacks := [part for part in parts if part not in dir(task) or
                 getattr(getattr(type(task), part, None), "__isabstractmethod__", False)]:
        what = "no TASK" if task is None else f"a TASK without {', '.join(lacks)}"
        raise UserError(f"{where}: task '{name}': {full} has {what}: it must be an object of a class derived from "
                        "speechlab.tasks.interface.Task", 2)
    if isinstance(task, type):
        raise UserError(f"{where}: task '{name}': TASK is the class {task.__name__}: it must be an object, "
                        f"TASK = {task.__name__}()", 2)
    task.name = name
    return task


def load_config(path: str | Path, sets: Iterable[str] = ()) -> Any:
    """Read a YAML file, apply ``key=value`` overrides, and return the ``Config`` of the task that it names.

    Args:
        path: the YAML file; it must say ``task: NAME``.
        sets: overrides such as ``train.epochs=3``; values are YAML (``[1, 2]``, ``true``, ``null``).
    Raises:
        UserError: (status 2) with the file, the key and the nearest valid one.
    """
    return from_dict(override(read_yaml(path), sets), str(path))


def from_dict(raw: dict[str, Any], where: str = "config") -> Any:
    """The task's ``Config`` from a plain mapping, as ``to_dict`` makes it (a checkpoint carries one)."""
    return convert(find(str(raw.get("task")), where).Config, raw, where, locate)


# -- trained models ---------------------------------------------------------------------------------------------------


def load(exp: str | Path, checkpoint: str | Path | None = None, device: torch.device | str | None = None,
         sets: Mapping[str, Any] | Iterable[str] = (), config: Any = None) -> Model:
    """The trained model of an experiment, ready to answer.

    Args:
        exp: the experiment's folder, or a checkpoint that was copied alone.
        checkpoint: another one than ``exp/checkpoints/final.pt``.
        device: where it computes (default: the CPU).
        sets: overrides of the config's section ``decode``, ``{"decode.beam": 16}`` or ``["decode.beam=16"]``: it
            is the only section that can still be changed.
        config: a resolved config whose section ``decode`` takes the place of the checkpoint's.
    Raises:
        UserError: no such experiment, a training that has not ended, a damaged file, another task's checkpoint.
    """
    import torch

    state = read_state(Path(exp), None if checkpoint is None else Path(checkpoint))
    task = find(state["config"]["task"], f"the checkpoint of {exp}")
    if config is not None:
        if config.task != state["config"]["task"]:
            raise UserError(f"the config's task is {config.task}, the checkpoint's {state['config']['task']}", 2)
        if hasattr(config, "decode"):
            state["config"]["decode"] = to_dict(config.decode)
    pairs = settings(sets)
    if strange := [text for text in pairs if not text.startswith("decode.")]:
        raise UserError(f"--set {strange[0]}: only the section decode can be changed after training", 2)
    state["config"] = override(state["config"], pairs)
    model = task.load(state, torch.device(device or "cpu"))
    model.exp = Path(exp) if Path(exp).is_dir() else Path(exp).resolve().parent.parent
    return model


def read_state(exp: Path, path: Path | None = None) -> dict[str, Any]:
    """What a checkpoint holds: ``path``, or the final one of the experiment ``exp`` (or ``exp``, if it is a file)."""
    import torch

    from speechlab.training import checkpoint

    if path is None and exp.is_dir():
        path = exp / "checkpoints" / "final.pt"
        earlier = sorted(path.parent.glob("epoch-*.pt"), key=lambda p: p.stat().st_mtime)
        if not path.exists() and earlier:
            raise UserError(f"{exp} has no checkpoints/final.pt: its training has not ended; "
                            f"--checkpoint {earlier[-1]} takes what there is")
        if not path.exists():
            raise UserError(f"{exp} is no experiment's folder: it has no checkpoints/final.pt")
    path = path or exp
    if not path.is_file():
        raise UserError(f"no experiment or checkpoint {path}")
    if path.with_name(path.name + ".sha256").exists():
        state = checkpoint.load(path)
    else:  # a checkpoint that was copied alone: the archive's own checksums must do
        try:
            state = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else None
        except (RuntimeError, pickle.UnpicklingError):
            state = None
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict) or "model" not in state:
        raise UserError(f"{path} is no checkpoint, or a damaged one")
    # The nearer one first: a recipe may have been moved.
    enter(recipe_of(path.resolve().parent.parent), state.get("recipe") or (state.get("env") or {}).get("recipe"))
    return state


def of(exp: str | Path) -> Task:
    """The task of an experiment, by its config.yaml or its checkpoint.

    Raises:
        UserError: when neither is there.
    """
    exp = Path(exp)
    if not exp.is_dir():
        raise UserError(f"no experiment or checkpoint {exp}")
    if (exp / "config.yaml").is_file():
        name = read_yaml(exp / "config.yaml")["task"]
        env = read_json(exp / "env.json")
        enter(recipe_of(exp), env.get("recipe") if isinstance(env, dict) else None)  # as read_state does
        return find(name, str(exp / "config.yaml"))
    if (exp / "checkpoints").is_dir():
        return find(read_state(exp)["config"]["task"], str(exp))
    raise UserError(f"{exp} is no experiment's folder: it has no config.yaml, which says its task")
