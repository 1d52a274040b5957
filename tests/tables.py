"""Tables as programs make them, comparisons as they read them: what the tests of both share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def stands_in(page: Sequence[str], table: Iterable[str]) -> bool:
    """Whether the lines of a table stand on a page, whole, with an empty line after them."""
    lines = list(table)
    start = page.index(lines[0])
    return list(page[start : start + len(lines) + 1]) == [*lines, ""]


def keep_comparison(
    folder: Path, schemes: Mapping[str, Mapping[int, float]], judged: Sequence[str] = ("test",)
) -> None:
    """Its comparison.csv as ``reaper compare`` writes it; ``schemes[name][seed]`` is a share."""
    folder.mkdir(parents=True)
    heads = ["scheme", "seed", *(f"{images}_accuracy" for images in judged), "train_accuracy", "seconds"]
    lines = [
        ",".join([scheme, str(seed), *[str(share)] * len(judged), "1.0", "2.0"])
        for scheme, by in schemes.items()
        for seed, share in by.items()
    ]
    (folder / "comparison.csv").write_text("\n".join([",".join(heads), *lines]))
