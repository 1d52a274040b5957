"""Data sets that were read stay in memory for the runs that follow in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

from torchreaper.lab.data.split import Dataset

_KEPT = 2  # data sets kept in memory: a comparison needs one, a test beside it another
_kept: dict[Hashable, Dataset] = {}
DatasetT = TypeVar("DatasetT", bound=Dataset)


def kept(key: Hashable, read: Callable[[], DatasetT]) -> DatasetT:
    """What ``read`` gives, or gave when it was last asked for under this key, if that was not long ago."""
    if key not in _kept:
        dataset = read()
        while len(_kept) >= _KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = dataset
    found = _kept[key]
    return found  # type: ignore[return-value]


def state(files: Iterable[Path]) -> str:
    """Changes when a file does."""
    digest = hashlib.blake2b()
    for file in files:
        about = file.stat()
        digest.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()
