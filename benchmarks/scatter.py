"""From how many filters on it pays to compute a convolution narrow and to put its output back to full width.

    python benchmarks/scatter.py

A chain of residual blocks, x + norm(conv(x)), of J filters each: the sum needs the full width, so a layer that loses
filters is either masked or computed narrow and completed with zeros. Step times without 30 % of the filters, beside
each other. ``torchreaper.filters.SCATTER_FROM`` is set by this table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import report
import torch
from measure import interleaved, ratio
from torch import Tensor, nn

import torchreaper as tr
from torchreaper import filters

WIDTHS = (16, 32, 48, 64, 96, 128, 256)
BLOCKS = 4
COLUMNS = {
    "width": "filters J",
    "batch": "batch",
    "image": "image",
    "masked": "masked / full",
    "scatter": "scatter / full",
    "gain": "scatter / masked",
}
NOTES = ("Below 1 in the last column scattering pays.",)


@dataclass(frozen=True)
class Chain:
    """A width and what it is measured on."""

    width: int
    batch: int
    image: int

    @property
    def key(self) -> str:
        return f"J={self.width}"


class Blocks(nn.Module):
    """Residual blocks of one convolution each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(BLOCKS)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(BLOCKS)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms):
            x = torch.relu(x + norm(conv(x)))
        return x.mean((2, 3))


def stepper(chain: Chain, mode: str, device: torch.device):
    torch.manual_seed(0)
    model = Blocks(chain.width).to(device)
    x = torch.randn(chain.batch, 3, chain.image, chain.image, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if mode != "full":
        bank = tr.find_filters(model, x)
        bank.attach(optimizer)
        bank.drop({layer.name: range(int(0.3 * layer.filters)) for layer in bank.ranked}, mode=mode)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def measure(chain: Chain, args: argparse.Namespace, results: report.Report) -> None:
    usual, filters.SCATTER_FROM = filters.SCATTER_FROM, 1
    try:
        steps = {
            name: stepper(chain, mode, args.device)
            for name, mode in (("full", "full"), ("masked", "masked"), ("scatter", "compact"))
        }
    finally:
        filters.SCATTER_FROM = usual
    times = interleaved(steps, repeats=args.repeats, device=args.device, label=chain.key)
    ratios = {"masked": ("masked", "full"), "scatter": ("scatter", "full"), "gain": ("scatter", "masked")}
    row = {"width": chain.width, "batch": chain.batch, "image": f"{chain.image}x{chain.image}", "seconds": times}
    results.add({**row, **{key: ratio(times, *pair) for key, pair in ratios.items()}})


def main(argv: Sequence[str] | None = None) -> int:
    args = report.parse(report.parser(__doc__ or "", repeats=9, nets=()), argv)
    results = report.Report("scatter", args, {"scatter": COLUMNS}, NOTES)
    size = (2, 8) if args.quick else (16, 16) if args.device.type == "cpu" else (64, 32)
    chains = [Chain(width, *size) for width in (WIDTHS[:2] if args.quick else WIDTHS)]
    return results.each(chains, lambda chain: measure(chain, args, results))


if __name__ == "__main__":
    sys.exit(main())
