"""Commands in a process whose every writing is recorded, by Python's own audit events; started as a script.

    python -m tests.stress.recorded CASES

CASES is a file of lines of JSON, each the arguments of a `reaper` command. Prints a line of JSON for each: how it
ended, what it printed, and what it did elsewhere than below the folders of the environment's ALLOWED.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Events that change the disk, and how many paths they begin with.
CHANGES = {
    **{"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1},
    **{"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkfifo": 1, "os.mknod": 1},
}
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile")
#: What the lab asks git, and Python's `platform` and `ctypes` the system.
KNOWN = (["git", "rev-parse"], ["uname", "-p"], ["/sbin/ldconfig", "-p"])
REACHES = ("socket.connect", "socket.getaddrinfo", "socket.sendto")


class Recorder:
    """What was done since it was last asked."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = tuple(os.path.join(os.path.realpath(one), "") for one in allowed)
        self.strange: list[str] = []
        self.inside = 0
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            self.look(event, args)
        finally:
            self.busy = False

    def look(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES):
                self.wrote(event, path)
        elif event in CHANGES:
            for path in args[: CHANGES[event]]:
                self.wrote(event, path)
        elif event in STARTS:
            command = args[1] if event == "subprocess.Popen" else args
            if list(command)[:2] not in KNOWN:
                self.strange.append(f"{event} {command}")
        elif event == "socket.connect" and isinstance(args[1], (str, bytes)):
            self.wrote(event, args[1])  # no network: a socket that is a file, of a process and its readers of images
        elif event in REACHES:
            self.strange.append(f"{event} {args[1:]}")

    def wrote(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:  # a file that is open already
            return
        name = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        name = os.path.join(name, os.path.basename(os.fsdecode(path)))
        if name.startswith(self.allowed) or name.startswith(("/dev/", "/proc/")) or "__pycache__" in name:
            self.inside += 1
        elif f"{name}/" not in self.allowed:
            self.strange.append(f"{event} {name}")

    def told(self) -> list[str]:
        """What was strange since this was last called."""
        found, self.strange = self.strange, []
        return found


def main(cases: Path) -> None:
    """Run them all."""
    import torch
    from typer.testing import CliRunner

    from torchreaper.lab import analyze, cli, compare, data, processes, report  # noqa: F401

    torch.set_num_threads(1)
    # What libraries do once when they are imported, such as looking for fonts, is not the recipes' doing.
    data.load(data.DataSpec(name="digits"))
    recorder = Recorder(os.environ["ALLOWED"].split(os.pathsep))
    sys.addaudithook(recorder)
    for line in cases.read_text().splitlines():
        ended = CliRunner().invoke(cli.app, json.loads(line))
        kind = type(ended.exception).__name__ if ended.exception is not None else ""
        told = {"code": ended.exit_code, "raised": kind, "out": ended.stdout, "err": ended.stderr}
        print(json.dumps({**told, "strange": recorder.told(), "inside": recorder.inside}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
