"""Configuration: plain YAML becomes frozen dataclasses. The command line goes over the YAML, which goes over the
defaults.

This module knows no task: it reads YAML, applies overrides and checks types. The task says which dataclasses a file is
read into, and which classes the file may name (``load_config`` and ``locate`` in speechlab/tasks/__init__.py). An
unknown key or a wrong type is an error that names the key and the nearest valid one.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from speechlab.errors import UserError

Locate = Callable[[str], Any]  # a dotted path, package.module:Name -> the object


@dataclasses.dataclass(frozen=True)
class Component:
    """A class that the config names by its dotted path, and the arguments that the config gives to its constructor."""

    path: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    target: Any = dataclasses.field(default=None, compare=False, repr=False)

    def build(self, **injected: Any) -> Any:
        """Make the object. ``injected``: arguments (e.g. sizes) that the program knows and the config need not give."""
        return self.target(**{**self.args, **injected})


class _NoTwins(yaml.SafeLoader):
    """Reads YAML, but refuses a key that occurs twice in a mapping (plain YAML silently takes the second value).

    It looks at mappings as they are written: merge keys (``<<: *base``), whose values a mapping's own keys may replace,
    are resolved later.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            plain = key_node.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =
            key = key_node.value if plain else self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"line {line}: the key '{key_node.value}' stands "
                                                        f"twice (first in line {seen[key]}): remove one")
            seen[key] = line
        return node


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, made of mappings, lists and scalars. Raises a yaml.YAMLError for anything else."""
    return yaml.load(text, _NoTwins)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a config's YAML file. It must name its task.

    Raises:
        UserError: (status 2) there is no such file, it is not plain YAML, or it names no task.
    """
    path = Path(path)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        there = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"no config {path}" + (f"; there are {', '.join(there)}" if there else ""), 2) from None
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{path} is not plain YAML: {error.problem or error}", 2) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {error}", 2) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("task"), str):
        raise UserError(f"{path} must be a mapping with a line 'task: ...' (asr, say)", 2)
    return raw


def convert(schema: type, raw: dict[str, Any], where: str, locate: Locate) -> Any:
    """Turn a plain mapping into the dataclass ``schema``, and its sections into the dataclasses of its fields.

    ``where``: the file's name, for messages.

    Raises:
        UserError: (status 2) for an unknown key or a wrong value: with ``where``, the key and the nearest valid key.
    """
    return _convert(schema, raw, "", where, locate)


def to_dict(config: Any) -> Any:
    """The resolved config as plain mappings, lists and scalars, for config.yaml, signatures and checkpoints."""
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
    """``raw`` with each ``section.key=value`` of ``sets`` put in. Values are YAML."""
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
            section[last] = parse_yaml(value)
        except yaml.constructor.ConstructorError as error:
            raise UserError(f"--set {text}: {error.problem or 'the value is not plain YAML'}", 2) from None
        except yaml.YAMLError:
            raise UserError(f"--set {text}: the value is not YAML", 2) from None
    return raw


def setting(key: str, value: Any) -> str:
    """``key=value`` for --set, written so that YAML reads ``value`` again."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:/+-]+", value) and yaml.safe_load(value) == value:
        return f"{key}={value}"
    plain = value.item() if callable(getattr(value, "item", None)) else value  # of numpy or torch
    return f"{key}={json.dumps(plain, ensure_ascii=False)}"


def settings(sets: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """Overrides as --set takes them, from a mapping ``{"optim.lr": 1e-3}`` or from such texts."""
    return [setting(*item) for item in sets.items()] if isinstance(sets, Mapping) else list(sets)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'X'?"`` with the nearest of ``known``, or ``""`` if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _convert(kind: Any, value: Any, key: str, where: str, locate: Locate) -> Any:
    """``value`` as the type ``kind``, or a UserError that names ``key``."""
    if kind is Component:
        return _component(value, key, where, locate)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where}: '{key}' must be a section (key: value lines), not {value!r}", 2)
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                full = f"{key}.{name}" if key else str(name)
                hint = nearest(str(name), hints) or f"; {key or 'the top level'} has {', '.join(hints)}"
                raise UserError(f"{where}: unknown key '{full}'{hint}", 2)
        parts = {n: _convert(hints[n], v, f"{key}.{n}" if key else n, where, locate) for n, v in value.items()}
        for field in dataclasses.fields(kind):
            if not field.metadata.get("infinite") and field.name in parts:
                _finite(parts[field.name], f"{key}.{field.name}" if key else field.name, where)
        try:
            return kind(**parts)
        except TypeError as error:
            raise UserError(f"{where}: {key or 'config'}: {str(error).split('() ')[-1]}", 2) from None
        except ValueError as error:  # __post_init__ checks ranges
            raise UserError(f"{where}: {key + '.' if key else ''}{error}", 2) from None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None else _convert(options[0], value, key, where, locate)
    if origin is typing.Literal:
        allowed = typing.get_args(kind)
        if isinstance(value, bool):  # YAML 1.1 reads a bare off as false
            value = next((word for word in (("on", "yes") if value else ("off", "no")) if word in allowed), value)
        if value not in allowed:
            raise UserError(f"{where}: '{key}' must be one of {', '.join(map(str, allowed))}, not {value!r}"
                            f"{nearest(str(value), map(str, allowed))}", 2)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: '{key}' must be a list, not {value!r}", 2)
        inner = typing.get_args(kind)[0]
        return tuple(_convert(inner, item, f"{key}[{i}]", where, locate) for i, item in enumerate(value))
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


def _finite(value: Any, key: str, where: str) -> None:
    """Refuse NaN and infinity: they train nothing. A field with the metadata ``{"infinite": True}`` takes them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: '{key}' must be a finite number, not {value}", 2)
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _finite(item, f"{key}[{i}]", where)
    if isinstance(value, dict):
        for name, item in value.items():
            _finite(item, f"{key}.{name}", where)


def _component(value: Any, key: str, where: str, locate: Locate) -> Component:
    if not isinstance(value, dict) or not isinstance(value.get("class"), str):
        raise UserError(f"{where}: '{key}' must be a section with a line 'class: package.module:Name'", 2)
    args = {name: item for name, item in value.items() if name != "class"}
    try:
        target = locate(value["class"])
        signature = inspect.signature(target)
    except UserError as error:
        raise UserError(f"{where}: {key}: {error}", 2) from None
    except (TypeError, ValueError):
        raise UserError(f"{where}: {key}: {value['class']} is nothing that can be called", 2) from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in args:
        if name not in signature.parameters and not open_ended:
            raise UserError(f"{where}: unknown key '{key}.{name}': {value['class']} does not take it"
                            f"{nearest(name, signature.parameters)}", 2)
        _finite(args[name], f"{key}.{name}", where)
        number = isinstance(args[name], (int, float)) and not isinstance(args[name], bool)
        if number and "dropout" in name and not 0 <= args[name] < 1:
            raise UserError(f"{where}: {key}.{name} = {args[name]:g} must be at least 0 and below 1", 2)
        if number and args[name] < 0 and value["class"].startswith("speechlab."):  # none of ours takes such a number
            raise UserError(f"{where}: {key}.{name} = {args[name]:g} must be at least 0", 2)
    return Component(value["class"], args, target)
