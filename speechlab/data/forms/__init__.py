"""Forms of data: what a corpus's ``prepare()`` returns, how it is checked, and how it is written. One module per form.

A corpus names its form (``FORM = "speech"``, which is also the default). A form is a module with

* ``CARRIES``: what items carry where the corpus does not say it, e.g. ``("text",)``;
* ``finish(made, out, corpus)``: checks ``made`` (what ``prepare()`` returned), writes it into the folder ``out``, and
  prints a small table. On any error it writes nothing. ``corpus`` is a :class:`Corpus`;
* ``OPTIONS``, if it has any: the names and defaults of the options that all corpora of the form take (``--option``).

Forms are found by name: a new one is a new module here, or ``local.NAME`` in a recipe's ``local/``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from speechlab.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a form is told about the corpus, besides its data."""

    name: str  # as on the command line
    carries: tuple[str, ...]  # what each item carries: text, label, speaker, clean, or a recipe's own word
    shared_speakers: bool = False  # a speaker may be in several splits
    nj: int = 1  # how many files to read at once
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # those of the form's OPTIONS that were given


def names() -> list[str]:
    """The names of the forms in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The form called ``name``: one of :func:`names`, or ``local.x``, a recipe's own ``local/x.py``.

    Raises a UserError if there is no such form, or its module lacks a part or needs a package that is not installed.
    """
    own = name.startswith("local.")
    if not own and name not in names():
        near = difflib.get_close_matches(name.lower(), names(), 1, 0.5)
        raise UserError(f"no form of data is called {name!r}: " + (f"did you mean {near[0]}? " if near else "")
                        + f"There are {', '.join(names())}, and local.NAME for a recipe's own", 2)
    full = name if own else f"{__name__}.{name}"
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name in (full, "local"):
            raise UserError(f"form {name}: there is no {full.replace('.', '/')}.py here", 2) from error
        raise UserError(f"form {name} needs the Python package {error.name}: tools/setup.sh installs it") from error
    if lacks := [part for part in ("CARRIES", "finish") if not hasattr(module, part)]:
        raise UserError(f"form {name}: {full.replace('.', '/')}.py has no {' and no '.join(lacks)}", 2)
    return module
