"""Augmentation of images as tensor operations on the whole batch, on its device; each image has its own draw."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Augment:
    """Section ``data.augment``; what is 0 or off does nothing.

    flip: left and right change places: ``on`` in half of the images at random; ``alternate`` in every other epoch, so
    that each pair of epochs shows both (which comes first is drawn once an image): Jordan 2024 (arXiv 2404.00498).
    translate: shift by at most so many whole pixels each way. padding: what comes in at the border then, and under
    ``degrees``, ``scale``, ``shear``, ``elastic``: the image mirrored, its edge repeated, or zeros (after normalisation
    the mean colour, which is not the black of MNIST's border).
    cutout: a square of so many pixels a side, its centre anywhere, is set to 0: DeVries and Taylor 2017 (arXiv
    1708.04552).
    degrees, shear: at most so many degrees of rotation and slant, either way. scale: larger or smaller by at most this
    share (0.1: from 0.9 to 1.1).
    elastic: pixels (standard deviation) by which the nodes of a coarse grid move, 7 pixels or so apart, the rest
    following smoothly: Ronneberger et al. 2015 (arXiv 1505.04597), after Simard et al. 2003.
    """

    flip: Literal["off", "on", "alternate"] = "off"
    translate: int = 0
    padding: Literal["reflect", "edge", "zeros"] = "reflect"
    cutout: int = 0
    degrees: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        for name, most in {"translate": math.inf, "cutout": math.inf, "degrees": 180, "shear": 60, "scale": 0.9,
                           "elastic": math.inf}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 0 to {most}")


@torch.no_grad()
def augment(x: Tensor, rng: torch.Generator | None, config: Augment, flip: Tensor | None = None) -> Tensor:
    """(B, C, H, W) float -> the same shape and memory format, each image changed by its own draw.

    Args:
        rng: draws from this generator (where it lives; None: the device's global one).
        flip: (B,) bool, for ``flip: alternate``: which images are mirrored now (ImageLoader's batch["flip"]).
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, enabled=False):  # positions in bf16 would be pixels off
        if config.flip == "on":
            x = mirror(x, _draw((len(x),), rng, x.device) < 0.5)
        elif config.flip == "alternate":
            if flip is None:
                raise ValueError("flip: alternate needs the batch's flip")
            x = mirror(x, flip.to(x.device))
        if config.degrees or config.scale or config.shear or config.elastic:
            x = warp(x, _matrices(x, rng, config), _displacements(x, rng, config.elastic), config.padding)
        if config.translate:
            x = translate(x, _integers(2 * config.translate + 1, (2, len(x)), rng, x.device) - config.translate,
                          config.translate, config.padding)
        if config.cutout:
            size = torch.tensor(x.shape[2:], device=x.device)[:, None]
            x = cutout(x, (_draw((2, len(x)), rng, x.device) * size).long(), config.cutout)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def mirror(x: Tensor, which: Tensor) -> Tensor:
    """Left and right change places in the images that ``which``, (B,) bool, names."""
    return torch.where(which[:, None, None, None], x.flip(3), x)


def translate(x: Tensor, shift: Tensor, most: int, padding: str = "reflect") -> Tensor:
    """Image b moves ``shift[0, b]`` pixels down and ``shift[1, b]`` to the right, at most ``most`` each way."""
    batch, _, height, width = x.shape
    padded = _pad(x, most, padding)
    # All windows of the padded images as a view, of which each image picks one: one copy, of whole rows.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = most - shift
    return windows[torch.arange(batch, device=x.device), :, rows, columns]


def cutout(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """A square of ``side`` pixels around ``centre[:, b]`` (row, column) is set to 0, as far as it is inside."""
    inside = []
    for middle, length in zip(centre, x.shape[2:]):
        away = torch.arange(length, device=x.device)[None] - middle[:, None] + side // 2
        inside.append((away >= 0) & (away < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def warp(x: Tensor, matrix: Tensor, displacement: Tensor | None = None, padding: str = "reflect") -> Tensor:
    """Resample bilinearly: the pixel at p (x, y, from the image's middle) shows what stood at ``matrix[b]`` p + d.

    matrix: (B, 2, 2), acting on (x, y) in pixels; displacement: (B, 2, H, W), d in pixels (x, y).
    """
    batch, _, height, width = x.shape
    half = torch.tensor([width / 2, height / 2], device=x.device)  # grid_sample's unit, by axis
    theta = matrix.float() * half[None, None, :] / half[None, :, None]
    grid = F.affine_grid(F.pad(theta, (0, 1)), [batch, 1, height, width], align_corners=False)
    if displacement is not None:
        grid = grid + (displacement / half[:, None, None]).permute(0, 2, 3, 1)
    mode = {"reflect": "reflection", "edge": "border", "zeros": "zeros"}[padding]
    return F.grid_sample(x.float(), grid, "bilinear", mode, align_corners=False).to(x.dtype)


def _matrices(x: Tensor, rng: torch.Generator | None, config: Augment) -> Tensor:
    """(B, 2, 2): rotation times slant times scale, each drawn evenly from its range."""
    turn, slant, size = 2 * _draw((3, len(x)), rng, x.device) - 1
    turn, slant = turn * math.radians(config.degrees), torch.tan(slant * math.radians(config.shear))
    size = 1 / (1 + config.scale * size)  # we say where a pixel comes from: larger is nearer to the middle
    cos, sin = turn.cos(), turn.sin()
    rows = [cos, cos * slant - sin, sin, sin * slant + cos]
    return (torch.stack(rows) * size).T.reshape(-1, 2, 2)


def _displacements(x: Tensor, rng: torch.Generator | None, pixels: float) -> Tensor | None:
    """(B, 2, H, W) in pixels, smooth; None where nothing moves."""
    if not pixels:
        return None
    height, width = x.shape[2:]
    nodes = (len(x), 2, max(3, round(height / 7)), max(3, round(width / 7)))
    moved = _normal(nodes, rng, x.device) * pixels
    return _bicubic(nodes[2], height, x.device) @ moved @ _bicubic(nodes[3], width, x.device).T


def _bicubic(nodes: int, pixels: int, device: torch.device) -> Tensor:
    """(pixels, nodes): bicubic interpolation as a matrix, many times faster on a CPU than interpolating each image."""
    unit = torch.eye(nodes, device=device)[None, :, :, None]
    return F.interpolate(unit, (pixels, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T


def _pad(x: Tensor, by: int, padding: str) -> Tensor:
    if padding == "reflect" and by >= min(x.shape[2:]):
        raise ValueError(f"translate = {by} is too much for images of {x.shape[2]} x {x.shape[3]} that are reflected")
    mode = {"reflect": "reflect", "edge": "replicate", "zeros": "constant"}[padding]
    return F.pad(x, (by,) * 4, mode)


def _draw(shape: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.rand(shape, generator=rng, device=device if rng is None else rng.device).to(device)


def _normal(shape: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=rng, device=device if rng is None else rng.device).to(device)


def _integers(below: int, shape: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.randint(below, shape, generator=rng, device=device if rng is None else rng.device).to(device)
