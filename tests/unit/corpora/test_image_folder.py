"""Images of one's own: class folders and manifests, splits, sizes and modes, and all that can be wrong with them."""

import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from speechlab import prepare
from speechlab.corpora import image_folder
from speechlab.data.images import Pack
from speechlab.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, size=(8, 6), mode="RGB", **options):
    """A file of noise, ``size`` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB").convert(mode)
    image.save(path, **options)
    return path


def folders(root, classes=("cat", "dog"), each=10, under=("",), **options):
    for part in under:
        for name in classes:
            for number in range(each):
                picture(root / part / name / f"{number}.png", **options)
    return root


def run(root, out, *options):
    given = [part for option in options for part in (("--option", option) if "=" in option else (option,))]
    status = prepare.main(["image_folder", "--from", str(root), "--to", str(out), *given])
    return Pack.open(out) if status == 0 else status


def errors(capsys):
    """What was said on stderr, but progress."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Packing", "Reading"))]


def test_class_folders(tmp_path, capsys):
    root = folders(tmp_path / "in", each=20)
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    pack = run(root, tmp_path / "out", "--nj", "2")
    assert pack.classes == ("cat", "dog") and pack.size == (6, 8) and pack.channels == 3
    assert sum(split["count"] for split in pack.splits.values()) == 40
    assert set(pack.splits) == {"train", "dev", "test"}
    assert all(min(split["per_class"]) >= 1 for split in pack.splits.values())
    for split in pack.splits:
        for image, label, name in zip(*pack.split(split), pack.ids(split)):
            assert name.split("/")[0] == pack.classes[label]
            assert np.array_equal(image, np.asarray(Image.open(root / name)))
    assert errors(capsys) == [
        f"note: 1 files under {root} are no images by their names: left out",
        f"note: 2 hidden files or folders under {root} (first: .git): left out"]
    assert (tmp_path / "out" / "bad_images.tsv").read_text() == "path\treason\n"


def test_a_new_image_moves_no_other(tmp_path):
    root = folders(tmp_path / "in", each=40)
    before = run(root, tmp_path / "a")
    picture(root / "cat" / "new.png")
    after = run(root, tmp_path / "b")
    for split in before.splits:
        assert set(before.ids(split)) <= set(after.ids(split))


def test_folders_of_splits(tmp_path):
    root = folders(tmp_path / "in", under=("train", "test"), each=12)
    pack = run(root, tmp_path / "out")
    assert pack.splits["test"]["per_class"] == [12, 12]  # as published
    assert pack.splits["train"]["count"] + pack.splits["dev"]["count"] == 24
    assert all(name.startswith("train/") for split in ("train", "dev") for name in pack.ids(split))
    folders(root, under=("Validation",), each=3)
    assert run(root, tmp_path / "out").splits["dev"]["per_class"] == [3, 3]
    mixed = run(root, tmp_path / "out", "--split_by", "random")
    assert any(name.startswith("test/") for name in mixed.ids("train"))


def test_a_class_called_train_is_a_class(tmp_path, capsys):
    root = folders(tmp_path / "in", classes=("train", "plane"))
    assert run(root, tmp_path / "out").classes == ("plane", "train")
    assert errors(capsys) == [f"note: {root / 'train'} is taken for a class, since plane beside it is no split"]


def test_splits_beside_another_folder(tmp_path, capsys):
    """train, valid and test are splits whatever else is there, and that is said."""
    root = folders(tmp_path / "in", under=("train", "valid", "test"), each=4)
    picture(root / "unlabelled" / "0.png")
    pack = run(root, tmp_path / "out")
    assert pack.classes == ("cat", "dog")
    assert {name: split["count"] for name, split in pack.splits.items()} == {"train": 8, "dev": 8, "test": 8}
    (note,) = errors(capsys)
    assert note == (f"note: {root / 'unlabelled'} is left out: beside test, train, valid it is neither a split nor a "
                    "class")


