"""Looks inside a network: gradient norms and dead units of each layer, and pictures of the layers' outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)
STILL = 1e-3  # a unit is dead if its outputs for all images differ by less than this
MAPS = 8  # feature maps that are drawn per layer
SCALE = 2  # an image's pixel is drawn as so many pixels, in height and in width
GAP = 2


def layer_name(path: str) -> str:
    """A module's path without the parts that all layers share: ``layers.conv1.op`` -> ``conv1``."""
    parts = [part for part in path.split(".") if part not in ("layers", "head", "stages", "op", "act")]
    return ".".join(parts) or path


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, float]:
    """{layer: norm of the gradient of its weights} for linear layers and convolutions, of the last step, after
    clipping."""
    found = {layer_name(name): module.weight.grad for name, module in model.named_modules()
             if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.grad is not None}
    if not found:
        return {}
    norms = torch.stack(torch._foreach_norm(list(found.values()))).tolist()  # one transfer from the GPU for all layers
    return dict(zip(found, norms))


@contextlib.contextmanager
def answers(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A context that keeps the last output of each activation of ``model``: {layer: output}, in the order of
    computation."""
    kept: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            kept[name] = output
        return hook

    handles = [module.register_forward_hook(keep(layer_name(name) or name)) for name, module in model.named_modules()
               if isinstance(module, ACTIVATIONS)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def dead_units(kept: dict[str, Tensor]) -> dict[str, float]:
    """{layer: share of its units (channels) that are dead, 0 to 1}. A dead unit gives the same output for all images
    and at all places.

    So a ReLU that is never above 0 is dead, and a saturated sigmoid too: no gradient passes through either.
    """
    shares = {}
    for name, output in kept.items():
        flat = output.float().transpose(0, 1).flatten(1)  # (units, images x places)
        shares[name] = float(((flat.amax(1) - flat.amin(1)) < STILL).float().mean())
    return shares


def picture(images: Tensor, model: nn.Module, kept: dict[str, Tensor]) -> np.ndarray:
    """Draw one row per image: the image, then the first :data:`MAPS` feature maps of convolutional layers. Of layers
    whose maps have the same size, the last one is drawn.

    If the first layer works on pixels directly (as in an MLP), a row above shows the weights of its first units as
    images.

    Args:
        images: (N, C, H, W), as the network sees them.
        model: the network.
        kept: what :func:`answers` kept for exactly these images.

    Returns:
        (height, width, 3) uint8. Each map is scaled to its own range. A positive weight is red, a negative one blue.
    """
    height, width = images.shape[-2:]
    rows: list[list[np.ndarray]] = []
    first = next((m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))), None)
    if isinstance(first, nn.Linear) and first.in_features == images[0].numel():
        size = (-1, *images.shape[1:])
        rows.append([_signed(w) for w in first.weight.detach().float().view(size).mean(1)[: 2 * MAPS].cpu()])
    maps: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    for name, output in kept.items():
        if output.ndim == 4 and output.shape[-1] > 1:
            maps[tuple(output.shape[-2:])] = (name, output)  # the last layer of each size replaces those before it
    for i, image in enumerate(images.float().cpu()):
        row = [_stretched(image)]
        for _, output in maps.values():
            row += [_enlarged(_stretched(one[None]), height, width) for one in output[i, :MAPS].float().cpu()]
        if not maps:  # the layers give vectors: draw each as a square of dots
            row += [_enlarged(_stretched(_square(output[i].float().cpu())), height, width) for output in kept.values()]
        rows.append(row)
    return _mosaic(rows, height * SCALE, width * SCALE)


def _square(values: Tensor) -> Tensor:
    side = math.ceil(math.sqrt(values.numel()))
    return torch.nn.functional.pad(values.flatten(), (0, side * side - values.numel())).view(1, side, side)


def _stretched(x: Tensor) -> np.ndarray:
    """(1 or 3, H, W) of any range -> (H, W, 3) uint8."""
    low, high = x.amin(), x.amax()
    x = ((x - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
    return (x if len(x) == 3 else x[:1].expand(3, -1, -1)).permute(1, 2, 0).numpy()


def _signed(w: Tensor) -> np.ndarray:
    """(H, W) weights -> (H, W, 3) uint8: white at 0, red above, blue below."""
    part = (w / w.abs().max().clamp(min=1e-6)).clamp(-1, 1)
    up, down = part.clamp(min=0), (-part).clamp(min=0)
    return ((1 - torch.stack([down, up + down, up], -1)) * 255).round().to(torch.uint8).numpy()


def _enlarged(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) -> (height, width, 3), each pixel from the nearest one."""
    rows = np.arange(height) * x.shape[0] // height
    columns = np.arange(width) * x.shape[1] // width
    return x[rows][:, columns]


def _mosaic(rows: list[list[np.ndarray]], height: int, width: int) -> np.ndarray:
    """Put tiles in rows on a white page, each enlarged to height x width."""
    columns = max(len(row) for row in rows)
    page = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            y, x = i * (height + GAP), j * (width + GAP)
            page[y:y + height, x:x + width] = _enlarged(tile, height, width)
    return page
