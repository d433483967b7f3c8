"""Corpora, one module per corpus. No other code knows how a corpus is laid out, and where one can get it.

A corpus module has these parts:

* ``ABOUT``, ``LICENSE``: one line each.
* ``fetch(root) -> folder``: downloads the corpus.
* ``prepare(folder, out, nj=1, **options)``: reads it, and returns what its form of data wants.
* ``FORM`` (optional): the name of that form (speechlab/data/forms/). ``"speech"``, the default, wants
  ``{split: CutSet}``. ``"images"`` wants ``({split: (images, labels)}, names of the classes)``, or
  ``(images, labels, ids)`` for a split. ``"local.x"`` is a form that the recipe brings.
* ``CARRIES`` (optional): what each item carries, a tuple of ``"text"``, ``"label"``, ``"speaker"``, ``"clean"`` and
  words of the recipe's own. The default for speech is ``("text",)``. If a corpus can carry different things, its
  ``prepare`` has a parameter ``carry``: what the user asked for.
* ``SPEAKERS_SHARED`` (optional): True if a speaker may be in several splits.

A module is imported only when somebody asks for its corpus.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from ..errors import UserError

NAMES = ("aishell", "an4", "cifar10", "fashion_mnist", "folder", "hsk_gcin", "image_folder", "kaldi", "mnist", "shapes",
         "synthetic", "zh_text")


def load(name: str) -> ModuleType:
    """The corpus module called ``name``: one of :data:`NAMES`, or ``local.x``, a recipe's own ``local/x.py``.

    Raises a UserError that names the nearest corpus when there is none of that name, or the package it lacks.
    """
    if name not in NAMES and not name.startswith("local."):
        near = difflib.get_close_matches(name.lower(), NAMES, 1, 0.5)
        raise UserError(f"no corpus is called {name!r}: " + (f"did you mean {near[0]}? " if near else "")
                        + f"There are {', '.join(NAMES)}", status=2)
    full = name if name.startswith("local.") else f"{__name__}.{name}"
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name in (full, "local"):
            raise UserError(f"corpus {name}: there is no {full.replace('.', '/')}.py here", status=2) from error
        raise UserError(f"corpus {name} needs the Python package {error.name}: tools/setup.sh installs it") from error
    missing = [part for part in ("fetch", "prepare") if not hasattr(module, part)]
    if missing:
        raise UserError(f"corpus {name}: {full.replace('.', '/')}.py has no {' and no '.join(missing)}()", status=2)
    if isinstance(getattr(module, "CARRIES", ()), str):  # ("text") is no tuple
        raise UserError(f'corpus {name}: CARRIES must be a tuple of words: ("{module.CARRIES}",)', status=2)
    return module
