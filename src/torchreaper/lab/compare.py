"""Many runs: schemes x seeds, each once, and what they say together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from lightning_fabric import Fabric

from torchreaper.errors import ReaperError
from torchreaper.lab import teachers
from torchreaper.lab.comparison import Comparison, Failure, Result, read_curves, summarise, write
from torchreaper.lab.errors import UserError
from torchreaper.lab.execution import Executor, Here, Job, Plan, perform
from torchreaper.lab.files import read_json
from torchreaper.lab.locking import clear
from torchreaper.lab.objects import reason
from torchreaper.lab.progress import NullProgress, Progress
from torchreaper.lab.provenance import changed_in, in_words, now
from torchreaper.lab.recipe import ALL, Recipe
from torchreaper.lab.run import finished, try_out
from torchreaper.lab.runs import ENVIRONMENT, RunFailed, folder_of


def compare(
    recipe: Recipe,
    schemes: Sequence[str],
    seeds: int,
    out: Path,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    executor: Executor | None = None,
    detect: float = 1.0,
) -> Comparison:
    """Run every scheme with the seeds 0 to ``seeds - 1`` and compare them.

    A run that is finished in ``out`` is not repeated, one that was killed goes on. A run that fails is put
    into ``failures``, the others go on. ``comparison.json``, ``.md`` and two ``.csv`` go to ``out / recipe.name``.

    Args:
        recipe: What to run.
        schemes: Their names; the first is the baseline.
        seeds: How many, at least 1.
        out: Where the run folders are.
        progress: Listens to every run.
        device: As in ``run.train``.
        executor: Where the runs go on; None: here, one after the other. With worker processes a script must call this
            below ``if __name__ == "__main__":``.
        detect: The difference, in points, for which the seeds needed are told.

    Raises:
        UserError: A scheme twice, unknown or with wrong options, no seed, or a run that cannot be begun.
    """
    check(recipe, schemes, seeds)
    progress, executor = progress or NullProgress(), executor or Here()
    # Every folder is asked now: one of another recipe would else be met after the hours of the runs before it.
    there, jobs = _sort(recipe, schemes, seeds, out, device)
    for text in _on_changes(recipe, there, out) if jobs else ():
        progress.note(text)
    for scheme in dict.fromkeys(job.scheme for job in jobs):
        _try(recipe, scheme, device if isinstance(executor, Here) else "cpu", progress)
    results: dict[str, dict[int, Result]] = {scheme: {} for scheme in schemes}
    for (scheme, seed), result in there.items():
        results[scheme][seed] = result
        clear(folder_of(out, recipe.name, scheme, seed))
        progress.end_run(result)
    failures = _run(jobs, results, progress, executor)
    folder = Path(out) / recipe.name
    curves = read_curves(folder, results)
    comparison = summarise(
        results,
        recipe=recipe.name,
        failures=failures,
        curves=curves,
        published=recipe.published,
        detect=detect,
        remarks=_remarks(recipe, results, out),
    )
    write(comparison, results, folder, curves=curves)
    return comparison


def _try(recipe: Recipe, scheme: str, device: str, progress: Progress) -> None:
    """Have told now what the data, the network or the scheme refuse, not after the other schemes' hours.

    An error that nobody foresaw, of the user's own code, is told by the runs that meet it; the others go on.
    """
    try:
        try_out(recipe, scheme, device=device, progress=progress)
    except (UserError, ReaperError):
        raise
    except (Exception, SystemExit) as error:
        progress.note(f"{scheme}: could not be put together on the {device} ({reason(error)}); its runs will tell")


def to_do(recipe: Recipe, schemes: Sequence[str], seeds: int, out: Path) -> int:
    """How many runs a comparison has, those that are finished and those of the teachers it lacks among them."""
    there, jobs = _sort(recipe, schemes, seeds, out, "auto")
    return len(there) + len(Plan(jobs).jobs)


def run(
    recipe: Recipe,
    scheme: str,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    fabric: Fabric | None = None,
) -> Result:
    """``run.train``, but a run that was finished before is told to ``progress`` as well."""
    outcome = perform(Job(recipe, scheme, seed, out, device), progress or NullProgress(), fabric=fabric)
    if isinstance(outcome, Failure):
        raise RunFailed(outcome.reason)
    return outcome


def _sort(
    recipe: Recipe, schemes: Sequence[str], seeds: int, out: Path, device: str
) -> tuple[dict[tuple[str, int], Result], list[Job]]:
    """The runs that are finished, and those that are to be done."""
    there: dict[tuple[str, int], Result] = {}
    jobs: list[Job] = []
    # The seeds outside: the runs of a pair are neighbours in time, so that a machine growing hot or busy
    # meets both, and a comparison that is cut short has whole pairs.
    for seed in range(seeds):
        for scheme in schemes:
            result = finished(recipe, scheme=scheme, seed=seed, out=out)
            if result is None:
                after = _before(recipe, scheme, seed, out, device)
                jobs.append(Job(recipe, scheme, seed, Path(out), device, after))
            else:
                there[scheme, seed] = result
    return there, jobs


def _before(recipe: Recipe, scheme: str, seed: int, out: Path, device: str) -> tuple[Job, ...]:
    """The runs that have to be finished before and are not."""
    jobs = []
    for one in _needed(recipe, scheme, out):
        if finished(one.recipe, scheme=one.scheme, seed=seed, out=one.out) is not None:
            continue
        of = "" if recipe.source is None else f", {scheme}"
        after = _before(one.recipe, one.scheme, seed, one.out, device)
        jobs.append(Job(one.recipe, one.scheme, seed, one.out, device, after, f"{one.recipe.name}{of}, seed {seed}"))
    return tuple(jobs)


def _needed(recipe: Recipe, scheme: str, out: Path) -> list[teachers.Before]:
    """The trainings that come before those with this scheme: of the network it starts from, and of a teacher."""
    both = teachers.needed(recipe, recipe.training_spec(scheme), out), teachers.first(recipe, scheme, out)
    return [one for one in both if one is not None]


def _run(
    jobs: Sequence[Job], results: dict[str, dict[int, Result]], progress: Progress, executor: Executor
) -> list[Failure]:
    """Do the jobs and put their results where they belong; those that failed, in the order of the jobs."""
    listeners: dict[Path, Progress] = {}
    failed: dict[Path, Failure] = {}

    def listen(job: Job) -> Progress:
        if isinstance(executor, Here):
            return progress
        if job.folder not in listeners:
            listeners[job.folder] = progress.beside(job.name)
        return listeners[job.folder]

    own = {job.folder for job in jobs}
    with closing(executor.run(jobs, listen)) as ended:
        for job, outcome in ended:
            if isinstance(outcome, Failure):
                failed[job.folder] = outcome
                listen(job).leave()
                progress.note(f"failed: {job.name}: {outcome.reason}")
            elif job.folder in own:  # and no teacher
                results[job.scheme][job.seed] = outcome
    return [failed[job.folder] for job in jobs if job.folder in failed]


def _remarks(recipe: Recipe, results: dict[str, dict[int, Result]], out: Path) -> tuple[str, ...]:
    """What a reader has to know of how the runs were made."""
    every = [(scheme, seed) for scheme, runs in results.items() for seed in runs]
    return (
        *_on_source(recipe),
        *_on_judging(recipe),
        *_on_noise(recipe),
        *_on_sharing(recipe, every, out),
        *_on_changes(recipe, every, out),
    )


def _on_source(recipe: Recipe) -> Iterable[str]:
    """Which of two trainings the schemes are about."""
    if recipe.source is None:
        return
    first = recipe.first()
    yield (
        f"The schemes trained another network before ({first.model.name} on {first.data.name}, {first.task}; its "
        f"scores are the parts called source). What is compared is {recipe.model.name} on {recipe.data.name}, which "
        "starts from its weights and is trained the standard way, whatever the scheme."
    )


def _on_judging(recipe: Recipe) -> Iterable[str]:
    """That the test images were left alone."""
    if recipe.data.judge == "test":
        return
    # Questions about one picture stay together, so that fewer may be held out than were asked for.
    what = "questions" if recipe.task == "vqa" else "images"
    held = "" if recipe.task == "vqa" else f"{recipe.data.validation:,} "
    chosen = " The epoch was chosen on them too, which flatters the numbers." if recipe.report != "last" else ""
    paper = " Published values are of test images and left out." if recipe.published else ""
    yield f"Judged on the {held}validation {what}; the test {what} were not looked at.{chosen}{paper}"


def _on_noise(recipe: Recipe) -> Iterable[str]:
    """That right answers in training are not all right."""
    noise = getattr(recipe.data, "label_noise", 0.0)
    if noise:
        yield (
            f"{noise:.3g} of the training images have another class than theirs: training accuracy and gap count these "
            "classes as right."
        )


def _on_changes(recipe: Recipe, runs: Collection[tuple[str, int]], out: Path) -> Iterable[str]:
    """That runs were made with files of the user's own that are others now: finished ones are not repeated."""
    today = now(recipe.base)
    needed = {scheme: _needed(recipe, scheme, out) for scheme in dict.fromkeys(scheme for scheme, _ in runs)}
    found = []
    for scheme, seed in runs:
        before = [folder_of(one.out, one.recipe.name, one.scheme, seed) for one in needed[scheme]]
        folders = [folder_of(out, recipe.name, scheme, seed), *before]
        found.append([name for folder in folders for name in changed_in(folder, today)])
    names = list(dict.fromkeys(name for one in found for name in one))
    if names:
        yield (
            f"{sum(map(bool, found))} of {len(found)} runs were made with another {in_words(names)} than there is now, "
            "and finished runs are not repeated: give another name or out to make all of them with what there is now."
        )


def _on_sharing(recipe: Recipe, runs: Collection[tuple[str, int]], out: Path) -> Iterable[str]:
    """That runs shared the machine."""
    counts = [_at_once(folder_of(out, recipe.name, scheme, seed)) for scheme, seed in runs]
    beside = sum(count > 1 for count in counts)
    if beside:
        yield (
            f"{beside} of {len(counts)} runs were made side by side, up to {max(counts)} at once: they shared the "
            "machine, so their seconds, and the ratios of these, depend on what else was running."
        )


def _at_once(folder: Path) -> int:
    """How many runs shared the machine with this one, itself included, when there were most."""
    try:
        begun = read_json(folder / ENVIRONMENT) or {}
    except UserError:  # not worth to stop for
        return 1
    resumed = begun.get("resumed")
    parts = (begun, *(resumed if isinstance(resumed, list) else ()))
    found = [one.get("jobs", 1) for one in parts if isinstance(one, dict)]
    return max((count for count in found if isinstance(count, int)), default=1)


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
