"""Corpora: one module each, the only code that knows how a corpus is laid out and where it is to be had.

A corpus module offers ``ABOUT`` and ``LICENSE`` (a line each), ``fetch(root) -> folder`` and
``prepare(folder, out, nj=1, **options) -> {split: CutSet}``. A corpus of images says ``KIND = "images"`` and returns
``({split: (images, labels) or (images, labels, ids)}, names of the classes)``, see ``write_pack`` in
speechlab/data/image_pack.py. Modules are imported when they are asked for.
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
    return module
