"""Reads exp/mistakes.json for a page: checks each set, and takes as many pictures and sounds as the page has room for.

speechlab/scoring/views.py tells the file's form. What is missing or broken is left out; the rest stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlab.files import read_json
from speechlab.reporting.metrics import label, number, unit
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric
from speechlab.scoring.views import FILE

_PAIRS = 12  # pairs of classes that are confused
_CLASSES = 40  # classes of a confusion matrix; a larger one can't be read
_POINTS = 400  # points of a DET curve
_ROWS = 4  # the view "audio" may have this many times more items than others have cards: rows without sound are short
_LETTERS = 2000  # letters of a text
_ADDRESS = re.compile(r"data:(image|audio)/[\w.+-]+;base64,[A-Za-z0-9+/=]+")


def read(exp: Path, shown: int, own: Sequence[Metric] = ()) -> list[dict[str, Any]]:
    """The sets of ``exp/mistakes.json`` with the fields of their views, and at most ``shown`` cards (or items) each.

    ``picture``, ``clip`` and ``clips`` are addresses; :func:`embed` replaces them by keys. A set of the view ``audio``
    has ``columns``: the metrics of its figures (name, label, unit, lower, decimals), the main one first. Its worst item
    is first.
    """
    whole = read_json(exp / FILE)
    sets = whole.get("sets") if isinstance(whole, dict) else None
    media = whole.get("media") if isinstance(whole, dict) else None
    reader = _Reader(media if isinstance(media, dict) else {}, shown, own)
    return [one for raw in _list(sets) if (one := reader.set(raw))]


def embed(sets: Sequence[dict[str, Any]], room: int) -> dict[str, str]:
    """Replace the sets' addresses by keys, and return {key: address} with at most ``room`` letters.

    An address that occurs twice is kept once. If there is not room for all, sounds are left out before pictures, and
    the last ones of each set before its first ones. So no set takes all the room.
    """
    slots = sorted(((place, holder, field) for one in sets for place, holder, field in _slots(one)),
                   key=lambda slot: slot[0])
    keys: dict[str, str] = {}
    for wanted in (("picture",), ("clip", "clips")):
        for _, holder, field in slots:
            if field not in wanted:
                continue
            several = holder.pop(field)
            addresses = [several] if isinstance(several, str) else several
            new = {address for address in addresses if address not in keys}
            if sum(map(len, new)) > room:
                continue
            room -= sum(map(len, new))
            found = [keys.setdefault(address, f"m{len(keys)}") for address in addresses]
            holder[field] = found[0] if isinstance(several, str) else found
    return {key: address for address, key in keys.items()}


def _slots(one: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield where a set has addresses: (number of the card or item, the mapping that holds the address, its field)."""
    for place, item in enumerate([*one.get("cards", ()), *one.get("items", ())]):
        for holder in (item, *item.get("tracks", ())):
            for field in ("picture", "clip", "clips"):
                if field in holder:
                    yield place, holder, field


