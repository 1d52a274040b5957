"""Keep what a comparison found: its table, its figures, and the records of its runs, without the checkpoints.

    python benchmarks/keep.py runs/c3-32-cifar10-pooled benchmarks/results/c3-32-cifar10-pooled

With --archive the records are packed into one runs.tar.xz, a tenth as large, and figures are left out: for
investigations of hundreds of runs. Unpacked into a folder of runs,

    mkdir -p runs/NAME && tar -xf benchmarks/results/NAME/runs.tar.xz -C runs/NAME

they are finished runs again: reaper report draws them, and reaper compare goes on with what is missing.
The weights are not kept: reaper analyze cannot look at them.
Prints the table and where it was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "result.json")


def keep(source: Path, target: Path, *, archive: bool = False) -> None:
    """Copy the comparison in ``source`` to ``target``, which must not exist."""
    if not (source / "comparison.json").exists():
        raise SystemExit(f"error: {source}: holds no comparison.json; give the folder that reaper compare wrote")
    if target.exists():
        raise SystemExit(f"error: {target}: exists; results are never overwritten, choose another name")
    runs = [result.parent for result in sorted(source.glob("*/seed-*/result.json"))]
    if not runs:
        raise SystemExit(f"error: {source}: no run of it has finished; give the same reaper compare again first")
    records = [path for run in runs for name in RECORDS if (path := run / name).exists()]
    target.mkdir(parents=True)
    for path in sorted(path for path in source.glob("*.*") if path.is_file()):  # a scheme's name may have a dot
        if not archive or path.suffix in (".md", ".json", ".csv"):
            shutil.copy(path, target / path.name)
    if archive:
        pack(records, source, target / "runs.tar.xz")
    else:
        for path in records:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    machine = json.loads((runs[0] / "environment.json").read_text())
    print((target / "comparison.md").read_text())
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date'][:10]}")


def pack(files: Iterable[Path], root: Path, archive: Path) -> None:
    """The files by their paths below ``root``, with nothing of this machine or its clock."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o644
        return entry

    with tarfile.open(archive, "w:xz") as packed:
        for path in files:
            packed.add(path, str(path.relative_to(root)), filter=plain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="<out>/<recipe name>")
    parser.add_argument("target", type=Path, help="a new folder below benchmarks/results")
    parser.add_argument("--archive", action="store_true", help="pack the records of the runs into one file")
    arguments = parser.parse_args()
    keep(arguments.source, arguments.target, archive=arguments.archive)
