"""Configuration: plain YAML into frozen dataclasses; the command line over the YAML over the defaults.

A YAML file names its task (``task: asr``); the task's module (``speechlab/tasks/asr.py``) offers a frozen dataclass
``Config`` whose fields are the file's sections. An unknown key or a wrong type is an error that names the key and the
nearest valid one. Networks are chosen by a dotted path, ``speechlab.models.asr:Conformer`` or ``local.model:Net``, and
their other keys are the constructor's arguments (:class:`Component`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from speechlab.errors import UserError, cli

# What a config may import. A config is data that people pass around: it must not be able to call just anything.
IMPORTABLE = ("speechlab", "espnet2", "torchaudio", "torch.nn", "transformers", "speechbrain", "local")


@dataclasses.dataclass(frozen=True)
class Component:
    """A class by its dotted path and the constructor's arguments that the config gives."""

    path: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, **injected: Any) -> Any:
        """The object: ``injected`` arguments (sizes, say) are what the program knows and the config need not say."""
        return locate(self.path)(**{**self.args, **injected})


def locate(path: str) -> Any:
    """The object at ``package.module:Name``; only modules under :data:`IMPORTABLE` are imported.

    Raises UserError for a path of another form, a module outside of the list, or a name that is not there.
    """
    module, colon, name = path.partition(":")
    if not colon or not name.isidentifier():
        raise UserError(f"class '{path}' is not of the form package.module:Name")
    if not any(module == prefix or module.startswith(prefix + ".") for prefix in IMPORTABLE):
        raise UserError(f"class '{path}': only modules of {', '.join(IMPORTABLE)} may be named in a config; "
                        "put a class of your own into the recipe's local/ folder")
    if module.split(".")[0] == "local" and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `local` is the recipe's own folder, and recipes run inside it
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"class '{path}': no module '{error.name}' (is the package installed?)") from error
    if not hasattr(found, name):
        raise UserError(f"class '{path}': {module} has no '{name}'{_nearest(name, dir(found))}")
    return getattr(found, name)


def load(path: str | Path, sets: Iterable[str] = ()) -> Any:
    """Read a YAML file, apply ``key=value`` overrides, and return the task's ``Config``.

    Args:
        path: the YAML file; it must say ``task: <module of speechlab.tasks>``.
        sets: overrides such as ``train.epochs=3``; values are YAML (``[1, 2]``, ``true``, ``null``).
    Raises:
        UserError: with the file, the key and the nearest valid one.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"no config {path}" + (f"; there are {', '.join(there)}" if there else ""), 2) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {error}", 2) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("task"), str):
        raise UserError(f"{path} must be a mapping with a line 'task: ...' (asr, say)", 2)
    return from_dict(override(raw, sets), str(path))


def from_dict(raw: dict[str, Any], where: str = "config") -> Any:
    """The task's ``Config`` from a plain mapping, as :func:`to_dict` makes it (a checkpoint carries one)."""
    task = raw.get("task")
    try:
        schema = importlib.import_module(f"speechlab.tasks.{task}").Config
    except ModuleNotFoundError as error:
        if error.name != f"speechlab.tasks.{task}":
            raise
        tasks = sorted(p.stem for p in (Path(__file__).parent / "tasks").glob("[a-z]*.py"))
        raise UserError(f"{where}: no task '{task}'; there are {', '.join(tasks)}", 2) from None
    return _convert(schema, raw, "", where)


def to_dict(config: Any) -> Any:
    """The resolved config as plain mappings, lists and scalars: what config.yaml, signatures and checkpoints hold."""
    if isinstance(config, Component):
        return {"class": config.path, **config.args}
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    return config


def dump(config: Any) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def short_hash(value: Any) -> str:
    """Four hex digits that name a section's content."""
    return hashlib.sha256(json.dumps(to_dict(value), sort_keys=True).encode()).hexdigest()[:4]


def override(raw: dict[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A plain mapping with each ``section.key=value`` put in; values are YAML."""
    raw = copy.deepcopy(raw)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set wants key=value (train.epochs=3, say), not '{text}'", 2)
        *parents, last = key.strip().split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {text}: '{parent}' holds a value, not a section", 2)
        try:
            section[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: the value is not YAML", 2) from None
    return raw


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _convert(kind: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as the type ``kind``, or a UserError that names ``key``."""
    if kind is Component:
        return _component(value, key, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where}: '{key}' must be a section (key: value lines), not {value!r}", 2)
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                full = f"{key}.{name}" if key else str(name)
                hint = _nearest(str(name), hints) or f"; {key or 'the top level'} has {', '.join(hints)}"
                raise UserError(f"{where}: unknown key '{full}'{hint}", 2)
        parts = {n: _convert(hints[n], v, f"{key}.{n}" if key else n, where) for n, v in value.items()}
        try:
            return kind(**parts)
        except TypeError as error:
            raise UserError(f"{where}: {key or 'config'}: {str(error).split('() ')[-1]}", 2) from None
        except ValueError as error:  # __post_init__ checks ranges
            raise UserError(f"{where}: {key + '.' if key else ''}{error}", 2) from None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None else _convert(options[0], value, key, where)
    if origin is typing.Literal:
        allowed = typing.get_args(kind)
        if isinstance(value, bool):  # YAML 1.1 reads a bare off as false
            value = next((word for word in (("on", "yes") if value else ("off", "no")) if word in allowed), value)
        if value not in allowed:
            raise UserError(f"{where}: '{key}' must be one of {', '.join(map(str, allowed))}, not {value!r}"
                            f"{_nearest(str(value), map(str, allowed))}", 2)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: '{key}' must be a list, not {value!r}", 2)
        return tuple(_convert(typing.get_args(kind)[0], item, f"{key}[{i}]", where) for i, item in enumerate(value))
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: '{key}' must be a mapping, not {value!r}", 2)
        return dict(value)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    elif kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise UserError(f"{where}: '{key}' must be {getattr(kind, '__name__', kind)}, not {value!r}", 2)


def _component(value: Any, key: str, where: str) -> Component:
    if not isinstance(value, dict) or not isinstance(value.get("class"), str):
        raise UserError(f"{where}: '{key}' must be a section with a line 'class: package.module:Name'", 2)
    args = {name: item for name, item in value.items() if name != "class"}
    try:
        signature = inspect.signature(locate(value["class"]))
    except UserError as error:
        raise UserError(f"{where}: {key}: {error}", 2) from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in args:
        if name not in signature.parameters and not open_ended:
            raise UserError(f"{where}: unknown key '{key}.{name}': {value['class']} does not take it"
                            f"{_nearest(name, signature.parameters)}", 2)
    return Component(value["class"], args)


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.config", description="Resolve and check a config.")
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    parser.add_argument("--json", action="store_true", help="print JSON with the sections' short names as well")
    args = parser.parse_args(argv)
    found = load(args.config, args.set)
    if not args.json:
        print(dump(found), end="")
        return 0
    names = {}
    for field in dataclasses.fields(found):
        section = getattr(found, field.name)
        if dataclasses.is_dataclass(section):
            names[field.name] = section.name() if hasattr(section, "name") and callable(section.name) \
                else f"{field.name}-{short_hash(section)}"
    # What keys are where nobody sets them: a key that is younger than a stage's record then changes nothing.
    defaults = {f.name: to_dict(f.default) for f in dataclasses.fields(found) if dataclasses.is_dataclass(f.default)}
    print(json.dumps({"resolved": to_dict(found), "names": names, "defaults": defaults}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    from speechlab import config  # not this copy named __main__, whose classes are not the ones that tasks know

    raise SystemExit(config.main())
