"""Runs that are repeated elsewhere: what each left behind, but for times, as one checksum.

    python -m tests.stress.repeating JSON

JSON: ``out``, ``threads``, ``noise`` (a number: what random states and other work come before each run), ``jobs`` (each
a scheme and changes to the tiny recipe), ``stops`` (after which epoch each is stopped and taken up again; 0: not).
Prints a list of checksums.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.lab.tiny import recipe

from torchreaper.lab.measures import fingerprint
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, load_checkpoint, read_events, read_metrics

TIMES = ("seconds", "images_per_second", "teacher_seconds", "logs")  # the last: checksums of files with times in them
Job = tuple[str, dict[str, Any]]


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    pass


class StopAfter(NullProgress):
    """Ends a run after an epoch; not its teacher's."""

    def __init__(self, epoch: int) -> None:
        self.at, self.is_teacher = epoch, False

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        self.is_teacher = title.startswith("teacher-")

    def epoch(self, metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == self.at and not self.is_teacher:
            raise Stopped


def without_times(value: Any) -> Any:
    """Nested containers without the entries that are measured times."""
    if isinstance(value, dict):
        return {str(key): without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, (list, tuple)) else value


def checksum(folder: Path, result: dict[str, Any]) -> str:
    """Over the result, both logs and all of the last checkpoint: weights, optimizer, scheme, random states, threads."""
    state = load_checkpoint(folder, print)
    left = {"result": result, "metrics": read_metrics(folder), "events": read_events(folder), "state": state}
    return fingerprint(without_times(left))


def disturb(noise: int) -> None:
    """Other random states, and other work on the processor, than the last time."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(noise)
    sizes = [random.randrange(3, 200) for _ in range(3)]
    torch.rand(sizes[0], sizes[1]) @ torch.rand(sizes[1], sizes[2])
    torch.nn.Conv2d(3, sizes[0] // 3 + 1, 3)(torch.rand(2, 3, 9, 9)).sum().backward()


def repeat(out: Path, threads: int, noise: int, jobs: list[Job], stops: list[int]) -> list[str]:
    """Train every job; the checksum of each."""
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for number, ((scheme, changes), stop) in enumerate(zip(jobs, stops)):
            disturb(noise + number)
            what = recipe(**changes)
            if stop:
                try:
                    train(what, scheme=scheme, seed=0, out=out / str(number), progress=StopAfter(stop))
                except Stopped:
                    disturb(1000 + noise - number)
            result = train(what, scheme=scheme, seed=0, out=out / str(number))
            assert result["threads"] == threads
            found.append(checksum(folder_of(out / str(number), "tiny", scheme, 0), result))
            found.append(result["fingerprint"])
    finally:
        torch.set_num_threads(before)
    return found


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    jobs = [(scheme, changes) for scheme, changes in asked["jobs"]]
    print(json.dumps(repeat(Path(asked["out"]), asked["threads"], asked["noise"], jobs, asked["stops"])))
