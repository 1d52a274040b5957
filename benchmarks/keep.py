"""Keep what a comparison found: its table, its figures, and the records of its runs, without the checkpoints.

    python benchmarks/keep.py runs/c3-32-cifar10-pooled benchmarks/results/c3-32-cifar10-pooled

Prints the table and where it was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "result.json")


def keep(source: Path, target: Path) -> None:
    """Copy the comparison in ``source`` to ``target``, which must not exist."""
    if not (source / "comparison.json").exists():
        raise SystemExit(f"error: {source}: holds no comparison.json; give the folder that reaper compare wrote")
    if target.exists():
        raise SystemExit(f"error: {target}: exists; results are never overwritten, choose another name")
    runs = sorted(source.glob("*/seed-*/result.json"))
    target.mkdir(parents=True)
    for path in sorted(source.glob("*.*")):
        shutil.copy(path, target / path.name)
    for run in runs:
        folder = target / run.parent.relative_to(source)
        folder.mkdir(parents=True)
        for name in RECORDS:
            if (run.parent / name).exists():
                shutil.copy(run.parent / name, folder / name)
    machine = json.loads((runs[0].parent / "environment.json").read_text())
    print((target / "comparison.md").read_text())
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date'][:10]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="<out>/<recipe name>")
    parser.add_argument("target", type=Path, help="a new folder below benchmarks/results")
    arguments = parser.parse_args()
    keep(arguments.source, arguments.target)
