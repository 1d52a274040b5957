"""A comparison as tables of text, sentences, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchreaper.lab.comparison.curves import Curve, first_epoch
from torchreaper.lab.comparison.found import Comparison, Contrast, Reach, Result, Summary
from torchreaper.lab.foreign import as_item, in_csv, in_markdown
from torchreaper.lab.published import percent
from torchreaper.lab.statistics import MOST_SEEDS, Estimate, Interval, decimals, format_p

RUN_COLUMNS = (
    *("scheme", "seed", "test_accuracy", "train_accuracy", "gap", "validation_accuracy", "seconds"),
    *("teacher_seconds", "epochs", "reported_epoch", "epochs_to_baseline"),
)
FEW = 10  # seeds: below, a standard deviation is itself a guess, and a bootstrap interval too narrow
Table = tuple[list[str], list[list[str]]]


def table(comparison: Comparison) -> Table:
    """What decides, as headings and rows of text, for the screen and for Markdown; a column only where it says more."""
    contrasts = _by_scheme(comparison)
    paper = any(summary.published is not None for summary in comparison.schemes)
    reached = any(summary.epochs_to_baseline for summary in comparison.schemes)
    budgets = len({summary.epochs for summary in comparison.schemes}) > 1
    corrected = _tests(comparison) > 1
    heads = [
        *(
            "scheme",
            "n",
            *(["paper %"] if paper else []),
            f"{comparison.measure} %",
            "gap",
            f"minus {comparison.baseline}",
        ),
        *("p (Holm)" if corrected else "p", *(["to baseline"] if reached else []), *(["epochs"] if budgets else [])),
        "time",
    ]
    rows = []
    for summary in comparison.schemes:
        contrast = contrasts.get(summary.scheme)
        rows.append(
            [
                summary.scheme,
                str(summary.accuracy.n),
                *([_or_empty(summary.published, percent)] if paper else []),
                _with_interval(summary.accuracy, "{:.2f}"),
                decimals(summary.gap.mean, "{:.2f}"),
                _with_interval(contrast.accuracy, "{:+.2f}") if contrast else "",
                _p(contrast.p_holm) if contrast else "",
                *([_reached(summary.epochs_to_baseline)] if reached else []),
                *([str(summary.epochs)] if budgets else []),
                f"x {contrast.wall_clock:.2f}" if contrast else duration(summary.seconds + summary.teacher_seconds),
            ]
        )
    return heads, rows


def parts_table(comparison: Comparison) -> Table:
    """Further shares that were found, a line for each and scheme; no lines where there are none."""
    contrasts = _by_scheme(comparison)
    names = dict.fromkeys(name for summary in comparison.schemes for name in summary.parts)
    paper = any(summary.published_parts for summary in comparison.schemes)
    heads = ["of it", "scheme", *(["paper %"] if paper else []), "%", f"minus {comparison.baseline}", "p uncorrected"]
    rows = []
    for name in names:
        for summary in comparison.schemes:
            if name not in summary.parts:
                continue
            contrast = contrasts.get(summary.scheme)
            minus = contrast.parts.get(name) if contrast else None
            rows.append(
                [
                    name,
                    summary.scheme,
                    *([_or_empty(summary.published_parts.get(name), percent)] if paper else []),
                    _with_interval(summary.parts[name], "{:.2f}"),
                    _with_interval(minus, "{:+.2f}") if minus else "",
                    _p(minus.p) if minus else "",
                ]
            )
    return heads, rows


def _parts_lines(comparison: Comparison) -> list[str]:
    parts = parts_table(comparison)
    if not parts[1]:
        return []
    note = "Each with its 95 % t-interval; not corrected for how many there are."
    return ["## In parts", "", *_rows(parts), "", note, ""]


def details(comparison: Comparison) -> Table:
    """What else was found, for the files; a column only where some scheme has something in it."""
    contrasts = _by_scheme(comparison)
    teachers = any(summary.teacher_seconds for summary in comparison.schemes)
    minus = f"minus {comparison.baseline}"
    heads = ["scheme", f"training {comparison.metric} %", f"{comparison.measure}, bootstrap", f"{minus}, bootstrap"]
    heads += ["p uncorrected"]
    heads += [f"gap {minus}", f"seeds for {_points(comparison)}", "epochs", "time of a run", "of its teachers"]
    heads += ["time ratio without teachers"]
    rows = []
    for summary in comparison.schemes:
        contrast = contrasts.get(summary.scheme)
        first = [summary.scheme, _with_interval(summary.train_accuracy, "{:.2f}"), _bounds(summary.bootstrap, "{:.2f}")]
        taught = duration(summary.teacher_seconds) if summary.teacher_seconds else ""
        last = [str(summary.epochs), duration(summary.seconds), taught]
        if contrast is None:
            rows.append([*first, "", "", "", "", *last, ""])
            continue
        rows.append(
            [
                *first,
                _bounds(contrast.bootstrap, "{:+.2f}"),
                _p(contrast.accuracy.p),
                _with_interval(contrast.gap, "{:+.2f}"),
                _needed(contrast),
                *last,
                f"x {contrast.wall_clock_student:.2f}" if teachers else "",
            ]
        )
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def notes(comparison: Comparison) -> list[str]:
    """Verdicts first, then what a reader has to know about the table, a sentence or two each."""
    return [
        *(contrast.verdict for contrast in comparison.contrasts),
        *_seeds_notes(comparison),
        *_budget_notes(comparison),
        *_reading_notes(comparison),
        *comparison.remarks,
        *_failure_notes(comparison),
        *(f"Failed: {failure.scheme}, seed {failure.seed}: {failure.reason}" for failure in comparison.failures),
    ]


def _seeds_notes(comparison: Comparison) -> Iterable[str]:
    """How many seeds the questions need that are still open."""
    unanswered = [one for one in comparison.contrasts if one.answer == "open" and one.accuracy.sd]
    if not unanswered:
        return
    fewest = min(contrast.accuracy.n for contrast in unanswered)
    guess = f" This is a guess: the spread comes from {fewest} seeds." if fewest < FEW else ""
    size = f"a difference of {_points(comparison)}"
    if len(unanswered) == 1:
        (one,) = unanswered
        count = _needed(one) if one.seeds_needed is None else f"about {one.seeds_needed}"
        yield (
            f"With this spread it takes {count} seeds to see {size} between {one.scheme} and "
            f"{one.baseline} 4 times out of 5.{guess}"
        )
        return
    needed = ", ".join(f"{_needed(one)} for {one.scheme}" for one in unanswered)
    yield f"Seeds to see {size} from {comparison.baseline} 4 times out of 5, by these spreads: {needed}.{guess}"


def _budget_notes(comparison: Comparison) -> Iterable[str]:
    """Where the schemes were not given the same."""
    epochs: dict[int, list[str]] = {}
    for summary in comparison.schemes:
        epochs.setdefault(summary.epochs, []).append(summary.scheme)
    if len(epochs) > 1:
        *fewer, most = sorted(epochs.items(), key=lambda item: len(item[1]))
        parts = [f"{count} for {', '.join(schemes)}" for count, schemes in fewer]
        rest = "the others" if len(most[1]) > 2 else ", ".join(most[1])
        yield f"Budgets are not equal. Epochs of the network: {'; '.join(parts)}; {most[0]} for {rest}."
    taught = [summary for summary in comparison.schemes if summary.teacher_seconds]
    if taught:
        contrasts = _by_scheme(comparison)
        shares = ", ".join(
            f"{one.scheme} {duration(one.teacher_seconds)}"
            + (f" (without them x {contrasts[one.scheme].wall_clock_student:.2f})" if one.scheme in contrasts else "")
            for one in taught
        )
        yield f"Times include training the teachers: {shares}. A teacher that schemes share is charged to each."


def _reading_notes(comparison: Comparison) -> Iterable[str]:
    """How to read the columns that do not speak for themselves."""
    if any(summary.epochs_to_baseline for summary in comparison.schemes):
        yield (
            f"To baseline: the first epoch, of those that were judged, with at least the {comparison.measure} that "
            f"{comparison.baseline} is reported with for that seed, sub-network phases left out; the median over "
            f"the seeds (and how many came so far). It reads the {comparison.judged} curve: a description, not a test."
        )
    paper = comparison.published
    if paper is not None:
        by = "; an error is shown as 100 minus it" if paper.unit == "error %" else ""
        yield (
            f"Paper: {comparison.measure} as published ({paper.where()}){by}. It was measured with the "
            "paper's full settings; a profile or other changes to the recipe make it another experiment."
        )


def _failure_notes(comparison: Comparison) -> Iterable[str]:
    """Whose numbers are those of the runs that survived."""
    for summary in comparison.schemes:
        count = sum(failure.scheme == summary.scheme for failure in comparison.failures)
        if count:
            yield (
                f"{count} of {count + summary.accuracy.n} runs of {summary.scheme} failed: its numbers are of the "
                "others, which a scheme that fails at times is flattered by."
            )


def markdown(comparison: Comparison) -> str:
    """``comparison.md``: the tables, the verdicts, how to read them."""
    epoch = "the last epoch" if comparison.report == "last" else "the epoch chosen on the validation images"
    metric, judged = in_markdown(comparison.metric), comparison.judged
    several = f", corrected by Holm's method for {_tests(comparison)} schemes" if _tests(comparison) > 1 else ""
    if not comparison.schemes:
        return "\n".join(
            [f"# {in_markdown(comparison.recipe)}: no run is finished", "", *map(as_item, notes(comparison)), ""]
        )
    lines = [
        f"# {in_markdown(comparison.recipe)}: {', '.join(in_markdown(one.scheme) for one in comparison.schemes)}",
        "",
        *_rows(table(comparison)),
        "",
        *map(as_item, notes(comparison)),
        "",
        f"{judged.capitalize()} {metric} of {epoch}: mean over n seeds and its 95 % t-interval. Gap: training minus "
        f"{judged} {metric}, in points. Minus {in_markdown(comparison.baseline)}: paired by seed, in points, with its "
        f"95 % t-interval; p of the paired t-test{several}. Time: median seconds of a run, and median ratio to it.",
        "",
        *_parts_lines(comparison),
        "## More numbers",
        "",
        *_rows(details(comparison)),
        "",
        f"Bootstrap: 95 % percentile intervals of the mean; with fewer than {FEW} seeds they are too narrow, so the "
        "verdicts go by the t-test. Gap: its intervals are not corrected for the number of schemes. Seeds: for an "
        f"80 % chance to see a difference of {_points(comparison)}, by the spread found here"
        f"{', at the strictest step of that correction' if several else ''}.",
        "",
    ]
    return "\n".join(lines)


def runs_csv(
    results: Mapping[str, Mapping[int, Result]],
    *,
    baseline: str = "",
    curves: Mapping[str, Mapping[int, Curve]] | None = None,
) -> str:
    """``comparison.csv``: a line per finished run, accuracies from 0 to 1 as in its ``result.json``.

    Of runs that were judged on validation images there is no test accuracy: the column is left out.
    """
    targets = {seed: float(run["test_accuracy"]) for seed, run in results.get(baseline, {}).items()}
    names = dict.fromkeys(name for runs in results.values() for run in runs.values() for name in run.get("parts", {}))
    judged = {run.get("judged", "test") for runs in results.values() for run in runs.values()}
    columns = [column for column in RUN_COLUMNS if column != "test_accuracy" or judged != {"validation"}]
    rows = []
    for scheme, runs in results.items():
        for seed, run in sorted(runs.items()):
            curve = (curves or {}).get(scheme, {}).get(seed, ())
            reached = first_epoch(curve, targets[seed]) if seed in targets else None
            values = {**run, "scheme": scheme, "seed": seed, "epochs_to_baseline": reached}
            rows.append([values.get(column) for column in columns])
            rows[-1] += [run.get("parts", {}).get(name) for name in names]
    return _csv([*columns, *names], rows)


def summary_csv(comparison: Comparison) -> str:
    """``comparison-summary.csv``: a line per scheme with the numbers of ``comparison.json``, percent and points."""
    contrasts = _by_scheme(comparison)
    judged = {"judged": comparison.judged}
    rows = [{**_flat(summary, contrasts.get(summary.scheme)), **judged} for summary in comparison.schemes]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    return _csv(heads, [[row.get(head) for head in heads] for row in rows])


def _flat(summary: Summary, contrast: Contrast | None) -> dict[str, Any]:
    reach = summary.epochs_to_baseline
    found: dict[str, Any] = {
        "scheme": summary.scheme,
        **_estimate("accuracy", summary.accuracy, summary.bootstrap),
        **_estimate("train_accuracy", summary.train_accuracy),
        **_estimate("gap", summary.gap),
        "epochs": summary.epochs,
        "seconds": summary.seconds,
        "teacher_seconds": summary.teacher_seconds,
        "epochs_to_baseline": reach.median if reach else None,
        "reached_baseline": reach.reached if reach else None,
        "published": summary.published,
    }
    for name, part in summary.parts.items():
        found |= _estimate(name, part)
    if contrast is not None:
        found |= {
            "baseline": contrast.baseline,
            **_estimate("difference", contrast.accuracy, contrast.bootstrap),
            "p": contrast.accuracy.p,
            "p_holm": contrast.p_holm,
            **_estimate("gap_difference", contrast.gap),
            "wall_clock": contrast.wall_clock,
            "wall_clock_student": contrast.wall_clock_student,
            "answer": contrast.answer,
            "seeds_needed": contrast.seeds_needed,
        }
    return found


def _estimate(name: str, value: Estimate, bootstrap: Interval | None = None) -> dict[str, Any]:
    found = {name: value.mean, **{f"{name}_{key}": getattr(value, key) for key in ("n", "sd", "low", "high")}}
    if bootstrap:
        found |= {f"{name}_bootstrap_low": bootstrap.low, f"{name}_bootstrap_high": bootstrap.high}
    return found


def duration(seconds: float) -> str:
    """Seconds as people say them: ``4.2 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _points(comparison: Comparison) -> str:
    return f"{comparison.detect:g} point{'' if comparison.detect == 1 else 's'}"


