"""JSON files of others, read whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torchreaper.lab.data.memory import available_memory
from torchreaper.lab.errors import UserError, trouble
from torchreaper.lab.objects import reason

_SPREAD = 10  # bytes in memory for one of a file: lists of records take four or five


def find_file(name: str, base: Path, key: str, *, folder: bool = False) -> Path:
    """A file (or a folder) below ``base``, else the current folder; ``UserError``, which names ``key``, without one."""
    where = os.path.expanduser(name)
    tried = list(dict.fromkeys((base.absolute(), Path.cwd())))
    path = next((place / where for place in tried if (place / where).exists()), None)
    what = "folder" if folder else "file"
    if path is None:
        places = "" if os.path.isabs(where) else f" in {' or '.join(map(str, tried))}"
        raise UserError(f"{key}={name!r}: no such {what}{places}")
    if not (path.is_dir() if folder else path.is_file()):
        raise UserError(f"{key}={name!r}: {path} is no {what}; name one")
    return path


def read_json(path: Path, key: str) -> Any:
    """What the file holds. ``UserError``, which names ``key`` and the file, where it is no JSON or too large."""
    try:
        size, free = path.stat().st_size, available_memory()
        if free is not None and _SPREAD * size > free:
            raise UserError(
                f"{key}: {path} has {size / 1e9:,.1f} GB, which take about {_SPREAD * size / 1e9:,.1f} GB in memory, "
                f"and {free / 1e9:,.1f} GB are free; use a machine with more memory or a smaller file"
            )
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{key}: {trouble(error)}; check the file") from None
    except (ValueError, RecursionError) as error:  # of bytes that are no text, too
        if isinstance(error, UserError):
            raise
        raise UserError(f"{key}: {path} is not valid JSON ({reason(error)[:100]}); is it whole?") from None
