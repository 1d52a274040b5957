"""Will the images fit into memory?"""

from __future__ import annotations

from pathlib import Path

from torchreaper.lab.errors import UserError

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (  # of a container: what it may use, what it uses
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int | None:
    """Bytes that can still be used, by the machine or by the container; None where the system does not tell."""
    found = []
    for line in _read(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for limit, used in _LIMITS:
        numbers = _read(limit).strip(), _read(used).strip()
        if all(number.isdecimal() for number in numbers):
            found.append(int(numbers[0]) - int(numbers[1]))
    return max(0, min(found)) if found else None


def check_memory(count: int, shape: tuple[int, int, int], *, size: int = 1) -> None:
    """Raise ``UserError`` where ``count`` images of ``shape`` [c, h, w] with ``size`` bytes a value cannot be held."""
    channels, height, width = shape
    needed, there = count * channels * height * width * size, available_memory()
    if there is not None and needed > there:
        raise UserError(
            f"data.memory=True: {count:,} images of {channels}x{height}x{width} take {_gigabytes(needed)}, "
            f"{_gigabytes(there)} are free; set data.memory: false to read them as they are needed, or a smaller "
            "data.size or data.limit"
        )


def check_table(where: str, what: str, needed: int) -> None:
    """Raise ``UserError`` where a table of ``what`` that takes ``needed`` bytes cannot be held; see ``where``."""
    there = available_memory()
    if there is not None and needed > there:
        raise UserError(
            f"{where}: {what} take {_gigabytes(needed)}, {_gigabytes(there)} are free; use fewer, or more memory"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
