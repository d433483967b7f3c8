"""Augmentation of images against numpy, torch's own functions, and itself: each image its own draw, always the same."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from speechlab.data.image_augment import Augment, _bicubic, _matrices, augment, cutout, mirror, translate, warp

X = torch.randn(16, 3, 12, 10, generator=torch.Generator().manual_seed(0))
EVERYTHING = Augment(flip="on", translate=2, cutout=4, degrees=10, scale=0.1, shear=5, elastic=1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_to_do_changes_nothing():
    assert torch.equal(augment(X, seeded(), Augment()), X)


@pytest.mark.parametrize("padding", ["reflect", "edge", "zeros"])
def test_translate_against_numpy(padding):
    shift = torch.randint(7, (2, 16), generator=seeded()) - 3
    found = translate(X, shift, 3, padding)
    mode = {"reflect": "reflect", "edge": "edge", "zeros": "constant"}[padding]
    for image, (down, right), moved in zip(X.numpy(), shift.T.tolist(), found.numpy()):
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode)
        assert np.array_equal(moved, padded[:, 3 - down : 15 - down, 3 - right : 13 - right])


def test_all_shifts_are_drawn_alike():
    one = torch.zeros(4000, 1, 9, 9)
    one[:, 0, 4, 4] = 1
    where = augment(one, seeded(), Augment(translate=2, padding="zeros")).mean(0)[0]
    assert torch.allclose(where[2:7, 2:7], torch.full((5, 5), 1 / 25), atol=0.015)
    assert where[2:7, 2:7].sum().item() == pytest.approx(1)


def test_mirror():
    which = torch.arange(16) % 3 == 0
    found = mirror(X, which)
    assert torch.equal(found[which], torch.fliplr(X[which].permute(2, 3, 0, 1)).permute(2, 3, 0, 1))
    assert torch.equal(found[~which], X[~which])


def test_flips():
    many = X[:1].repeat(2000, 1, 1, 1)
    flipped = (augment(many, seeded(), Augment(flip="on")) != many).flatten(1).any(1)
    assert 900 < int(flipped.sum()) < 1100
    which = torch.arange(16) < 5
    assert torch.equal(augment(X, seeded(), Augment(flip="alternate"), flip=which), mirror(X, which))
    with pytest.raises(ValueError, match="needs the batch's flip"):
        augment(X, seeded(), Augment(flip="alternate"))


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_against_numpy(side):
    centre = torch.tensor([[0, 5, 11, 6], [0, 5, 9, 0]])
    for image, (row, column), found in zip(X[:4].numpy(), centre.T.tolist(), cutout(X[:4], centre, side).numpy()):
        wanted = image.copy()
        top, left = row - side // 2, column - side // 2
        wanted[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert np.array_equal(found, wanted)


def test_warp_by_a_quarter_turn_moves_whole_pixels():
    square = X[:, :, :10]
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(16, 2, 2)  # (x, y) shows what stood at (-y, x)
    found = warp(square, quarter)
    wanted = torch.stack([square[:, :, column, 9 - row] for row in range(10) for column in range(10)], dim=2)
    assert torch.allclose(found, wanted.reshape(16, 3, 10, 10), atol=1e-5)
    assert torch.allclose(warp(found, quarter.transpose(1, 2)), square, atol=1e-5)


@pytest.mark.parametrize("padding", ["reflect", "edge", "zeros"])
def test_warp_by_whole_pixels_is_translate(padding):
    """In images that are not square: pixels are pixels along both axes."""
    moved = torch.tensor([2.0, -1.0])[None, :, None, None].expand(16, 2, 12, 10)  # from 2 to the right, 1 above
    found = warp(X, torch.eye(2).expand(16, 2, 2), moved, padding)
    wanted = translate(X, torch.tensor([[1], [-2]]).expand(2, 16), 3, padding)
    inner = (slice(None), slice(None), slice(1, None), slice(0, -2))  # reflection is about edges, not about pixels
    assert torch.allclose(found[inner], wanted[inner], atol=1e-5)
    if padding != "reflect":
        assert torch.allclose(found, wanted, atol=1e-5)


def test_the_matrices_turn_slant_and_scale():
    x = torch.zeros(2000, 1, 4, 4)
    turns = _matrices(x, seeded(), Augment(degrees=30))
    assert torch.allclose(turns @ turns.transpose(1, 2), torch.eye(2).expand(2000, 2, 2), atol=1e-6)
    angles = torch.rad2deg(torch.atan2(turns[:, 1, 0], turns[:, 0, 0]))
    assert -30 <= angles.min() < -28 and 28 < angles.max() <= 30
    sizes = 1 / torch.linalg.det(_matrices(x, seeded(), Augment(scale=0.2))).sqrt()
    assert 0.8 - 1e-5 <= sizes.min() < 0.81 and 1.19 < sizes.max() <= 1.2 + 1e-5
    slants = _matrices(x, seeded(), Augment(shear=20))
    assert torch.allclose(torch.linalg.det(slants), torch.ones(2000), atol=1e-5)
    assert slants[:, 0, 1].abs().max() <= math.tan(math.radians(20)) + 1e-6


def test_bicubic_as_a_matrix_is_torchs():
    nodes = torch.randn(3, 2, 4, 5, generator=seeded())
    wanted = F.interpolate(nodes, (28, 32), mode="bicubic", align_corners=True)
    found = _bicubic(4, 28, nodes.device) @ nodes @ _bicubic(5, 32, nodes.device).T
    assert torch.allclose(found, wanted, atol=1e-5)


def test_elastic_moves_by_about_so_many_pixels():
    """A slope shows by how much it was moved: its value is its place."""
    slope = torch.arange(28.0).expand(500, 1, 28, 28)
    moved = (augment(slope, seeded(), Augment(elastic=0.7, padding="edge")) - slope)[:, :, 7:-7, 7:-7]
    assert 0.35 < moved.std() < 0.7  # between its nodes it moves less than at them
    steps = (moved[..., 1:] - moved[..., :-1]).abs()
    assert steps.max() < 1  # smooth: nothing is turned over


@pytest.mark.parametrize("config", [EVERYTHING, Augment(degrees=20), Augment(translate=3), Augment(cutout=5)])
def test_each_image_has_its_own_draw_and_it_is_seeded(config):
    many = X[:1].repeat(6, 1, 1, 1)
    found = augment(many, seeded(3), config)
    assert torch.equal(found, augment(many, seeded(3), config))
    assert not torch.equal(found, augment(many, seeded(4), config))
    assert len({tuple(image.flatten().tolist()) for image in found}) > 3
    assert torch.equal(many, X[:1].repeat(6, 1, 1, 1))  # in place would spoil what is kept on the device


def test_without_a_generator_torchs_own_is_used():
    torch.manual_seed(5)
    found = augment(X, None, EVERYTHING)
    torch.manual_seed(5)
    assert torch.equal(found, augment(X, None, EVERYTHING))


def test_shape_layout_and_kind_are_kept():
    last = X.contiguous(memory_format=torch.channels_last)
    for x in (X, last, X[:, :1].contiguous()):
        found = augment(x, seeded(), EVERYTHING)
        assert found.shape == x.shape and found.dtype == x.dtype and found.stride() == x.stride()
    assert torch.equal(augment(X, seeded(), EVERYTHING), augment(last, seeded(), EVERYTHING))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(X, seeded(), EVERYTHING), augment(last, seeded(), EVERYTHING))


@pytest.mark.parametrize("wrong", [{"translate": -1}, {"cutout": -2}, {"degrees": 181}, {"scale": 1.0}, {"shear": 61}])
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)


def test_more_reflection_than_there_is_image():
    with pytest.raises(ValueError, match="translate = 10 is too much for images of 12 x 10"):
        augment(X, seeded(), Augment(translate=10))
