"""MNIST, Fashion-MNIST, CIFAR-10, drawn shapes: small corpora in each of their forms, and all that can be wrong."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from speechlab import corpora, prepare
from speechlab.corpora import cifar10, fashion_mnist, fetch, mnist, shapes
from speechlab.corpora.fetch import CannotGet, File, fetch_either
from speechlab.corpora.pictures import hold_out
from speechlab.data.images import Pack
from speechlab.errors import UserError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what is published, as far as it can be told without the files

def test_the_published_numbers():
    assert sum(mnist.COUNTS["train"]) == 60000 and sum(mnist.COUNTS["test"]) == 10000
    for module in (mnist, fashion_mnist, cifar10):
        assert module.FORM == "images" and corpora.load(module.__name__.rpartition(".")[2]) is module
        assert len(module.CLASSES) == 10
        for way in module.WAYS:
            assert all(file.size and len(file.sha256) == 64 and (file.urls or file.package) for file in way)


# --- fetching: one of several forms

def way(folder, name: str, body: bytes, members=None) -> list[File]:
    return [File(name, len(body), digest(body), ((folder / name).as_uri(),), members=members)]


def tgz(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def forms(tmp_path, monkeypatch):
    """A file of its own, and the same in an archive; both sources are there."""
    monkeypatch.setattr(fetch, "_PAUSE", 0.0)
    source = tmp_path / "source"
    source.mkdir()
    packed = tgz(x=b"content")
    (source / "x").write_bytes(b"content")
    (source / "p.tgz").write_bytes(packed)
    return tmp_path, source, [way(source, "x", b"content"), way(source, "p.tgz", packed, {"package/": ""})]


def test_the_first_form_that_can_be_had(forms, capsys):
    root, source, ways = forms
    (source / "x").write_bytes(b"cont")  # cut short
    folder = fetch_either(root, "c", ways, "")
    assert (folder / "x").read_bytes() == b"content"
    assert json.loads((folder / ".complete").read_text())["files"][0]["name"] == "p.tgz"
    assert "it has 4 bytes, not 7" in capsys.readouterr().err
    (source / "x").write_bytes(b"content")
    (source / "p.tgz").unlink()
    fetch_either(root, "c", ways, "")  # it is there, in the second form: nothing is fetched
    assert json.loads((folder / ".complete").read_text())["files"][0]["name"] == "p.tgz"


def test_a_form_put_there_by_hand_comes_first(forms):
    root, source, ways = forms
    (root / "p.tgz").write_bytes((source / "p.tgz").read_bytes())
    folder = fetch_either(root, "c", ways, "")
    assert json.loads((folder / ".complete").read_text())["files"][0]["source"] == "put there by hand"


def test_no_form_can_be_had(forms):
    root, source, ways = forms
    (source / "x").write_bytes(b"CONTENT")
    (source / "p.tgz").unlink()
    with pytest.raises(CannotGet) as error:
        fetch_either(root, "c", ways, "choose another")
    said = str(error.value)
    assert "can't get c. Tried" in said and "its SHA-256 is" in said and "No such file" in said
    assert f"put x, or p.tgz into {root.resolve()}" in said and said.endswith("or choose another")
    assert "\n" not in said and not (root / "c").exists()


# --- MNIST

@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Four IDX files of 40 + 20 images, which the module takes for the published ones."""
    files = {"train-images-idx3-ubyte": idx(RNG.integers(0, 256, (40, 28, 28))),
             "train-labels-idx1-ubyte": idx(np.arange(40) % 10),
             "t10k-images-idx3-ubyte": idx(RNG.integers(0, 256, (20, 28, 28))),
             "t10k-labels-idx1-ubyte": idx(np.arange(20) % 10)}
    monkeypatch.setattr(mnist, "CONTENT", {name: digest(body) for name, body in files.items()})
    monkeypatch.setattr(mnist, "COUNTS", {"train": (4,) * 10, "test": (2,) * 10})
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def images_of(folder, name):
    body = (folder / name).read_bytes()
    return np.frombuffer(body, np.uint8, offset=16).reshape(-1, 28, 28, 1)


