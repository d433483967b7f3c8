"""Trains a recogniser: by CTC over tokens, by an attention decoder's cross-entropy, or by both."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import Tensor, nn

from speechlab.config import to_dict
from speechlab.data.asr import SpeechDataset
from speechlab.data.speech import CachedFeatures, EpochLoader, read_features, training_cuts
from speechlab.data.tokens import PIECES, SPACE, Tokenizer
from speechlab.decoding import ctc
from speechlab.decoding.attention import beam_search
from speechlab.errors import UserError
from speechlab.models.asr import AsrModel, Encoded
from speechlab.models.decoder import BOUNDARY
from speechlab.models.espnet import adapt
from speechlab.models.layers import padding_mask
from speechlab.scoring.metric import METRICS
from speechlab.scoring.views import matrix, mosaic
from speechlab.scoring.wer import units
from speechlab.tasks.asr.config import Config, takes_between
from speechlab.training.device import to_device
from speechlab.training.interface import Evaluation, Loss

log = logging.getLogger("speechlab")
SHOWN = 4  # validation utterances whose answers are shown in samples.md
# Error rate in %. CTC first learns to answer blank everywhere. All characters are deleted then: the rate is near 100.
ALL_BLANK = 97.0
PROBES = [round(16 * 1.2**i) for i in range(36)]  # lengths that show how many frames an encoder makes; to 94 s
NAMED = 5  # utterances that a warning names
CAPTION = ("Where the decoder listens while it writes: a block of rows per utterance of samples.md, in the same order. "
           "Row: a character, from the first to the last. Column: time. Dark: it listens here. A decoder that has "
           "learnt to listen shows a line from the upper left to the lower right.")
DRAWN = 60  # the largest number of tokens in the picture of an alignment


def collapse_loss(log_probs: Tensor, lengths: Tensor, y: Tensor, y_lens: Tensor) -> Loss:
    """CTC's negative log likelihood, summed over the batch, and the number of tokens.

    An utterance with too few frames for its tokens has no path: it adds nothing, and its tokens are not counted.
    """
    total = F.ctc_loss(log_probs.transpose(0, 1), y, lengths, y_lens, reduction="sum", zero_infinity=True)
    return Loss(total, (y_lens * (frames_needed(y, y_lens) <= lengths)).sum().to(total))


def frames_needed(y: Tensor, y_lens: Tensor) -> Tensor:
    """(B, U) tokens, (B,) -> (B,) the frames without which CTC has no path: one for each token, and one more for the
    blank between two equal ones."""
    if y.shape[1] < 2:
        return y_lens
    repeats = (y[:, 1:] == y[:, :-1]) & padding_mask(y_lens - 1, y.shape[1] - 1)
    return y_lens + repeats.sum(1)


def shifted(y: Tensor, y_lens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, U) -> the decoder's input (the boundary, then the tokens) and its target (the tokens, then the
    boundary), both (B, U + 1)."""
    y = y.masked_fill(~padding_mask(y_lens, y.shape[1]), BOUNDARY)
    return F.pad(y, (1, 0), value=BOUNDARY), F.pad(y, (0, 1), value=BOUNDARY)


