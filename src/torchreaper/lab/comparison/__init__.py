"""What a comparison found: statistics of finished runs, as tables, sentences and files.

Percent and points, not fractions. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torchreaper.lab.comparison.curves import Curve, read_curves
from torchreaper.lab.comparison.found import Comparison, Contrast, Failure, Reach, Result, Summary
from torchreaper.lab.comparison.summary import summarise
from torchreaper.lab.comparison.tables import (
    RUN_COLUMNS,
    details,
    duration,
    markdown,
    notes,
    parts_table,
    runs_csv,
    summary_csv,
    table,
)
from torchreaper.lab.files import write_json, write_whole

__all__ = [
    "NAME",
    "RUN_COLUMNS",
    "Comparison",
    "Contrast",
    "Curve",
    "Failure",
    "Reach",
    "Result",
    "Summary",
    "details",
    "duration",
    "markdown",
    "notes",
    "parts_table",
    "read_curves",
    "runs_csv",
    "summarise",
    "summary_csv",
    "table",
    "write",
]

NAME = "comparison"


def write(
    comparison: Comparison,
    results: Mapping[str, Mapping[int, Result]],
    folder: Path,
    *,
    curves: Mapping[str, Mapping[int, Curve]] | None = None,
) -> tuple[Path, ...]:
    """Write a comparison as JSON and Markdown, its runs and its schemes as CSV; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{NAME}.json", f"{NAME}.md", f"{NAME}.csv", f"{NAME}-summary.csv")
    paths = tuple(folder / name for name in names)
    write_json(paths[0], {**comparison.as_dict(), "notes": notes(comparison)})
    write_whole(paths[1], markdown(comparison).encode())
    write_whole(paths[2], runs_csv(results, baseline=comparison.baseline, curves=curves).encode())
    write_whole(paths[3], summary_csv(comparison).encode())
    return paths
