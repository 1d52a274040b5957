"""Files that stay whole: replaced at once, or grown line by line; and how both are read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchreaper.lab import stopping
from torchreaper.lab.errors import UserError
from torchreaper.lab.yaml_text import YAMLProblem, parse_yaml

Json = dict[str, Any]


def write_json(path: Path, value: Json) -> None:
    """Replace `path` as a whole. Numbers that JSON does not have (NaN, infinity) are written as null."""
    write_whole(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`: a reader sees the old or the new, wherever this is cut off."""
    temporary = path.with_name(path.name + ".tmp")
    with stopping.whole():
        write_bytes(temporary, data)
        os.replace(temporary, path)
        sync(path.parent)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk; where that fails there is no file.

    What was there goes first: writing into a link would change the file that it leads to.
    """
    path.unlink(missing_ok=True)
    try:
        with open(path, "wb", opener=_no_link) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, KeyboardInterrupt):
        path.unlink(missing_ok=True)
        raise


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def append_line(path: Path, line: Json) -> None:
    """Add one line of JSON and wait until it is on the disk. Raises `OSError` where the path is a link."""
    with open(path, "ab", opener=_no_link) as file:
        file.write(_encode(line))
        file.flush()
        os.fsync(file.fileno())


def rewrite_lines(path: Path, lines: list[Json]) -> None:
    """Make the file hold exactly `lines`; it is left alone where it does."""
    data = b"".join(_encode(line) for line in lines)
    there = path.read_bytes() if path.exists() else b""
    if there != data or path.is_symlink():
        write_whole(path, data)


def _encode(line: Json) -> bytes:
    return (json.dumps(finite(line), allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """`value` as it is written: what is no number (NaN, infinity) is None, and a tuple a list."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_of(path: Path) -> bytes:
    """What a file holds; a pipe or a device in its place, which may never end, is a `UserError`."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file; delete it")
    return path.read_bytes()


def read_json(path: Path) -> Json | None:
    """A JSON object; None where there is no file; `UserError` where it is damaged."""
    try:
        value = _loads(_bytes_of(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); delete the folder and run again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (not a JSON object); delete the folder and run again")
    return value


def read_yaml(path: Path) -> Json | None:
    """A YAML mapping; None where there is no file; `UserError` where it is damaged."""
    try:
        value = parse_yaml(_bytes_of(path))
    except FileNotFoundError:
        return None
    except YAMLProblem:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (not a recipe); delete the folder and run again")
    return value


def read_lines(path: Path) -> list[Json]:
    """The finished lines of a log; none where there is no file; `UserError` where one is damaged."""
    try:
        *whole, _unfinished = _bytes_of(path).split(b"\n")
    except FileNotFoundError:
        return []
    for number, line in enumerate(whole, 1):
        if _parse(line) is None:
            raise UserError(f"{path}: line {number} is damaged; continue or repeat the run to mend it")
    return [value for line in whole if (value := _parse(line)) is not None]


def good_lines(path: Path) -> list[Json]:
    """The lines of a log that can be read, in order: what is left after a damage."""
    try:
        lines = _bytes_of(path).split(b"\n")
    except FileNotFoundError:
        return []
    return [value for line in lines if (value := _parse(line)) is not None]


def _loads(data: bytes) -> Any:
    """JSON as it is written here: no NaN and no infinity, no whole number that no type holds."""
    return json.loads(data, parse_constant=_no_number, parse_int=_whole)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _whole(text: str) -> int:
    value = int(text) if len(text) < 30 else 2**64
    if not -(2**63) <= value < 2**64:
        raise ValueError("a whole number of too many digits")
    return value


def _parse(line: bytes) -> Json | None:
    try:
        value = _loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("epoch"), int) else None
