"""Asks every architecture of tests/zoo.py what the method promises, and writes docs/architectures.md.

    python benchmarks/sweep.py                    # what has no row yet, then the page
    python benchmarks/sweep.py --only timm:dla34  # again, and the page; shell patterns too
    python benchmarks/sweep.py --failed           # again what is not "ok"
    python benchmarks/sweep.py --again            # everything again
    python benchmarks/sweep.py --page             # only the page

One row per architecture, in benchmarks/results/architectures.jsonl, written as soon as it is there: a sweep that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.zoo import FRACTION, TOLERANCE, ZOO, Row, check  # noqa: E402 - found through the line above

ROWS = ROOT / "benchmarks" / "results" / "architectures.jsonl"
PAGE = ROOT / "docs" / "architectures.md"
PACKAGES = ("torchreaper", "torch", "torchvision", "timm")


def main() -> None:
    arguments = parsed()
    rows = read_rows()
    names = wanted(arguments, rows)
    with_workers(names, arguments.jobs, rows)
    PAGE.write_text(page(rows))
    bad = [name for name, row in rows.items() if not row["result"].startswith("ok")]
    print(f"{len(rows)} of {len(ZOO)} architectures, {len(rows) - len(bad)} ok; written: {PAGE.relative_to(ROOT)}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="these again; shell patterns, several times")
    parser.add_argument("--failed", action="store_true", help="again what is not ok")
    parser.add_argument("--again", action="store_true", help="everything again")
    parser.add_argument("--page", action="store_true", help="only write the page from the rows that are there")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"argument --jobs: {arguments.jobs}: must be at least 1")
    return arguments


def wanted(arguments: argparse.Namespace, rows: Mapping[str, Any]) -> list[str]:
    if arguments.page:
        return []
    if arguments.only:
        names = [name for name in ZOO if any(fnmatchcase(name, pattern) for pattern in arguments.only)]
        if not names:
            sys.exit(f"--only {' '.join(arguments.only)}: no such architecture in tests/zoo.py")
        return names
    if arguments.again:
        return list(ZOO)
    return [
        name for name in ZOO if name not in rows or (arguments.failed and not rows[name]["result"].startswith("ok"))
    ]


def with_workers(names: list[str], jobs: int, rows: dict[str, Any]) -> None:
    """Each architecture in a worker process; one that dies (out of memory) is a row too, and others take its place."""
    done = 0
    while names:
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread)
        futures = [pool.submit(work, name) for name in names]
        try:
            for future in as_completed(futures):
                row = future.result()
                names = [name for name in names if name != row.name]
                done += 1
                report(rows, row, f"{done}/{done + len(names)}")
        except BrokenProcessPool:
            # Which worker died is not told: with several, those that are missing are tried one at a time.
            if jobs == 1:
                report(rows, Row(names[0], result="the process was killed"), f"{done + 1}/{done + len(names)}")
                names, done = names[1:], done + 1
            jobs = 1
        finally:
            pool.shutdown(cancel_futures=True)


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of other people's model code


def work(name: str) -> Row:
    return check(ZOO[name])


def report(rows: dict[str, Any], row: Row, progress: str) -> None:
    rows[row.name] = {
        **asdict(row),
        "date": date.today().isoformat(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_rows(rows)
    print(f"{progress}  {row.name}  {row.seconds:.0f} s  {row.result}", flush=True)


def read_rows() -> dict[str, Any]:
    if not ROWS.exists():
        return {}
    found = {row["name"]: row for row in map(json.loads, ROWS.read_text().splitlines())}
    return {name: found[name] for name in ZOO if name in found}  # what has left the zoo leaves the page


def write_rows(rows: Mapping[str, Any]) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    temporary = ROWS.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(rows[name]) + "\n" for name in ZOO if name in rows))
    os.replace(temporary, ROWS)


def page(rows: Mapping[str, Any]) -> str:
    """The page: introduction, what does not work, the table."""
    ordered = [rows[name] for name in ZOO if name in rows]
    fine = [row for row in ordered if row["result"].startswith("ok")]
    dates = sorted({row["date"] for row in ordered})
    versions = {p: sorted({row["versions"][p] for row in ordered}) for p in PACKAGES}
    when = dates[0] if dates[:1] == dates[-1:] else f"{dates[0]} to {dates[-1]}" if dates else "never"
    text = INTRODUCTION.format(
        total=len(ordered),
        fine=len(fine),
        fraction=FRACTION,
        tolerance=TOLERANCE,
        when=when,
        versions=", ".join(f"{p} {' and '.join(v)}" for p, v in versions.items()),
        minutes=sum(row["seconds"] for row in ordered) / 60,
    )
    missing = [name for name in ZOO if name not in rows]
    if missing:
        text += f"\nNot run yet: {', '.join(missing)}.\n"
    bad = [row for row in ordered if not row["result"].startswith("ok")]
    text += "\n## What does not work\n\n"
    text += "".join(f"- `{row['name']}`: {row['result']}\n" for row in bad) or "Nothing in this list.\n"
    text += "\n## The table\n\n" + table(ordered)
    return text


INTRODUCTION = """# Architectures

