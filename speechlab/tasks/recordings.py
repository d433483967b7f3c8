"""The sound of an experiment's test sets, for what the report lets one hear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.files import read_json


class Recordings:
    """Reads recordings of an experiment's test sets, which the manifests of its data folder name."""

    def __init__(self, exp: Path):
        env = read_json(exp / "env.json")
        data = str(env.get("data") or "") if isinstance(env, Mapping) else ""
        recipe = exp.resolve().parent.parent
        self.data = next((place for place in (recipe / data, Path(data)) if data and place.is_dir()), None)
        self._cuts: dict[str, dict[str, Any]] = {}

    def read(self, test_set: str, name: str) -> tuple[Any, int] | None:
        """An utterance's samples (n,), full scale 1, and their rate in Hz. None if its manifest or file is gone."""
        cut = self._split(test_set).get(name)
        if cut is None:
            return None
        from speechlab.features.audio import read

        try:
            samples, rate = read(cut)
        except Exception:  # lhotse and libsndfile raise errors of many kinds; the report can do without the sound
            return None
        scale = 32768.0 if samples.dtype == np.int16 else 1.0
        return samples.mean(0) / scale, rate

    def _split(self, test_set: str) -> dict[str, Any]:
        if test_set not in self._cuts:
            manifest = self.data / f"{test_set}.jsonl.gz" if self.data else None
            self._cuts[test_set] = {}
            if manifest and manifest.is_file():
                from lhotse import CutSet

                self._cuts[test_set] = {cut.id: cut for cut in CutSet.from_file(manifest)}
        return self._cuts[test_set]
