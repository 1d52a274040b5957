"""Places in a run where a process signals itself, and a launcher of commands that die there.

    python -m tests.stress.trap

reads orders from stdin, a line of JSON each, and does each in a process of its own that runs the real command line. The
libraries are imported once, before the processes part: a command that is killed in the middle costs a second, not five.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torchreaper.lab.cli import main

#: Says in the environment of a command, for each of the traps: at which point, which signal, and where it is noted.
NAME = "REAPER_TRAP"


@dataclass(frozen=True)
class Point:
    """A call of a function, in one kind of process.

    Attributes:
        where: Module and name in it, "torchreaper.lab.training:Run._step".
        call: Which of its calls, from 1; of those that `file` fits.
        after: When it has returned, rather than before it begins.
        half: Instead: while it writes, half of the bytes being there; `where` is a function that opens or writes.
        file: The name of the file that is one of the arguments, `*` standing for any part; or bytes that are in one.
        worker: In a worker process of ``--jobs``, not in the command's own.
    """

    where: str
    call: int = 1
    after: bool = False
    half: bool = False
    file: str | bytes = ""
    worker: bool = False

    def fits(self, arguments: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments counts."""
        if isinstance(self.file, bytes):
            return any(isinstance(one, (bytes, memoryview)) and self.file in bytes(one) for one in arguments)
        names = [Path(one).name for one in arguments if isinstance(one, (str, Path))]
        return not self.file or any(fnmatch.fnmatchcase(name, self.file) for name in names)


def _opening(name: str) -> dict[str, Any]:
    return {"where": "torchreaper.lab.files:open", "half": True, "file": name}


def _writing(name: str) -> dict[str, Any]:
    """As `files.write_whole` does: beside `name`, with this process in the name."""
    return _opening(f"{name}.*-*.tmp")


def _renaming(name: str, **more: Any) -> dict[str, Any]:
    return {"where": "os:replace", "file": name, **more}


#: Of ``reaper train`` with the recipe of `killing`: RePr drops after epochs 1, 3, 5 and restores after 2, 4, 6.
OF_A_RUN = {
    "while images are loaded": Point("torchreaper.lab.data:load"),
    "while the lock is taken": Point("os:truncate"),
    "when the lock is taken": Point("torchreaper.lab.locking:_take", after=True),
    "while the recipe is written": Point(**_writing("recipe.yaml")),
    "between recipe and environment": Point(**_renaming("recipe.yaml", after=True)),
    "while the environment is written": Point(**_renaming("environment.json")),
    "between two steps of an epoch": Point("torchreaper.lab.training:Run._step", call=6),
    "between two steps of a sub-network": Point("torchreaper.lab.training:Run._step", call=8),
    "between gradients and optimizer": Point("torchreaper.lab.training:Run._backward", call=8, after=True),
    "while the network is judged": Point("torchreaper.lab.tasks.classification:evaluate", call=4),
    "while filters are ranked": Point("torchreaper.bank:FilterBank.select", call=2),
    "when filters are ranked": Point("torchreaper.bank:FilterBank.select", call=2, after=True),
    "in the middle of a drop, optimizer state taken": Point("torchreaper.subnetwork.moments:Moments.take", 2, True),
    "in the middle of a drop, between two layers": Point("torchreaper.subnetwork.leaves:Leaf.enter", call=6),
    "in the middle of a restore, between two layers": Point("torchreaper.subnetwork.leaves:Leaf.leave", call=2),
    "in the middle of a restore, between two new rows": Point("torchreaper.restoring:_return_layer", call=2),
    "in the middle of a restore, optimizer state": Point("torchreaper.restoring:reset", call=3),
    "between step and schedule": Point("torchreaper.lab.training:reapply", call=3),
    "while torch.save packs a checkpoint": Point("torch.serialization:_save", call=5, after=True),
    "while a snapshot is written": Point(**_writing("epoch-0004.pt")),
    "between a snapshot and its rename": Point(**_renaming("epoch-0004.pt")),
    "between a snapshot and the checkpoint": Point(**_renaming("epoch-0004.pt", after=True)),
    "while a checkpoint is written": Point(call=3, **_opening("last.pt.tmp")),
    "between a checkpoint's file and previous.pt's checksum": Point(call=2, **_renaming("previous.pt.sha256")),
    "between previous.pt's checksum and previous.pt": Point(call=2, **_renaming("previous.pt")),
    "between previous.pt and last.pt's checksum": Point(call=2, **_renaming("previous.pt", after=True)),
    "between last.pt's checksum and last.pt": Point(call=4, **_renaming("last.pt")),
    "between last.pt's checksum and last.pt, first epoch": Point(call=1, **_renaming("last.pt")),
    "between last.pt's checksum and last.pt, last epoch": Point(call=8, **_renaming("last.pt")),
    "between checkpoint and metrics": Point("torchreaper.lab.runs:append_line", call=4, file="metrics.jsonl"),
    "in the middle of a line of metrics": Point(call=4, **_opening("metrics.jsonl")),
    "between metrics and events": Point("torchreaper.lab.runs:append_line", call=2, file="events.jsonl"),
    "in the middle of a line of events": Point(call=2, **_opening("events.jsonl")),
    "between the last epoch and the result": Point("torchreaper.lab.training:Run.result"),
    "while the result is written": Point(**_writing("result.json")),
    "between the result and the lock": Point(**_renaming("result.json", after=True)),
}
#: Of a run that has more to it when tensors become really smaller.
OF_COMPACT = {
    "while Compact is switching, between two tensors": Point("torchreaper.subnetwork.leaves:resize", call=4),
    "while Compact is switching back, between two tensors": Point("torchreaper.subnetwork.leaves:resize", call=11),
    "while Compact is switching, averages of the optimizer": Point("torchreaper.subnetwork.parts:Part.take", call=3),
}
#: Of ``reaper compare`` in one process.
OF_A_COMPARISON = {
    "between two runs": Point("torchreaper.lab.execution.here:perform", call=2),
    "while a second run trains": Point("torchreaper.lab.training:Run._step", call=20),
    "between the runs and the comparison": Point("torchreaper.lab.compare:summarise"),
    "while comparison.json is written": Point(**_writing("comparison.json")),
    "between comparison.json and comparison.md": Point(**_renaming("comparison.json", after=True)),
    "while comparison-summary.csv is written": Point(**_renaming("comparison-summary.csv")),
    "between tables and figures": Point("torchreaper.lab.report:draw"),
    "while a figure is written": Point(**_writing("accuracy.png")),
    "between two figures": Point(**_renaming("overlap.png", after=True)),
}
#: Of ``reaper compare --jobs 2``, in the command itself.
OF_JOBS = {
    "while a worker is started": Point("multiprocessing.popen_spawn_posix:Popen._launch", after=True),
    "when a worker is started": Point("torchreaper.lab.execution.workers:_Place._start", call=2, after=True),
    "while a result is received": Point("torchreaper.lab.execution.workers:_Place.hear", call=4, after=True),
    "while comparison.json is written": Point(**_writing("comparison.json")),
}
#: Of the same, in one of its workers.
OF_A_WORKER = {
    "when a worker begins": Point("torchreaper.lab.execution.worker:main", worker=True),
    "while a worker trains": Point("torchreaper.lab.training:Run._step", call=6, worker=True),
    "when a worker's run is finished": Point("torchreaper.lab.execution.telling:perform", after=True, worker=True),
    "while a worker tells its result": Point(
        "multiprocessing.connection:Connection._send", half=True, file=b"end_run", worker=True
    ),
}
POINTS = {
    f"{command}: {name}": point
    for command, points in {
        "train": OF_A_RUN | OF_COMPACT,
        "compare": OF_A_COMPARISON,
        "jobs": OF_JOBS,
        "worker": OF_A_WORKER,
    }.items()
    for name, point in points.items()
}