def test_mnist_is_packed(digits, tmp_path, capsys):
    out = tmp_path / "data"
    assert prepare.main(["mnist", "--from", str(digits), "--to", str(out), "--option", "dev=10"]) == 0
    pack = Pack.open(out)
    assert {name: split["per_class"] for name, split in pack.splits.items()} == \
        {"train": [3] * 10, "dev": [1] * 10, "test": [2] * 10}
    train, _ = pack.split("train")
    numbers = [int(name.removeprefix("train-")) for split in ("train", "dev") for name in pack.ids(split)]
    assert sorted(numbers) == list(range(40))
    assert np.array_equal(np.concatenate([train, pack.split("dev")[0]]),
                          images_of(digits, "train-images-idx3-ubyte")[numbers])
    assert np.array_equal(pack.split("test")[0], images_of(digits, "t10k-images-idx3-ubyte"))
    assert pack.source == "mnist" and pack.classes == tuple("0123456789")
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["gzip", "dots", "torchvision"])
def test_mnist_in_other_peoples_forms(digits, tmp_path, form):
    wanted, _ = mnist.prepare(digits, tmp_path, dev=10)
    raw = digits / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in list(digits.glob("*ubyte")):
        body = path.read_bytes()
        path.unlink()
        if form == "gzip":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(body))
        else:
            (raw / path.name if form == "torchvision" else digits / path.name.replace("-idx", ".idx")).write_bytes(body)
    found, _ = mnist.prepare(digits, tmp_path, dev=10)
    for split in wanted:
        assert all(np.array_equal(a, b) for a, b in zip(wanted[split], found[split]))


def spoil(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))


