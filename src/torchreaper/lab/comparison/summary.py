"""The statistics of finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torchreaper.lab.comparison.curves import Curve, reach
from torchreaper.lab.comparison.found import Comparison, Contrast, Failure, Result, Summary
from torchreaper.lab.published import Published
from torchreaper.lab.statistics import (
    LEVEL,
    answer,
    bootstrap_interval,
    estimate,
    holm,
    paired_bootstrap,
    paired_difference,
    seeds_needed,
    verdict,
)

Runs = Mapping[int, Result]


def summarise(
    results: Mapping[str, Runs],
    *,
    recipe: str = "",
    failures: Sequence[Failure] = (),
    curves: Mapping[str, Mapping[int, Curve]] | None = None,
    published: Published | None = None,
    detect: float = 1.0,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs: ``results[scheme][seed]`` is a ``result.json``.

    The first scheme is the baseline. Differences are taken seed by seed, over the seeds that both schemes
    have; without a common seed there is no contrast.

    Args:
        results: At least one scheme; those without a run are left out.
        recipe: Its name.
        failures: The runs that are missing.
        curves: Accuracy over time, by scheme and seed; without, ``epochs_to_baseline`` is None.
        published: What a paper reports, of test images: left out where the runs were judged on others.
        detect: How many points ``Contrast.seeds_needed`` is about; above 0.
        remarks: On how the runs were made.

    Raises:
        ValueError: No scheme, or ``detect`` is not above 0.
    """
    if not results:
        raise ValueError("results: empty; name at least one scheme")
    if not detect > 0.0:
        raise ValueError(f"detect={detect}: must be above 0, in points")
    baseline = next(iter(results))
    finished = {scheme: dict(sorted(runs.items())) for scheme, runs in results.items() if runs}
    reference = finished.get(baseline, {})
    metrics = {str(run.get("metric", "accuracy")) for runs in finished.values() for run in runs.values()}
    metric = ", ".join(sorted(metrics)) or "accuracy"
    judged = {str(run.get("judged", "test")) for runs in finished.values() for run in runs.values()}
    published = published if judged <= {"test"} else None
    reports = {str(run["report"]) for runs in finished.values() for run in runs.values()}
    contrasts = [
        _contrast(scheme, runs, baseline, reference)
        for scheme, runs in finished.items()
        if scheme != baseline and set(runs) & set(reference)
    ]
    targets = {seed: float(run["test_accuracy"]) for seed, run in reference.items()}
    return Comparison(
        recipe=recipe,
        report=", ".join(sorted(reports)) or "last",
        baseline=baseline,
        schemes=tuple(
            replace(
                _summary(scheme, runs),
                epochs_to_baseline=reach((curves or {}).get(scheme, {}), targets),
                published=published.accuracy(scheme) if published else None,
                published_parts=published.of_parts(scheme) if published else {},
            )
            for scheme, runs in finished.items()
        ),
        contrasts=tuple(_judged(contrasts, detect)),
        failures=tuple(failures),
        remarks=(*remarks, *_collapses(finished, metric)),
        detect=detect,
        published=published,
        metric=metric,
        judged=", ".join(sorted(judged)) or "test",
    )


COLLAPSED = 0.5
"""A run that knows less than this share of what another seed knows of its images has not been trained like it."""


def _collapses(results: Mapping[str, Runs], metric: str) -> Iterator[str]:
    """Runs in which training came to nothing: a mean hides them, and no difference to them means anything."""
    for scheme, runs in results.items():
        known = dict(zip(runs, _percent(runs, "train_accuracy")))
        most = max(known.values())
        for seed, share in known.items():
            if share < COLLAPSED * most:
                yield (
                    f"{scheme}, seed {seed} ended with a training {metric} of {share:.1f} %, "
                    f"another seed with {most:.1f} %: the mean and its interval say little like this. Look at its "
                    "curve; if training collapsed, lower optim.lr or set grad_clip."
                )


