"""Images a second of the lab's loop, against loops that read images one by one, on the same network.

    python benchmarks/throughput.py --parquet 'data/cifar10/train-*.parquet'
    python benchmarks/throughput.py --device cuda --images 45000
    python benchmarks/throughput.py --quick

Ours: `torchreaper.lab.run.Run`, images as one uint8 tensor on the device, augmented a batch at a time. Theirs: a
PyTorch DataLoader over images in memory, each cropped, mirrored, made a tensor, normalised in Python (Pillow, NumPy),
which is what torchvision's transforms do; in a plain loop, the stand-in for Lightning's, and, where `lightning` is
installed, in its Trainer too.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import report
import torch
import torch.nn.functional as F
from measure import Progress, QuietCollector, estimate, ratio, synchronize
from networks import Net
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchreaper.lab import data, models
from torchreaper.lab.optim import build_optimizer
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import Run

try:
    import lightning
except ImportError:
    lightning = None

MARGIN = 4
COLUMNS = {
    "net": "net",
    "augment": "augmentation",
    "batch": "batch",
    "images": "images",
    "source": "of",
    "ours": "ours, images/s",
    "network": "ours : network alone",
    "alone": "ours : plain loop, no readers",
    "readers": "ours : plain loop, readers",
    "trainer": "ours : Lightning Trainer, readers",
}
NOTES = (
    "Ratios of images a second, above 1: ours is faster. Target: >= 1.3 on the CPU, >= 3 on a GPU, for small networks.",
    "Network alone: the same steps on one batch over and over; no loop can be quicker than that.",
    "Readers: processes of the DataLoader, kept between epochs (--readers). An epoch is timed from the first batch "
    "it asks for to its last step done; judging the network, setting up and writing files are left out on all sides.",
)


class OneByOne(torch.utils.data.Dataset):
    """Images as Pillow's, each made ready when it is asked for."""

    def __init__(self, split: data.Split, mean: Tensor, std: Tensor, augment: str) -> None:
        self.images = [Image.fromarray(image) for image in split.images.permute(0, 2, 3, 1).numpy()]
        self.labels = split.labels.tolist()
        self.mean, self.std, self.augment = mean[:, None, None], std[:, None, None], augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = self.images[number]
        if self.augment != "none":
            top, left = random.randint(0, 2 * MARGIN), random.randint(0, 2 * MARGIN)
            width, height = image.size
            image = ImageOps.expand(image, MARGIN).crop((left, top, left + width, top + height))
            image = ImageOps.mirror(image) if random.random() < 0.5 else image
        pixels = torch.from_numpy(np.array(image, dtype=np.float32).transpose(2, 0, 1)) / 255
        return (pixels - self.mean) / self.std, self.labels[number]


class Theirs:
    """The same network, optimizer and loss, in a loop over a DataLoader."""

    def __init__(self, recipe: Recipe, net: Net, device: torch.device, readers: int) -> None:
        dataset = data.load(recipe.data, recipe.base)
        self.images = OneByOne(dataset.train, dataset.mean, dataset.std, recipe.augment)
        self.device = device
        self.loader = DataLoader(
            self.images,
            recipe.batch,
            shuffle=True,
            drop_last=True,
            num_workers=readers,
            persistent_workers=readers > 0,
            pin_memory=device.type == "cuda",
        )
        self.network = models.build(
            net.model,
            net.options,
            in_channels=3,
            classes=pictures.CLASSES,
            image_size=(pictures.SIDE, pictures.SIDE),
            generator_seed=0,
        ).to(device)
        self.optimizer = build_optimizer(recipe.optim, self.network.parameters())

    def epoch(self) -> float:
        """Seconds of an epoch in a plain loop."""
        self.network.train()
        synchronize(self.device)
        start = time.perf_counter()
        for images, labels in self.loader:
            self._step(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
        synchronize(self.device)
        return time.perf_counter() - start

    def steps(self) -> float:
        """Seconds of the steps of an epoch without its images: all on one batch, which is there already."""
        images, labels = (values.to(self.device) for values in next(iter(self.loader)))
        self.network.train()
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(len(self.loader)):
            self._step(images, labels)
        synchronize(self.device)
        return time.perf_counter() - start

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(images), labels).backward()
        self.optimizer.step()

    def fit(self) -> float:
        """Seconds of an epoch in Lightning's Trainer."""
        module = _Module(self.network, self.optimizer, self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on readers and loggers
            trainer = lightning.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, self.loader)
        return module.seconds


class _Module(lightning.LightningModule if lightning else nn.Module):  # type: ignore[misc]
    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        super().__init__()
        self.network, self._given, self._where = network, optimizer, device
        self.seconds = self._start = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._given

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def on_train_epoch_start(self) -> None:
        synchronize(self._where)
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        synchronize(self._where)
        self.seconds = time.perf_counter() - self._start


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    for augment in ("none", "crop-flip"):
        with tempfile.TemporaryDirectory() as folder:
            batch = args.batch or net.batch_size(args.device)
            made = {"parquet": args.parquet, "images": args.images, "batch": batch, "augment": augment}
            _measure(net, pictures.recipe(net, Path(folder), **made), args, results)


def _measure(net: Net, recipe: Recipe, args: argparse.Namespace, results: report.Report) -> None:
    run = Run(recipe, recipe.scheme_spec("standard"), seed=0, device=args.device.type)
    images = run.steps * recipe.batch
    numbers = iter(range(1, 10**9))

    def ours() -> float:
        line, *_ = run.epoch(next(numbers), NullProgress())
        return images / float(line["images_per_second"])

    plain = Theirs(recipe, net, args.device, 0)
    ways: dict[str, Callable[[], float]] = {"ours": ours, "network": plain.steps, "alone": plain.epoch}
    ways["readers"] = Theirs(recipe, net, args.device, args.readers).epoch
    if lightning is not None:
        ways["trainer"] = Theirs(recipe, net, args.device, args.readers).fit
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    progress = Progress(f"{net.key}, {recipe.augment}", args.repeats + 1)
    with QuietCollector():
        for repeat in range(args.repeats + 1):
            for way, epoch in ways.items():
                taken = epoch()
                if repeat:  # the first one warms up, and starts the readers
                    seconds[way].append(taken)
            progress.advance()
    results.add(
        {
            "net": net.label,
            "augment": recipe.augment,
            "batch": recipe.batch,
            "images": images,
            "source": "CIFAR-10" if args.parquet else "random",
            "ours": estimate([images / each for each in seconds["ours"]]),
            **{way: ratio(seconds, way, "ours") for way in ("network", "alone", "readers", "trainer")},
            "seconds": seconds,
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=7, nets=("c3-32", "c3-32-pooled"))
    parser.add_argument("--parquet", metavar="GLOB", help="CIFAR-10's training images; without it random ones are made")
    parser.add_argument("--images", type=report.positive, help="in an epoch; default 5000 on the CPU, 45000 on CUDA")
    parser.add_argument("--readers", type=report.positive, default=2, help="processes of the DataLoader; default 2")
    args: Any = report.parse(parser, argv)
    args.images = args.images or (40 if args.quick else 45_000 if args.device.type == "cuda" else 5_000)
    results = report.Report("throughput", args, {"throughput": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
