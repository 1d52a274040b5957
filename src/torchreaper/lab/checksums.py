"""Checksums beside files, in the format of sha256sum, so that ``sha256sum -c`` checks them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torchreaper.lab.files import write_whole

SUFFIX = ".sha256"
_LONGEST = 4096  # characters that are read: a checksum and a name


def digest_of(data: bytes | memoryview) -> str:
    """The checksum of `data`."""
    return hashlib.sha256(data).hexdigest()


def sidecar(path: Path) -> Path:
    """Where the checksum of `path` stands."""
    return path.with_name(path.name + SUFFIX)


def write_digest(path: Path, digest: str) -> None:
    """Write down the checksum of `path`."""
    write_whole(sidecar(path), f"{digest}  {path.name}\n".encode())


def read_digest(path: Path) -> str | None:
    """The checksum that stands beside `path`; None where there is none that can be read."""
    try:
        return _first_word(sidecar(path)) or None
    except OSError:
        return None


def _first_word(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: is no file")  # a pipe or a device may never end
    with open(path, errors="replace") as file:
        return "".join(file.read(_LONGEST).split()[:1])


def agrees(path: Path, data: bytes) -> bool:
    """Whether `data` is what was written to `path`; a file without a checksum, of an older version, is believed."""
    try:
        return digest_of(data) == _first_word(sidecar(path))  # read once: it goes where a run is taken up meanwhile
    except FileNotFoundError:
        return True
    except OSError:
        return False


def write_checked(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, its checksum first: wherever this is cut off, the two do not agree."""
    write_digest(path, digest_of(data))
    write_whole(path, data)
