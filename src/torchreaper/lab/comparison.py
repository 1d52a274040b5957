"""What a comparison found: statistics of finished runs, as tables, sentences and files.

Percent and points, not fractions. Nothing is run here.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchreaper.lab.files import write_json, write_whole
from torchreaper.lab.statistics import (
    Difference,
    Estimate,
    estimate,
    format_p,
    paired_difference,
    seeds_needed,
    verdict,
)

Result = dict[str, Any]
NAME = "comparison"
RUN_COLUMNS = ("scheme", "seed", "test_accuracy", "train_accuracy", "gap", "validation_accuracy", "seconds")


@dataclass(frozen=True)
class Summary:
    """One scheme over its seeds: accuracies in percent, the gap (train minus test) in points."""

    scheme: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    train_accuracy: Estimate
    gap: Estimate
    #: The median run, in seconds.
    seconds: float


@dataclass(frozen=True)
class Contrast:
    """A scheme minus the baseline, in points, over the seeds that both have."""

    scheme: str
    baseline: str
    seeds: tuple[int, ...]
    accuracy: Difference
    gap: Difference
    #: Seconds of the scheme over seconds of the baseline, the median of the seeds; below 1 is quicker.
    wall_clock: float
    verdict: str
    #: Seeds for an 80 % chance to see 1 point, going by this spread; None if unknown or above 1000.
    seeds_for_one_point: int | None


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and why, in one line."""

    scheme: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What ``reaper compare`` found. Schemes without a finished run stand in ``failures`` only."""

    recipe: str
    #: "last" or "validation": the epoch whose test accuracy is compared.
    report: str
    #: The scheme the others are compared with: the first one named.
    baseline: str
    schemes: tuple[Summary, ...]
    contrasts: tuple[Contrast, ...]
    failures: tuple[Failure, ...] = ()
    #: What a reader has to know of how the runs were made, in sentences.
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``comparison.json``."""
        return {"unit": "percent", "level": 0.95, **asdict(self)}


def write(comparison: Comparison, results: Mapping[str, Mapping[int, Result]], folder: Path) -> tuple[Path, ...]:
    """Write the comparison as JSON and Markdown and its runs as CSV; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{NAME}.{kind}" for kind in ("json", "md", "csv"))
    write_json(paths[0], comparison.as_dict())
    write_whole(paths[1], markdown(comparison).encode())
    write_whole(paths[2], runs_csv(results).encode())
    return paths


def summarise(
    results: Mapping[str, Mapping[int, Result]],
    *,
    recipe: str = "",
    failures: Sequence[Failure] = (),
) -> Comparison:
    """The statistics of finished runs: ``results[scheme][seed]`` is a ``result.json``.

    The first scheme is the baseline. Differences are taken seed by seed, over the seeds that both schemes
    have; without a common seed there is no contrast.
    """
    if not results:
        raise ValueError("results: empty; name at least one scheme")
    baseline = next(iter(results))
    finished = {scheme: dict(sorted(runs.items())) for scheme, runs in results.items() if runs}
    reports = {str(run["report"]) for runs in finished.values() for run in runs.values()}
    return Comparison(
        recipe=recipe,
        report=", ".join(sorted(reports)) or "last",
        baseline=baseline,
        schemes=tuple(_summary(scheme, runs) for scheme, runs in finished.items()),
        contrasts=tuple(
            _contrast(scheme, runs, baseline, finished[baseline])
            for scheme, runs in finished.items()
            if scheme != baseline and set(runs) & set(finished.get(baseline, {}))
        ),
        failures=tuple(failures),
    )


def _summary(scheme: str, runs: Mapping[int, Result]) -> Summary:
    return Summary(
        scheme=scheme,
        seeds=tuple(runs),
        accuracy=estimate(_percent(runs, "test_accuracy")),
        train_accuracy=estimate(_percent(runs, "train_accuracy")),
        gap=estimate(_percent(runs, "gap")),
        seconds=statistics.median(float(run["seconds"]) for run in runs.values()),
    )


def _contrast(scheme: str, runs: Mapping[int, Result], baseline: str, others: Mapping[int, Result]) -> Contrast:
    seeds = tuple(seed for seed in runs if seed in others)
    ours, theirs = {seed: runs[seed] for seed in seeds}, {seed: others[seed] for seed in seeds}
    accuracy = paired_difference(_percent(ours, "test_accuracy"), _percent(theirs, "test_accuracy"))
    ratios = [float(ours[seed]["seconds"]) / max(float(theirs[seed]["seconds"]), 1e-9) for seed in seeds]
    return Contrast(
        scheme=scheme,
        baseline=baseline,
        seeds=seeds,
        accuracy=accuracy,
        gap=paired_difference(_percent(ours, "gap"), _percent(theirs, "gap")),
        wall_clock=statistics.median(ratios),
        verdict=verdict(scheme, baseline, accuracy),
        seeds_for_one_point=seeds_needed(1.0, accuracy.sd) if accuracy.sd else None,
    )


def _percent(runs: Mapping[int, Result], key: str) -> list[float]:
    return [100.0 * float(run[key]) for run in runs.values()]


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The comparison as headings and rows of text, for the screen and for Markdown."""
    contrasts = {contrast.scheme: contrast for contrast in comparison.contrasts}
    heads = ["scheme", "n", "test accuracy %", "gap", f"minus {comparison.baseline}", "p", "time"]
    rows = []
    for summary in comparison.schemes:
        contrast = contrasts.get(summary.scheme)
        rows.append(
            [
                summary.scheme,
                str(summary.accuracy.n),
                _with_interval(summary.accuracy, "{:.2f}"),
                f"{summary.gap.mean:.2f}",
                _with_interval(contrast.accuracy, "{:+.2f}") if contrast else "",
                format_p(contrast.accuracy.p).removeprefix("p").strip(" =") if contrast else "",
                f"x {contrast.wall_clock:.2f}" if contrast else duration(summary.seconds),
            ]
        )
    return heads, rows


