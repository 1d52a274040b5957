"""Runs that are killed by SIGKILL in processes of their own; started as a script by test_killed.py.

    python -m tests.lab.dying OUT

Prints JSON: for each scheme, optimizer and way of being killed, how the runs ended and after which epochs they died.
Ways: "every": one run for each operation on the disk, killed right before it and then finished. "chain": one run,
killed again and again before a random operation. "times": one run, killed again and again after a random time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tests.lab.tiny import ADAMW, recipe

from torchreaper.lab import snapshots
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_metrics

JOBS = [
    ("repr", "sgd", "every"),
    *((scheme, optimizer, "chain") for scheme in ("standard", "repr") for optimizer in ("sgd", "adamw")),
    *(("repr", optimizer, "times") for optimizer in ("sgd", "adamw")),
]


def tiny(optimizer: str) -> Recipe:
    """Three epochs, snapshots of the last two; with RePr the filters go after the first and return after the second."""
    return recipe(epochs=3, snapshots=2, scheme__sub=1, **({"optim": ADAMW} if optimizer == "adamw" else {}))


def die_before(operation: int) -> None:
    """Make this process kill itself right before its operation number `operation` on the disk, from 0."""
    left = [operation]

    def trapped(function: Any) -> Any:
        def call(*args: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args)

        return call

    for name in ("replace", "fsync"):
        setattr(os, name, trapped(getattr(os, name)))


def attempt(out: Path, job: tuple[str, str, str], *, operation: int | None = None, after: float | None = None) -> bool:
    """Begin or continue a run in a process of its own; whether it ended by itself."""
    scheme, optimizer, _ = job
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if operation is not None:
                die_before(operation)
            train(tiny(optimizer), scheme=scheme, seed=0, out=out)
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still the child's
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the run failed"
        return True
    assert os.WTERMSIG(status) == signal.SIGKILL
    return False


def epochs(out: Path, job: tuple[str, str, str]) -> list[int]:
    """The epochs in the run's log."""
    return [line["epoch"] for line in read_metrics(out / "tiny" / job[0] / "seed-0")]


def ended(out: Path, job: tuple[str, str, str], died: list[list[int]]) -> dict[str, Any]:
    """What a finished run left, and the epochs in its log each time it died."""
    return {"left": left(out, job[0]), "epochs": epochs(out, job), "died": died}


def left(out: Path, scheme: str) -> list[str]:
    """The fingerprints of a finished run's network and of its snapshots, their epochs with them."""
    folder = out / "tiny" / scheme / "seed-0"
    found = [str(json.loads((folder / "result.json").read_text())["fingerprint"])]
    for epoch, path in snapshots.find(folder).items():
        found.append(f"{epoch} {fingerprint(torch.load(path, weights_only=True)['model'])}")
    return found


def everywhere(out: Path, job: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Kill one run before each of its operations, and finish it."""
    runs: list[dict[str, Any]] = []
    whole = False
    while not whole:
        here = out / str(len(runs))
        whole = attempt(here, job, operation=len(runs))
        died = [epochs(here, job)]
        assert attempt(here, job)
        runs.append(ended(here, job, died))
    return runs


def again_and_again(out: Path, job: tuple[str, str, str], draw: random.Random) -> list[dict[str, Any]]:
    """Kill one run at random places until it ends before the next one."""
    died: list[list[int]] = []
    while True:
        if job[2] == "chain":
            whole = attempt(out, job, operation=draw.randrange(4, 20))
        else:
            # Ever longer, as a slow machine would otherwise never get to the end of an epoch.
            whole = attempt(out, job, after=draw.uniform(0.02, 0.3) * 1.1 ** len(died))
        if whole:
            return [ended(out, job, died)]
        died.append(epochs(out, job))


def main(out: Path) -> None:
    """Do all jobs and print what came out."""
    torch.set_num_threads(1)
    for scheme in ("standard", "repr"):
        # What is slow at the first time is done before the processes part.
        train(tiny("adamw"), scheme=scheme, seed=0, out=out / "first")
    found = {}
    for number, job in enumerate(JOBS):
        here, draw = out / str(number), random.Random(number)
        found[" ".join(job)] = everywhere(here, job) if job[2] == "every" else again_and_again(here, job, draw)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
