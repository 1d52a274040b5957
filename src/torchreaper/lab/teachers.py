"""Teachers: networks that a scheme learns from, trained first, each in a run of its own.

A teacher's run lies beside those of the comparison, `<out>/<recipe>/teacher-<model>-<hash>/standard/seed-<k>`: the
schemes that learn from the same teacher share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchreaper.lab.checkpoints import LAST, PREVIOUS, judged_weights, load_checkpoint
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import folder_of
from torchreaper.lab.schemes import Spec


@dataclass(frozen=True)
class Before:
    """A run that has to be finished before: `recipe` with `scheme`, below `out`, with the run's own seed."""

    recipe: Recipe
    scheme: str
    out: Path


@dataclass(frozen=True, eq=False)
class Taught:
    """What a finished teacher gives: its weights, and the seconds its training took."""

    weights: dict[str, Any]
    seconds: float


def recipe_of(recipe: Recipe, spec: Spec) -> Recipe | None:
    """The recipe of the scheme's teacher; None where it needs none.

    Raises:
        UserError: What the scheme says of its teacher makes no recipe.
    """
    wanted = spec.teachers()
    return recipe.teacher(wanted[0]) if wanted else None


def needed(recipe: Recipe, spec: Spec, out: Path) -> Before | None:
    """The run that has to be finished before a run of `recipe` with `spec` in `out`; None where it needs none."""
    found = recipe_of(recipe, spec)
    return None if found is None else Before(found, "standard", Path(out) / recipe.name)


def first(recipe: Recipe, scheme: str, out: Path) -> Before | None:
    """The run of the network that `recipe` starts from, which `scheme` trains; None without a `source`."""
    return None if recipe.source is None else Before(recipe.first(), scheme, Path(out) / recipe.name)


def load(before: Before, result: Json, seed: int) -> Taught | None:
    """The weights that a finished run ended with; None where they are damaged: it has to train to its end again.

    Raises:
        UserError: They are gone.
    """
    folder = folder_of(before.out, before.recipe.name, before.scheme, seed)
    if not any((folder / name).exists() for name in (LAST, PREVIOUS)):
        raise UserError(
            f"{folder}: the network is trained, but its checkpoint is gone; delete that folder and run again"
        )
    state = load_checkpoint(folder, lambda text: None, mend=False)
    # With the last one damaged this may be the one before, of a network that was not trained to its end.
    if state is None or fingerprint(weights := judged_weights(state)) != result.get("fingerprint"):
        return None
    return Taught(weights, float(result["seconds"]))
