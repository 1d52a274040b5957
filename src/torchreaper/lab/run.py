"""One run: a recipe trained with one scheme and one seed, into one folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lightning_fabric import Fabric

from torchreaper.lab import schemes, teachers
from torchreaper.lab.environment import environment, own_random_numbers, seed_python
from torchreaper.lab.files import Json
from torchreaper.lab.locking import locked
from torchreaper.lab.processes import by_rank_zero
from torchreaper.lab.progress import NullProgress, Progress, Silent
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import RunFailed, RunFolder, folder_of, read_metrics, run_of
from torchreaper.lab.training import Run

__all__ = ["RunFailed", "train"]


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
        UserError: Something in the recipe, the data or the folder is wrong, or another process trains in the folder;
            nothing was written.
        RunFailed: The run cannot go on (the loss is not finite, ...); its last good checkpoint is kept.
    """
    rank = fabric.global_rank if fabric else 0
    progress = Silent() if rank else progress or NullProgress()
    spec = recipe.scheme_spec(scheme)
    folder, written = _folder(recipe, scheme, seed, out)
    if resume and (result := by_rank_zero(fabric, folder.look)) is not None:
        return result
    taught = _taught(recipe, spec, seed, out, progress, device, fabric)
    with own_random_numbers(seed, rank), ExitStack() as stack:
        run = Run(recipe, spec, seed=seed, device=device, fabric=fabric, progress=progress, teacher=taught)
        seed_python(seed, rank)
        by_rank_zero(fabric, lambda: _take(folder, written, stack, resume=resume))
        checkpoint = by_rank_zero(fabric, lambda: folder.load(progress.note))
        done = 0
        if checkpoint is not None:
            run.load_state_dict(checkpoint, progress.note)
            done = checkpoint["epoch"]
        by_rank_zero(fabric, lambda: folder.align(checkpoint, progress.note))
        here = environment(device=run.fabric.device, precision=recipe.precision, base=recipe.base)
        by_rank_zero(fabric, lambda: folder.environment({**here, "jobs": jobs}, epoch=done))
        progress.start_run(f"{recipe.name} / {scheme} / seed {seed}", run.epochs, run.steps, done)
        for epoch in range(done + 1, run.epochs + 1):
            ended = run.epoch(epoch, progress)
            state = run.state_dict()
            by_rank_zero(fabric, lambda: _save(folder, epoch, state, *ended))  # noqa: B023  (called at once)
            progress.epoch(ended[0])
        result = run.result(scheme, by_rank_zero(fabric, lambda: read_metrics(folder.path)))
        by_rank_zero(fabric, lambda: folder.finish(result))
        run.scheme.close()
    progress.end_run(result)
    return result


def _take(folder: RunFolder, written: Json, stack: ExitStack, *, resume: bool) -> None:
    stack.enter_context(locked(folder.path))
    folder.open(written, resume=resume)


def _save(folder: RunFolder, epoch: int, state: Json, metrics: Json, events: list[Json], snapshot: Json | None) -> None:
    try:
        folder.save(epoch, state, metrics, events, snapshot)
    except OSError as error:
        raise RunFailed(
            f"epoch {epoch}: cannot be saved in {folder.path} ({error.strerror}); put that right and give "
            "the same command again: it goes on from the last good checkpoint"
        ) from error


def finished(recipe: Recipe, *, scheme: str, seed: int, out: Path) -> Json | None:
    """The result of this run, if it is finished; nothing is written.

    Raises:
        UserError: The folder holds a run of another recipe.
    """
    return _folder(recipe, scheme, seed, out)[0].look()


def _taught(
    recipe: Recipe, spec: schemes.Spec, seed: int, out: Path, progress: Progress, device: str, fabric: Fabric | None
) -> teachers.Taught | None:
    """Train the scheme's teacher, or go on with it, or find it trained."""
    teacher = teachers.needed(recipe, spec, out)
    if teacher is None:
        return None
    result = train(
        teacher.recipe,
        scheme="standard",
        seed=seed,
        out=teacher.out,
        progress=progress,
        device=device,
        fabric=fabric,
    )
    return by_rank_zero(fabric, lambda: teachers.load(teacher, result, seed, progress.note))


def _folder(recipe: Recipe, scheme: str, seed: int, out: Path) -> tuple[RunFolder, Json]:
    written = {**recipe.canonical(), "scheme": recipe.scheme_spec(scheme).model_dump(mode="json"), "schemes": {}}
    return RunFolder(folder_of(out, recipe.name, scheme, seed), run_of(written, seed=seed)), written