<!-- Written by benchmarks/sweep.py; change it there. -->

{fine} of the {total} published convnets that were run pass the check below. The list (`tests/zoo.py`) has every
classification convnet of torchvision, its convnets that segment pictures or see films, and of timm at least one of
each family of convnets (a few with attention among them); what has not been run yet is named. `python
benchmarks/sweep.py` runs it (these {total} took {minutes:.0f} minutes on one core); `--only timm:dla34` makes one row
anew.

**What is done to each.** The network is built by its package, in float64, with small pictures, random weights and
random norm entries, layer scales and gains, so that nothing hides behind a 0; Dropout and stochastic depth are off.
After one step of SGD with momentum and weight decay, {fraction:.0%} of the filters, chosen at random over all ranked
layers, are left out (at most 80 % of a layer); one step of training follows, and the filters return as they were. This
is done twice from the same start, masked and compact. It passes where

- the two agree to {tolerance:.0e} of a tensor's largest value: outputs in train and in eval mode, the whole state of
  model and optimizer during the phase and after the return;
- what was taken out is absent: with 1e30 in its place, in the filters' own weights and norm entries and in the later
  weights that read them, no output changes by a bit, and no gradient enters it;
- what was taken out comes back bit for bit, weights and momentum, and every state_dict has full shapes at any moment;
- where compact can make nothing smaller (*masked only*) it refuses, and what is said of masked holds;
- a second drop whose filters return with new, orthogonal weights runs, and training goes on with finite numbers.

**Columns.** *Parameters*: with 10 classes. *Convolutions*: all modules of that kind. *Ranked*: those whose filters take
part in the ranking (not the first, not depthwise, gates or outputs); of these *narrow*, *scatter* and *masked*, by how
compact mode leaves their filters out: removed everywhere; computed without them and put back to full width, with
zeros; computed at full width. *Multiply-adds*: what is left of the network's when 30 % of the filters of every ranked
layer are out; 49 % where every weight loses 30 % on both sides. *Seconds*: of the whole check, on one thread of a
shared machine; they compare nothing.

Measured {when} with {versions}.
"""

HEADER = """\
| architecture | parameters | convolutions | ranked | narrow | scatter | masked | multiply-adds | seconds | result |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---|
"""


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        share = f"{row['share']:.0%}" if row["ranked"] else ""
        result = row["result"].replace("|", "\\|")
        counts = " | ".join(str(row[key]) for key in ("convolutions", "ranked", "narrow", "scatter", "masked"))
        millions = f"{row['parameters'] / 1e6:.1f} M"
        lines.append(f"| {row['name']} | {millions} | {counts} | {share} | {row['seconds']:.0f} | {result} |")
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