class _Reader:
    """Reads sets of one file."""

    def __init__(self, media: dict[str, Any], shown: int, own: Sequence[Metric]):
        self.media, self.shown, self.own = media, shown, own

    def set(self, raw: Any) -> dict[str, Any] | None:
        """A set, checked; None if there is nothing to show in it."""
        views: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "classes": self._classes, "aligned": self._aligned, "trials": self._trials, "audio": self._audio}
        if not isinstance(raw, dict) or not isinstance(raw.get("view"), str) or raw["view"] not in views:
            return None
        found = views[raw["view"]](raw)
        names = {key: _text(raw.get(key)) for key in ("test_set", "method")}
        return found and {"name": ", ".join(name for name in names.values() if name), **names, "view": raw["view"],
                          **found}

    def _classes(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        classes, counts = raw.get("classes"), raw.get("counts")
        if not _square(counts, classes):
            classes = counts = None
        pairs = [[_text(pair[0]), _text(pair[1]), pair[2]] for pair in _list(raw.get("pairs"))
                 if isinstance(pair, list) and len(pair) == 3 and number(pair[2])]
        cards = [{"id": _text(card.get("id")), "ref": _text(card["ref"]), "hyp": _text(card["hyp"]),
                  "prob": _number(card.get("prob")), "prob_ref": _number(card.get("prob_ref")), **self._shown(card)}
                 for card in _dicts(raw.get("cards"), "ref", "hyp")]
        if not cards and counts is None and not number(raw.get("n")):
            return None
        return {"classes": classes and [_text(name) for name in classes], "counts": counts, "pairs": pairs[:_PAIRS],
                "n": _number(raw.get("n")), "errors": _number(raw.get("errors")), "cards": cards[:self.shown]}

    def _aligned(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        items = [{"title": _text(item.get("title")), "pairs": pairs, **self._shown(item)}
                 for item in _dicts(raw.get("items"), "pairs")
                 if (pairs := [[_text(pair[0]), _text(pair[1]), bool(pair[2])] for pair in _list(item["pairs"])
                               if isinstance(pair, list) and len(pair) == 3])]
        return {"items": items[:self.shown]} if items else None

    def _trials(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        target, nontarget, edges = (_numbers(raw.get(name)) for name in ("target", "nontarget", "edges"))
        bins = len(edges or ()) - 1
        drawn = bins > 0 and len(target or ()) == len(nontarget or ()) == bins and edges == sorted(set(edges))
        det = [[pair[0], pair[1]] for pair in _list(raw.get("det"))
               if isinstance(pair, list) and len(pair) == 2 and all(number(p) and 0 <= p <= 100 for p in pair)]
        det = det[::max(1, len(det) // _POINTS)]
        cards = [{"id": _text(card.get("id")), "score": card["score"], "target": bool(card["target"]),
                  **self._shown(card)} for card in _dicts(raw.get("cards"), "score", "target")
                 if number(card["score"])]
        if not (drawn or det or cards):
            return None
        return {**({"target": target, "nontarget": nontarget, "edges": edges} if drawn else {}), "det": det,
                "threshold": _number(raw.get("threshold")), "cards": cards[:self.shown]}

    def _audio(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        items = []
        for item in _dicts(raw.get("items"), "title"):
            figures = item.get("figures")
            figures = {str(name): value for name, value in figures.items() if number(value)} \
                if isinstance(figures, dict) else {}
            tracks = [{"name": _text(track.get("name")), **self._shown(track)} for track in _dicts(item.get("tracks"))]
            items.append({"title": _text(item["title"]), "figures": figures, "tracks": tracks, **self._shown(item)})
        if not items:
            return None
        columns = metric.order((name for item in items for name in item["figures"]), self.own)
        if columns:
            judge, first = metric.find(columns[0], self.own), columns[0]
            items.sort(key=lambda item: (first not in item["figures"], -judge.rank(item["figures"].get(first, 0.0))))
        return {"columns": [self._column(name) for name in columns], "items": items[:_ROWS * self.shown]}

    def _column(self, name: str) -> dict[str, Any]:
        found = metric.find(name, self.own)
        return {"name": name, "label": label(found), "unit": unit(found), "lower": found.lower,
                "decimals": found.decimals}

    def _shown(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The fields that any card, item or track may have: text, picture, clip, clips."""
        found: dict[str, Any] = {"text": text} if (text := _text(raw.get("text"))) else {}
        found |= {field: address for field, kind in (("picture", "image"), ("clip", "audio"))
                  if (address := self._address(raw.get(field), kind))}
        clips = [address for key in _list(raw.get("clips")) if (address := self._address(key, "audio"))]
        return {**found, **({"clips": clips} if clips else {})}

    def _address(self, key: Any, kind: str) -> str | None:
        address = self.media.get(key) if isinstance(key, str) else None
        match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
        return address if match and match[1] == kind else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any, *needed: str) -> list[dict[str, Any]]:
    """The mappings in a list that have all keys in ``needed``."""
    return [one for one in _list(value) if isinstance(one, dict) and all(one.get(key) is not None for key in needed)]


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:_LETTERS]


def _number(value: Any) -> float | None:
    return value if number(value) else None


def _numbers(value: Any) -> list[float] | None:
    return value if isinstance(value, list) and all(map(number, value)) else None


def _square(counts: Any, classes: Any) -> bool:
    return isinstance(classes, list) and isinstance(counts, list) and 0 < len(counts) == len(classes) <= _CLASSES \
        and all(isinstance(row, list) and len(row) == len(classes) and all(map(number, row)) for row in counts)
