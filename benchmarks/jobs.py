"""Does it pay to train several seeds of a small network side by side, as `reaper compare --jobs N` does?

    python benchmarks/jobs.py
    python benchmarks/jobs.py --device cuda --images 45000
    python benchmarks/jobs.py --quick

The same runs each time, in 1, 2 or 4 worker processes, which share the cores (and the GPU).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pictures
import report
from measure import Progress, estimate
from networks import Net

from torchreaper.lab.comparison import Failure
from torchreaper.lab.execution import Job, Workers
from torchreaper.lab.execution.workers import cores
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import read_metrics

JOBS, RUNS, EPOCHS = (1, 2, 4), 4, 3
COLUMNS = {
    "net": "net",
    "batch": "batch",
    "images": "images",
    "jobs": "processes x threads",
    "rate": "images/s, all together",
    "rate_ratio": "of one process",
    "wall": f"{RUNS} runs, s",
    "wall_ratio": "time of one process",
}
NOTES = (
    f"Every line: {RUNS} runs of {EPOCHS} epochs. Images/s: while training, the first epoch left out, of all processes "
    "together. Seconds: all of it, with starting the processes (each imports torch and reads the images), judging, "
    "writing.",
    "Ratios are taken round by round. A short run is mostly its start, a long one is as the images/s say.",
)


def once(recipe: Recipe, jobs: int, threads: int, device: str) -> tuple[float, float]:
    """Images a second of all processes together, and the seconds of everything."""
    with tempfile.TemporaryDirectory() as folder:
        todo = [Job(recipe, "standard", seed, Path(folder), device) for seed in range(RUNS)]
        start = time.perf_counter()
        for job, outcome in Workers(jobs, threads).run(todo, lambda _: NullProgress()):
            if isinstance(outcome, Failure):
                raise RuntimeError(f"{job.name}: {outcome.reason}")
        wall = time.perf_counter() - start
        rates = [line["images_per_second"] for job in todo for line in read_metrics(job.folder) if line["epoch"] > 1]
    return jobs * median(rates), wall


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    batch = args.batch or net.batch_size(args.device)
    total = args.threads or cores()
    counts = JOBS[:2] if args.quick else JOBS
    found: dict[int, list[tuple[float, float]]] = {jobs: [] for jobs in counts}
    progress = Progress(net.key, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        made = {"parquet": args.parquet, "images": args.images, "batch": batch, "epochs": EPOCHS}
        recipe = pictures.recipe(net, Path(folder), **made)
        for _ in range(args.repeats):
            for jobs in counts:
                found[jobs].append(once(recipe, jobs, max(1, total // jobs), args.device.type))
            progress.advance()
    for jobs in counts:
        results.add(
            {
                "net": net.label,
                "batch": batch,
                "images": args.images,
                "jobs": f"{jobs} x {max(1, total // jobs)}",
                "rate": estimate([rate for rate, _ in found[jobs]]),
                "rate_ratio": estimate([a / b for (a, _), (b, _) in zip(found[jobs], found[1])]),
                "wall": estimate([wall for _, wall in found[jobs]]),
                "wall_ratio": estimate([a / b for (_, a), (_, b) in zip(found[jobs], found[1])]),
                "samples": found[jobs],
            }
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=7, nets=("c3-32", "resnet20"))
    parser.add_argument("--parquet", metavar="GLOB", help="CIFAR-10's training images; without it random ones are made")
    parser.add_argument("--images", type=report.positive, help="in an epoch; default 2000 on the CPU, 45000 on CUDA")
    args: Any = report.parse(parser, argv)
    args.images = args.images or (20 if args.quick else 45_000 if args.device.type == "cuda" else 2_000)
    results = report.Report("jobs", args, {"jobs": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