def attention_loss(logits: Tensor, y: Tensor, y_lens: Tensor, smoothing: float) -> Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016), summed over tokens and ends of utterances, and their
    number."""
    kept = padding_mask(y_lens + 1, logits.shape[1])
    target = shifted(y, y_lens)[1][kept]
    total = F.cross_entropy(logits[kept].float(), target, reduction="sum", label_smoothing=smoothing)
    return Loss(total, (y_lens + 1).sum().to(total))


def guided_loss(looks: list[Tensor], frames: Tensor, tokens: Tensor, width: float) -> Loss:
    """How far from the diagonal attention looks (Tachibana et al. 2018, arXiv 1710.08969, section 3.2).

    Args:
        looks: by block, (B, heads, U, T), how tokens weigh the encoder's frames; each row sums to 1.
        frames, tokens: (B,) how many each utterance has.
        width: g of the penalty 1 - exp(-(u / U - t / T)^2 / 2 g^2).
    Returns:
        The penalty, summed over tokens (averaged over blocks and heads), and how many they are. Per token it lies
        between 0 and 1.
    """
    size_u, size_t = looks[0].shape[2:]
    device = looks[0].device
    u = torch.arange(size_u, device=device)[None, :, None] / tokens[:, None, None]
    t = torch.arange(size_t, device=device)[None, None, :] / frames[:, None, None]
    penalty = 1 - torch.exp(-((u - t) ** 2) / (2 * width**2))
    kept = padding_mask(tokens, size_u)[:, :, None] & padding_mask(frames, size_t)[:, None, :]
    total = sum((look.mean(1) * penalty * kept).sum() for look in looks) / len(looks)
    return Loss(total, tokens.sum().to(total))


class AsrTraining:
    """Training and judging a recogniser on ``data/<corpus>`` (see speechlab/training/interface.py)."""

    metric = METRICS["cer"]

    def __init__(self, config: Config, data: Path, device: torch.device, seed: int | None = None):
        self.config, self.data, self.device = config, data, device
        tokens = data / config.tokens.name()
        self.tokenizer = Tokenizer.load(tokens)
        self.auxiliary = Tokenizer.load(tokens, "auxiliary") if config.tokens.auxiliary else None
        parts = parts_of(self.tokenizer, self.auxiliary) if config.tokens.factored else None
        self.model: nn.Module = build_model(config, self.tokenizer, self.auxiliary, parts)
        self.seed = config.train.seed if seed is None else seed
        cuts, reader = read_features(data, config.features, "dev", config.data.on_the_fly)
        self.valid_cuts = cuts
        valid = SpeechDataset(CachedFeatures(reader), self.tokenizer, auxiliary=self.auxiliary)
        self.valid = EpochLoader(valid, cuts, config.data, train=False)
        self.shown = sorted(cut.id for cut in cuts)[:: max(1, len(cuts) // SHOWN)][:SHOWN]
        self.texts = {cut.id: cut.supervisions[0].text for cut in cuts}

    def loader(self, rank: int = 0, world_size: int = 1, accum: int = 1) -> EpochLoader:
        """Training batches for process ``rank`` of ``world_size``. A step of all processes takes ``accum`` batches."""
        config = self.config.data
        cuts, reader = read_features(self.data, self.config.features, "train", config.on_the_fly)
        kept = training_cuts(cuts, config, log.info if rank == 0 else None)
        if rank == 0:
            self._tell_pathless("training", kept)
            self._tell_pathless("validation", self.valid_cuts)
        dataset = SpeechDataset(CachedFeatures(reader), self.tokenizer, config.augment, self.seed, self.auxiliary)
        return EpochLoader(dataset, kept, config, train=True, seed=self.seed, rank=rank, world_size=world_size,
                           accum=accum)

    def _tell_pathless(self, which: str, cuts: CutSet) -> None:
        """Say which utterances CTC has no path for, as they are without augmentation."""
        short = self.pathless(cuts)
        if short:
            log.warning("%d of %d %s utterances have fewer encoder frames than CTC needs for their tokens (one each, "
                        "and one more between two equal ones) and are counted out of its loss: %s%s; less subsampling "
                        "(model.subsampling, model.halve_after) or larger units (tokens.kind: bpe) make them fit, or "
                        "their transcripts are wrong", len(short), len(cuts), which, ", ".join(short[:NAMED]),
                        ", ..." if len(short) > NAMED else "")

    @torch.no_grad()
    def pathless(self, cuts: CutSet) -> list[str]:
        """The ids of the cuts that have too few encoder frames for their tokens, sorted.

        How many frames an encoder makes of a length is seen by showing it silence of that length. More input never
        makes fewer frames, so a few lengths settle it for nearly all utterances.
        """
        if self.model.head is None:
            return []
        contract = self.config.features
        device = next(self.model.parameters()).device

        @functools.cache
        def frames(size: int) -> list[int]:
            found = self.model.encode(torch.zeros(1, size, contract.dim, device=device),
                                      torch.tensor([size], device=device))
            return [int(n) for n in (found.lengths, found.low_lengths) if n is not None]

        def needed(text: str, tokenizer: Tokenizer) -> int:
            ids = torch.tensor([tokenizer.encode(text)], dtype=torch.long)
            return int(frames_needed(ids, torch.tensor([ids.shape[1]])))

        targets = [self.tokenizer, self.auxiliary] if self.auxiliary else [self.tokenizer]
        training, short = self.model.training, []
        self.model.eval()
        with torch.random.fork_rng(devices=[]):  # whatever an encoder draws: the training's own numbers stay the same
            for cut in cuts:
                text = cut.supervisions[0].text
                size = cut.num_frames if cut.has_features else contract.frames(
                    round(cut.duration * contract.sample_rate))
                for place, tokenizer in enumerate(targets):
                    below = bisect.bisect(PROBES, size) - 1
                    certain = frames(PROBES[below])[place] if below >= 0 else 0
                    # Reading a text as phones is slow, and a character has no more than two.
                    if place and certain > 4 * len(text):
                        continue
                    need = needed(text, tokenizer)
                    if need > certain and need > frames(size)[place]:
                        short.append(cut.id)
                        break
        self.model.train(training)
        return sorted(short)

    def optimized(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.parameters())}

    def loss(self, batch: dict[str, Any], which: str) -> Loss:
        model: AsrModel = self.model  # type: ignore[assignment]
        return self.mixture(model, model.encode(batch["x"], batch["x_lens"]), batch)

    def mixture(self, model: AsrModel, found: Encoded, batch: dict[str, Any]) -> Loss:
        """The losses of ``model``, mixed as section ``loss`` says. Training and validation both use it."""
        config, y, y_lens = self.config.loss, batch["y"], batch["y_lens"]
        parts: list[tuple[float, Loss]] = []
        judged = torch.zeros_like(y_lens, dtype=torch.bool)  # the utterances that a part of the loss counts
        if found.log_probs is not None:
            share = config.auxiliary if found.low is not None else 0.0
            parts.append((config.ctc * (1 - share), collapse_loss(found.log_probs, found.lengths, y, y_lens)))
            judged |= frames_needed(y, y_lens) <= found.lengths
            if found.low is not None:
                low = collapse_loss(found.low, found.low_lengths, batch["z"], batch["z_lens"])
                parts.append((config.ctc * share, low))
                judged |= frames_needed(batch["z"], batch["z_lens"]) <= found.low_lengths
        if model.decoder is not None:
            looks: list[Tensor] | None = [] if config.guided else None
            logits = model.decoder(found.memory, found.mask, shifted(y, y_lens)[0], looks)
            parts.append((1 - config.ctc, attention_loss(logits, y, y_lens, config.label_smoothing)))
            judged[:] = True
            if looks:
                later = looks[1:] or looks  # the first block has seen no more than a token or two
                guided = guided_loss(later, found.lengths, y_lens + 1, config.guided_width)
                parts.append(((1 - config.ctc) * config.guided, guided))
        count = (y_lens * judged).sum().to(found.memory.dtype if found.memory.dtype == torch.float64 else torch.float32)
        total = sum(weight * part.total / part.count.clamp(min=1) for weight, part in parts) * count
        return Loss(total, count)

    def evaluate(self, model: nn.Module) -> Evaluation:
        total = count = 0.0
        hyps: dict[str, str] = {}
        drawn: dict[str, np.ndarray] = {}
        for batch in self.valid.batches():
            batch = to_device(batch, self.device)
            found = model.encode(batch["x"], batch["x_lens"])
            loss = self.mixture(model, found, batch)
            if found.log_probs is not None:
                answers = ctc.greedy(found.log_probs, found.lengths)
            else:
                scorer = model.decoder.scorer(found.memory, found.mask)
                answers = [best[0] for best in beam_search(
                    {"attention": (scorer, 1.0)}, len(found.memory), max_lengths=found.lengths,
                    vocab=len(self.tokenizer), beam=1, nbest=1)]
            total, count = total + float(loss.total), count + float(loss.count)
            for name, hyp in zip(batch["ids"], answers, strict=True):
                hyps[name] = self.tokenizer.decode(hyp.tokens)
            if model.decoder is not None:
                drawn |= self._alignments(model, found, batch)
        refs = [" ".join(units(self.texts[n], "char")) for n in hyps]
        rate = jiwer.process_words(refs, [" ".join(units(h, "char")) for h in hyps.values()])
        samples = [(n, self.texts[n], hyps[n]) for n in self.shown if n in hyps]
        phase = "all blank" if model.head is not None and 100 * rate.wer >= ALL_BLANK else ""
        pictures = {"attention": mosaic([drawn[name] for name in self.shown if name in drawn])} if drawn else {}
        return Evaluation({"loss": total / max(count, 1), "cer": 100 * rate.wer}, samples, images=pictures, phase=phase,
                          captions={"attention": CAPTION} if pictures else {})

    def _alignments(self, model: AsrModel, found: Encoded, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of where the decoder looks while it is given the reference, by id, for the utterances of samples.md
        that are in this batch.

        A picture has a row per token and a column per frame of the encoder. Dark is a large weight (mean over heads).
        The decoder's blocks are drawn side by side. A decoder that has learnt to listen shows a diagonal.
        """
        pictures = {}
        for row in (row for row, name in enumerate(batch["ids"]) if name in self.shown):
            size = min(int(batch["y_lens"][row]), DRAWN)
            frames = int(found.lengths[row])
            given = F.pad(batch["y"][row:row + 1, :size], (1, 0), value=BOUNDARY)
            weights = model.decoder.alignment(found.memory[row:row + 1, :frames], given)[:, 0].mean(1)
            scale = max(2, min(10, 320 // max(frames, 1)))
            blocks = [matrix(block.float().cpu().numpy(), scale) for block in weights]
            gap = np.full((blocks[0].shape[0], 6, 1), 255, np.uint8)
            pictures[batch["ids"][row]] = np.concatenate([part for block in blocks for part in (block, gap)][:-1], 1)
        return pictures

    def state(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "features": self.config.features.to_dict(),
                "tokens": self.tokenizer.state(), "auxiliary": self.auxiliary.state() if self.auxiliary else None}


def build_model(config: Config, tokenizer: Tokenizer, auxiliary: Tokenizer | None, parts: Tensor | None) -> AsrModel:
    """The network that a config describes. ``parts`` (vocab, auxiliary units), see :func:`parts_of`, is for a factored
    output layer."""
    try:
        encoder = adapt(config.model.build(input_size=config.features.dim))
        if not hasattr(encoder, "output_size"):
            raise UserError(f"model.class {config.model.path}: an encoder must say its output_size")
        if auxiliary is not None and not (takes_between(type(encoder))
                                          and 1 <= config.loss.layer <= len(getattr(encoder, "blocks", ()))):
            raise UserError(f"loss.layer = {config.loss.layer}: {config.model.path} has no such block to judge", 2)
        decoder = dataclasses.asdict(config.decoder) if config.decoder.layers else None
        return AsrModel(encoder, len(tokenizer), ctc=config.loss.ctc > 0, decoder=decoder, parts=parts,
                        auxiliary_size=len(auxiliary or ()), auxiliary_layer=config.loss.layer)
    except (ValueError, TypeError) as error:
        raise UserError(f"model: {error}", 2) from None


def parts_of(tokenizer: Tokenizer, auxiliary: Tokenizer) -> Tensor:
    """(vocab, auxiliary units): 1 if the auxiliary unit is in the reading of the unit (read alone), else 0."""
    parts = torch.zeros(len(tokenizer), len(auxiliary))
    for row, unit in enumerate(tokenizer.units[2:], 2):
        if tokenizer.kind in PIECES and not unit.startswith(SPACE):
            continue  # a piece from the middle of a word: nobody knows how it sounds
        for column in auxiliary.encode(unit.replace(SPACE, " ").strip()):
            if column > 1:  # the auxiliary unit is in its list
                parts[row, column] = 1.0
    return parts
