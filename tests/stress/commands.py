"""Real `reaper` processes by the hundred: each is forked from one that has imported everything already.

python -m tests.stress.commands    # the process they are forked from: requests on stdin, answers on stdout
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.tiny import TINY

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds until a command counts as hanging


#: Marks of what is too long for `make test`.
LONG = [pytest.mark.stress, pytest.mark.timeout(0)]


def cases(name: str, first: Any, *others: Any, short: int, long: int) -> pytest.MarkDecorator:
    """As `recording.lengths`, for each of several cases called `name`; the short form is the first one's alone."""
    every = [pytest.param(case, long, id=f"{case}-long", marks=LONG) for case in (first, *others)]
    return pytest.mark.parametrize((name, "times"), [pytest.param(first, short, id=f"{first}-short"), *every])


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it; None: it hung), and what it said."""

    code: int | None
    out: str
    err: str

    def refused(self, code: int | None = None) -> str:
        """Its one line on stderr, where that is all it said of an error that it noticed itself."""
        assert self.code in ((1, 2) if code is None else (code,)), self
        said = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, self
        assert said[0].startswith("error: "), self
        assert "Traceback" not in self.out + self.err, self
        return said[0]

    def well(self) -> Ended:
        """Itself, where it ended well."""
        assert self.code == 0, self
        assert "Traceback" not in self.out + self.err, self
        return self


@dataclass(frozen=True)
class Running:
    """A command that goes on."""

    pid: int
    server: Reaper

    def over(self) -> bool:
        """Whether it has ended."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    def end(self) -> Ended:
        """Wait for its end."""
        return Ended(**self.server.ask({"wait": self.pid}))


class Reaper:
    """Starts `reaper` commands; ``with Reaper() as reaper: reaper("train", recipe)``."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        self._env = {**os.environ, **(env or {})}

    def __enter__(self) -> Reaper:
        command = [sys.executable, "-m", "tests.stress.commands"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, env=self._env, **pipes)
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        *arguments: Any,
        cwd: Path,
        uid: int | None = None,
        limits: dict[str, int] | None = None,
        env: dict[str, str] | None = None,
        out: str | None = None,
        patience: float = PATIENCE,
    ) -> Running:
        """Start a command, as one that nobody waits for yet, in the folder `cwd`.

        Args:
            arguments: After the word `reaper`.
            uid: The user it runs as.
            limits: Such as ``{"RLIMIT_FSIZE": 1000}``.
            env: Variables of its environment, beside those there are.
            out: A file that its stdout goes to.
            patience: Seconds until it is killed.
        """
        given = {
            "arguments": [os.fsencode(str(argument)).hex() for argument in arguments],
            "cwd": os.fsencode(str(cwd)).hex(),
            "uid": uid,
            "limits": limits or {},
            "env": env or {},
            "out": out,
            "patience": patience,
        }
        return Running(self.ask({"start": given})["pid"], self)

    def __call__(self, *arguments: Any, **how: Any) -> Ended:
        """`start` it and wait for its end."""
        return self.start(*arguments, **how).end()


@cache
def served() -> Reaper:
    """One that is there until this process ends."""
    reaper = Reaper().__enter__()
    atexit.register(reaper.__exit__)
    return reaper


def recipe_file(folder: Path, **changes: Any) -> Path:
    """The tiny recipe as a file: four epochs, without filters in the second, the network kept after the second."""
    values = {
        **TINY,
        "epochs": 4,
        "snapshots": 2,
        "seeds": 1,
        "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.4},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _run(given: dict[str, Any], out: str, err: str) -> int:
    """The life of a forked process."""
    os.chdir(bytes.fromhex(given["cwd"]))
    for number, name in ((0, os.devnull), (1, given["out"] or out), (2, err)):
        handle = os.open(name, os.O_RDWR | (os.O_TRUNC if number else 0))
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.update(given["env"])
    sys.path[:0] = given["env"].get("PYTHONPATH", "").split(os.pathsep)
    for name, value in given["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if given["uid"] is not None:
        os.setgroups([])
        os.setgid(given["uid"])
        os.setuid(given["uid"])
    sys.argv = ["reaper", *(os.fsdecode(bytes.fromhex(argument)) for argument in given["arguments"])]
    from torchreaper.lab.cli import main

    try:
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = 120  # as Python does
        print("Exception ignored in stdout", file=sys.stderr)
    sys.stderr.flush()
    return code


def _start(given: dict[str, Any], running: dict[int, tuple[str, str, float]]) -> int:
    paths = []
    for _ in range(2):
        handle, path = tempfile.mkstemp(prefix="reaper-")
        os.fchmod(handle, 0o666)
        os.close(handle)
        paths.append(path)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _run(given, *paths)
        finally:
            os._exit(code)
    running[child] = (*paths, time.monotonic() + given["patience"])
    return child


def _wait(child: int, running: dict[int, tuple[str, str, float]]) -> dict[str, Any]:
    *paths, until = running.pop(child)
    code: int | None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = None
            break
        select.select([], [], [], 0.005)  # not time.sleep, which libfaketime breaks
    said = [Path(path).read_text(encoding="utf-8", errors="surrogateescape") for path in paths]
    for path in paths:
        os.unlink(path)
    return {"code": code, "out": said[0], "err": said[1]}


def main() -> None:
    """Import and warm up, then answer."""
    import torch

    from torchreaper.lab import analyze, cli, compare, report, run  # noqa: F401
    from torchreaper.lab.recipe import Recipe
    from torchreaper.lab.report import analysed, page  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # What is slow at the first time is done before the processes part, or cannot be done by a user without rights.
        run.train(Recipe.model_validate(TINY), scheme="repr", seed=0, out=Path(folder))
        report.draw(Path(folder), "tiny", {"repr": [0]})
        page.write_page(Path(folder) / "tiny")
    print("ready", flush=True)
    running: dict[int, tuple[str, str, float]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"pid": _start(request["start"], running)} if "start" in request else _wait(request["wait"], running)
        print(json.dumps(answer), flush=True)
    for child in running:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
