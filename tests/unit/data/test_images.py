"""Packs of images: what is written and read back, what is refused, what a failure keeps; the batches of an epoch."""

import json
import os

import numpy as np
import pytest
import torch

from speechlab.data import image_pack
from speechlab.data.images import ImageLoader, Pack, to_float, write_pack
from speechlab.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (1300, 6, 8, 3), dtype=np.uint8)
Y = np.arange(1300) % 4
CLASSES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack"), {"train": (X, Y), "test": (X[:10], Y[:10])}, CLASSES, "made")


# --- packs

def test_what_is_written_is_read(pack):
    again = Pack.open(pack.folder)
    assert again == pack
    assert (again.classes, again.size, again.channels, again.source) == (("a", "b", "c", "d"), (6, 8), 3, "made")
    found, labels = again.split("train")
    assert isinstance(found, np.memmap) and not found.flags.writeable
    assert np.array_equal(found, X) and np.array_equal(labels, Y) and labels.dtype == np.int64
    assert again.splits["test"] == {"count": 10, "per_class": [3, 3, 2, 2]}
    assert again.ids("test")[9] == "test-00009"


def test_mean_and_std_are_those_of_train(pack):
    assert pack.mean == pytest.approx((X / 255).mean(axis=(0, 1, 2)).tolist(), abs=1e-12)
    assert pack.std == pytest.approx((X / 255).std(axis=(0, 1, 2)).tolist(), abs=1e-12)


def test_images_one_by_one_with_some_left_out(tmp_path):
    """As a corpus that reads files gives them; the header has room for a count that is known at the end only."""
    some = (None if number % 3 == 0 else image for number, image in enumerate(X))
    made = write_pack(tmp_path, {"train": (some, Y.tolist(), [f"n{i}" for i in range(1300)])}, CLASSES, "x")
    there = np.arange(1300) % 3 != 0
    found, labels = made.split("train")
    assert np.array_equal(found, X[there]) and np.array_equal(labels, Y[there])
    assert made.ids("train") == [f"n{i}" for i in np.flatnonzero(there)]
    assert made.mean == pytest.approx((X[there] / 255).mean(axis=(0, 1, 2)).tolist())


def test_one_colour_has_a_std_to_divide_by(tmp_path):
    made = write_pack(tmp_path, {"train": (np.full((4, 2, 2, 1), 7, np.uint8), [0, 1, 0, 1])}, ["a", "b"], "x")
    assert made.mean == pytest.approx((7 / 255,)) and made.std == pytest.approx((1 / 255,))


def test_a_split_that_is_no_more_goes(tmp_path):
    write_pack(tmp_path, {"train": (X, Y), "dev": (X, Y, ["i"] * 1300)}, CLASSES, "x")
    (tmp_path / "notes.txt").write_text("mine")
    write_pack(tmp_path, {"train": (X, Y)}, CLASSES, "x")
    assert sorted(os.listdir(tmp_path)) == ["images.json", "notes.txt", "train.images.npy", "train.labels.npy"]


def mixed(number, image):
    return ([*X[:number], image, *X[number + 1 : 20]], Y[:20])


