"""Real commands, killed; and what they leave, in a form that two runs of the same bits share."""

from __future__ import annotations

import atexit
import csv
import functools
import hashlib
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.lab.execution.watching import members, until
from tests.lab.tiny import ADAMW, TINY
from tests.stress.trap import NAME

from torchreaper.lab import snapshots
from torchreaper.lab.locking import LOCK
from torchreaper.lab.report import page
from torchreaper.lab.runs import (
    ENVIRONMENT,
    RECIPE,
    load_checkpoint,
    read_events,
    read_metrics,
    read_recipe,
    read_result,
)

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS = 240  # that a command may take on a machine where others work too
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
GO_ON = "; finished epochs are kept: give the same command again to go on\n"
#: What differs between two runs of the same bits.
TIMES = (
    *("seconds", "teacher_seconds", "images_per_second", "wall_clock", "wall_clock_student"),
    *("notes", "remarks"),  # of a comparison: they tell times, and how many runs were made at once
    "logs",  # of a checkpoint: checksums of files with times in them
)


def recipe(*, subnetwork: str = "compact", optimizer: str = "sgd", **changes: Any) -> dict[str, Any]:
    """Eight epochs; filters go after 1, 3, 5 and return after 2, 4, 6; snapshots of every second."""
    model = {"name": "cnet", "options": {"depth": 3, "width": 6, "batch_norm": True, "dropout": 0.2}}
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 3, "fraction": 0.4, "subnetwork": subnetwork}
    optim = ADAMW if optimizer == "adamw" else TINY["optim"]
    return {**TINY, "epochs": 8, "snapshots": 2, "model": model, "scheme": scheme, "optim": optim, **changes}


def hear_ctrl_c() -> None:
    """Commands that are begun from now on hear Ctrl-C, though shells let what they run in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Ended:
    """How a command ended: its exit code, or minus the signal that killed it; what it said; what it left half done."""

    code: int
    out: str
    errors: str
    over: frozenset[Path] = frozenset()


@dataclass
class Command:
    """``reaper ...`` in a folder, as a process of its own; from a `Launcher`, or afresh, by a script if named."""

    arguments: list[str]
    folder: Path
    launcher: Launcher | None = None
    environment: dict[str, str] = field(default_factory=dict)
    script: str = ""

    def __post_init__(self) -> None:
        self._files = [self.folder / ".out", self.folder / ".errors"]
        for path in self._files:
            path.touch()
        self._before = half_done(self.folder)
        self._code: int | None = None
        if self.launcher is not None:
            self.pid = self.launcher.begin(self)
            return
        code = "from torchreaper.lab.cli import main; main()"
        hear_ctrl_c()
        with open(self._files[0], "wb") as out, open(self._files[1], "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *([self.script] if self.script else ["-c", code]), *self.arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def ended(self, seconds: float = SECONDS) -> int | None:
        """Its exit code if it ends within so many seconds, else None."""
        if self.launcher is not None:
            self._code = self.launcher.ended(seconds) if self._code is None else self._code
            return self._code
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self.ended()
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.ended()
            raise AssertionError(f"{self.arguments}: goes on after {SECONDS} seconds")
        out, errors = (path.read_text() for path in self._files)
        for path in self._files:
            path.unlink()
        return Ended(code, out, errors, half_done(self.folder) - self._before)

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send it a signal, or to it and all that it has started."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)


class Launcher:
    """The process of `trap` that begins commands quickly, one at a time."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        hear_ctrl_c()
        self._process = subprocess.Popen([sys.executable, "-m", "tests.stress.trap"], cwd=ROOT, **pipes)
        self._read(SECONDS)

    def _read(self, seconds: float) -> dict[str, int] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0, seconds))[0]:
            return None
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    def begin(self, command: Command) -> int:
        """Begin a command; its process."""
        assert self._process.stdin is not None
        names = {"out": str(command.folder / ".out"), "errors": str(command.folder / ".errors")}
        order = {"arguments": command.arguments, "folder": str(command.folder), "environment": command.environment}
        self._process.stdin.write((json.dumps({**order, **names}) + "\n").encode())
        begun = self._read(SECONDS)
        assert begun is not None
        return begun["pid"]

    def ended(self, seconds: float) -> int | None:
        """The exit code of the command if it ends within so many seconds, else None."""
        found = self._read(seconds)
        return None if found is None else found["code"]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@functools.cache
def the_launcher() -> Launcher:
    """The launcher of this process; it takes some seconds to begin."""
    launcher = Launcher()
    atexit.register(launcher.close)
    return launcher


