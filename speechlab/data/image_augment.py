"""Augmentation of images: tensor operations on a whole batch, on its device; each image has its own random draw."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.ranges import within


@dataclasses.dataclass(frozen=True)
class Augment:
    """Section ``data.augment`` for images; what is 0 or off does nothing."""

    # Mirror left and right: on, in half of the images at random; alternate, in every other epoch, so that each pair of
    # epochs shows both sides (which one comes first is drawn once per image): Jordan 2024 (arXiv 2404.00498).
    flip: Literal["off", "on", "alternate"] = "off"
    translate: int = 0  # whole pixels of the largest shift, each way in height and width
    # What comes in at the border when an image is moved or warped: reflect: the image mirrored; edge: its edge
    # repeated; zeros: after normalisation the mean colour, which is not the black of MNIST's border.
    padding: Literal["reflect", "edge", "zeros"] = "reflect"
    # Side in pixels of a square that is set to 0, its centre anywhere: DeVries and Taylor 2017 (arXiv 1708.04552).
    cutout: int = 0
    degrees: float = 0.0  # largest rotation, either way
    scale: float = 0.0  # largest change of size: 0.1 draws from 0.9 to 1.1 times
    shear: float = 0.0  # degrees of the largest slant, either way
    # Elastic distortion: the nodes of a coarse grid, about 7 pixels apart, move by random pixels with this standard
    # deviation, and the rest follows smoothly: Ronneberger et al. 2015 (arXiv 1505.04597), after Simard et al. 2003.
    elastic: float = 0.0

    def __post_init__(self) -> None:
        within(self, "translate", "cutout", "elastic", least=0)
        for name, most in {"degrees": 180, "shear": 60, "scale": 0.9}.items():
            within(self, name, least=0, most=most)


@torch.no_grad()
def augment(x: Tensor, rng: torch.Generator | None, config: Augment, flip: Tensor | None = None) -> Tensor:
    """(B, C, H, W) float -> the same shape and memory format, each image changed by its own draw.

    Args:
        rng: the random generator to draw from, on its own device; None: the global one of the batch's device.
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
    """Mirror left and right in the images of x (B, C, H, W) where ``which`` (B,) is True."""
    return torch.where(which[:, None, None, None], x.flip(3), x)


def translate(x: Tensor, shift: Tensor, most: int, padding: str = "reflect") -> Tensor:
    """Move image b of x (B, C, H, W) by ``shift[0, b]`` pixels down and ``shift[1, b]`` right, ``most`` at most."""
    batch, _, height, width = x.shape
    padded = _pad(x, most, padding)
    # All windows of the padded images as a view, of which each image picks one: one copy, of whole rows.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = most - shift
    return windows[torch.arange(batch, device=x.device), :, rows, columns]


def cutout(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of ``side`` pixels around ``centre[:, b]`` (row, column) to 0, as far as it is in the image."""
    inside = []
    for middle, length in zip(centre, x.shape[2:]):
        away = torch.arange(length, device=x.device)[None] - middle[:, None] + side // 2
        inside.append((away >= 0) & (away < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def warp(x: Tensor, matrix: Tensor, displacement: Tensor | None = None, padding: str = "reflect") -> Tensor:
    """Warp x (B, C, H, W), bilinearly: the pixel at p shows what stood at ``matrix[b]`` p + d.

    Args:
        matrix: (B, 2, 2); it acts on p = (x, y), in pixels from the image's middle.
        displacement: (B, 2, H, W), d = (x, y) of each pixel, in pixels; None for 0.
        padding: as :class:`Augment` says.
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
    """Matrices (B, 2, 2) for :func:`warp`: rotation times slant times scale, each drawn evenly from its range."""
    turn, slant, size = 2 * _draw((3, len(x)), rng, x.device) - 1
    turn, slant = turn * math.radians(config.degrees), torch.tan(slant * math.radians(config.shear))
    size = 1 / (1 + config.scale * size)  # inverted, since a warp says where a pixel comes from
    cos, sin = turn.cos(), turn.sin()
    rows = [cos, cos * slant - sin, sin, sin * slant + cos]
    return (torch.stack(rows) * size).T.reshape(-1, 2, 2)


def _displacements(x: Tensor, rng: torch.Generator | None, pixels: float) -> Tensor | None:
    """Smooth displacements (B, 2, H, W) in pixels for :func:`warp`; None where nothing moves."""
    if not pixels:
        return None
    height, width = x.shape[2:]
    nodes = (len(x), 2, max(3, round(height / 7)), max(3, round(width / 7)))
    moved = _normal(nodes, rng, x.device) * pixels
    return _bicubic(nodes[2], height, x.device) @ moved @ _bicubic(nodes[3], width, x.device).T


def _bicubic(nodes: int, pixels: int, device: torch.device) -> Tensor:
    """Bicubic interpolation as a matrix (pixels, nodes): on a CPU many times faster than interpolating each image."""
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
