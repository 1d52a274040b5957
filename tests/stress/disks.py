"""Small disks that fill up, and what a comparison leaves on them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PAGE = os.sysconf("SC_PAGE_SIZE")
_MEASURED = ("seconds", "images_per_second", "teacher_seconds")


def _call(*command: Any) -> bool:
    try:
        return subprocess.run([str(part) for part in command], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def mounted(path: Path, *options: str, source: str | Path = "tmpfs", kind: str = "tmpfs") -> Iterator[Path]:
    """A disk of its own at `path`; the test is skipped where this process may not have one."""
    path.mkdir(exist_ok=True)
    if not _call("mount", "-t", kind, "-o", ",".join(options), source, path):
        pytest.skip("this process may not mount a disk")
    try:
        os.chmod(path, 0o777)
        yield path
    finally:
        assert _call("umount", path) or _call("umount", "--lazy", path)


def remount(path: Path, *options: str) -> bool:
    """Give a mounted disk another size, or make it read-only; whether the system did."""
    return _call("mount", "-o", ",".join(("remount", *options)), path)


@contextmanager
def unsynced(folder: Path, room: int) -> Iterator[tuple[Path, Path]]:
    """A disk that takes all that is written and finds at fsync that there is room for `room` bytes only: an image
    without the blocks that it promises, on a tmpfs that is too small. Yields the disk and that tmpfs.
    """
    with mounted(folder / "below", "size=64m") as below:
        image = below / "image"
        with open(image, "wb") as file:
            file.truncate(32 << 20)
        # Nothing is left to be written later, by the system itself.
        made = ("-b", "1024", "-N", "256", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard")
        if not _call("mkfs.ext4", "-q", *made, image):
            pytest.skip("there are no tools to make a file system")
        assert remount(below, f"size={image.stat().st_blocks * 512 + room}")
        with mounted(folder / "disk", "loop", source=image, kind="ext4") as disk:
            yield disk, below


def fill(disk: Path, pages: int) -> None:
    """Leave so many pages of a tmpfs free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize // PAGE
    assert free >= pages, (free, pages)
    ballast.write_bytes(bytes((free - pages) * PAGE))


def left(out: Path) -> dict[str, Any]:
    """What all runs below `out` have left, without what was measured: their logs, results, weights."""
    found: dict[str, Any] = {}
    for result in sorted(out.rglob("result.json")):
        folder = result.parent
        name = str(folder.relative_to(out))
        found[name] = {
            "result": _timeless(json.loads(result.read_text())),
            **{
                log: [_timeless(json.loads(line)) for line in (folder / log).read_text(errors="replace").splitlines()]
                for log in ("metrics.jsonl", "events.jsonl")
                if (folder / log).exists()
            },
            "snapshots": sorted(path.name for path in folder.glob("snapshots/*.pt")),
        }
    return found


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in _MEASURED}


def litter(out: Path) -> list[Path]:
    """What a command that failed must not leave: temporary files."""
    return sorted(out.rglob("*.tmp"))
