"""One run: a recipe trained with one scheme and one seed, into one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from lightning_fabric import Fabric

from torchreaper.lab import schemes, sources, stopping, teachers
from torchreaper.lab.environment import environment, own_random_numbers, seed_python
from torchreaper.lab.errors import UserError, remedy, trouble
from torchreaper.lab.files import Json
from torchreaper.lab.locking import LOCK, Lock, clear, locked
from torchreaper.lab.processes import by_rank_zero
from torchreaper.lab.progress import NullProgress, Progress, Silent
from torchreaper.lab.provenance import changed_in, in_words, now, provenance
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import RunFailed, RunFolder, folder_of, read_metrics, run_of
from torchreaper.lab.training import Run

__all__ = ["RunFailed", "train"]

Value = TypeVar("Value")
#: What to do about a finished run whose files have changed.
AS_IT_WAS = "it is not repeated: give another name or out, or delete that folder, to train with what there is now"


def train(
    recipe: Recipe,
    *,
    scheme: str,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    device: str = "auto",
    fabric: Fabric | None = None,
    resume: bool = True,
    jobs: int = 1,
) -> Json:
    """Train one network, or go on with it, or return what is there already.

    Several processes that train together call this alike, each with its `Fabric`; the first one alone writes.

    Args:
        recipe: What to run.
        scheme: "standard", "repr", or a key of the recipe's `schemes`.
        seed: Of the initial weights, the data order, the augmentation and the scheme's own draws. Two schemes with
            one seed see the same initial weights and the same images in the same order.
        out: The run's folder is `<out>/<recipe.name>/<scheme>/seed-<seed>`.
        progress: Is told what happens; None: only notes, to the log.
        device: "auto", "cpu", "cuda" or "mps".
        fabric: Instead of `device`: what `processes.begin` gave.
        resume: False: delete what an earlier run left in the folder.
        jobs: How many runs share the machine; it is written down, as it makes the seconds mean less.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: Something in the recipe, the data or the folder is wrong, or another process trains in the folder.
            Where the recipe or the data are, nothing was written; in no case is a result or a good checkpoint lost.
        RunFailed: The run cannot go on (the loss is not finite, ...); its last good checkpoint is kept.
    """
    rank = fabric.global_rank if fabric else 0
    progress = Silent() if rank else progress or NullProgress()
    folder, written = _folder(recipe, scheme, seed, out)
    if resume and (result := by_rank_zero(fabric, lambda: folder.look(progress.note))) is not None:
        by_rank_zero(fabric, lambda: clear(folder.path))
        by_rank_zero(fabric, lambda: _tell_changes(recipe, folder, progress, AS_IT_WAS))
        return result
    return _train(recipe, scheme, seed, out, folder, written, progress, device, fabric, resume=resume, jobs=jobs)


def _train(
    recipe: Recipe,
    scheme: str,
    seed: int,
    out: Path,
    folder: RunFolder,
    written: Json,
    progress: Progress,
    device: str,
    fabric: Fabric | None,
    *,
    resume: bool = True,
    jobs: int = 1,
) -> Json:
    """Train, or go on, whether or not there is a result."""
    spec = recipe.training_spec(scheme)
    kept, rank = _Kept(folder), fabric.global_rank if fabric else 0
    taught = _taught(recipe, spec, seed, out, progress, device, fabric)
    start = _started(recipe, scheme, seed, out, progress, device, fabric)
    with own_random_numbers(seed, rank), ExitStack() as stack:
        with recipe.told_of(scheme):
            run = Run(
                recipe, spec, seed=seed, device=device, fabric=fabric, progress=progress, teacher=taught, start=start
            )
        seed_python(seed, rank)
        by_rank_zero(fabric, lambda: kept.take(written, stack, resume=resume))
        checkpoint = by_rank_zero(fabric, lambda: kept(lambda: folder.load(progress.note)))
        done = 0
        if checkpoint is not None:
            run.load_state_dict(checkpoint, progress.note)
            done = checkpoint["epoch"]
        by_rank_zero(fabric, lambda: kept(lambda: folder.align(checkpoint, progress.note)))
        if done:
            by_rank_zero(fabric, lambda: _tell_changes(recipe, folder, progress, "it goes on with what there is now"))
        here = environment(device=run.fabric.device, precision=recipe.precision, base=recipe.base)
        here |= {"jobs": jobs, **by_rank_zero(fabric, lambda: provenance(recipe, scheme))}
        by_rank_zero(fabric, lambda: kept(lambda: folder.environment(here, epoch=done)))
        progress.start_run(f"{recipe.name} / {scheme} / seed {seed}", run.epochs, run.steps, done)
        for epoch in range(done + 1, run.epochs + 1):
            ended = run.epoch(epoch, progress)
            state = run.state_dict()
            by_rank_zero(fabric, lambda: kept.save(epoch, state, *ended))  # noqa: B023  (called at once)
            progress.epoch(ended[0])
        result = by_rank_zero(fabric, folder.kept) if done == run.epochs else None
        if result is None:  # else other files were mended
            result = run.result(scheme, by_rank_zero(fabric, lambda: read_metrics(folder.path)))
        by_rank_zero(fabric, lambda: kept(lambda: folder.finish(result)))
        run.scheme.close()
    progress.end_run(result)
    return result


class _Kept:
    """The run's folder in the process that writes it: where something cannot be written, the run fails by a line."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._lock: Lock | None = None

    def take(self, written: Json, stack: ExitStack, *, resume: bool) -> None:
        """Lock the folder until `stack` is left, and open it."""
        with stopping.whole():
            self._lock = stack.enter_context(locked(self._folder.path))
            self._folder.open(written, resume=resume)

    def __call__(self, work: Callable[[], Value], what: str = "cannot be trained") -> Value:
        """What `work` returns.

        Raises:
            RunFailed: The system refuses it, or the folder was deleted meanwhile.
        """
        path = self._folder.path
        try:
            if self._lock is not None and not self._lock.holds():
                raise RunFailed(
                    f"{path}: was deleted, or its {LOCK} was, while the run went on; nothing more is written there, "
                    "another process may train in it by now; give the same command again"
                )
            with stopping.whole():
                return work()
        except OSError as error:
            raise RunFailed(
                f"{what} in {path} ({trouble(error, path)}); {remedy(error)} and give the same command again: "
                "it goes on from the last good checkpoint"
            ) from error

    def save(self, epoch: int, state: Json, metrics: Json, events: list[Json], snapshot: Json | None) -> None:
        """`RunFolder.save`."""
        self(lambda: self._folder.save(epoch, state, metrics, events, snapshot), f"epoch {epoch}: cannot be saved")


