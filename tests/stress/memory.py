"""By how much the memory of this process grew at most."""

from __future__ import annotations

import resource
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """From when it is made; `taken` says how many MB more than then were in use at any time since."""

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5")  # forget the most that was in use before, which would hide what comes
            self._anew = True
        except OSError:
            self._anew = False
        self._before = self._most()

    def taken(self) -> float:
        """Megabytes; where the system cannot forget, more than was ever in use before."""
        return (self._most() - self._before) / 1024

    def _most(self) -> int:
        if self._anew:
            lines = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(next(lines).split()[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
