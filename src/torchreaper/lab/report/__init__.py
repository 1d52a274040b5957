"""What is made of finished runs for people to look at: the three figures of a comparison, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchreaper.lab.report.figures import (
    Runs,
    accuracy_figure,
    filter_map_figure,
    overlap_figure,
    sub_spans,
)
from torchreaper.lab.report.saving import save
from torchreaper.lab.runs import folder_of, read_metrics, read_result

__all__ = ["draw", "save"]


def draw(out: Path, name: str, runs: Mapping[str, Sequence[int]]) -> list[Path]:
    """Draw the figures of the runs of recipe ``name`` in ``out``; ``runs`` holds the seeds of every scheme.

    Writes ``accuracy.png``, ``overlap.png`` and ``filters.png`` (of the first run that has a sub-network phase;
    none without one) to ``out / name`` and returns their paths. Runs without a finished epoch are left out;
    without any other, nothing is drawn.
    """
    found: dict[str, dict[int, list[dict[str, object]]]] = {}
    for scheme, seeds in runs.items():
        for seed in seeds:
            lines = read_metrics(folder_of(out, name, scheme, seed))
            if lines:
                found.setdefault(scheme, {})[seed] = lines
    if not found:
        return []
    folder = Path(out) / name
    paths = [
        save(accuracy_figure(found, name=name), folder / "accuracy.png"),
        save(overlap_figure(found, name=name), folder / "overlap.png"),
    ]
    mapped = _run_to_map(found)
    if mapped is not None:
        scheme, seed = mapped
        result = read_result(folder_of(out, name, scheme, seed))
        if result is not None:
            figure = filter_map_figure(found[scheme][seed], result["layers"], name=f"{name}, {scheme}, seed {seed}")
            paths.append(save(figure, folder / "filters.png"))
    return paths


def _run_to_map(runs: Runs) -> tuple[str, int] | None:
    for scheme, seeds in runs.items():
        for seed, lines in seeds.items():
            if sub_spans(lines):
                return scheme, seed
    return None
