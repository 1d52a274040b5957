"""One process at a time trains in a run's folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torchreaper.lab import stopping
from torchreaper.lab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# Seconds that a lock is waited for: the workers of a command that was killed end a moment after it.
PATIENCE = 2.0


@contextmanager
def locked(folder: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Keep other processes from training in `folder`, which is made if need be, for the length of the block.

    The system takes the lock from a process that ends, however it ends. Where it has no such locks (Windows, some
    network drives) nobody is kept out. Who finds it taken waits for `patience` seconds.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path, patience) if fcntl else None
    except OSError as error:
        raise UserError(f"out={folder}: {error.strerror}; choose a folder that can be written") from error
    try:
        yield
    finally:
        if handle is not None:
            with stopping.whole():
                path.unlink(missing_ok=True)
                os.close(handle)


def clear(folder: Path) -> None:
    """Take away the file of a lock that a process has left which was killed."""
    if (folder / LOCK).exists():
        with suppress(UserError), locked(folder, patience=0):  # where a process has it, it is not left over
            pass


def _take(path: Path, patience: float) -> int | None:
    """The open file that holds the lock; None where the file system has none."""
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
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
        # Who held it before may have removed the file in between: a lock on a file without a name keeps nobody out.
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)
