"""One run: a recipe trained with one scheme and one seed, into one folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from torchreaper.lab import schemes, teachers
from torchreaper.lab.environment import environment, own_random_numbers
from torchreaper.lab.files import Json
from torchreaper.lab.locking import locked
from torchreaper.lab.progress import NullProgress, Progress
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
    resume: bool = True,
    jobs: int = 1,
) -> Json:
    """Train one network, or go on with it, or return what is there already.

    Args:
        recipe: What to run.
        scheme: "standard", "repr", or a key of the recipe's `schemes`.
        seed: Of the initial weights, the data order, the augmentation and the scheme's own draws. Two schemes with
            one seed see the same initial weights and the same images in the same order.
        out: The run's folder is `<out>/<recipe.name>/<scheme>/seed-<seed>`.
        progress: Is told what happens; None: only notes, to the log.
        device: "auto", "cpu", "cuda" or "mps".
        resume: False: delete what an earlier run left in the folder.
        jobs: How many runs share the machine; it is written down, as it makes the seconds mean less.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: Something in the recipe, the data or the folder is wrong, or another process trains in the folder;
            nothing was written.
        RunFailed: The run cannot go on (the loss is not finite, ...); its last good checkpoint is kept.
    """
    progress = progress or NullProgress()
    spec = recipe.scheme_spec(scheme)
    folder, written = _folder(recipe, scheme, seed, out)
    if resume and (result := folder.look()) is not None:
        return result
    taught = _taught(recipe, spec, seed, out, progress, device)
    with own_random_numbers(seed), ExitStack() as stack:
        run = Run(recipe, spec, seed=seed, device=device, progress=progress, teacher=taught)
        stack.enter_context(locked(folder.path))
        folder.open(written, resume=resume)
        checkpoint = folder.load(progress.note)
        done = 0
        if checkpoint is not None:
            run.load_state_dict(checkpoint, progress.note)
            done = checkpoint["epoch"]
        folder.align(checkpoint, progress.note)
        here = environment(device=run.fabric.device, precision=recipe.precision, base=recipe.base)
        folder.environment({**here, "jobs": jobs}, epoch=done)
        progress.start_run(f"{recipe.name} / {scheme} / seed {seed}", run.epochs, run.steps, done)
        for epoch in range(done + 1, run.epochs + 1):
            metrics, events, snapshot = run.epoch(epoch, progress)
            try:
                folder.save(epoch, run.state_dict(), metrics, events, snapshot)
            except OSError as error:
                raise RunFailed(
                    f"epoch {epoch}: cannot be saved in {folder.path} ({error.strerror}); put that right and give "
                    "the same command again: it goes on from the last good checkpoint"
                ) from error
            progress.epoch(metrics)
        result = run.result(scheme, read_metrics(folder.path))
        folder.finish(result)
        run.scheme.close()
    progress.end_run(result)
    return result


def finished(recipe: Recipe, *, scheme: str, seed: int, out: Path) -> Json | None:
    """The result of this run, if it is finished; nothing is written.

    Raises:
        UserError: The folder holds a run of another recipe.
    """
    return _folder(recipe, scheme, seed, out)[0].look()


def _taught(
    recipe: Recipe, spec: schemes.Spec, seed: int, out: Path, progress: Progress, device: str
) -> teachers.Taught | None:
    """Train the scheme's teacher, or go on with it, or find it trained."""
    teacher = teachers.needed(recipe, spec, out)
    if teacher is None:
        return None
    result = train(teacher.recipe, scheme="standard", seed=seed, out=teacher.out, progress=progress, device=device)
    return teachers.load(teacher, result, seed, progress.note)


def _folder(recipe: Recipe, scheme: str, seed: int, out: Path) -> tuple[RunFolder, Json]:
    written = {**recipe.canonical(), "scheme": recipe.scheme_spec(scheme).model_dump(mode="json"), "schemes": {}}
    return RunFolder(folder_of(out, recipe.name, scheme, seed), run_of(written, seed=seed)), written