def trapped(point: str, number: int, mark: Path) -> dict[str, str]:
    """The environment of a command that sends itself signal `number` at a point of `trap.POINTS`."""
    return {NAME: json.dumps([{"point": point, "signal": int(number), "mark": str(mark)}])}


def missed(command: Callable[[dict[str, str]], Command], points: Iterable[str], marks: Path) -> set[str]:
    """Those of the points of `trap.POINTS` that one command, given this environment, never comes to; it ends well."""
    at = {point: marks / f"{number}.mark" for number, point in enumerate(points)}
    told = [{"point": point, "signal": 0, "mark": str(mark)} for point, mark in at.items()]
    ended = command({NAME: json.dumps(told)}).wait()
    assert (ended.code, ended.errors) == (0, "")
    return {point for point, mark in at.items() if not mark.exists()}


def check_death(ended: Ended, number: int, out: Path, *, workers: bool = False) -> None:
    """It ended as it should when it was sent the signal: at once, with one line and its exit code, nothing half done.

    Python itself dies by SIGTERM or of Ctrl-C before the first line of the command, and after the last.
    """
    if number == signal.SIGKILL:
        assert (ended.code, ended.errors) == (-number, "")
        return
    word = WORDS[signal.Signals(number)]
    if ended.code == -number:
        finished = [read_result(folder) is not None for folder in run_folders(out)]
        assert all(finished), ended
        assert finished or word not in ended.errors
        return
    assert ended.code == 128 + number, ended
    assert ended.errors in (word + GO_ON, word + "\n"), ended
    # A command ends its workers by SIGKILL, and writes on where they were cut off when it is given again.
    over = {path for path in ended.over if not (workers and path.suffix == ".tmp")}
    assert not over, ended


def half_done(out: Path) -> frozenset[Path]:
    """Locks, and files that were being written."""
    return frozenset(path for path in out.rglob("*") if path.name == LOCK or path.suffix == ".tmp")


def run_folders(out: Path) -> list[Path]:
    """The folders of all runs in `out`, begun or finished."""
    return sorted(out.rglob("seed-*"))


def check_left(out: Path) -> list[int]:
    """What lies in `out` can be read, whatever died there; how many epochs each run has."""
    found = []
    for folder in run_folders(out):
        epochs = [line["epoch"] for line in read_metrics(folder)]
        assert epochs == list(range(1, len(epochs) + 1)), f"{folder}: {epochs}"
        events = [line["epoch"] for line in read_events(folder)]
        assert sorted(set(events)) == events
        notes: list[str] = []
        state = load_checkpoint(folder, notes.append, mend=False)
        assert notes == []
        done = state["epoch"] if state else 0
        assert done in (len(epochs), len(epochs) + 1), f"{folder}: checkpoint of epoch {done}, log of {len(epochs)}"
        for path in snapshots.find(folder).values():
            torch.load(path, weights_only=True)
        if read_result(folder) is not None:
            assert len(epochs) == done
        if (folder / ENVIRONMENT).exists():
            read_recipe(folder)
        found.append(len(epochs))
    for comparison in sorted(out.glob("*/")):
        if any((folder / RECIPE).exists() for folder in run_folders(comparison)):
            page.render([page.read(comparison)])
    return found


def left(out: Path) -> dict[str, Any]:
    """All that lies in `out`, by name, without what differs between two runs of the same bits."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if path.suffix == ".pt":
            found[name] = digest(torch.load(path, weights_only=True))
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json" and path.name != ENVIRONMENT:
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            found[name] = [{key: row[key] for key in row if "second" not in key and "wall" not in key} for row in rows]
        elif path.suffix in (".yaml", ".png"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:  # checksums are of files that hold times, and environment.json of when and where
            found[name] = "there"
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def digest(value: Any) -> str:
    """Of all bits of a checkpoint or a snapshot."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                if key not in TIMES:
                    found.update(f"{key}:".encode())
                    add(value[key])
        elif isinstance(value, (list, tuple)):
            found.update(f"[{len(value)}".encode())
            for inner in value:
                add(inner)
        elif isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


def nobody_left(group: int) -> None:
    """No process of a command is left, or soon none: a worker that is importing ends when it has done so."""
    until(lambda: not members(group), seconds=120)


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """The folder, made if need be, with a recipe in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


def moments(count: int, seconds: float, seed: int) -> Iterator[float]:
    """So many times up to `seconds`, one in each of as many equal parts, in any order."""
    draw = random.Random(seed)
    parts = list(range(count))
    draw.shuffle(parts)
    for part in parts:
        yield (part + draw.random()) / count * seconds
