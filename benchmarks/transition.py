"""What it costs to rank and drop filters, and to bring them back, in training steps.

    python benchmarks/transition.py
    python benchmarks/transition.py --only resnet50 --batch 64
    python benchmarks/transition.py --quick

RePr at every third step: two steps of the whole network, rank and drop, two of the sub-network, restore; masked and
compact in turn. The unit is the second full step.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

import report
import torch
from measure import Progress, QuietCollector, estimate, ratio, wall
from networks import KEYS, Bench, Net, repr_on
from training import Training

MODES = ("masked", "compact")
COLUMNS = {
    "net": "net",
    "batch": "batch",
    "image": "image",
    "filters": "filters ranked",
    "mode": "mode",
    "drop": "rank + drop, steps",
    "restore": "restore, steps",
    "first_sub": "first sub-step / second",
    "first_full": "first full step / second",
    "step_ms": "full step, ms",
    "drop_ms": "rank + drop, ms",
    "restore_ms": "restore, ms",
}
NOTES = (
    "First step / second: what new shapes cost at the next step (allocation, choice of kernels).",
    "Milliseconds: the median, on a machine that others may have used too; the ratios are what counts.",
)
BATCH = {"resnet50": 64}  # the target is set at this batch


class Cycle:
    """One model under RePr, and the seconds of everything that a cycle is made of."""

    def __init__(self, training: Training, mode: str) -> None:
        self.training, self.times = training, defaultdict[str, list[float]](list)
        self.scheme = repr_on(training, mode)

    def run(self, device: torch.device) -> None:
        for name, action in (
            ("first full", self.training.step),
            ("full", self.training.step),
            ("drop", self.scheme.step),
            ("first sub", self.training.step),
            ("sub", self.training.step),
            ("restore", self.scheme.step),
        ):
            self.times[name].append(wall(action, device))


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    settings = report.layout(args)
    settings["batch"] = settings["batch"] or BATCH.get(net.key)
    bench = Bench(net, args.device, **settings)
    cycles = {mode: Cycle(bench.training(), mode) for mode in args.modes}
    progress = Progress(net.key, args.repeats + 2)
    with QuietCollector():
        for _ in range(args.repeats + 2):
            for cycle in cycles.values():
                cycle.run(args.device)
            progress.advance()
    for mode, cycle in cycles.items():
        cycle.training.check()
        times = {name: seconds[2:] for name, seconds in cycle.times.items()}  # the first two warm up
        results.add(
            {
                **bench.describe(),
                "filters": sum(layer.filters for layer in cycle.scheme.bank.ranked),
                "mode": mode,
                "drop": ratio(times, "drop", "full"),
                "restore": ratio(times, "restore", "full"),
                "first_sub": ratio(times, "first sub", "sub"),
                "first_full": ratio(times, "first full", "full"),
                "step_ms": 1000 * estimate(times["full"]).median,
                "drop_ms": 1000 * estimate(times["drop"]).median,
                "restore_ms": 1000 * estimate(times["restore"]).median,
                "seconds": times,
            }
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=9, nets=KEYS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help=argparse.SUPPRESS)
    args = report.parse(parser, argv)
    torch.manual_seed(0)  # of Dropout
    results = report.Report("transition", args, {"transition": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
