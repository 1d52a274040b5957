"""Keep what a comparison found: its table, its figures, and the records of its runs, without the checkpoints.

    python benchmarks/keep.py runs/c3-32-cifar10-pooled benchmarks/results/c3-32-cifar10-pooled

With --curves only curves are kept, those of all runs in one curves.csv, and how many filters went in drops.csv: for
the steps of an investigation, of which there are many runs. Prints the table and where it was measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "result.json")


CURVES = ("epoch", "phase", "lr", "train_loss", "train_accuracy", "validation_accuracy", "test_accuracy", "test_loss")


def keep(source: Path, target: Path, *, curves: bool = False) -> None:
    """Copy the comparison in ``source`` to ``target``, which must not exist."""
    if not (source / "comparison.json").exists():
        raise SystemExit(f"error: {source}: holds no comparison.json; give the folder that reaper compare wrote")
    if target.exists():
        raise SystemExit(f"error: {target}: exists; results are never overwritten, choose another name")
    runs = sorted(source.glob("*/seed-*/result.json"))
    target.mkdir(parents=True)
    for path in sorted(source.glob("*.*")):
        if curves and path.suffix == ".html":
            continue
        shutil.copy(path, target / path.name)
    if curves:
        keep_curves(source, target, [run.parent for run in runs])
    for run in [] if curves else runs:
        folder = target / run.parent.relative_to(source)
        folder.mkdir(parents=True)
        for name in RECORDS:
            if (run.parent / name).exists():
                shutil.copy(run.parent / name, folder / name)
    machine = json.loads((runs[0].parent / "environment.json").read_text())
    print((target / "comparison.md").read_text())
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date'][:10]}")


def keep_curves(source: Path, target: Path, runs: list[Path]) -> None:
    """A line of curves.csv per run and epoch, of drops.csv per run, cycle and layer; one recipe and one machine."""
    with (target / "curves.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["scheme", "seed", *CURVES])
        for run in runs:
            for line in _lines(run / "metrics.jsonl"):
                values = [line[key] for key in CURVES]
                short = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
                lines.writerow([run.parent.name, run.name.removeprefix("seed-"), *short])
    with (target / "drops.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["scheme", "seed", "epoch", "cycle", "layer", "filters", "dropped"])
        for run in runs:
            sizes = json.loads((run / "result.json").read_text())["layers"]
            for event in _lines(run / "events.jsonl"):
                if event["scores"]:  # of a drop, or of filters that returned at once
                    for layer in event["scores"]:
                        gone = len(event["filters"].get(layer, ()))
                        which = run.parent.name, run.name.removeprefix("seed-"), event["epoch"], event["cycle"]
                        lines.writerow([*which, layer, sizes[layer], gone])
    for name in ("recipe.yaml", "environment.json"):
        shutil.copy(runs[0] / name, target)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="<out>/<recipe name>")
    parser.add_argument("target", type=Path, help="a new folder below benchmarks/results")
    parser.add_argument("--curves", action="store_true", help="keep curves and drops as CSV instead of every record")
    arguments = parser.parse_args()
    keep(arguments.source, arguments.target, curves=arguments.curves)
