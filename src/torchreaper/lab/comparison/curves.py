"""Accuracy over the epochs of a run, and when it first was what another run ended with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torchreaper.lab.comparison.found import Reach, Result
from torchreaper.lab.runs import read_metrics

#: Epoch, accuracy from 0 to 1, and whether the network of that epoch is one the scheme could end with.
Curve = Sequence[tuple[int, float, bool]]


def read_curves(folder: Path, results: Mapping[str, Mapping[int, Result]]) -> dict[str, dict[int, Curve]]:
    """The curves of the finished runs below ``folder``, the recipe's; empty ones where a run's log is not there."""
    return {
        scheme: {seed: curve(read_metrics(folder / scheme / f"seed-{seed}")) for seed in runs}
        for scheme, runs in results.items()
    }


def curve(metrics: Iterable[Mapping[str, object]]) -> Curve:
    """Of the lines of a ``metrics.jsonl``.

    An epoch counts where its line says so, or in older logs where the phase is "full": in a sub-network phase a
    smaller network is judged, which nobody gets in the end.
    """
    found = []
    for line in metrics:
        epoch, accuracy = line["epoch"], line["test_accuracy"]
        if isinstance(epoch, int) and isinstance(accuracy, (int, float)):
            found.append((epoch, float(accuracy), bool(line.get("counts", line.get("phase") == "full"))))
    return found


def first_epoch(curve: Curve, accuracy: float) -> int | None:
    """The first epoch that counts and is at least as accurate; None if there is none."""
    return next((epoch for epoch, value, counts in curve if counts and value >= accuracy), None)


def reach(curves: Mapping[int, Curve], targets: Mapping[int, float]) -> Reach | None:
    """The median first epoch over the seeds that have a curve and a target; None without any."""
    epochs = [first_epoch(curves[seed], targets[seed]) for seed in curves if curves[seed] and seed in targets]
    if not epochs:
        return None
    median = statistics.median(math.inf if epoch is None else epoch for epoch in epochs)
    return Reach(float(median) if math.isfinite(median) else None, sum(e is not None for e in epochs), len(epochs))
