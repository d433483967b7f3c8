"""A trained recogniser, made from its checkpoint alone: features, network, and all search methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor, nn

from speechlab import tasks
from speechlab.data.asr import SpeechDataset
from speechlab.data.speech import EpochLoader, read_features
from speechlab.data.text import has_hanzi
from speechlab.data.tokens import Tokenizer
from speechlab.decoding import ctc
from speechlab.decoding.arpa import ArpaLM
from speechlab.decoding.attention import beam_search
from speechlab.decoding.ctc import Hypothesis
from speechlab.decoding.ctc_prefix import CTCPrefixScorer
from speechlab.decoding.fused_beam import fused_beam
from speechlab.decoding.rescore import attention_scores, lm_scores
from speechlab.errors import UserError
from speechlab.features.contract import FeatureContract
from speechlab.models.asr import Encoded
from speechlab.tasks.asr.config import Config
from speechlab.tasks.asr.train import build_model
from speechlab.tasks.interface import Model
from speechlab.training.device import to_device

NBest = list[list[Hypothesis]]
# Pruning of CTC's beam. It is wide because the right one of several characters that sound alike often has a posterior
# below 1e-3, and only the language model can then choose it.
WIDTH = {"prune": 1e-4, "top": 40, "threshold": 15.0}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to search: which parts of the model it needs, and whether it needs a language model (with weights to tune).
    """

    about: str
    ctc: bool = False
    attention: bool = False
    lm: bool = False


METHODS = {
    "ctc_greedy": Method("the best token of each frame", ctc=True),
    "ctc_beam": Method("prefix beam search", ctc=True),
    "ctc_beam_lm": Method("prefix beam search with the n-gram language model", ctc=True, lm=True),
    "attention": Method("the decoder's beam search", attention=True),
    "joint": Method("the decoder's beam search, CTC's prefix scores added", ctc=True, attention=True),
    "rescore": Method("n-best of the language model's beam, judged again by decoder and language models", lm=True),
}
METHODS_HELP = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())


