"""The last data sets, kept for the life of the process, until a file has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

Kept = TypeVar("Kept")
_KEPT = 2  # data sets kept in memory: a comparison needs one, a test beside it another
_cache: dict[tuple[Hashable, str], Any] = {}


def cached(spec: Hashable, state: str, read: Callable[[], Kept]) -> Kept:
    """What ``read`` gave for this ``spec`` and this ``state`` of its files, else what it gives now."""
    key = (spec, state)
    if key not in _cache:
        dataset = read()
        while len(_cache) >= _KEPT:
            del _cache[next(iter(_cache))]
        _cache[key] = dataset
    kept: Kept = _cache[key]
    return kept


def state_of(files: Iterable[Path]) -> str:
    """Changes when a file does."""
    digest = hashlib.blake2b()
    for file in files:
        about = file.stat()
        digest.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()
