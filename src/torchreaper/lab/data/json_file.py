"""JSON files of others, read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchreaper.lab.data.memory import check_table
from torchreaper.lab.errors import UserError, trouble
from torchreaper.lab.objects import reason

_SPREAD = 10  # bytes in memory for one of a file: lists of records take four or five


def read_json(path: Path, key: str) -> Any:
    """What the file holds. ``UserError``, which names ``key`` and the file, where it is no JSON or too large."""
    try:
        check_table(f"{key}: {path}", "its records", _SPREAD * path.stat().st_size)
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{key}: {trouble(error)}; check the file") from None
    except (ValueError, RecursionError) as error:  # of bytes that are no text, too
        if isinstance(error, UserError):
            raise
        raise UserError(f"{key}: {path} is not valid JSON ({reason(error)[:100]}); is it whole?") from None
