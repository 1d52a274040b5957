"""What the stress tests tried, and how often it held: counted while they run, kept in files, shown as a table.

    python -m tests.stress.recording    # write the table into docs/reliability.md

Only the long forms of the tests (marked `stress`) keep what they counted, and only where pytest is given --keep-counts,
as `make stress` does.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from torchreaper.lab.files import write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by make stress: begin -->", "<!-- made by make stress: end -->"
#: The areas in the order of the table.
AREAS = ["killed", "faults", "bad input", "hostile files", "numbers", "determinism"]


def lengths(short: int | None, long: int) -> pytest.MarkDecorator:
    """Run a test twice: with ``times=short`` in `make test`; with ``times=long``, marked `stress`, without a limit.

    Without a ``short`` it is too dear for `make test`, and what it is about is tested there in other ways.
    """
    forms = [pytest.param(long, id="long", marks=[pytest.mark.stress, pytest.mark.timeout(0)])]
    if short is not None:
        forms.insert(0, pytest.param(short, id="short"))
    return pytest.mark.parametrize("times", forms)


@dataclass
class Trials:
    """How often one thing was tried, and how often it held: a row of the table.

    Attributes:
        area: One of `AREAS`.
        what: What was done, and what has to hold.
        unit: What is counted: "kills", "inputs", "transitions", ...
        note: What else a reader should know: what was seen, where it does not hold.
    """

    area: str
    what: str
    unit: str
    note: str = ""
    tried: int = 0
    held: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        assert self.area in AREAS, self.area

    @contextmanager
    def one(self) -> Iterator[None]:
        """One trial: it holds where the block raises nothing; what it raises goes on to the test."""
        self.tried += 1
        yield
        self.held += 1

    def add(self, held: bool) -> bool:
        """One trial that is known to have held or not; returns `held`. The test asserts, when all are counted."""
        self.tried += 1
        self.held += held
        return held

    def row(self, test: str, *, passed: bool) -> dict[str, Any]:
        """What is kept, with when and where it was counted."""
        return {
            **{key: getattr(self, key) for key in ("area", "what", "unit", "note", "tried", "held")},
            "seconds": round(time.perf_counter() - self.started, 1),
            **{"test": test, "passed": passed},
            "date": date.today().isoformat(),
            **{"cores": os.cpu_count(), "machine": platform.machine()},
            **{"python": platform.python_version(), "torch": torch.__version__},
        }


def keep(trials: Trials, test: str, number: int, *, passed: bool) -> None:
    """Keep the `number`-th row that `test` (pytest's name of it) has counted, and whether the test passed at last."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", test.partition("tests/stress/")[2].removesuffix("[long]").lower()).strip("-")
    write_json(RESULTS / f"{name}-{number}.json", trials.row(test, passed=passed))


def kept() -> list[dict[str, Any]]:
    """All rows that are kept, in the order of the table."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(rows, key=lambda row: AREAS.index(row["area"]))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| area | what was tried | how often | held | seen |", "|---|---|---|---|---|"]
    for row in rows:
        often = f"{row['tried']:,} {row['unit']}"
        held = "all" if held_all(row) else f"**{row['held']:,}**, not all that it had to"
        lines.append("| " + " | ".join(map(_cell, (row["area"], row["what"], often, held, row["note"]))) + " |")
    if not rows:
        return "Nothing was counted yet."
    days = sorted({row["date"] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    wheres = sorted({f"Python {row['python']}, torch {row['torch']}, {row['cores']} cores" for row in rows})
    return "\n".join([*lines, "", f"{sum(row['tried'] for row in rows):,} trials; {when}; {'; '.join(wheres)}."])


def held_all(row: dict[str, Any]) -> bool:
    """Whether every trial held, and what the test asked of all of them together."""
    return row.get("passed") is not False and row["held"] == row["tried"] > 0


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """The text of the page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write the table into the page; 1 where something did not hold."""
    rows = kept()
    PAGE.write_text(page(PAGE.read_text(), rows))
    broken = [f"{row['what']} ({row['test']})" for row in rows if not held_all(row)]
    print("\n".join([f"{PAGE}: {len(rows)} rows", *(f"did not hold: {what}" for what in broken)]))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
