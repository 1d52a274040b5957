"""Many runs: schemes x seeds, each once, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchreaper.lab.comparison import Comparison, Failure, Result, read_curves, summarise, write
from torchreaper.lab.errors import UserError
from torchreaper.lab.progress import Progress
from torchreaper.lab.recipe import ALL, Recipe
from torchreaper.lab.run import Run, finished, train
from torchreaper.lab.runs import RunFailed


def compare(
    recipe: Recipe,
    schemes: Sequence[str],
    seeds: int,
    out: Path,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    detect: float = 1.0,
) -> Comparison:
    """Run every scheme with the seeds 0 to ``seeds - 1``, here and one after the other, and compare them.

    A run that is finished in ``out`` is not repeated, one that was killed goes on. A run that fails is put
    into ``failures``, the others go on. ``comparison.json``, ``.md`` and two ``.csv`` go to ``out / recipe.name``.

    Args:
        recipe: What to run.
        schemes: Their names; the first is the baseline.
        seeds: How many, at least 1.
        out: Where the run folders are.
        progress: Listens to every run.
        device: As in ``run.train``.
        detect: The difference, in points, for which the seeds needed are told.

    Raises:
        UserError: A scheme twice, unknown or with wrong options, no seed, or a run that cannot be begun.
    """
    check(recipe, schemes, seeds)
    for scheme in schemes:
        # Every folder is asked now: one of another recipe would else be met after the hours of the runs before it.
        if None in [finished(recipe, scheme=scheme, seed=seed, out=out) for seed in range(seeds)]:
            # What the data, the network or the scheme refuse is told now, not after the other schemes' hours.
            Run(recipe, recipe.scheme_spec(scheme), seed=0, device=device, progress=progress).scheme.close()
    results: dict[str, dict[int, Result]] = {scheme: {} for scheme in schemes}
    failures: list[Failure] = []
    # The seeds outside: the runs of a pair are neighbours in time, so that a machine growing hot or busy
    # meets both, and a comparison that is cut short has whole pairs.
    for seed in range(seeds):
        for scheme in schemes:
            try:
                results[scheme][seed] = run(recipe, scheme, seed, out, progress, device=device)
            except RunFailed as error:
                failures.append(Failure(scheme, seed, str(error)))
                if progress is not None:
                    progress.note(f"failed: {scheme}, seed {seed}: {error}")
    folder = Path(out) / recipe.name
    curves = read_curves(folder, results)
    comparison = summarise(
        results, recipe=recipe.name, failures=failures, curves=curves, published=recipe.published, detect=detect
    )
    write(comparison, results, folder, curves=curves)
    return comparison


def run(
    recipe: Recipe, scheme: str, seed: int, out: Path, progress: Progress | None = None, *, device: str = "auto"
) -> Result:
    """``run.train``, but a run that was finished before is told to ``progress`` as well."""
    before = finished(recipe, scheme=scheme, seed=seed, out=out)
    result = train(recipe, scheme=scheme, seed=seed, out=out, progress=progress, device=device)
    if before and progress is not None:
        progress.end_run(result)
    return result


def named(recipe: Recipe, text: str | None) -> list[str]:
    """The schemes that ``text`` names, as in ``--schemes A,B``.

    "all": standard, the recipe's own and every entry of its ``schemes``. None: standard and the recipe's own.
    """
    if text is None:
        return list(dict.fromkeys(["standard", str(recipe.scheme["name"])]))
    names = [name.strip() for name in text.split(",") if name.strip()]
    return recipe.every_scheme() if names == [ALL] else names


def check(recipe: Recipe, schemes: Sequence[str], seeds: int) -> None:
    """Raise ``UserError`` where the comparison could not be run to its end; nothing is loaded or written."""
    if not schemes:
        raise UserError("schemes: none named; name at least one, such as standard,repr")
    if ALL in schemes:
        raise UserError(f"schemes={','.join(schemes)}: {ALL} is every scheme already; name it alone")
    twice = [scheme for scheme in schemes if list(schemes).count(scheme) > 1]
    if twice:
        raise UserError(f"schemes={','.join(schemes)}: {twice[0]} is named twice; name each once")
    if seeds < 1:
        raise UserError(f"seeds={seeds}: must be 1 or more; 3 or more give an interval worth reading")
    for scheme in schemes:
        recipe.scheme_spec(scheme)
