"""What RePr costs while the whole network trains: a step with the scheme attached against one without.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --only resnet20 --repeats 31
    python benchmarks/overhead.py --quick

Each network at its usual batch, where the share counts, and with 2 images, where a step is mostly Python and the
microseconds per hooked layer can be seen. "Attached": before the first drop. "After a cycle": filters were dropped and
have come back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import report
import torch
from measure import estimate, interleaved, ratio
from networks import Bench, Net, repr_on
from torch import nn

NETS = ("c3-32", "c8-128", "resnet20", "resnet50", "vgg16", "densenet40", "mobilenet_v2")
SMALL = 2
COLUMNS = {
    "net": "net",
    "batch": "batch",
    "image": "image",
    "hooked": "hooked layers",
    "attached": "attached / plain",
    "after": "after a cycle / plain",
    "microseconds": "attached - plain, us a hooked layer",
    "microseconds_after": "after a cycle - plain, us a hooked layer",
    "plain_ms": "plain step, ms",
}
NOTES = (
    "Target: at most 1 % or 10 us per hooked layer, whichever is larger. An interval that holds 1 (or 0 us) means that "
    "no cost was seen; the differences are taken sample by sample.",
)


def hooked(model: nn.Module) -> int:
    """Modules with a hook that forward passes call."""
    return sum(bool(module._forward_hooks or module._forward_pre_hooks) for module in model.modules())


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    for batch in dict.fromkeys([args.batch or net.batch_size(args.device), SMALL]):
        _measure(Bench(net, args.device, **{**report.layout(args), "batch": batch}), args, results)


def _measure(bench: Bench, args: argparse.Namespace, results: report.Report) -> None:
    trainings = {name: bench.training() for name in ("plain", "attached", "after")}
    repr_on(trainings["attached"], args.subnetwork, cycles=1)
    returned = repr_on(trainings["after"], args.subnetwork, cycles=1)
    for _ in range(2):  # drop, restore
        trainings["after"].step()
        returned.step()
    number = max(1, hooked(trainings["attached"].model))
    times = interleaved(
        {name: training.step for name, training in trainings.items()},
        repeats=args.repeats,
        device=args.device,
        label=f"{bench.net.key}, batch {bench.batch}",
        least=0.0 if args.quick else 0.3,
    )
    for training in trainings.values():
        training.check()

    def microseconds(name: str) -> object:
        return estimate([1e6 * (a - b) / number for a, b in zip(times[name], times["plain"])])

    results.add(
        {
            **bench.describe(),
            "hooked": number,
            "attached": ratio(times, "attached", "plain"),
            "after": ratio(times, "after", "plain"),
            "microseconds": microseconds("attached"),
            "microseconds_after": microseconds("after"),
            "plain_ms": 1000 * min(times["plain"]),
            "seconds": times,
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=21, nets=NETS)
    parser.add_argument("--subnetwork", choices=("auto", "compact", "masked"), default="auto", help="of RePr")
    args = report.parse(parser, argv)
    torch.manual_seed(0)  # of Dropout
    results = report.Report("overhead", args, {"overhead": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
