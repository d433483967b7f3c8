"""Fashion-MNIST: photographs of clothes, as many and in the same form as MNIST's digits, but much harder to tell apart.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017
(arXiv 1708.07747).
"""

from __future__ import annotations

from pathlib import Path

from .fetch import File, Package, fetch_either
from .pictures import Made, idx_corpus

FORM = "images"
ABOUT = "clothes in MNIST's form, 28 x 28 grey, 60,000 + 10,000, 31 MB"
LICENSE = "MIT"

_HOSTS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
          "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/")
_GZIPPED = {
    "train-images-idx3-ubyte.gz": (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte.gz": (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte.gz": (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte.gz": (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}
_VERSION = "0.0~git20200523.55506a9-1"
WAYS = [
    # MNIST's files have the same names. They are never mistaken for these: their checksums differ.
    [File(name, size, digest, tuple(host + name for host in _HOSTS)) for name, (size, digest) in _GZIPPED.items()],
    [File(f"dataset-fashion-mnist_{_VERSION}_all.deb", 30900652,
          "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
          package=Package("apt-get", "dataset-fashion-mnist", _VERSION),
          members={"usr/share/datasets/fashion-mnist/": ""})],
]
CONTENT = {  # SHA-256, unpacked
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
COUNTS = {"train": (6000,) * 10, "test": (1000,) * 10}
CLASSES = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def fetch(root: Path) -> Path:
    """Fetch the four IDX files (31 MB) to ``root/fashion_mnist``."""
    return fetch_either(root, "fashion_mnist", WAYS, "choose --corpus mnist, or synthetic, which needs no network")


def prepare(folder: Path, out: Path, nj: int = 1, dev: int = 5000) -> Made:
    """Read Fashion-MNIST. ``dev`` of its training images become the split dev (5000: 500 per class).

    Raises a UserError if files are missing or their SHA-256 is not the published one.
    """
    return idx_corpus("fashion_mnist", folder, CONTENT, COUNTS, CLASSES, dev)