def test_what_is_no_data_and_what_hides_behind_links(tmp_path, capsys):
    root = folders(tmp_path / "in", each=10)
    picture(root / ".ipynb_checkpoints" / "0.png")
    picture(root / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(root / "loose.png")
    far = tmp_path / "far"
    for i in range(10):
        picture(far / "fox" / f"{i}.png")
        picture(far / "more" / f"{i}.png")
    (root / "fox").symlink_to(far / "fox")  # a whole class
    (root / "cat" / "more").symlink_to(far / "more")  # a part of one
    (root / "dog" / "loop").symlink_to(root / "dog")  # a loop
    (root / "dog" / "nowhere").symlink_to(tmp_path / "nowhere")
    pack = run(root, tmp_path / "out")
    assert pack.classes == ("cat", "dog", "fox")
    assert np.sum([split["per_class"] for split in pack.splits.values()], 0).tolist() == [20, 10, 10]
    assert errors(capsys) == [
        f"note: 1 files in {root} itself (first: loose.png) are images, but in no class's folder: left out",
        f"note: 2 hidden files or folders under {root} (first: .ipynb_checkpoints): left out",
        f"note: 1 links to nothing under {root} (first: dog/nowhere): left out",
        f"note: 1 links to folders that are read anyway under {root} (first: dog/loop): left out"]


def test_links_to_nothing(tmp_path, capsys):
    """An image that is gone is unreadable like others; a class that is gone stops the stage."""
    root = folders(tmp_path / "in", each=10)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    pack = run(root, tmp_path / "out")
    assert sum(sum(split["per_class"]) for split in pack.splits.values()) == 20
    assert "cat/gone.png\t[Errno 2] No such file or directory" in (tmp_path / "out" / "bad_images.tsv").read_text()
    assert "1 of" in "".join(errors(capsys))
    (root / "fox").symlink_to(tmp_path / "fox")
    assert run(root, tmp_path / "out") == 1
    assert errors(capsys) == [f"error: {root / 'fox'} is a link to nothing ({tmp_path / 'fox'}): mend or remove it"]


def test_one_folder_under_two_names(tmp_path, capsys):
    root = folders(tmp_path / "in", each=10)
    (root / "kitten").symlink_to(root / "cat")
    assert run(root, tmp_path / "out").classes == ("cat", "dog", "kitten")
    assert errors(capsys) == [f"note: {root / 'kitten'} is {root / 'cat'} by another name: all that is in it counts "
                              "for both"]


def test_names_of_images(tmp_path, capsys):
    """Separators that Python takes for line ends shift no name; bytes that are no UTF-8 are one line."""
    root = folders(tmp_path / "in", each=10)
    odd = ["a\u2028b.png", "c\x85d.png", "e\nf.png", "g\th.png"]
    for name in odd:
        picture(root / "cat" / name)
    pack = run(root, tmp_path / "out")
    found = [name for split in pack.splits for name in pack.ids(split)]
    assert len(found) == 24 and {"cat/a\u2028b.png", "cat/c\x85d.png", "cat/e\\nf.png", "cat/g\\th.png"} <= set(found)
    for split in pack.splits:
        for label, name in zip(pack.split(split)[1], pack.ids(split), strict=True):
            assert name.split("/")[0] == pack.classes[label]
    errors(capsys)
    picture(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(root / "dog") + b"/caf\xe9.png"))
    assert run(root, tmp_path / "out") == 1
    assert errors(capsys) == [f"error: {root}: 1 names are not UTF-8 (first: dog/caf\\xe9.png): rename them (convmv "
                              "does it for whole folders)"]


def manifest(root, header, *rows):
    (root / "manifest.tsv").write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n")
    return root


def test_a_manifest(tmp_path):
    splits = ["train"] * 12 + ["valid"] * 3 + ["test"] * 3
    rows = [(f"{i}.png", str(i % 3 + 9), split) for i, split in enumerate(splits)]
    for name, *_ in rows:
        picture(tmp_path / "in" / name, mode="L")
    pack = run(manifest(tmp_path / "in", ("path", "label", "split"), *rows), tmp_path / "out")
    assert pack.classes == ("9", "10", "11")  # by number, not by spelling
    assert {name: split["per_class"] for name, split in pack.splits.items()} == \
        {"train": [4] * 3, "dev": [1] * 3, "test": [1] * 3}
    assert pack.channels == 1 and pack.size == (6, 8)


