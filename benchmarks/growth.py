"""How the time of a transition grows with the filters of a layer, and with the number of layers.

    python benchmarks/growth.py
    python benchmarks/growth.py --only filters --largest 2048
    python benchmarks/growth.py --quick

Three series: J filters of d = 576 dimensions (3x3 on 64 channels), J filters of d = J dimensions (1x1), and a chain of
layers of 32 filters. The exponent is the slope of log time over log size; over the last doubling, where constant costs
weigh least, it is the one to compare with the bound J^2 d.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import linear_regression
from typing import Any

import report
import torch
from measure import Estimate, Progress, QuietCollector, estimate, wall
from networks import FRACTION
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torchreaper as tr

COLUMNS = {
    "series": "series",
    "size": "size",
    "dims": "d",
    "drop_ms": "rank + drop, ms",
    "restore_ms": "restore, ms",
    "largest": "largest tensor / J d",
}
EXPONENTS = {
    "series": "series",
    "sizes": "sizes",
    "what": "what",
    "exponent": "exponent, all sizes",
    "last": "exponent, last step",
    "bound": "bound",
}
NOTES = (
    "Exponents: of every round by itself, then their median and interval. Bound: that of J^2 d for the filters, 1 for "
    "the layers; the last step is from the last size but one to the last.",
    "Largest tensor: elements of the largest result of any operation in a transition, over the J d weights of the "
    "layer; a block of cosines, 256 J, may be larger than these.",
)


@dataclass(frozen=True)
class Series:
    """Models of growing size."""

    key: str
    label: str
    bound: int
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    build: Callable[[int], nn.Sequential]
    dims: Callable[[int], int]


def _wide(filters: int, channels: int, kernel: int) -> nn.Sequential:
    """A first layer, which is not ranked, one layer of ``filters``, and a reader."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, filters, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(filters, 10),
    )


def _deep(layers: int) -> nn.Sequential:
    inner: list[nn.Module] = []
    for _ in range(layers):
        inner += [nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 32, 1), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


POWERS = (64, 128, 256, 512, 1024, 2048, 4096)
SERIES = (
    Series("filters", "J filters, d = 576", 2, POWERS, (32, 64), lambda j: _wide(j, 64, 3), lambda j: 576),
    Series("square", "J filters, d = J", 3, POWERS[:-1], (32, 64), lambda j: _wide(j, j, 1), lambda j: j),
    Series("layers", "layers of 32 filters", 1, (3, 10, 20, 50, 110, 152), (3, 6), _deep, lambda n: 288),
)


class LargestResult(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


class Subject:
    """One model of a series under RePr, and the seconds of its transitions."""

    def __init__(self, series: Series, size: int, device: torch.device, mode: str) -> None:
        self.size, self.device = size, device
        model = series.build(size).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        images = torch.randn(2, 3, 4, 4, device=device)
        model(images).sum().backward()
        optimizer.step()  # momentum belongs to a transition
        self.scheme = tr.RePr(
            model,
            optimizer,
            images,
            full=1,
            sub=1,
            cycles=10**6,
            fraction=FRACTION,
            max_per_layer=FRACTION,
            subnetwork=mode,
        )
        self.seconds: dict[str, list[float]] = {"drop": [], "restore": []}
        with LargestResult() as largest:
            self.cycle()
        self.largest = largest.elements
        self.seconds = {"drop": [], "restore": []}  # that was the warm-up

    def cycle(self) -> None:
        for kind in self.seconds:
            self.seconds[kind].append(wall(self.scheme.step, self.device))


def measure(series: Series, args: argparse.Namespace, results: report.Report) -> None:
    sizes = series.quick if args.quick else [s for s in series.sizes if s <= (args.largest or s)]
    torch.manual_seed(0)
    subjects = [Subject(series, size, args.device, args.subnetwork) for size in sizes]
    progress = Progress(series.key, args.repeats)
    with QuietCollector():
        for _ in range(args.repeats):
            for subject in subjects:
                subject.cycle()
            progress.advance()
    tables = list(results.tables)
    for subject in subjects:
        dims = series.dims(subject.size)
        filters = 32 if series.key == "layers" else subject.size
        milliseconds = {
            f"{kind}_ms": estimate([1000 * s for s in seconds]) for kind, seconds in subject.seconds.items()
        }
        row = {
            "series": series.label,
            "size": subject.size,
            "dims": dims,
            "largest": subject.largest / (filters * dims),
        }
        results.add({**row, **milliseconds}, tables[0])
    for kind in ("drop", "restore"):
        every, last = exponents(sizes, [subject.seconds[kind] for subject in subjects])
        row = {"series": series.label, "sizes": f"{sizes[0]} ... {sizes[-1]}", "what": kind, "bound": series.bound}
        results.add({**row, "exponent": every, "last": last}, tables[1])


def exponents(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> tuple[Estimate, Estimate]:
    """Slope of log time over log size, round by round: least squares over all sizes, and over the last two."""
    logs = [log(size) for size in sizes]
    rounds = [[log(s) for s in times] for times in zip(*seconds)]
    (before, after), *_ = reversed(list(pairwise(logs)))
    every = [linear_regression(logs, times).slope for times in rounds]
    return estimate(every), estimate([(times[-1] - times[-2]) / (after - before) for times in rounds])


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=7, nets=())
    keys = tuple(series.key for series in SERIES)
    parser.add_argument("--only", metavar="SERIES", action="append", choices=keys, help=f"one of {', '.join(keys)}")
    parser.add_argument("--largest", type=report.positive, help="leave larger sizes out: at least two must be left")
    parser.add_argument("--subnetwork", choices=("auto", "compact", "masked"), default="auto", help="of RePr")
    args = report.parse(parser, argv)
    wanted = [series for series in SERIES if series.key in (args.only or keys)]
    for series in wanted:
        if args.largest and sum(size <= args.largest for size in series.sizes) < 2:
            parser.error(f"argument --largest: {args.largest}: of {series.key}, at least {sorted(series.sizes)[1]}")
    results = report.Report("growth", args, {"transitions": COLUMNS, "exponents": EXPONENTS}, NOTES)
    return results.each(wanted, lambda series: measure(series, args, results))


if __name__ == "__main__":
    sys.exit(main())
