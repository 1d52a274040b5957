"""Plain-text tables and numbers for ``print``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns: numbers to the right, the rest to the left; a rule under the head."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[k], int) for row in rows) for k in range(len(head))]
    widths = [max(len(row[k]) for row in [list(head), *cells]) for k in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, cells)])


def percent(part: int, whole: int) -> str:
    """``part / whole`` as a percentage."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def shorten(indices: Sequence[int], most: int = 12) -> str:
    """The first indices of a long list."""
    shown = " ".join(map(str, indices[:most]))
    return shown + (f" ... ({len(indices) - most} more)" if len(indices) > most else "")


def shortened(value: object) -> str:
    """``repr`` in one line, cut where it is too long for an error message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