class Recogniser(Model):
    """A trained model, with all that it needs to recognise speech.

    Args:
        state: the checkpoint (speechlab/training/checkpoint.py).
        device: where to compute.
        lm: an n-gram language model over the same units.
        neural_lm: a language model that is a network (speechlab/models/lm.py), over the same units.
    """

    def __init__(self, state: dict[str, Any], device: torch.device, lm: ArpaLM | None = None,
                 neural_lm: nn.Module | None = None):
        self.config: Config = tasks.from_dict(state["config"], "the checkpoint's config")
        self.contract = FeatureContract.from_dict(state["features"])
        self.tokenizer = Tokenizer(**state["tokens"])
        self.auxiliary = Tokenizer(**state["auxiliary"]) if state.get("auxiliary") else None
        self.device, self.lm, self.neural_lm = device, lm, neural_lm
        weights = state["model"]
        parts = weights.get("head.parts", weights.get("decoder.head.parts"))
        self.model = build_model(self.config, self.tokenizer, self.auxiliary, parts).to(device).eval()
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the checkpoint's weights do not fit its own config and {len(self.tokenizer)} tokens "
                            f"({str(error).splitlines()[-1].strip()})") from None

    def __call__(self, source: Any, rate: int | None = None, **options: Any) -> dict[str, Any]:
        """Recognise a file (its path), or samples with their ``rate`` in Hz. Returns what ``infer --json`` prints.

        Args:
            options: ``method``; ``lm`` and ``neural_lm`` (folders); ``chunk`` and ``overlap`` (seconds).
        """
        from speechlab.tasks.asr.infer import hear

        return hear(self, source, rate, **options)

    def methods(self) -> dict[str, str]:
        """The methods of :data:`METHODS` that work with this model and its language models: {name: what it does}."""
        return {name: method.about for name, method in METHODS.items() if self.lacks(name) is None}

    def lacks(self, method: str) -> str | None:
        """Why ``method`` does not work with this model; None if it does. UserError if there is no such method."""
        if method not in METHODS:
            raise UserError(f"no search method '{method}': there are {', '.join(METHODS)}", 2)
        needs = METHODS[method]
        if needs.ctc and self.model.head is None:
            return "the model has no CTC head (loss.ctc = 0)"
        if needs.attention and self.model.decoder is None:
            return "the model has no attention decoder (decoder.layers = 0)"
        if needs.lm and self.lm is None:
            return "no language model was given (--lm)"
        return None

    @property
    def judged_in_characters(self) -> bool:
        """True if errors are counted in characters (Chinese), False if in words."""
        return has_hanzi("".join(self.tokenizer.units))

    def load_neural_lm(self, exp: Path) -> None:
        """Use the language model that was trained in the experiment ``exp``. UserError if it does not fit."""
        found = tasks.load(exp, device=self.device)
        if not hasattr(found, "units"):
            raise UserError(f"{exp} is no language model: its task is {found.config.task}", 2)
        if found.units != self.tokenizer.units:
            raise UserError(f"the language model in {exp} is over other units ({len(found.units)}) than the recogniser "
                            f"({len(self.tokenizer)}): train it with the same section tokens on the same corpus")
        self.neural_lm = found.network

    def batches(self, data: Path, split: str, limit: int | None = None) -> tuple[CutSet, Iterator[dict[str, Any]]]:
        """A split's cuts (only the first ``limit`` by id), and batches of them for :meth:`encode`.

        Raises a UserError if stored features do not match the checkpoint's contract.
        """
        config = self.config
        cuts, reader = read_features(data, self.contract, split, config.data.on_the_fly)
        if limit is not None and len(cuts) > limit:
            cuts = CutSet.from_cuts(sorted(cuts, key=lambda c: c.id)[:limit])
        longest = max(config.decode.max_duration, *(c.duration for c in cuts))
        limits = dataclasses.replace(config.data, max_duration=longest, augment=None)
        features: Callable[[Any], Tensor] = lambda cut: torch.from_numpy(reader(cut))  # noqa: E731
        loader = EpochLoader(SpeechDataset(features, self.tokenizer), cuts, limits, train=False)
        return cuts, loader.batches()

    @torch.no_grad()
    def encode(self, batch: dict[str, Any]) -> Encoded:
        """The encoder's output for ``{"x": (B, T, bins), "x_lens": (B,)}``; log-posteriors and lengths on the CPU."""
        batch = to_device(batch, self.device)
        found = self.model.encode(batch["x"], batch["x_lens"])
        return dataclasses.replace(found, log_probs=None if found.log_probs is None else found.log_probs.cpu())

    @torch.no_grad()
    def search(self, found: Encoded, method: str, weights: Mapping[str, Any] | None = None, *,
               wide: bool = False) -> NBest:
        """The best hypotheses of each utterance by ``method``, best first.

        Args:
            found: what :meth:`encode` returned.
            weights: ``ctc_weight`` (for joint), ``lm_weight`` (for ctc_beam_lm), ``length_bonus`` (both; default 0).
            wide: CTC's searches return more hypotheses, so that weights can be tuned on them.
        """
        if why := self.lacks(method):
            raise UserError(f"method {method}: {why}", 2)
        weights, config = weights or {}, self.config.decode
        beam, nbest = config.ctc_beam * (2 if wide else 1), config.nbest * (4 if wide else 1)
        lengths = found.lengths.cpu()
        if method == "ctc_greedy":
            return [[best] for best in ctc.greedy(found.log_probs, lengths)]
        if method == "ctc_beam":
            return fused_beam(found.log_probs, lengths, None, beam=beam, nbest=nbest, **WIDTH)
        if method == "ctc_beam_lm":
            return fused_beam(found.log_probs, lengths, self.lm, beam=beam, nbest=nbest, **WIDTH,
                              lm_weight=weights.get("lm_weight", 0.0), length_bonus=weights.get("length_bonus", 0.0))
        scorers = {"attention": (self.model.decoder.scorer(found.memory, found.mask), 1.0)}
        partial = {}
        if method == "joint":
            share = weights.get("ctc_weight", config.ctc_weight or 0.3)
            scorers["attention"] = (scorers["attention"][0], 1.0 - share)
            partial["ctc"] = (CTCPrefixScorer(found.log_probs.to(self.device), found.lengths), share)
        return beam_search(scorers, len(lengths), max_lengths=found.lengths, vocab=len(self.tokenizer), partial=partial,
                           beam=config.beam, nbest=config.nbest, length_bonus=weights.get("length_bonus", 0.0))

    @torch.no_grad()
    def judge(self, found: Encoded, nbest: NBest) -> dict[str, list[list[float]]]:
        """Log probabilities of each hypothesis, by each model that has not scored it in the search: ``attention``,
        ``lm``, ``neural_lm``."""
        more = {}
        known = next((h.parts for hyps in nbest for h in hyps if not h.error), {})
        if self.model.decoder is not None and "attention" not in known:
            more["attention"] = attention_scores(self.model.decoder, found.memory, found.mask, nbest)
        if self.lm is not None and "lm" not in known:
            more["lm"] = [self.lm.log_probabilities(h.tokens for h in hyps).tolist() for hyps in nbest]
        if self.neural_lm is not None:
            more["neural_lm"] = lm_scores(self.neural_lm, nbest, self.device)
        return more
