"""Files that stay whole: replaced at once, or grown line by line; and how both are read back."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import platform
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torchreaper.lab import stopping
from torchreaper.lab.errors import UserError
from torchreaper.lab.yaml_text import YAMLProblem, parse_yaml

Json = dict[str, Any]
# The machine, in few characters: processes of others have numbers of their own.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
#: What to do about a damaged file of a run.
MEND = "give the command that wrote it again, which mends it"


class Damaged(UserError):  # noqa: N818
    """A file that is not what was written: `what` says so, and `remedy` what helps."""

    def __init__(self, what: str, remedy: str = MEND) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def write_json(path: Path, value: Json) -> None:
    """Replace `path` as a whole. Numbers that JSON does not have (NaN, infinity) are written as null."""
    write_whole(path, encoded(value))


def encoded(value: Json) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode()


def write_whole(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`: a reader sees the old or the new, wherever this is cut off.

    Several processes may do so at once: the last one's content stays. What a process that was killed was writing in
    the same place goes.
    """
    temporary = path.with_name(f"{path.name}.{_HOST}-{os.getpid()}.tmp")
    with stopping.whole():
        try:
            write_bytes(temporary, data)
            with gone_if_it_fails(temporary):
                os.replace(temporary, path)
        except OSError as error:
            error.filename, error.filename2 = str(path), None
            raise
        for left in path.parent.glob(f"{glob.escape(path.name)}.{_HOST}-*.tmp"):
            if not _alive(left.name.removesuffix(".tmp").rpartition("-")[2]):
                left.unlink(missing_ok=True)
        sync(path.parent)


def _alive(process: str) -> bool:
    """Whether a process of this machine goes on; where that cannot be told, it does."""
    if not process.isdecimal() or not hasattr(os, "fork"):
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk; where that fails there is no file.

    What was there goes first: writing into a link would change the file that it leads to.
    """
    path.unlink(missing_ok=True)
    with gone_if_it_fails(path), _named(path), open(path, "wb", opener=_no_link) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_new(path: Path, data: bytes) -> None:
    """Write a file where there is none, wholly or not at all; `FileExistsError` where there is one."""
    with open(path, "xb") as file, gone_if_it_fails(path), _named(path):
        file.write(data)
        file.flush()


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def append_line(path: Path, line: Json) -> None:
    """Add one line of JSON and wait until it is on the disk. Raises `OSError` where the path is a link."""
    with _named(path), open(path, "ab", opener=_no_link) as file:
        file.write(_encode(line))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def gone_if_it_fails(path: Path) -> Iterator[None]:
    """Delete a half-made file where the block fails, or is interrupted."""
    try:
        yield
    except (OSError, KeyboardInterrupt):
        with suppress(OSError):  # not worth to hide what was wrong first
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing say which file they are about, as those of opening do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def rewrite_lines(path: Path, lines: list[Json]) -> None:
    """Make the file hold exactly `lines`; it is left alone where it does."""
    data = encoded_lines(lines)
    there = path.read_bytes() if path.is_file() else b""
    if there != data or path.is_symlink():
        write_whole(path, data)


def encoded_lines(lines: Iterable[Json]) -> bytes:
    """The bytes of a log with these lines."""
    return b"".join(_encode(line) for line in lines)


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
        with _named(folder):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives sync files, and no folders
            raise
    finally:
        os.close(handle)


def bytes_of(path: Path) -> bytes:
    """What a file holds; a pipe or a device in its place, which may never end, is a `UserError`."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file; delete it")
    return path.read_bytes()


def read_json(path: Path) -> Json | None:
    """A JSON object; None where there is no file; `UserError` where it is damaged."""
    try:
        return parsed(path, bytes_of(path))
    except FileNotFoundError:
        return None


def parsed(path: Path, data: bytes) -> Json:
    """The JSON object that `data`, the content of `path`, is; `UserError` where it is none."""
    try:
        value = _loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: is damaged ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path}: is damaged (not a JSON object)")
    return value


def read_yaml(path: Path) -> Json | None:
    """A YAML mapping; None where there is no file; `UserError` where it is damaged."""
    try:
        value = parse_yaml(bytes_of(path))
    except FileNotFoundError:
        return None
    except YAMLProblem:
        value = None
    if not isinstance(value, dict):
        raise Damaged(f"{path}: is damaged (not a recipe)")
    return value


def read_lines(path: Path) -> list[Json]:
    """The finished lines of a log; none where there is no file; `UserError` where one is damaged."""
    try:
        return lines_of(path, bytes_of(path))
    except FileNotFoundError:
        return []


def lines_of(path: Path, data: bytes) -> list[Json]:
    """The finished lines of `data`, the content of the log `path`; `UserError` where one is damaged."""
    *whole, _unfinished = data.split(b"\n")
    found = []
    for number, line in enumerate(whole, 1):
        if (value := _parse(line)) is None:
            raise Damaged(f"{path}: line {number} is damaged")
        found.append(value)
    return found


def good_lines(path: Path) -> list[Json]:
    """The lines of a log that can be read, in order: what is left after a damage."""
    try:
        lines = bytes_of(path).split(b"\n")
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
