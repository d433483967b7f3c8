"""What an experiment got wrong, for its report: confusion matrices, pictures of mistakes, aligned utterances.

Everything is read from exp/*/decode/<method>/<test_set>/ and the pack of images that the training read; what is missing
or broken is left out.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.reporting.metrics import number, option, read_env, read_json, read_results

NO_MODEL = ("oracle", "oracle_lm")  # what is no experiment's, but the test set's
_RATES = ("WER", "CER", "error")
_PAIRS = 12  # of classes taken for each other
_LAYER_BYTES = 1_500_000  # of pictures of layers in a page


def decodings(exp: Path, shown: int, pictures: dict[str, str]) -> list[dict[str, Any]]:
    """Each method and test set with its mistakes, ``shown`` at most; adds the pictures that they name to ``pictures``.

    Of images: ``classes``, ``counts`` (rows: true), ``pairs`` (ref, hyp, count), ``n``, ``errors`` and ``wrong``, the
    mistakes that the network was surest of first. Of speech: ``utterances`` with aligned ``pairs`` (ref, hyp, differ).
    """
    rates = {(row["test_set"], row["method"]): row["value"] for row in reversed(read_results(exp))
             if row.get("metric") in _RATES and number(row.get("value"))}
    found = []
    for folder in sorted((path for path in exp.glob("decode/*/*") if path.is_dir()), key=lambda path: (
            path.name, rates.get((path.name, path.parent.name), float("inf")), path.parent.name)):  # the best first
        if folder.parent.name in NO_MODEL:
            continue
        name = f"{folder.name}, {folder.parent.name}"
        if (folder / "pred.jsonl").is_file():
            if one := _images(exp, folder, shown, pictures):
                found.append({"name": name, **one})
        elif utterances := aligned(folder / "worst.txt", shown):
            found.append({"name": name, "utterances": utterances})
    return found


def _images(exp: Path, folder: Path, shown: int, pictures: dict[str, str]) -> dict[str, Any] | None:
    wrong, n = [], 0
    for line in _lines(folder / "pred.jsonl"):
        try:
            record = json.loads(line)
            n += 1
            if record["ref"] != record["hyp"]:
                wrong.append({"id": str(record["id"]), "index": int(record["index"]), "ref": str(record["ref"]),
                              "hyp": str(record["hyp"]), "prob": float(record["prob"]),
                              "prob_ref": record["prob_ref"] if number(record.get("prob_ref")) else None})
        except (ValueError, KeyError, TypeError):
            continue
    if not n:
        return None
    confusion = read_json(folder / "confusion.json")
    classes, counts = None, None
    if isinstance(confusion, dict) and _square(confusion.get("counts"), confusion.get("classes")):
        classes, counts = [str(name) for name in confusion["classes"]], confusion["counts"]
    wrong.sort(key=lambda item: (-item["prob"], item["index"]))
    pairs = Counter((item["ref"], item["hyp"]) for item in wrong).most_common(_PAIRS)
    kept = wrong[:shown]
    pack = _pack(exp, folder.name)
    for item in kept:
        index = item.pop("index")
        if pack is not None and 0 <= index < len(pack):
            key = f"{folder.name}-{index}"
            pictures.setdefault(f"{pack.filename}:{key}", png(np.asarray(pack[index])))
            item["picture"] = f"{pack.filename}:{key}"
    return {"classes": classes, "counts": counts, "pairs": [[*pair, count] for pair, count in pairs], "n": n,
            "errors": len(wrong), "wrong": kept}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _square(counts: Any, classes: Any) -> bool:
    return isinstance(classes, list) and isinstance(counts, list) and len(counts) == len(classes) and all(
        isinstance(row, list) and len(row) == len(classes) and all(number(count) for count in row) for row in counts)


def _pack(exp: Path, split: str) -> np.memmap | None:
    """The images of a split, uint8 (N, H, W, C), as the training's --data names them; None if they are gone."""
    env = read_env(exp)
    data = str(env.get("data") or option(env, "--data"))
    recipe = exp.resolve().parent.parent
    for place in (recipe / data, Path(data)):
        try:
            found = np.load(place / f"{split}.images.npy", mmap_mode="r")
        except (OSError, ValueError):
            continue
        if data and found.ndim == 4 and found.dtype == np.uint8 and found.shape[3] in (1, 3):
            return found
    return None


def png(pixels: np.ndarray) -> str:
    """A uint8 picture (H, W, 1 or 3) as a ``data:`` address (PNG: ISO/IEC 15948)."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(whole).decode()


def aligned(path: Path, shown: int) -> list[dict[str, Any]]:
    """The utterances of a worst.txt: ``title`` and ``pairs`` (ref, hyp, whether they differ).

    There, a numbered title is followed by lines REF and HYP whose units stand one to one, a row of stars for none.
    """
    found: list[dict[str, Any]] = []
    lines = _lines(path)
    for title, ref, hyp in zip(lines, lines[1:], lines[2:]):
        if not (re.match(r"\d+\. ", title) and ref.startswith("REF ") and hyp.startswith("HYP ")):
            continue
        said, heard = ref.split()[1:], hyp.split()[1:]
        if len(said) == len(heard):
            pairs = [["" if set(r) == {"*"} else r, "" if set(h) == {"*"} else h] for r, h in zip(said, heard)]
            found.append({"title": " ".join(title.split()), "pairs": [[r, h, r != h] for r, h in pairs]})
    return found[:shown]


def layers(exp: Path, most: int = 8) -> list[dict[str, Any]]:
    """What the task drew after its epochs (exp/<name>/epoch-NN.png): ``name`` and ``epochs`` ([number, address]), the
    first, the last, and some between, as many as a page can bear."""
    found, room = [], _LAYER_BYTES
    for folder in sorted({path.parent for path in exp.glob("*/epoch-*.png")}):
        files = sorted((int(match[1]), path) for path in folder.glob("epoch-*.png")
                       if (match := re.fullmatch(r"epoch-(\d+)\.png", path.name)))
        if not files:
            continue
        largest = max(1, max(path.stat().st_size for _, path in files))
        count = max(1, min(most, len(files), room // largest))
        chosen = sorted({round(place) for place in np.linspace(len(files) - 1, 0, count)})
        epochs = [[files[i][0], "data:image/png;base64," + base64.b64encode(files[i][1].read_bytes()).decode()]
                  for i in chosen]
        room -= sum(files[i][1].stat().st_size for i in chosen)
        found.append({"name": folder.name, "epochs": epochs})
    return found
