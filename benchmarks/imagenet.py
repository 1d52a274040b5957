"""What RePr costs at ImageNet's scale, 224x224: memory, transitions and steps of ResNets, VGG-16 and ConvNeXt-L.

    python benchmarks/imagenet.py
    python benchmarks/imagenet.py --only vgg16 --batch 4 --work /tmp/imagenet
    python benchmarks/imagenet.py --quick

Every part of a network's rows is measured in a process of its own and kept in the folder `--work`; a program that was
stopped takes up there what was measured with the same settings and the same source.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import report
import torch
from imagenet_part import MODES
from measure import Estimate, estimate, ratio
from published import NETWORKS, PUBLISHED, TINY, Published

import torchreaper as tr

FOLDER = Path(__file__).parent
CYCLES = 3
"""Cycles whose memory is measured."""
MIB = 2**20
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""With these glibc gives freed memory back at once, so that what is resident is what is in use."""

MEMORY = {
    "net": "net",
    "optimizer": "optimizer",
    "mode": "mode",
    "batch": "batch",
    "weights": "weights",
    "plain": "plain step",
    "build": "build",
    "attached": "attached step",
    "drop": "rank + drop",
    "sub": "sub-network step",
    "checkpoint": "checkpoint in the phase",
    "restore": "restore",
    "full": "step after",
    "kept": "kept for dropped filters",
}
TRANSITIONS = {
    "net": "net",
    "batch": "batch",
    "filters": "filters ranked",
    "layers": "layers ranked",
    "step": "plain step, s",
    "build": "build, s",
    "rank": "rank, s",
    "mode": "mode",
    "drop": "rank + drop, s",
    "restore": "restore, s",
    "drop_steps": "rank + drop, steps",
    "restore_steps": "restore, steps",
}
STEPS = {
    "net": "net",
    "optimizer": "optimizer",
    "batch": "batch",
    "plain": "plain step, s",
    "attached": "attached, full / plain",
    "masked": "masked sub-network / plain",
    "compact": "compact sub-network / plain",
    "first_compact": "first compact step / second",
    "multiply_adds": "multiply-adds",
}
NOTES = (
    "Memory in MiB, n = {cycles} cycles in a fresh process: how far the highest resident set of the process lies above "
    "that of a plain training step with the same batch (below 0: under it) while this ran; the column of the plain "
    "step is that peak itself. Weights: of the model; momentum (SGD) takes as much again, AdamW's moments take twice. "
    "Kept: counted, bytes of weights and optimizer state of the filters that are dropped, on every device. Libraries "
    "that a first transition loads are not in it.",
    "Checkpoint in the phase: the state dicts of model and optimizer, at full shapes, both at once.",
    "Seconds are those of the CPU with one thread, as `torchrun` starts a process (OMP_NUM_THREADS=1): what another "
    "load takes of the clock is not counted. On CUDA they are of the clock; the algebra of the return is done on the "
    "CPU whatever the device.",
    "Rank + drop takes 30 % of the filters of every ranked layer. In steps: of a plain training step at that batch, "
    "round by round.",
    "Steps: plain, attached, masked and compact in turn on one model. First compact step: new shapes.",
)


@dataclass(frozen=True)
class Workshop:
    """Where parts are measured, and what is kept of them."""

    args: argparse.Namespace

    def part(self, net: Published, part: str, optimizer: str, mode: str = "", repeats: int = 0) -> dict[str, Any]:
        """Measured now, or taken up from before."""
        task = {
            "part": part,
            "net": net.key,
            "label": " ".join(filter(None, (net.key, part, optimizer, mode))),
            "optimizer": optimizer,
            "mode": mode,
            "batch": self.args.batch or net.batch,
            "repeats": repeats or self.args.repeats,
            "device": self.args.device.type,
            "threads": self.args.threads,
        }
        path = self.args.work / f"{'-'.join(filter(None, (net.key, part, optimizer, mode)))}.json"
        kept = {"task": task, "torch": torch.__version__, "source": source()}
        if path.exists() and (before := json.loads(path.read_text())).items() >= kept.items():
            print(f"imagenet: {task['label']}: was measured before", file=sys.stderr)
            return before["found"]
        print(f"imagenet: {task['label']}", file=sys.stderr, flush=True)
        found = run(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**kept, "found": found}) + "\n")
        return found