WRONG = {
    "a label too high": ({"train": (X, np.where(np.arange(1300) == 7, 4, Y))}, "train: label 4 of image 7 is out of"),
    "a negative label": ({"train": (X, Y), "test": (X, Y - 1)}, "test: label -1 of image 0 .* there are 4 classes"),
    "another size": ({"train": mixed(9, X[0, :5])}, "image 9 is 5 x 8 pixels, RGB, .* 6 x 8 pixels, RGB.* one size"),
    "another mode": ({"train": mixed(9, X[0, :, :, :1])}, "image 9 is 6 x 8 pixels, grey, .*one size and mode"),
    "another size in test": ({"train": (X, Y), "test": (X[:, :5], Y)}, "test: image 0 is 5 x 8"),
    "two channels": ({"train": (X[..., :2], Y)}, "images of 2 channels: they must have 1"),
    "real numbers": ({"train": (X / 255, Y)}, "float64 images"),
    "no channels": ({"train": ([X[0, :, :, 0]], [0])}, r"image 0 is uint8 of shape \(6, 8\)"),
    "fewer images": ({"train": (X[:9], Y)}, r"shape \(9, .* for 1300 labels"),
    "fewer images of a list": ({"train": (list(X[:9]), Y)}, "9 images for 1300 labels"),
    "nothing left": ({"train": (X, Y), "dev": ([None, None], [0, 1])}, "dev has no images"),
    "no train": ({"test": (X, Y)}, "the splits must be train.*got test"),
    "a strange split": ({"train": (X, Y), "trian": (X, Y)}, "got train, trian"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_leaves_nothing_and_keeps_the_old_pack(tmp_path, name):
    splits, message = WRONG[name]
    old = write_pack(tmp_path / "old", {"train": (X, Y)}, CLASSES, "old")
    for folder in ("new", "old"):
        with pytest.raises(UserError, match=message):
            write_pack(tmp_path / folder, splits, CLASSES, "new")
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []
    assert Pack.open(tmp_path / "old") == old and np.array_equal(old.split("train")[0], X)
    assert len(os.listdir(tmp_path / "old")) == 3


def test_a_failure_of_the_source_leaves_nothing(tmp_path):
    def cut():
        yield from X[:600]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(tmp_path, {"train": (cut(), Y)}, CLASSES, "x")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_cleared(tmp_path):
    left = tmp_path / ".tmp-1-pack"
    left.mkdir()
    (left / "train.images.npy").write_bytes(b"half")
    write_pack(tmp_path, {"train": (X, Y)}, CLASSES, "x")
    assert not left.exists()


def test_one_class_or_two_of_a_name(tmp_path):
    for classes, message in ((["a"], "at least two classes"), (["a", "b", "a", "c"], "two classes are named 'a'")):
        with pytest.raises(UserError, match=message):
            write_pack(tmp_path, {"train": (X, Y * 0)}, classes, "x")


def test_packs_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="no .*images.json: run the stage"):
        Pack.open(tmp_path)
    made = write_pack(tmp_path, {"train": (X, Y)}, CLASSES, "x")
    with pytest.raises(UserError, match="no split 'dev': it has train"):
        made.split("dev")
    path = tmp_path / "train.images.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cut short"):
        made.split("train")
    path.write_bytes(whole)
    about = json.loads((tmp_path / "images.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps({**about, "size": [8, 6]}))
    with pytest.raises(UserError, match="is not what images.json says"):
        Pack.open(tmp_path).split("train")
    (tmp_path / "images.json").write_text("{")
    with pytest.raises(UserError, match="images.json is damaged"):
        Pack.open(tmp_path)


# --- batches

def epoch_of(pack, epoch=0, skip=0, **options):
    return list(ImageLoader(pack, "train", 16, train=True, **options).epoch(epoch, skip))


def same(one, other):
    return one["ids"] == other["ids"] and all(torch.equal(one[k], other[k]) for k in ("x", "y", "index", "flip"))


def test_an_epoch_holds_each_image_once_but_the_rest(pack):
    steps = epoch_of(pack)
    index = torch.cat([batch["index"] for [(place, batch)] in steps])
    assert len(steps) == 1300 // 16 == ImageLoader(pack, "train", 16, train=True).size(0)
    assert len(index.unique()) == len(index) == 16 * 81
    for [(place, batch)] in steps:
        assert place == 0 and batch["x"].dtype == torch.uint8
        assert np.array_equal(batch["x"].numpy(), X[batch["index"]])
        assert np.array_equal(batch["y"].numpy(), Y[batch["index"]])
        assert batch["ids"] == [f"train-{i:05d}" for i in batch["index"]]


def test_it_depends_on_seed_and_epoch_alone(pack):
    assert all(same(a[0][1], b[0][1]) for a, b in zip(epoch_of(pack, 3), epoch_of(pack, 3)))
    assert not same(epoch_of(pack, 3)[0][0][1], epoch_of(pack, 4)[0][0][1])
    assert not same(epoch_of(pack, 3)[0][0][1], epoch_of(pack, 3, seed=1)[0][0][1])
    state = torch.get_rng_state()
    epoch_of(pack)
    assert torch.equal(state, torch.get_rng_state())  # the dropout of a resumed run hangs on it


def test_going_on_within_an_epoch(pack):
    for a, b in zip(epoch_of(pack, 1, accum=2)[7:], epoch_of(pack, 1, skip=7, accum=2), strict=True):
        assert [place for place, _ in a] == [place for place, _ in b]
        assert all(same(x, y) for (_, x), (_, y) in zip(a, b))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_is_the_same_whoever_computes_it(pack, world):
    alone = epoch_of(pack, 2, accum=4)
    shares = [epoch_of(pack, 2, accum=4, rank=rank, world_size=world) for rank in range(world)]
    for number, step in enumerate(alone):
        together = sorted(((place, batch) for share in shares for place, batch in share[number]), key=lambda p: p[0])
        assert [place for place, _ in together] == [0, 1, 2, 3]
        assert all(same(x, y) for (_, x), (_, y) in zip(step, together))


def test_without_drop_last_the_rest_is_shared_evenly(pack):
    steps = epoch_of(pack, accum=3, drop_last=False)  # 27 steps of 48, 4 images left: too few for three places
    assert len(steps) == 27
    steps = epoch_of(pack, accum=2, drop_last=False)  # 40 steps of 32, 20 left
    assert [len(batch["ids"]) for _, batch in steps[-1]] == [10, 10] and len(steps) == 41
    assert len(torch.cat([batch["index"] for step in steps for _, batch in step]).unique()) == 1300


def test_a_split_smaller_than_a_step_is_one_step(tmp_path):
    small = write_pack(tmp_path, {"train": (X[:20], Y[:20])}, CLASSES, "x")
    assert [len(b["ids"]) for _, b in epoch_of(small, accum=2)[0]] == [10, 10]
    with pytest.raises(UserError, match="has 20 images, fewer than two for each of a step's 16 batches"):
        ImageLoader(small, "train", 16, train=True, accum=16)


def test_judging_takes_all_in_order(pack):
    loader = ImageLoader(pack, "train", 512, train=False)
    batches = list(loader.batches())
    assert [len(b["ids"]) for b in batches] == [512, 512, 276] and loader.size() == 3
    assert torch.equal(torch.cat([b["index"] for b in batches]), torch.arange(1300))
    with pytest.raises(ValueError, match="1 for judging"):
        ImageLoader(pack, "train", 16, train=False, accum=2)


def test_alternating_flips(pack):
    """Each image stands one way in an epoch and the other way in the next; half of them begin mirrored."""
    ways = []
    for epoch in range(3):
        way = torch.zeros(1300, dtype=torch.bool)
        for [(_, batch)] in ImageLoader(pack, "train", 100, train=True).epoch(epoch):
            way[batch["index"]] = batch["flip"]
        ways.append(way)
    assert torch.equal(ways[0], ~ways[1]) and torch.equal(ways[0], ways[2])
    assert 550 < int(ways[0].sum()) < 750


def test_a_split_kept_on_a_device_gives_the_same_batches(pack):
    resident = ImageLoader(pack, "train", 16, train=True, device="cpu")
    assert all(same(a[0][1], b[0][1]) for a, b in zip(resident.epoch(1), epoch_of(pack, 1)))


def test_to_float(pack):
    x = to_float(torch.from_numpy(X), pack.mean, pack.std)
    wanted = (X / 255 - np.array(pack.mean)) / np.array(pack.std)
    assert x.shape == (1300, 3, 6, 8) and x.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(x.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-5


def test_the_header_is_as_long_for_any_count():
    """What the rewriting of a file's header stands on: numpy pads it for the largest number."""
    import io

    lengths = set()
    for count in (1, 99999, 10**12):
        file = io.BytesIO()
        image_pack._header(file, count, (28, 28, 1))
        lengths.add(file.tell())
    assert len(lengths) == 1
