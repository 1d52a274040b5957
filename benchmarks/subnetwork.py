"""A training step of the whole network, of the sub-network masked and compact, and of the same widths built by hand.

    python benchmarks/subnetwork.py
    python benchmarks/subnetwork.py --only resnet20 --only vgg16 --out /tmp/results
    python benchmarks/subnetwork.py --quick

The sub-network is without floor(0.3 J) random filters of every ranked layer; the first layer is kept. Step times are
shares of the whole network's, beside the share of its multiply-adds. Before anything is timed, the outputs of all
sub-networks are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import report
import torch
from measure import interleaved, ratio
from narrow import HandBuilt, narrow
from networks import Bench, Net
from training import Training, memory

import torchreaper as tr

MODES = ("full", "masked", "compact", "by-hand")
COLUMNS = {
    "net": "net",
    "batch": "batch",
    "image": "image",
    "layers": "layers narrow",
    "flops": "FLOPs",
    "flops_by_hand": "FLOPs by hand",
    "masked": "masked / full",
    "compact": "compact / full",
    "by_hand": "by hand / full",
    "compact_by_hand": "compact / by hand",
    "compact_masked": "compact / masked",
    "memory": "memory compact / full",
    "memory_by_hand": "memory by hand / full",
    "full_ms": "full step, ms",
}
NOTES = (
    "layers narrow: those whose channels can really be left out, of those that lose filters. By hand, only these are "
    "narrower; the others' filters, which a sum needs at full width, are zeros. Compact mode may narrow more, so it "
    "can be faster than by hand where not all layers are narrow.",
    "FLOPs: multiply-adds without all dropped filters; FLOPs by hand: without those of the narrow layers.",
    "memory: on CUDA the peak; on the CPU what a step holds after its forward pass (saved tensors, weights, gradients, "
    "optimizer state; in compact mode also what is stored away), a count without noise.",
)
TOLERANCE = 1e-4  # of the largest output, float32


def check(trainings: dict[str, Training]) -> None:
    """All sub-networks give the same outputs; a fast one that computes something else would be worthless."""
    without = {name: training.outputs() for name, training in trainings.items() if name != "full"}
    first = next(iter(without), "")
    for name, outputs in without.items():
        error = (outputs - without[first]).abs().max() / without[first].abs().max()
        if not error <= TOLERANCE:
            raise AssertionError(f"{name} differs from {first} by {float(error):.2g} of the largest output")


def makers(bench: Bench, modes: Sequence[str]) -> tuple[dict[str, Callable[[], Training]], HandBuilt]:
    """One function per mode that makes a training of it, and what could be built by hand."""
    filters = bench.uniform()
    hand = narrow(bench.model, bench.example, filters)
    made: dict[str, Callable[[], Training]] = {
        "full": bench.training,
        "masked": lambda: bench.without(filters, "masked"),
        "compact": lambda: bench.without(filters, "compact"),
        "by-hand": lambda: bench.training(narrow(bench.model, bench.example, filters).model),
    }
    return {mode: made[mode] for mode in modes}, hand


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    bench = Bench(net, args.device, **report.layout(args))
    make, hand = makers(bench, args.modes)
    held = {mode: memory(function, args.device) for mode, function in make.items() if mode != "masked"}
    trainings = {mode: function() for mode, function in make.items()}
    check(trainings)
    steps = {mode: training.step for mode, training in trainings.items()}
    times = interleaved(
        steps, repeats=args.repeats, device=args.device, label=net.key, least=0.0 if args.quick else 0.2
    )
    for training in trainings.values():
        training.check()
    bank = tr.find_filters(bench.model, bench.example)
    adds = [bank.cost(filters).multiply_adds for filters in ({}, bench.uniform(), hand.narrowed)]
    results.add(
        {
            **bench.describe(),
            "layers": hand.share,
            "flops": adds[1] / adds[0],
            "flops_by_hand": adds[2] / adds[0],
            "masked": ratio(times, "masked", "full"),
            "compact": ratio(times, "compact", "full"),
            "by_hand": ratio(times, "by-hand", "full"),
            "compact_by_hand": ratio(times, "compact", "by-hand"),
            "compact_masked": ratio(times, "compact", "masked"),
            "memory": held["compact"] / held["full"] if "compact" in held else None,
            "memory_by_hand": held["by-hand"] / held["full"],
            "full_ms": 1000 * min(times["full"]),
            "seconds": times,
            "bytes": held,
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=15)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help=argparse.SUPPRESS)
    args = report.parse(parser, argv)
    if not {"full", "by-hand"} <= set(args.modes):
        parser.error("argument --modes: needs full and by-hand")
    torch.manual_seed(0)  # of Dropout
    results = report.Report("subnetwork", args, {"subnetwork": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
