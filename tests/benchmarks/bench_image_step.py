"""Where a training step on images spends its time, and what each measure against that is worth, on one CPU thread.

    bench=tests/benchmarks/bench_image_step.py
    .venv/bin/python $bench --data egs/mnist/data/mnist --config egs/mnist/conf/cnn.yaml
    .venv/bin/python $bench --data egs/cifar10/data/cifar10 --config egs/cifar10/conf/fast.yaml
    ... --profile        # the operators' shares, by torch.profiler
    ... --compile        # with torch.compile too (minutes)

A step is the batch from the memory map, augmentation, forward, loss, backward and the optimiser. The same network and
batch as PyTorch's defaults compute it (fp32, channels first) are the yardstick. Peers, where torchvision is installed
(pip install torchvision==0.26.0): its ResNet-18 with a 3 x 3 stem for the step, and its transforms in a DataLoader for
the data path. Rounds are interleaved; medians; ratios round by round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from speechlab.data.images import ImageLoader, Pack, augment, to_float
from speechlab.tasks import load_config as load
from speechlab.tasks.image.config import Config
from speechlab.tasks.image.train import build_model, judge
from speechlab.training.device import amp_dtype
from speechlab.training.optim import build_optimizer

Step = Callable[[dict[str, Any]], None]


def stepper(model: nn.Module, pack: Pack, config: Config, dtype: torch.dtype | None, last: bool) -> Step:
    """One training step; ``last``: channels last in memory."""
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout).train()
    optimizer = build_optimizer(model.parameters(), config.optim)

    def step(batch: dict[str, Any]) -> None:
        x = augment(to_float(batch["x"], pack.mean, pack.std).contiguous(memory_format=layout), None,
                    config.data.augment, batch["flip"])
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = judge(model(x), batch["y"], config.loss)
        optimizer.zero_grad(set_to_none=True)
        (loss.total / loss.count).backward()
        optimizer.step()

    return step


def torchvision_resnet(classes: int, channels: int) -> nn.Module:
    """torchvision's ResNet-18 as everybody adapts it to 32 x 32: a 3 x 3 stem, no pooling behind it."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


class PillowImages(torch.utils.data.Dataset):
    """A split as torchvision's own datasets give it: an image at a time, through the usual transforms."""

    def __init__(self, pack: Pack):
        from PIL import Image
        from torchvision import transforms

        self.images, self.labels = pack.split("train")
        self.open = lambda a: Image.fromarray(a[..., 0] if a.shape[2] == 1 else a)
        self.transform = transforms.Compose([
            transforms.RandomCrop(pack.size, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(pack.mean, pack.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.open(self.images[i])), int(self.labels[i])


def data_path(pack: Pack, config: Config, count: int) -> None:
    """Images a second from the memory map to a normalised, augmented batch: ours, and torchvision's."""
    def ours() -> Iterator[int]:
        for ((_, batch),) in ImageLoader(pack, "train", config.data.batch_size, train=True).epoch(0):
            augment(to_float(batch["x"], pack.mean, pack.std), None, config.data.augment, batch["flip"])
            yield len(batch["y"])

    def theirs() -> Iterator[int]:
        loader = torch.utils.data.DataLoader(PillowImages(pack), config.data.batch_size, shuffle=True)
        for _, y in loader:
            yield len(y)

    ways = {"ours": ours}
    try:
        import torchvision  # noqa: F401
        ways["torchvision's transforms, DataLoader, same process"] = theirs
    except ImportError:
        print("no torchvision here: no peer for the data path (pip install torchvision==0.26.0)")
    speeds = {}
    for name, way in ways.items():
        seen, began = 0, time.perf_counter()
        for number in way():
            seen += number
            if seen >= count:
                break
        speeds[name] = seen / (time.perf_counter() - began)
        print(f"data path, {name}: {speeds[name]:.0f} images/s, {speeds[name] / speeds['ours']:.3f} x ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a pack (stage 1 of egs/mnist or egs/cifar10)")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="with torch.compile too")
    parser.add_argument("--profile", action="store_true", help="the operators of our step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config, pack = load(args.config), Pack.open(args.data)
    assert isinstance(config, Config), f"{args.config} trains no image classifier"
    shape, classes = (pack.channels, *pack.size), len(pack.classes)
    bf16 = amp_dtype("auto", torch.device("cpu"))
    net = lambda: build_model(config, shape, classes)  # noqa: E731
    ways: dict[str, Step] = {"fp32, channels first": stepper(net(), pack, config, None, False),
                             "fp32, channels last": stepper(net(), pack, config, None, True)}
    if bf16 is not None:
        ways["bf16, channels first"] = stepper(net(), pack, config, bf16, False)
    ours = f"{'bf16' if bf16 else 'fp32'}, channels last (ours)"
    ways[ours] = stepper(net(), pack, config, bf16, True)
    if args.compile:
        ways[f"{ours}, compiled"] = stepper(torch.compile(net()), pack, config, bf16, True)
    try:
        peer = torchvision_resnet(classes, pack.channels)
        ways["torchvision's ResNet-18, as ours"] = stepper(peer, pack, config, bf16, True)
    except ImportError:
        print("no torchvision here: no ResNet-18 of its own (pip install torchvision==0.26.0)")
    batches = ImageLoader(pack, "train", config.data.batch_size, train=True).batches()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 2):
        batch = next(batches)
        for name, step in ways.items():
            began = time.perf_counter()
            step(batch)
            if turn >= 2:  # two to warm up
                times[name].append(time.perf_counter() - began)
    size = config.data.batch_size
    print(f"{args.config.stem}: batch {size}, one thread, torch {torch.__version__}, {args.rounds} rounds")
    print(f"{'':40s} {'ms/image':>9s} {'x the first':>12s}")
    first = next(iter(times))
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], taken, strict=True))
        print(f"{name:40s} {1000 * statistics.median(taken) / size:9.3f} {ratio:12.2f}")
    data_path(pack, config, 10_000)
    if args.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(args.rounds):
                ways[ours](next(batches))
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=44))


if __name__ == "__main__":
    main()
