"""Checksums beside files, in the format of sha256sum, so that ``sha256sum -c`` checks them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from torchreaper.lab.files import write_bytes, write_whole

SUFFIX = ".sha256"


def digest_of(data: bytes | memoryview) -> str:
    """The checksum of `data`."""
    return hashlib.sha256(data).hexdigest()


def sidecar(path: Path) -> Path:
    """Where the checksum of `path` stands."""
    return path.with_name(path.name + SUFFIX)


def write_digest(path: Path, digest: str) -> None:
    """Write down the checksum of `path`."""
    beside = sidecar(path)
    temporary = beside.with_name(beside.name + ".tmp")
    write_bytes(temporary, f"{digest}  {path.name}\n".encode())
    os.replace(temporary, beside)


def read_digest(path: Path) -> str | None:
    """The checksum that stands beside `path`; None where there is none that can be read."""
    try:
        return sidecar(path).read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return None


def agrees(path: Path, data: bytes) -> bool:
    """Whether `data` is what was written to `path`; a file without a checksum, of an older version, is believed."""
    return not sidecar(path).exists() or digest_of(data) == read_digest(path)


def write_checked(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, its checksum first: wherever this is cut off, the two do not agree."""
    write_digest(path, digest_of(data))
    write_whole(path, data)
