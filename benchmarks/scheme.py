"""The wall clock of RePr against standard training, the same epochs of both, beside the best it could be.

    python benchmarks/scheme.py
    python benchmarks/scheme.py --only c8-128 --steps 10
    python benchmarks/scheme.py --quick

A run is the paper's schedule at a tenth of its length: 2 epochs full, 1 without 30 % of the filters, 3 cycles, 10
epochs in all, so that s = 0.3 of the epochs are in sub-network phases. An "epoch" is a few steps. The limit is
1 - s (1 - r), with r = step of the same widths built by hand / full step, measured in the same minutes. Epochs of
standard training and RePr alternate, transitions are timed by themselves, and count with the steps of a real epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import report
import torch
from measure import Progress, QuietCollector, estimate, wall
from narrow import narrow
from networks import FRACTION, Bench, Net
from training import Training

import torchreaper as tr

FULL, SUB, CYCLES, EPOCHS = 2, 1, 3, 10
SHARE = CYCLES * SUB / EPOCHS
IMAGES = 45_000  # the training images of CIFAR-10, less the paper's 5,000 held out
COLUMNS = {
    "net": "net",
    "batch": "batch",
    "layers": "layers narrow",
    "steps": "steps an epoch",
    "r": "r, by hand / full",
    "limit": "limit",
    "ratio": "RePr / standard, steps alone",
    "transitions": "one cycle's transitions, full steps",
    "real_steps": "steps of a real epoch",
    "real_ratio": "RePr / standard, real epochs",
    "excess": "above the limit",
    "setup": "set-up, full steps",
}
NOTES = (
    f"s = {SHARE:g}; limit = 1 - s (1 - r). Steps alone: of all epochs, without the transitions. Real epochs: with "
    f"{CYCLES} drops and {CYCLES} returns per {EPOCHS} epochs of {IMAGES:,} images; in the paper's schedule, whose "
    "epochs are ten times as many, they weigh a tenth of that. Above the limit: real epochs, run by run.",
    "One cycle's transitions: rank and drop, restore, and the first step after each, which meets new widths.",
    "By hand, only layers of route narrow are narrower; see subnetwork.",
    "set-up: RePr(...), once in a training; it is in no ratio.",
)


@dataclass
class Clock:
    """Seconds of one run."""

    setup: float = 0.0
    standard: float = 0.0
    scheme: float = 0.0
    transitions: float = 0.0
    by_hand: float = 0.0
    beside_by_hand: float = 0.0  # standard training, in the epochs in which the hand-built network was timed


def run(trainings: dict[str, Training], steps: int, device: torch.device, mode: str) -> Clock:
    """One run of RePr and standard training, epoch by epoch in turn; the hand-built network beside sub-phases."""
    clock, made = Clock(), []

    def build() -> None:
        model, optimizer = trainings["scheme"].model, trainings["scheme"].optimizer
        made.append(
            tr.RePr(
                model,
                optimizer,
                trainings["scheme"].images,
                full=FULL,
                sub=SUB,
                cycles=CYCLES,
                fraction=FRACTION,
                max_per_layer=FRACTION,  # every layer at its limit: the uniform drop of the hand-built network
                subnetwork=mode,
            )
        )

    def epoch(training: Training) -> float:
        return wall(lambda: [training.step() for _ in range(steps)], device)

    clock.setup = wall(build, device)
    scheme = made[0]
    for _ in range(EPOCHS):
        standard = epoch(trainings["standard"])
        clock.standard += standard
        clock.scheme += epoch(trainings["scheme"])
        if scheme.phase == "sub":
            clock.by_hand += epoch(trainings["by-hand"])
            clock.beside_by_hand += standard
        phase, seconds = scheme.phase, wall(scheme.step, device)
        if scheme.phase != phase:
            # The first step at new widths allocates and chooses kernels: once a phase, however many steps it has.
            clock.transitions += seconds + wall(trainings["scheme"].step, device)
    scheme.remove()
    return clock


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    bench = Bench(net, args.device, **report.layout(args))
    hand = narrow(bench.model, bench.example, bench.uniform())
    trainings = {name: bench.training() for name in ("standard", "scheme")}
    trainings["by-hand"] = bench.training(hand.model)
    progress = Progress(net.key, args.repeats + 1)
    clocks = []
    with QuietCollector():
        for _ in range(args.repeats + 1):
            clocks.append(run(trainings, args.steps, args.device, args.subnetwork))
            progress.advance()
    clocks = clocks[1:]  # the first one warms up
    for training in trainings.values():
        training.check()

    real = max(1, round(IMAGES / bench.batch))
    step = [c.standard / (EPOCHS * args.steps) for c in clocks]
    r = [c.by_hand / c.beside_by_hand for c in clocks]
    limit = [1 - SHARE * (1 - x) for x in r]
    alone = [c.scheme / c.standard for c in clocks]
    both = [a + c.transitions / (s * EPOCHS * real) for a, c, s in zip(alone, clocks, step)]
    results.add(
        {
            **bench.describe(),
            "layers": hand.share,
            "steps": args.steps,
            "r": estimate(r),
            "limit": estimate(limit),
            "ratio": estimate(alone),
            "transitions": estimate([c.transitions / CYCLES / s for c, s in zip(clocks, step)]),
            "real_steps": real,
            "real_ratio": estimate(both),
            "excess": estimate([b - x for b, x in zip(both, limit)]),
            "setup": estimate([c.setup / s for c, s in zip(clocks, step)]),
            "runs": clocks,
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=7, nets=("vgg16", "c8-128"))
    parser.add_argument(
        "--steps", type=report.positive, help="steps an epoch; default 4 on the CPU, 50 on CUDA, 1 with --quick"
    )
    parser.add_argument("--subnetwork", choices=("auto", "compact", "masked"), default="auto", help="of RePr")
    args = report.parse(parser, argv)
    args.steps = args.steps or (1 if args.quick else 50 if args.device.type == "cuda" else 4)
    torch.manual_seed(0)  # of Dropout
    results = report.Report("scheme", args, {"scheme": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
