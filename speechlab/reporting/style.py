"""How the house's pictures look: colours, fonts, and matplotlib without a screen."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from speechlab.errors import UserError

LIGHT, BLUE, RUST, GREEN, VIOLET, GREY = "#b8cfe5", "#1f5fa8", "#c8501e", "#3a7d44", "#7d4a8c", "#808080"
_CHINESE_FONTS = ("Noto Sans CJK SC", "PingFang SC", "WenQuanYi Zen Hei", "Microsoft YaHei")


@contextlib.contextmanager
def house_style() -> Iterator[Any]:
    """Yield pyplot in the house's style, for figures that are saved to files.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    # Hanzi in an experiment's name need a font that has them. If the machine has none, boxes are drawn instead.
    there = {font.name for font in font_manager.fontManager.ttflist}
    chinese = [name for name in _CHINESE_FONTS if name in there]
    style = {"font.family": ["DejaVu Sans", *chinese], "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 11,
             "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        yield pyplot