def duration(seconds: float) -> str:
    """Seconds as people say them: ``4.2 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _with_interval(value: Estimate, form: str) -> str:
    text = form.format(value.mean)
    if value.low is None or value.high is None:
        return text
    return f"{text} [{form.format(value.low)}, {form.format(value.high)}]"


def notes(comparison: Comparison) -> list[str]:
    """Verdicts first, then what a reader has to know about the table, a sentence or two each."""
    lines = [contrast.verdict for contrast in comparison.contrasts]
    for contrast in comparison.contrasts:
        if contrast.seeds_for_one_point is not None and contrast.accuracy.n > 1:
            lines.append(
                f"With this spread it takes about {contrast.seeds_for_one_point} seeds to see a difference of "
                f"1 point between {contrast.scheme} and {contrast.baseline} 4 times out of 5."
            )
    if len(comparison.contrasts) > 1:
        lines.append(
            f"{len(comparison.contrasts)} schemes are compared with {comparison.baseline}; "
            "the p-values are not corrected for that."
        )
    lines.extend(comparison.remarks)
    lines.extend(f"Failed: {failure.scheme}, seed {failure.seed}: {failure.reason}" for failure in comparison.failures)
    return lines


def markdown(comparison: Comparison) -> str:
    """``comparison.md``: the table, the verdicts, how to read them."""
    heads, rows = table(comparison)
    epoch = "the last epoch" if comparison.report == "last" else "the epoch chosen on the validation images"
    lines = [
        f"# {comparison.recipe}: {', '.join(summary.scheme for summary in comparison.schemes)}",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"- {line}" for line in notes(comparison)),
        "",
        f"Test accuracy of {epoch}: mean over n seeds and its 95 % t-interval. Gap: training minus test "
        f"accuracy, in points. Minus {comparison.baseline}: paired by seed, in points, with its 95 % "
        "t-interval; p of the paired t-test. Time: median seconds of a run, and median ratio to it.",
        "",
    ]
    return "\n".join(lines)


def runs_csv(results: Mapping[str, Mapping[int, Result]]) -> str:
    """``comparison.csv``: a line per finished run, accuracies from 0 to 1 as in its ``result.json``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RUN_COLUMNS)
    for scheme, runs in results.items():
        for seed, run in sorted(runs.items()):
            writer.writerow([scheme, seed, *(run.get(column) for column in RUN_COLUMNS[2:])])
    return text.getvalue()