WRONG_MANIFESTS = {
    "no label": (("path", "text"), [("cat/0.png", "x")], 1, "lacks the column label"),
    "a missing file": (("path", "label"), [("gone.png", "x")], 1, "files that it names are not there .line 2: gone"),
    "a strange split": (("path", "label", "split"), [("cat/0.png", "x", "trian")], 1, "split 'trian' is none of train"),
    "a class that train lacks": (("path", "label", "split"), [("cat/0.png", "a", "train"), ("cat/1.png", "b", "test"),
                                                              ("cat/2.png", "b", "dev")], 1,
                                 "class b has 0 images for training: at least 1 are needed"),
    "too few": (("path", "label"), [("cat/0.png", "a"), ("cat/1.png", "a")], 1,
                "class a has 2 images for training: at least 3 are needed, since test and dev are taken from them"),
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_wrong_manifests(tmp_path, capsys, name):
    header, rows, status, message = WRONG_MANIFESTS[name]
    root = manifest(folders(tmp_path / "in", classes=("cat",), each=3), header, *rows)
    with pytest.raises(UserError, match=message):
        image_folder.prepare(root, tmp_path / "out")
    assert run(root, tmp_path / "out") == status
    assert len(errors(capsys)) == 1 and not (tmp_path / "out" / "images.json").exists()


# --- folders that are wrong

def test_an_empty_class_folder(tmp_path, capsys):
    root = folders(tmp_path / "in")
    (root / "emu").mkdir()
    (root / "emu" / "notes.txt").write_text("x")
    assert run(root, tmp_path / "out") == 1
    assert errors(capsys) == [f"error: the class folder {root / 'emu'} has no images (.png, .jpg, .jpeg, .bmp...): add "
                              "some, or remove the folder"]
    assert os.listdir(tmp_path / "out") == []


def test_folders_without_classes(tmp_path):
    (tmp_path / "in" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="train has no folder for a class"):
        image_folder.prepare(tmp_path / "in", tmp_path)
    with pytest.raises(UserError, match="neither a folder for each class nor manifest.tsv"):
        image_folder.prepare(tmp_path / "in" / "train", tmp_path)
    with pytest.raises(UserError, match="at least two classes are needed: got cat"):
        from speechlab.data.images import write_pack
        write_pack(tmp_path / "out", *image_folder.prepare(folders(tmp_path / "one", classes=("cat",)), tmp_path), "x")
    with pytest.raises(UserError, match="a corpus of your own"):
        image_folder.fetch(tmp_path)


def test_mixed_sizes(tmp_path, capsys):
    root = folders(tmp_path / "in")
    picture(root / "dog" / "3.png", size=(9, 6))
    assert run(root, tmp_path / "out") == 1
    assert errors(capsys) == ["error: images differ: cat/0.png (6 x 8) and dog/3.png (6 x 9), 2 kinds in all: give "
                              "--option size=32, or make them alike"]
    pack = run(root, tmp_path / "out", "size=4x5")
    assert pack.size == (4, 5)


def test_mixed_modes(tmp_path, capsys):
    root = folders(tmp_path / "in")
    picture(root / "dog" / "3.png", mode="L")
    assert run(root, tmp_path / "out") == 1
    assert errors(capsys) == ["error: images differ: cat/0.png (colour) and dog/3.png (grey), 2 kinds in all: give "
                              "--option channels=1 or channels=3, or make them alike"]
    assert run(root, tmp_path / "out", "channels=1").channels == 1
    assert run(root, tmp_path / "out", "channels=3").channels == 3


@pytest.mark.parametrize("options", [["size=x"], ["size=0"], ["size=-3"], ["channels=2"], ["--split_by", "speaker"],
                                     ["--split_by", "column"]])
def test_wrong_options(tmp_path, capsys, options):
    assert run(folders(tmp_path / "in"), tmp_path / "out", *options) == 2
    assert len(errors(capsys)) == 1


# --- images that can't be read

@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_an_unreadable_image_is_left_out_and_listed(tmp_path, capsys, suffix):
    root = folders(tmp_path / "in", each=30)
    path = picture(root / "cat" / f"cut.{suffix}", size=(8, 6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    pack = run(root, tmp_path / "out")
    assert sum(split["count"] for split in pack.splits.values()) == 60
    assert not any("cut" in name for split in pack.splits for name in pack.ids(split))
    listed = (tmp_path / "out" / "bad_images.tsv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith(f"cat/cut.{suffix}\t") and len(listed[1]) > 20
    said = errors(capsys)
    assert len(said) == 1 and said[0].startswith("warning: 1 of ") and str(path) in said[0]


def test_too_many_unreadable_images(tmp_path, capsys):
    root = folders(tmp_path / "in", each=30)
    for number in range(12):
        (root / "dog" / f"{number}.png").write_bytes(b"")
    assert run(root, tmp_path / "out") == 1
    said = errors(capsys)
    assert "images of train can't be read (first: " in said[-1] and "bad_images.tsv lists, and run again" in said[-1]
    assert os.listdir(tmp_path / "out") == ["bad_images.tsv"]


def test_a_class_of_which_nothing_can_be_read(tmp_path, capsys):
    root = folders(tmp_path / "in")
    for number in range(4):
        (root / "emu").mkdir(exist_ok=True)
        (root / "emu" / f"{number}.png").write_bytes(b"<html>")
    assert run(root, tmp_path / "out") == 1
    assert "none of class emu is left" in errors(capsys)[-1]
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert run(root, tmp_path / "out") == 1
    assert "none of the 24 images can be read" in errors(capsys)[-1]


# --- what is read

def one(tmp_path, image, shape=(2, 2, 3), name="a.png", **options):
    image.save(tmp_path / name, **options)
    found = image_folder.read_image(tmp_path / name, shape)
    assert not isinstance(found, str), found
    return found[..., 0].tolist() if shape[2] == 1 else found.tolist()


def test_modes(tmp_path):
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    assert one(tmp_path, Image.fromarray(grey)) == as_rgb.tolist()
    assert one(tmp_path, Image.fromarray(as_rgb), (2, 2, 1)) == grey.tolist()
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert one(tmp_path, sixteen, (2, 2, 1)) == grey.tolist()  # scaled, not cut off at 255
    assert one(tmp_path, Image.fromarray(as_rgb).quantize(), (2, 2, 1)) == grey.tolist()
    clear = np.concatenate([as_rgb, np.array([[[0], [255]], [[255], [255]]], dtype=np.uint8)], axis=2)
    assert one(tmp_path, Image.fromarray(clear), (2, 2, 1)) == [[255, 100], [200, 255]]  # what is clear is white
    assert one(tmp_path, Image.fromarray(grey > 99), (2, 2, 1)) == [[0, 255], [255, 255]]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    assert "real numbers" in image_folder.read_image(tmp_path / "f.tif", (2, 2, 1))


def test_a_photograph_is_turned_upright(tmp_path):
    lying = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on the right
    lying.save(tmp_path / "a.png", exif=exif)
    assert image_folder._header(tmp_path / "a.png") == (4, 3, 1)
    found = image_folder.read_image(tmp_path / "a.png", (4, 3, 1))
    assert np.array_equal(found[..., 0], np.rot90(np.asarray(lying), -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage that is no TIFF header", b"Exif\0\0II*\0\xff\xff\xff\x7f",
                                  b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9])
def test_malformed_exif_drops_no_picture(tmp_path, exif):
    sound = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(sound).save(tmp_path / "a.jpg", quality=100, exif=exif)
    assert image_folder._header(tmp_path / "a.jpg") == (3, 4, 1)
    found = image_folder.read_image(tmp_path / "a.jpg", (3, 4, 1))
    assert np.abs(found[..., 0].astype(int) - sound).max() <= 3


def test_every_orientation(tmp_path):
    lying = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    for how in range(0, 10):
        exif = Image.Exif()
        exif[0x0112] = how
        lying.save(tmp_path / "a.png", exif=exif)
        shape = image_folder._header(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as opened:
            wanted = np.asarray(ImageOps.exif_transpose(opened))
        assert np.array_equal(image_folder.read_image(tmp_path / "a.png", shape)[..., 0], wanted)


def test_scaling_keeps_the_aspect_and_the_middle(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 255
    assert one(tmp_path, Image.fromarray(wide), (8, 8, 1)) == np.full((8, 8), 255).tolist()
    assert one(tmp_path, Image.fromarray(np.full((64, 64), 9, np.uint8)), (4, 4, 1)) == np.full((4, 4), 9).tolist()
