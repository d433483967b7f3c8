"""A trained classifier: uint8 images in, a probability of each class out. It can average over views of an image."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab import tasks
from speechlab.data.image_augment import mirror, translate
from speechlab.data.images import ImageLoader, Pack, to_float
from speechlab.data.inputs import picture
from speechlab.errors import UserError
from speechlab.files import write_json, write_text
from speechlab.progress import progress
from speechlab.tasks.image.config import Config
from speechlab.tasks.image.train import build_model
from speechlab.tasks.interface import Model
from speechlab.training.device import amp_dtype

METHODS = {"plain": "the image as it is", "tta": "views of it averaged, as decode.tta says"}
SHIFT = 1  # pixels by which the views of tta: translate are moved


class Classifier(Model):
    """A trained network from its checkpoint.

    Args:
        state: a checkpoint of the task ``image``.
        device: where to compute.
    """

    def __init__(self, state: dict[str, Any], device: torch.device):
        config = tasks.from_dict(state["config"], "the checkpoint's config")
        if not isinstance(config, Config):
            raise UserError(f"this checkpoint classifies no images: its task is {config.task}")
        self.config, self.device = config, device
        self.classes, self.size, self.channels = list(state["classes"]), tuple(state["size"]), state["channels"]
        self.mean, self.std = state["mean"], state["std"]
        self.model = build_model(config, (self.channels, *self.size), len(self.classes))
        self.model.load_state_dict(state["model"])
        self.model.to(device).eval()
        self.dtype = amp_dtype(config.train.amp, device)

    def methods(self) -> dict[str, str]:
        """The methods: plain, and ``tta`` if ``decode.tta`` is set."""
        return {name: about for name, about in METHODS.items() if name == "plain" or self.config.decode.tta != "none"}

    def __call__(self, source: Any, rate: int | None = None, method: str | None = None) -> dict[str, Any]:
        """The class of one picture: a file's path, or pixels (H, W), (H, W, 1) or (H, W, 3) uint8 of any size.

        Returns:
            ``hyp`` (the class), ``prob`` (its probability, 0 to 1), and ``probs`` (of each class, the likeliest first).
        """
        method = method or list(self.methods())[-1]
        if method not in self.methods():
            raise UserError(f"no method '{method}': there are {', '.join(self.methods())}", 2)
        pixels = picture(source, (*self.size, self.channels)).copy()  # PIL gives what can only be read
        found = self.probabilities(torch.from_numpy(pixels)[None], method)[0]
        order = found.argsort(descending=True).tolist()
        probs = {self.classes[i]: round(float(found[i]), 6) for i in order}
        return {"hyp": self.classes[order[0]], "prob": probs[self.classes[order[0]]], "probs": probs}

    def suits(self, pack: Pack) -> None:
        """Raise UserError if the network was trained on other classes than the pack's, or on images of other shape."""
        if (pack.size, pack.channels) != (self.size, self.channels):
            raise UserError(f"{pack.folder} has images of {pack.size[0]} x {pack.size[1]} x {pack.channels}, the "
                            f"network was trained on {self.size[0]} x {self.size[1]} x {self.channels}")
        if list(pack.classes) != self.classes:
            raise UserError(f"{pack.folder} has the classes {', '.join(pack.classes)}; the network was trained on "
                            f"{', '.join(self.classes)}")

    @torch.no_grad()
    def probabilities(self, x: Tensor, method: str = "plain") -> Tensor:
        """uint8 (B, H, W, C) -> (B, classes) on the CPU, summing to 1."""
        x = to_float(x.to(self.device), self.mean, self.std)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            views = self._views(x) if method == "tta" else [(1.0, x)]
            logits = sum(weight * self.model(view).float() for weight, view in views)
        return logits.softmax(1).cpu()

    def _views(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """(weight, view of ``x``) pairs, for averaging; the weights sum to 1."""
        config, augment = self.config.decode, self.config.data.augment
        views = [(1.0, x)]
        if config.tta == "translate":
            views = [(0.5, x)]
            for by in (-SHIFT, SHIFT):
                shift = torch.full((2, len(x)), by, device=x.device)
                views.append((0.25, translate(x, shift, SHIFT, augment.padding)))
        if config.tta == "flip" or augment.flip != "off":
            all_ = torch.ones(len(x), dtype=torch.bool, device=x.device)
            views = [(weight / 2, view) for weight, seen in views for view in (seen, mirror(seen, all_))]
        return [(weight, view.contiguous(memory_format=torch.channels_last)) for weight, view in views]


def predict(classifier: Classifier, pack: Pack, split: str, methods: list[str], exp: Path) -> None:
    """Write ``exp/decode/<method>/<split>/{pred.jsonl, classes.json, time.json}`` for each method.

    A line of pred.jsonl is ``{"id", "index", "ref", "hyp", "prob", "prob_ref"}``: the names of the true class (ref) and
    of the answer (hyp), and the probabilities that the network gave to hyp and to ref.
    """
    loader = ImageLoader(pack, split, classifier.config.decode.batch_size, train=False)
    names = classifier.classes
    for method in methods:
        lines, seconds = [], 0.0
        for batch in progress(loader.batches(), f"{split} {method}", total=loader.size()):
            began = time.perf_counter()
            found = classifier.probabilities(batch["x"], method)
            seconds += time.perf_counter() - began
            top, best = found.max(1)
            own = found.gather(1, batch["y"][:, None])[:, 0]
            for row in zip(batch["ids"], batch["index"].tolist(), batch["y"].tolist(), best.tolist(), top.tolist(),
                           own.tolist(), strict=True):
                name, index, ref, hyp, prob, prob_ref = row
                lines.append(json.dumps({"id": name, "index": index, "ref": names[ref], "hyp": names[hyp],
                                         "prob": round(prob, 6), "prob_ref": round(prob_ref, 6)}, ensure_ascii=False))
        folder = exp / "decode" / method / split
        write_text(folder / "pred.jsonl", "\n".join(lines) + "\n")
        write_json(folder / "classes.json", names)
        write_json(folder / "time.json", {"images": len(lines), "seconds": seconds,
                                          "images_per_second": len(lines) / max(seconds, 1e-9),
                                          "device": str(classifier.device), "threads": torch.get_num_threads()})
        print(f"{split} {method}: {len(lines)} images, {len(lines) / max(seconds, 1e-9):.0f} images/s", flush=True)