@dataclass
class Trap:
    """What is set: it goes off once, whichever process comes there first.

    Attributes:
        point: A key of `POINTS`.
        signal: What the process sends itself; 0: nothing, it only notes that it came there.
        mark: A file that is made right before.
    """

    point: str
    signal: int
    mark: str
    _left: int = field(default=0, init=False)

    def set(self, worker: bool) -> None:
        """Set it in this process, if it is of the kind that it is for."""
        point = POINTS[self.point]
        if point.worker is not worker:
            return
        self._left = point.call
        module, _, path = point.where.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, name, open)  # `open` is no name of a module until it is given one
        half = self._opened if name == "open" else self._sent
        setattr(owner, name, half(function, point) if point.half else self._around(function, point))

    def _due(self, point: Point, arguments: tuple[Any, ...]) -> bool:
        self._left -= point.fits(arguments)
        return self._left == 0 and point.fits(arguments)

    def _around(self, function: Callable[..., Any], point: Point) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            due = self._due(point, args)
            if due and not point.after:
                self._go_off()
            value = function(*args, **named)
            if due and point.after:
                self._go_off()
            return value

        return call

    def _sent(self, function: Callable[..., Any], point: Point) -> Callable[..., Any]:
        @functools.wraps(function)
        def send(self_: Any, data: Any, *more: Any) -> Any:
            if self._due(point, (bytes(data),)):
                os.write(self_.fileno(), bytes(data)[: len(data) // 2])
                self._go_off()
                data = bytes(data)[len(data) // 2 :]
            return function(self_, data, *more)

        return send

    def _opened(self, function: Callable[..., Any], point: Point) -> Callable[..., Any]:
        def opened(path: Any, *args: Any, **named: Any) -> Any:
            file = function(path, *args, **named)
            return _Slow(file, self._go_off) if self._due(point, (path,)) else file

        return opened

    def _go_off(self) -> None:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), self.signal)


class _Slow:
    """A file that is cut off in the middle of what is written to it."""

    def __init__(self, file: Any, cut: Callable[[], None]) -> None:
        self._file, self._cut = file, cut

    def __enter__(self) -> _Slow:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._cut()
        self._file.write(data[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def set_from_environment(*, worker: bool) -> None:
    """Set the traps that the environment tells of, if any."""
    for told in json.loads(os.environ.get(NAME, "[]")):
        Trap(**told).set(worker)


def _warm() -> None:
    """Import and do once what is slow at the first time."""
    import gc
    import tempfile

    import torch
    from tests.lab.tiny import recipe

    from torchreaper.lab import report  # noqa: F401
    from torchreaper.lab.run import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe(epochs=3, scheme__sub=1, snapshots=2), scheme="repr", seed=0, out=Path(folder))
    gc.collect()
    gc.freeze()  # what the children only read need not be copied for each of them


def _orders() -> Iterator[dict[str, Any]]:
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def serve() -> None:
    """Do what stdin says; in each child return, to run the command there."""
    _warm()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for order in _orders():
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(order["folder"])
            os.environ.update(order["environment"])
            nothing = os.open(os.devnull, os.O_RDONLY)
            out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number, handle in enumerate((nothing, out, errors)):
                os.dup2(handle, number)
                os.close(handle)
            sys.argv = ["reaper", *order["arguments"]]
            return
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    os._exit(0)


def command() -> NoReturn:
    """Run the command of `sys.argv`, without Python's own end, which would touch all that the libraries have made."""
    code: Any = 1
    try:
        set_from_environment(worker=False)
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    serve()
    command()
elif __name__ == "__mp_main__":  # a worker that a command has started
    set_from_environment(worker=True)