def _summary(scheme: str, runs: Runs) -> Summary:
    accuracies = _percent(runs, "test_accuracy")
    return Summary(
        scheme=scheme,
        seeds=tuple(runs),
        accuracy=estimate(accuracies),
        bootstrap=bootstrap_interval(accuracies),
        train_accuracy=estimate(_percent(runs, "train_accuracy")),
        gap=estimate(_percent(runs, "gap")),
        epochs=max(int(run["epochs"]) + int(run.get("source_epochs") or 0) for run in runs.values()),
        seconds=statistics.median(_own_seconds(run) for run in runs.values()),
        teacher_seconds=statistics.median(_teachers(run) for run in runs.values()),
        epochs_to_baseline=None,
        published=None,
        parts={name: estimate(_part(runs, name)) for name in _parts(runs)},
    )


def _contrast(scheme: str, runs: Runs, baseline: str, others: Runs) -> Contrast:
    """A contrast that is not judged yet: that needs the p-values of all."""
    seeds = tuple(seed for seed in runs if seed in others)
    ours, theirs = {seed: runs[seed] for seed in seeds}, {seed: others[seed] for seed in seeds}
    accuracies = _percent(ours, "test_accuracy"), _percent(theirs, "test_accuracy")
    student = [_ratio(_own_seconds(ours[seed]), _own_seconds(theirs[seed])) for seed in seeds]
    whole = [_ratio(_seconds(ours[seed]), _seconds(theirs[seed])) for seed in seeds]
    return Contrast(
        scheme=scheme,
        baseline=baseline,
        seeds=seeds,
        accuracy=paired_difference(*accuracies),
        bootstrap=paired_bootstrap(*accuracies),
        p_holm=None,
        gap=paired_difference(_percent(ours, "gap"), _percent(theirs, "gap")),
        wall_clock=statistics.median(whole),
        wall_clock_student=statistics.median(student),
        answer="open",
        verdict="",
        seeds_needed=None,
        parts={
            name: paired_difference(_part(ours, name), _part(theirs, name))
            for name in _parts(ours)
            if name in _parts(theirs)
        },
    )


def _judged(contrasts: Sequence[Contrast], detect: float) -> list[Contrast]:
    corrected = holm([contrast.accuracy.p for contrast in contrasts])
    tests = sum(p is not None for p in corrected)
    level = 1.0 - (1.0 - LEVEL) / max(1, tests)  # of Holm's first, strictest step
    return [
        replace(
            contrast,
            p_holm=p,
            answer=answer(contrast.accuracy, p if tests > 1 else None),
            verdict=verdict(contrast.scheme, contrast.baseline, contrast.accuracy, p_holm=p, schemes=tests),
            seeds_needed=seeds_needed(detect, contrast.accuracy.sd, level=level) if contrast.accuracy.sd else None,
        )
        for contrast, p in zip(contrasts, corrected)
    ]


def _teachers(run: Result) -> float:
    return float(run.get("teacher_seconds") or 0.0)  # results of older versions do not have it


def _seconds(run: Result) -> float:
    return _own_seconds(run) + _teachers(run)


def _own_seconds(run: Result) -> float:
    """Of the network, the training that it starts from included: that is the scheme's work."""
    return float(run["seconds"]) + float(run.get("source_seconds") or 0.0)


def _ratio(ours: float, theirs: float) -> float:
    return float(ours) / max(float(theirs), 1e-9)


def _parts(runs: Runs) -> list[str]:
    """The further shares that every run has found."""
    each = [run.get("parts", {}) for run in runs.values()]
    return [name for name in each[0] if all(name in parts for parts in each)] if each else []


def _part(runs: Runs, name: str) -> list[float]:
    return [100.0 * float(run["parts"][name]) for run in runs.values()]


def _percent(runs: Runs, key: str) -> list[float]:
    return [100.0 * float(run[key]) for run in runs.values()]
