"""Resolve and check a config: ``python -m speechlab.tasks CONFIG [--set KEY=VALUE] [--json]``.

``--list`` names the tasks.
``--json`` prints what tools/stages.py asks for: the resolved config, the folder names of its sections, and its
defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from speechlab import tasks
from speechlab.config import dump, short_hash, to_dict
from speechlab.errors import cli


@cli
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechlab.tasks", description="Resolve and check a config.")
    parser.add_argument("config", nargs="?", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override (repeatable)")
    parser.add_argument("--json", action="store_true", help="print JSON with the sections' short names as well")
    parser.add_argument("--list", action="store_true", help="list the tasks")
    args = parser.parse_args(argv)
    if args.list:
        for name in tasks.names():
            print(f"{name:12s} {tasks.find(name).about}")
        return 0
    if args.config is None:
        parser.error("which config? (--list names the tasks)")
    found = tasks.load_config(args.config, args.set)
    if not args.json:
        print(dump(found), end="")
        return 0
    print(json.dumps({"resolved": to_dict(found), "names": folder_names(found), "defaults": defaults(found)},
                     ensure_ascii=False))
    return 0


def folder_names(config: object) -> dict[str, str]:
    """By section, the short name of the folder for what is made by it (``fbank80-3f2a``)."""
    names = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section):
            named = getattr(section, "name", None)
            names[field.name] = named() if callable(named) else f"{field.name}-{short_hash(section)}"
    return names


def defaults(config: object) -> dict[str, object]:
    """What keys are where nobody sets them: a key that is younger than a stage's record then changes nothing."""
    return {f.name: to_dict(f.default) for f in dataclasses.fields(config)  # type: ignore[arg-type]
            if dataclasses.is_dataclass(f.default)}


if __name__ == "__main__":
    raise SystemExit(main())
