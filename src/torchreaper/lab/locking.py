"""One process at a time trains in a run's folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torchreaper.lab import stopping
from torchreaper.lab.errors import UserError, remedy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# Seconds that a lock is waited for: the workers of a command that was killed end a moment after it.
PATIENCE = 2.0


@dataclass(frozen=True)
class Lock:
    """A lock that is held; `handle` is None where the system, or the file system, has none."""

    path: Path
    handle: int | None

    def holds(self) -> bool:
        """Whether it still keeps others out: not where the file, or the whole folder, was deleted meanwhile."""
        if self.handle is None:
            return True
        try:
            return os.path.samestat(os.fstat(self.handle), self.path.stat())
        except FileNotFoundError:
            return False

    def give_back(self) -> None:
        """Let others in."""
        if self.handle is None:
            return
        with suppress(OSError):  # a disk that is read-only by now: the file stays, the lock does not
            if self.holds():
                self.path.unlink()
        os.close(self.handle)


@contextmanager
def locked(folder: Path, *, patience: float = PATIENCE) -> Iterator[Lock]:
    """Keep other processes from training in `folder`, which is made if need be, for the length of the block.

    The system takes the lock from a process that ends, however it ends. Where it has no such locks (Windows, some
    network drives) nobody is kept out. Who finds it taken waits for `patience` seconds.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(path, _take(path, patience) if fcntl else None)
    except OSError as error:
        what = remedy(error, "choose a folder that can be written")
        raise UserError(f"out={folder}: {error.strerror}; {what}") from error
    try:
        yield lock
    finally:
        with stopping.whole():
            lock.give_back()


def clear(folder: Path) -> None:
    """Take away the file of a lock that a process has left which was killed."""
    if (folder / LOCK).exists():
        with suppress(UserError), locked(folder, patience=0):  # where a process has it, it is not left over
            pass


def _take(path: Path, patience: float) -> int | None:
    """The open file that holds the lock; None where the file system has none."""
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                return None
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise UserError(
                f"out={path.parent}: is being trained by {holder or 'another process'}; "
                "wait until that is done, or choose another out"
            ) from None
        lock = Lock(path, handle)
        # Who held it before may have removed the file in between: a lock on a file without a name keeps nobody out.
        if not lock.holds():
            os.close(handle)
            continue
        try:
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        except OSError:
            lock.give_back()
            raise
        return handle