def finished(recipe: Recipe, *, scheme: str, seed: int, out: Path) -> Json | None:
    """The result of this run, if it is finished; nothing is written.

    Raises:
        UserError: The folder holds a run of another recipe.
    """
    return _folder(recipe, scheme, seed, out)[0].look()


def try_out(recipe: Recipe, scheme: str, *, device: str = "cpu", progress: Progress | None = None) -> None:
    """Put together all that a run with this scheme needs, and train nothing.

    Raises:
        UserError: What the data, the network or the scheme refuse.
    """
    start = None
    if recipe.source is not None:
        with _of_source():
            before = recipe.first()
            first = Run(before, before.training_spec(scheme), seed=0, device=device, progress=progress)
            first.scheme.close()
        start = sources.untrained(first.module)
    spec = recipe.training_spec(scheme)
    with recipe.told_of(scheme):
        Run(recipe, spec, seed=0, device=device, start=start, progress=progress).scheme.close()


def _taught(
    recipe: Recipe, spec: schemes.Spec, seed: int, out: Path, progress: Progress, device: str, fabric: Fabric | None
) -> teachers.Taught | None:
    """Train the scheme's teacher, or go on with it, or find it trained."""
    teacher = teachers.needed(recipe, spec, out)
    return None if teacher is None else _ended(teacher, seed, progress, device, fabric)[0]


def _started(
    recipe: Recipe, scheme: str, seed: int, out: Path, progress: Progress, device: str, fabric: Fabric | None
) -> sources.Start | None:
    """Train the network that this one starts from, or go on with it, or find it trained."""
    before = teachers.first(recipe, scheme, out)
    if before is None:
        return None
    if finished(before.recipe, scheme=scheme, seed=seed, out=before.out) is None:
        try_out(recipe, scheme, device=device, progress=progress)  # hours later it would be too late
    with _of_source():
        ended, result = _ended(before, seed, progress, device, fabric)
    return sources.Start(
        ended.weights,
        float(result["test_accuracy"]),
        str(result.get("metric", "accuracy")),
        int(result["epochs"]),
        float(result["seconds"]),
        float(result.get("teacher_seconds") or 0.0),
    )


@contextmanager
def _of_source() -> Iterator[None]:
    """What the first training refuses is told to be that section's: its keys are called as the recipe's own are."""
    try:
        yield
    except UserError as error:
        if type(error) is not UserError:  # a run that failed tells its folder
            raise
        raise UserError(f"source: {error}") from error


def _ended(
    before: teachers.Before, seed: int, progress: Progress, device: str, fabric: Fabric | None
) -> tuple[teachers.Taught, Json]:
    """What a run that another one needs ended with; trained now, or to its end, unless it is there."""
    where, written = _folder(before.recipe, before.scheme, seed, before.out)
    result = by_rank_zero(fabric, lambda: where.look(progress.note))
    ended = _weights(before, result, seed, fabric)
    if ended is not None:
        by_rank_zero(fabric, lambda: _tell_changes(before.recipe, where, progress, AS_IT_WAS))
    if result is not None and ended is None:
        progress.note(f"{where.path}: its last checkpoint is damaged; the network is trained to its end again")
    if result is None or ended is None:
        result = _train(before.recipe, before.scheme, seed, before.out, where, written, progress, device, fabric)
        ended = _weights(before, result, seed, fabric)
    if ended is None:
        raise UserError(f"{where.path}: its result is not its checkpoint's; delete that folder and run again")
    return ended, result


def _weights(before: teachers.Before, result: Json | None, seed: int, fabric: Fabric | None) -> teachers.Taught | None:
    return None if result is None else by_rank_zero(fabric, lambda: teachers.load(before, result, seed))


def _tell_changes(recipe: Recipe, folder: RunFolder, progress: Progress, so: str) -> None:
    """Tell of files of the user's own that are another now than when the run was begun."""
    if names := changed_in(folder.path, now(recipe.base)):
        progress.note(f"{folder.path}: was trained with another {in_words(names)} than there is now; {so}")


def _folder(recipe: Recipe, scheme: str, seed: int, out: Path) -> tuple[RunFolder, Json]:
    written = {**recipe.canonical(), "scheme": recipe.scheme_spec(scheme).model_dump(mode="json"), "schemes": {}}
    return RunFolder(folder_of(out, recipe.name, scheme, seed), run_of(written, seed=seed)), written