def run(task: Mapping[str, Any]) -> dict[str, Any]:
    """A part in a process of its own."""
    settings = ALLOCATOR if task["part"] == "memory" else {}
    command = [sys.executable, str(FOLDER / "imagenet_part.py"), json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings})
    if done.returncode:
        raise RuntimeError(f"{task['label']}: the process ended with {done.returncode}, see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def source() -> str:
    """A fingerprint of the method that is measured; after a change of what measures it, take another folder."""
    package = Path(tr.__file__).parent
    files = [path for path in sorted(package.rglob("*.py")) if "lab" not in path.relative_to(package).parts]
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def measure(net: Published, args: argparse.Namespace, results: report.Report) -> None:
    shop = Workshop(args)
    batch = args.batch or net.batch
    first = {"key": net.key, "net": net.label, "batch": batch}
    failures = []
    for optimizer in net.optimizers:
        for mode in MODES:
            try:
                found = shop.part(net, "memory", optimizer, mode, min(CYCLES, args.repeats))
                results.add({**first, "optimizer": optimizer, "mode": mode, **memory_row(found)}, "memory")
            except RuntimeError as error:
                failures.append(str(error))
    try:
        timed = shop.part(net, "times", net.optimizers[0])
        for mode in MODES:
            results.add({**first, **transition_row(timed, mode), "mode": mode}, "transitions")
        results.add({**first, "optimizer": net.optimizers[0], **step_row(timed)}, "steps")
    except RuntimeError as error:
        failures.append(str(error))
    if failures:
        raise RuntimeError("; ".join(failures))


def memory_row(found: Mapping[str, Any]) -> dict[str, Any]:
    stages = found["stages"]
    plain = estimate([one["peak"] / MIB for one in stages["plain"]])
    beyond = {
        name: estimate([one["peak"] / MIB - plain.median for one in samples])
        for name, samples in stages.items()
        if name != "plain"
    }
    return {
        **{name: whole(value) for name, value in beyond.items()},
        "plain": whole(plain),
        "weights": round(found["weights"] / MIB),
        "kept": round(found["kept"] / MIB),
        "samples": stages,
        "bytes": {key: found[key] for key in ("weights", "state", "kept")},
    }


def whole(value: Estimate) -> str:
    """In whole MiB, with minimum and maximum where they differ."""
    low, middle, high = (round(number) for number in (value.low, value.median, value.high))
    return f"{middle:,}" if low == high else f"{middle:,} [{low:,}, {high:,}]"


def transition_row(found: Mapping[str, Any], mode: str) -> dict[str, Any]:
    seconds = found["seconds"]
    return {
        "filters": found["filters"],
        "layers": found["ranked"],
        "step": estimate(seconds["plain"]),
        "build": estimate(seconds["build"]),
        "rank": estimate(seconds["rank"]),
        "drop": estimate(seconds[f"drop {mode}"]),
        "restore": estimate(seconds[f"restore {mode}"]),
        "drop_steps": ratio(seconds, f"drop {mode}", "plain"),
        "restore_steps": ratio(seconds, f"restore {mode}", "plain"),
    }


def step_row(found: Mapping[str, Any]) -> dict[str, Any]:
    seconds = found["seconds"]
    return {
        "plain": estimate(seconds["plain"]),
        "attached": ratio(seconds, "attached", "plain"),
        "masked": ratio(seconds, "masked", "plain"),
        "compact": ratio(seconds, "compact", "plain"),
        "first_compact": ratio(seconds, "first compact", "compact"),
        "multiply_adds": found["multiply_adds"],
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> int:
    keys = [net.key for net in PUBLISHED]
    parser = report.parser(__doc__ or "", repeats=7, nets=())
    parser.add_argument("--only", metavar="NET", action="append", choices=keys, help=f"repeatable; {', '.join(keys)}")
    parser.add_argument("--batch", type=report.positive, help="images in a batch, for every network")
    parser.add_argument("--work", type=Path, default=Path("runs/imagenet"), help="folder of the parts measured so far")
    args = report.parse(parser, argv)
    tables = {"memory": MEMORY, "transitions": TRANSITIONS, "steps": STEPS}
    notes = [note.format(cycles=min(CYCLES, args.repeats)) for note in NOTES]
    results = report.Report("imagenet", args, tables, notes)
    nets = [TINY] if args.quick and not args.only else [NETWORKS[key] for key in keys if key in (args.only or keys)]
    return results.each(nets, lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