def _tests(comparison: Comparison) -> int:
    return sum(contrast.p_holm is not None for contrast in comparison.contrasts)


def _by_scheme(comparison: Comparison) -> dict[str, Contrast]:
    return {contrast.scheme: contrast for contrast in comparison.contrasts}


def _with_interval(value: Estimate, form: str) -> str:
    text = decimals(value.mean, form)
    if value.low is None or value.high is None:
        return text
    return f"{text} {_bounds(Interval(value.low, value.high), form)}"


def _bounds(interval: Interval | None, form: str) -> str:
    return f"[{decimals(interval.low, form)}, {decimals(interval.high, form)}]" if interval else ""


def _p(p: float | None) -> str:
    return format_p(p).removeprefix("p").strip(" =")


def _reached(reach: Reach | None) -> str:
    """Such as ``34 (4 of 5)``; a dash where most seeds did not come so far."""
    if reach is None:
        return ""
    return f"{'-' if reach.median is None else f'{reach.median:g}'} ({reach.reached} of {reach.n})"


def _needed(contrast: Contrast) -> str:
    if not contrast.accuracy.sd:
        return ""
    return f"more than {MOST_SEEDS}" if contrast.seeds_needed is None else str(contrast.seeds_needed)


def _or_empty(value: float | None, form: Any) -> str:
    return "" if value is None else str(form(value))


def _rows(table: Table) -> list[str]:
    heads, rows = table
    return [
        "| " + " | ".join(map(in_markdown, heads)) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(map(in_markdown, row)) + " |" for row in rows),
    ]


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([in_csv(value) for value in row] for row in [heads, *rows])
    return text.getvalue()
