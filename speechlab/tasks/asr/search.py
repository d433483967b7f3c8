"""Search, with weights that are tuned on the validation set. Decoding and the recognition of long files use it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechlab.decoding.rescore import Tuned, rescore, tune
from speechlab.errors import UserError
from speechlab.models.asr import Encoded
from speechlab.progress import progress
from speechlab.scoring.wer import units
from speechlab.tasks.asr.recogniser import NBest, Recogniser

log = logging.getLogger("speechlab")
LIMIT = 500  # weights are tuned on so many validation utterances, the first by id; more take long and change little
START = {"lm_weight": 0.5, "length_bonus": 1.0}
ROUNDS = 2  # how often to search and tune: a search with new weights finds new hypotheses
LM_WEIGHTS = (0.5, 0.3, 0.4, 0.6, 0.7, 0.8, 1.0, 0.2, 0.1, 0.0, 1.2)
BONUSES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, -0.5)
RATIOS = (1.0, 0.5, 0.7, 1.5, 2.0, 3.0, 0.3, 5.0)  # CTC's weight, where the decoder's weight is 1
SHARES = (0.5, 0.3, 0.7, 1.0, 0.15, 0.0, 1.5)  # the weight of each other model, where the main one's weight is 1


class Search:
    """A recogniser's search methods. Weights that they need are tuned on the validation set of ``data/<corpus>``.

    Args:
        recogniser: the recogniser, with its language models.
        data: the folder of manifests and features; weights are tuned on its split ``dev``.
    """

    def __init__(self, recogniser: Recogniser, data: Path):
        self.recogniser, self.data = recogniser, data
        self._dev: tuple[list[Encoded], list[list[str]]] | None = None
        self._weights: dict[str, dict[str, Any]] = {}

    def __call__(self, found: Encoded, method: str, weights: Mapping[str, Any]) -> NBest:
        """The best hypotheses of each utterance, best first, by ``method`` with :meth:`weights`."""
        if method != "rescore":
            return self.recogniser.search(found, method, weights)
        first = self.recogniser.search(found, weights["first"], weights)
        return rescore(first, self.recogniser.judge(found, first), weights["parts"], weights["rescore_bonus"])

    def weights(self, method: str) -> dict[str, Any]:
        """The weights of ``method``: as the config says, or else those with the fewest errors on ``dev``."""
        if method not in self._weights:
            find = {"joint": self._joint_weights, "ctc_beam_lm": self._lm_weights, "rescore": self._rescore_weights}
            self._weights[method] = find[method]() if method in find else {}
            if "dev_error" in self._weights[method]:
                _say(method, self._weights[method])
        return self._weights[method]

    def _joint_weights(self) -> dict[str, Any]:
        """For the method joint: CTC's share (0 to 1; the decoder has the rest), and the bonus per token."""
        config = self.recogniser.config.decode
        if config.ctc_weight is not None:
            return {"ctc_weight": config.ctc_weight, "length_bonus": config.length_bonus or 0.0}
        encoded, references = self._validation()
        start = {"ctc_weight": 0.5}
        nbest = [hyps for found in encoded for hyps in self.recogniser.search(found, "joint", start)]
        tuned = tune(nbest, references, ["attention", "ctc"], {
            "attention": [1.0], "ctc": RATIOS, "length_bonus": BONUSES if config.length_bonus is None else
            [config.length_bonus]}, self._read)
        ratio = tuned.weights["ctc"]
        return {"ctc_weight": ratio / (1 + ratio), "length_bonus": tuned.length_bonus / (1 + ratio),
                **_found(tuned, references)}

    def _lm_weights(self) -> dict[str, Any]:
        """For the method ctc_beam_lm: the n-gram's weight in the beam, and the bonus per token."""
        method, config = "ctc_beam_lm", self.recogniser.config.decode
        if config.lm_weight is not None and config.length_bonus is not None:
            return {"lm_weight": config.lm_weight, "length_bonus": config.length_bonus}
        given = {"lm_weight": config.lm_weight, "length_bonus": config.length_bonus}
        weights: dict[str, Any] = {k: START[k] if v is None else v for k, v in given.items()}
        encoded, references = self._validation()
        for _ in range(ROUNDS):
            nbest = [hyps for found in encoded for hyps in self.recogniser.search(found, method, weights, wide=True)]
            tuned = tune(nbest, references, ["ctc", "lm"], {
                "ctc": [1.0], "lm": LM_WEIGHTS if config.lm_weight is None else [config.lm_weight],
                "length_bonus": BONUSES if config.length_bonus is None else [config.length_bonus]}, self._read)
            weights |= {"lm_weight": tuned.weights["lm"], "length_bonus": tuned.length_bonus,
                        **_found(tuned, references)}
        return weights

    def _rescore_weights(self) -> dict[str, Any]:
        """For the method rescore: the first pass and its weights, then the weight of each model's score."""
        first = "attention" if self.recogniser.lacks("ctc_beam_lm") else "ctc_beam_lm"
        weights = {**self.weights(first), "first": first}
        encoded, references = self._validation()
        nbest: NBest = []
        for found in encoded:
            lists = self.recogniser.search(found, first, weights)
            nbest += rescore(lists, self.recogniser.judge(found, lists), {}, 0.0)
        names = sorted({name for hyps in nbest for h in hyps for name in h.parts})
        main = "attention" if first == "attention" else "ctc"
        grid: dict[str, Any] = dict.fromkeys(names, SHARES)
        grid |= {main: [1.0], "length_bonus": BONUSES} | ({"lm": LM_WEIGHTS} if "lm" in names else {})
        tuned = tune(nbest, references, names, grid, self._read)
        return {**weights, "parts": tuned.weights, "rescore_bonus": tuned.length_bonus, **_found(tuned, references)}

    def _validation(self) -> tuple[list[Encoded], list[list[str]]]:
        """The encoder's output for the validation set, and its texts as the units in which errors are counted."""
        if self._dev is None:
            cuts, batches = self.recogniser.batches(self.data, "dev", LIMIT)
            texts = {cut.id: cut.supervisions[0].text for cut in cuts}
            encoded, ids = [], []
            for batch in progress(batches, "dev, to tune weights on"):
                encoded.append(self.recogniser.encode(batch))
                ids += batch["ids"]
            if not ids:
                raise UserError(f"no validation utterance in {self.data} to tune weights on: give decode.lm_weight and "
                                "decode.length_bonus")
            self._dev = encoded, [self._units(texts[i]) for i in ids]
        return self._dev

    def _units(self, text: str) -> list[str]:
        return units(text, "char" if self.recogniser.judged_in_characters else "word")

    def _read(self, tokens: list[int]) -> list[str]:
        return self._units(self.recogniser.tokenizer.decode(tokens))


def _found(tuned: Tuned, references: list[list[str]]) -> dict[str, Any]:
    """What is recorded of tuned weights: what they were tuned on, and their error rate there in %."""
    return {"tuned_on": f"dev, {len(references)} utterances", "dev_error": 100 * tuned.errors / tuned.units}


def _say(method: str, weights: Mapping[str, Any]) -> None:
    shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in weights.items())
    print(f"{method}: {shown}", flush=True)
