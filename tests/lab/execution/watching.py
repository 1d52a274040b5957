"""Listeners that kill the processes they listen to, and a look at processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchreaper.lab.locking import LOCK
from torchreaper.lab.progress import NullProgress


def holder(folder: Path) -> int:
    """The process that trains in a run's folder."""
    return int((folder / LOCK).read_text().split()[1])


class Killer(NullProgress):
    """Kills the process that trains in `folder` as often as `times`, each time when it is told of an epoch."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.left = folder, times
        self.notes: list[str] = []
        self.started: list[int] = []
        self.ended: list[dict[str, Any]] = []

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        self.started.append(done)

    def epoch(self, metrics: dict[str, Any]) -> None:
        # Of the epochs told before it died, some are read only after it.
        if self.left >= len(self.started) > 0 and metrics["epoch"] == self.started[-1] + 1:
            os.kill(holder(self.folder), signal.SIGKILL)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end_run(self, result: dict[str, Any]) -> None:
        self.ended.append(result)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What `condition` says as soon as it says something; an error after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def members(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent group ...; the name may hold anything
            state, _parent, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