BAD_IDX = {
    "cut short": ("train-images-idx3-ubyte", lambda b: b[:-5], "damaged: it has 31355 bytes where its header says"),
    "a header alone": ("t10k-images-idx3-ubyte", lambda b: b[:9], "it is no IDX file of bytes in 3 dimensions"),
    "a page instead": ("t10k-labels-idx1-ubyte", lambda b: b"<html>sorry</html>", "no IDX file of bytes in 1 dim"),
    "gzip cut short": ("train-images-idx3-ubyte", lambda b: gzip.compress(b)[:-400], "it is cut short or no gzip file"),
    "a label out of range": ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a", r"label 10 of image 39 .*0 to 9"),
    "too few labels": ("train-labels-idx1-ubyte", lambda b: idx(np.arange(39) % 10), "it has 39 labels for 40 images"),
    "other digits": ("train-images-idx3-ubyte", lambda b: b[:-1] + b"\x00", "not mnist's as published .SHA-256"),
    "another label": ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x00", "is not mnist's as published"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files(digits, tmp_path, capsys, name):
    file, change, message = BAD_IDX[name]
    spoil(digits, file, change)
    out = tmp_path / "data"
    with pytest.raises(UserError, match=message) as error:
        mnist.prepare(digits, out, dev=10)
    assert str(digits / file) in str(error.value) and "copy it anew" in str(error.value)
    (digits / ".complete").write_text("{}")  # a fetch made it: then, and only then, the folder may be removed
    assert prepare.main(["mnist", "--from", str(digits), "--to", str(out), "--option", "dev=10"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"remove {digits} and fetch it again" in error
    assert os.listdir(out) == []


def test_counts_by_class_are_checked(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "COUNTS", {"train": (4,) * 9 + (5,), "test": (2,) * 10})
    with pytest.raises(UserError, match="mnist: train has 4 images of 9, not 5 as published"):
        mnist.prepare(digits, tmp_path)


def test_a_file_that_is_not_there(digits, tmp_path):
    (digits / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="has no t10k-labels-idx1-ubyte .nor t10k-labels-idx1-ubyte.gz.: fetch it with"):
        mnist.prepare(digits, tmp_path)


def test_fashion_mnist_reads_the_same_form(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "CONTENT", mnist.CONTENT)
    monkeypatch.setattr(fashion_mnist, "COUNTS", mnist.COUNTS)
    splits, classes = fashion_mnist.prepare(digits, tmp_path, dev=0)
    assert set(splits) == {"train", "test"} and classes[9] == "ankle boot"
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not fashion_mnist's as published"):
        fashion_mnist.prepare(digits, tmp_path, dev=0)


# --- the held-out part

def test_hold_out_is_equal_by_class_and_always_the_same():
    labels = RNG.integers(0, 3, 300)
    images = np.arange(300, dtype=np.uint8).reshape(300, 1, 1, 1)
    splits = {"train": (images, labels), "test": (images[:5], labels[:5])}
    made = hold_out(splits, list("abc"), 30)
    assert np.bincount(made["dev"][1]).tolist() == [10, 10, 10] and len(made["train"][1]) == 270
    assert np.array_equal(made["dev"][0], hold_out(splits, list("abc"), 30)["dev"][0])
    assert set(made["dev"][2]) < set(hold_out(splits, list("abc"), 60)["dev"][2])  # a larger one holds the smaller
    assert np.bincount(hold_out(splits, list("abc"), 31)["dev"][1]).tolist() == [11, 10, 10]
    assert set(hold_out(splits, list("abc"), 0)) == {"train", "test"}
    assert made["test"][2] == [f"test-{i:05d}" for i in range(5)]


@pytest.mark.parametrize("dev", [-1, 40, 1000])
def test_too_many_or_less_than_none(digits, tmp_path, capsys, dev):
    assert prepare.main(["mnist", "--from", str(digits), "--to", str(tmp_path / "d"), "--option", f"dev={dev}"]) == 2
    wanted = "it must be from 0 to about 30, an equal number from each class of train\n"
    assert capsys.readouterr().err == f"error: --option dev={dev}: {wanted}"


# --- CIFAR-10

@pytest.fixture
def photographs(monkeypatch):
    """Six batches of 20 images, (N, 32, 32, 3), which the module takes for the published ones."""
    monkeypatch.setattr(cifar10, "PER_BATCH", 20)
    monkeypatch.setattr(cifar10, "COUNTS", {"train": (10,) * 10, "test": (2,) * 10})
    batches = {name: (RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), RNG.permutation(np.arange(20) % 10))
               for name in cifar10.BATCHES}
    monkeypatch.setattr(cifar10, "BATCHES", {name: digest(binary(*batch)) for name, batch in batches.items()})
    return batches


def binary(images, labels) -> bytes:
    """The format as its page tells it: <1 x label><3072 x pixel>, red, green, blue, each row by row."""
    rows = [bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
            for image, label in zip(images, labels.tolist())]
    return b"".join(rows)


def python_2(rows, labels) -> bytes:
    """The pickle of {"data": rows, "labels": labels} as Python 2 and the numpy of 2009 wrote it, opcode by opcode."""
    def text(body: bytes) -> bytes:
        return b"T" + len(body).to_bytes(4, "little") + body  # BINSTRING, which Python 3 no longer writes

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R(" + number(3) + text(b"|") + b"NNN" \
        + number(-1) + number(-1) + number(0) + b"tb"
    shape = number(rows.shape[0]) + number(rows.shape[1]) + b"\x86"
    state = b"(" + number(1) + shape + kind + b"\x89" + text(rows.tobytes()) + b"tb"
    items = text(b"data") + array + state + text(b"labels") + b"](" + b"".join(map(number, labels.tolist())) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_cifar(folder, form, batches):
    folder.mkdir(parents=True)
    for name, (images, labels) in batches.items():
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(binary(images, labels))
        elif form == "png":
            Image.fromarray(images.reshape(20, 1024, 3)).save(folder / f"{name}.png")
        else:
            rows = np.frombuffer(binary(images, labels), np.uint8).reshape(20, 3073)[:, 1:].copy()
            old = form == "python 2"
            (folder / name).write_bytes(python_2(rows, labels) if old else
                                        pickle.dumps({b"data": rows, b"labels": labels.tolist()}, protocol=2))
    if form == "png":
        for split, file in cifar10._LABELS.items():
            of_test = split == "test"
            some = [labels.tolist() for name, (_, labels) in batches.items() if name.startswith("test") == of_test]
            (folder / file).write_text(json.dumps(sum(some, [])))
    return folder


@pytest.mark.parametrize("form, under", [("binary", "cifar-10-batches-bin"), ("binary", ""), ("png", ""),
                                         ("python 2", "cifar-10-batches-py"), ("python 3", "")])
def test_cifar10_in_each_form(photographs, tmp_path, form, under):
    write_cifar(tmp_path / "c" / under, form, photographs)
    splits, classes = cifar10.prepare(tmp_path / "c", tmp_path, nj=2, dev=0)
    train = [photographs[f"data_batch_{i}"] for i in range(1, 6)]
    assert np.array_equal(splits["train"][0], np.concatenate([images for images, _ in train]))
    assert np.array_equal(splits["train"][1], np.concatenate([labels for _, labels in train]))
    assert np.array_equal(splits["test"][0], photographs["test_batch"][0])
    assert classes[6] == "frog"


BAD_CIFAR = {
    "binary cut short": ("binary", "data_batch_3.bin", lambda b: b[:-9], "it has 61451 bytes, not 20 times 3073"),
    "a label out of range": ("binary", "test_batch.bin", lambda b: b"\xc8" + b[1:], "label 200 of image 0 is out"),
    "another pixel": ("binary", "data_batch_5.bin", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "is not cifar10's as"),
    "png cut short": ("png", "data_batch_2.png", lambda b: b[:5000], "it can't be read as an image .*truncated"),
    "no png": ("png", "data_batch_2.png", lambda b: b"<html>", "it can't be read as an image"),
    "labels that are none": ("png", "test_lables.json", lambda b: b[:-1], "test_lables.json is damaged: it is no list"),
    "labels missing": ("png", "train_lables.json", lambda b: b"[1, 2]", "it has 2 labels for 20 images"),
    "a pickle that runs code": ("python 2", "data_batch_1", lambda b: pickle.dumps(os.getcwd), "it asks for posix.g"),
    "python cut short": ("python 2", "test_batch", lambda b: b[:-99], "test_batch is damaged: it is no batch"),
}


@pytest.mark.parametrize("name", BAD_CIFAR)
def test_bad_cifar10(photographs, tmp_path, capsys, name):
    form, file, change, message = BAD_CIFAR[name]
    folder = write_cifar(tmp_path / "c", form, photographs)
    spoil(folder, file, change)
    with pytest.raises(UserError, match=message):
        cifar10.prepare(folder, tmp_path, dev=0)
    assert prepare.main(["cifar10", "--from", str(folder), "--to", str(tmp_path / "data")]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Reading")]
    assert len(error) == 1 and os.listdir(tmp_path / "data") == []


def test_a_batch_that_is_not_there(photographs, tmp_path):
    folder = write_cifar(tmp_path / "c", "binary", photographs)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match="has no data_batch_4.bin: remove it and fetch"):
        cifar10.prepare(folder, tmp_path)
    with pytest.raises(UserError, match="has no data_batch_1.bin .nor .png"):
        cifar10.prepare(tmp_path, tmp_path)


# --- drawn shapes

@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32)])
def test_shapes(tmp_path, channels, size):
    options = dict(train=40, dev=20, test=10, channels=channels, size=size)
    splits, classes = shapes.prepare(tmp_path, tmp_path, **options)
    images, labels = splits["train"]
    assert images.shape == (40, size, size, channels) and images.dtype == np.uint8 and len(classes) == 10
    assert np.bincount(labels).tolist() == [4] * 10
    assert np.array_equal(images, shapes.prepare(tmp_path, tmp_path, **options)[0]["train"][0])
    more, _ = shapes.prepare(tmp_path, tmp_path, **{**options, "train": 60})
    assert np.array_equal(images, more["train"][0][:40])
    assert not np.array_equal(images, shapes.prepare(tmp_path, tmp_path, **options, seed=1)[0]["train"][0])
    assert len({image.tobytes() for split, _ in splits.values() for image in split}) == 70  # no test image in train


def test_shapes_are_the_same_mirrored():
    """So that flips don't turn one class into another: what is filled, seen from the middle, is symmetric."""
    for name, (fill, clear) in shapes.SHAPES.items():
        drawn = []
        for side in (1, -1):
            canvas = Image.new("L", (101, 101))
            from PIL import ImageDraw
            for colour, polygons in ((255, fill), (0, clear)):
                for polygon in polygons:
                    ImageDraw.Draw(canvas).polygon([(50 + 40 * side * x, 50 + 40 * y) for x, y in polygon], colour)
            drawn.append(np.asarray(canvas) > 0)
        assert (drawn[0] != drawn[1]).mean() < 0.02, name


def test_shapes_by_the_command_line(tmp_path, capsys):
    folder = shapes.fetch(tmp_path)
    options = [part for option in ("train=20", "dev=0", "test=10") for part in ("--option", option)]
    assert prepare.main(["shapes", "--from", str(folder), "--to", str(tmp_path / "d"), *options]) == 0
    assert set(Pack.open(tmp_path / "d").splits) == {"train", "test"}
    for wrong in ("train=9", "dev=-1", "channels=2", "size=5"):
        assert prepare.main(["shapes", "--from", str(folder), "--to", str(tmp_path / "e"), "--option", wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
