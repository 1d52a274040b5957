"""What is analysed: run folders, all seeds of a scheme, all schemes of a recipe, or a checkpoint of any kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchreaper import loading
from torchreaper.lab import data, models, runs, snapshots
from torchreaper.lab.analyze.settings import MOST
from torchreaper.lab.checkpoints import is_runs, judged_weights, load_checkpoint
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import read_events, read_metrics, read_recipe

# What frameworks wrap a state dict in, and what wrappers put before its names.
_INSIDE = ("model", "state_dict", "model_state_dict", "module", "net")
_BEFORE = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Source:
    """One network: how it is built, and where its weights are.

    Attributes:
        path: a run folder, or a checkpoint file.
        seed: the run's; 0 of a checkpoint.
        recipe: of the run, or the one that was named: says which data, and which network unless ``model`` does.
        model: a name as in ``ModelSpec``, such as ``package.module:callable``; ``None``: the recipe's.
        options: of that model.
    """

    path: Path
    seed: int
    recipe: Recipe
    model: str | None = None
    options: Mapping[str, Any] | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a run folder."""
        return self.path.is_dir()

    @cached_property
    def dataset(self) -> data.Dataset:
        """The images; loaded once for all runs on them."""
        if not isinstance(self.recipe.data, data.DataSpec):
            raise UserError(
                f"{self.path}: was trained for the task {self.recipe.task}; what filters are worth is asked of "
                "classification only, so far"
            )
        return data.load(self.recipe.data, self.recipe.base)

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        name, options = self.model or self.recipe.model.name, self.options
        if options is None:
            options = {} if self.model else self.recipe.model.options
        channels, height, width = self.dataset.train.shape
        return models.build(
            name,
            options,
            in_channels=channels,
            classes=len(self.dataset.classes),
            image_size=(height, width),
            generator_seed=self.seed,
            base=self.recipe.base,
        )

    def last(self, note: Callable[[str], None]) -> tuple[int | None, Mapping[str, Tensor]]:
        """The last weights, and after which epoch of a run they are."""
        if not self.is_run:
            return None, state_dict_in(self.path)
        state = load_checkpoint(self.path, note, mend=False)
        if state is None:
            raise UserError(f"{self.path}: has no whole checkpoint; finish the run before it is analysed")
        spec = self.recipe.training_spec(self.recipe.scheme["name"])
        epochs = sum(spec.lengths(self.recipe.epochs))
        where = f"epoch {state['epoch']} of {epochs}"
        if state["lines"]["metrics"]["phase"] == "sub":
            raise UserError(
                f"{self.path}: stopped in a sub-network phase, at {where}, when part of the network was not there; "
                "finish the run before it is analysed"
            )
        if state["epoch"] < epochs:
            note(f"{self.path}: the run is not finished, this is {where}")
        return state["epoch"], judged_weights(state)

    def earlier(self) -> dict[int, Path]:
        """The snapshots by epoch; none of a checkpoint."""
        return snapshots.find(self.path) if self.is_run else {}

    def metrics(self) -> list[Json]:
        """The run's lines, one an epoch; none of a checkpoint."""
        return read_metrics(self.path) if self.is_run else []

    def dropped(self) -> dict[str, dict[int, int]]:
        """How often each filter was dropped: layer -> index -> times."""
        times: dict[str, dict[int, int]] = {}
        for event in read_events(self.path) if self.is_run else []:
            # With `sub: 0` there is one event for both: the return, with the scores by which filters went.
            went = event["kind"] == "drop" or event.get("scores")
            for layer, filters in event["filters"].items() if went else ():
                counts = times.setdefault(layer, {})
                for index in filters:
                    counts[index] = counts.get(index, 0) + 1
        return times


@dataclass(frozen=True)
class Subject:
    """What stands side by side with others: one network, or the same with several seeds."""

    label: str
    sources: tuple[Source, ...]


def find_subjects(
    targets: Sequence[Path],
    recipe: Recipe | None = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Subject]:
    """What ``targets`` stand for.

    Args:
        targets: run folders, folders of runs (of a scheme's seeds, of a recipe's schemes), or checkpoint files.
        recipe: for checkpoint files: says which data, and which network.
        model: for checkpoint files: a name as in ``ModelSpec``, in place of the recipe's.
        options: of that model.

    Raises:
        UserError: a target that is none of these, too many, or settings that have no effect.
    """
    found: list[tuple[Path, list[Source]]] = []
    for target in targets:
        if target.is_file():
            found.append((target, [_checkpoint(target, recipe, model, options)]))
        else:
            found += [(folder, [_run(run) for run in inside]) for folder, inside in _runs(target)]
    if all(source.is_run for _, sources in found for source in sources):
        given = {"recipe": recipe, "model": model, "option": options}
        if useless := [name for name, value in given.items() if value]:
            raise UserError(f"{useless[0]}: has no effect, a run folder has its own recipe; it is for checkpoint files")
    if len(found) > MOST:
        raise UserError(
            f"targets: {len(found)} of them; at most {MOST} can stand side by side, name the ones to compare"
        )
    labels = _labels([folder for folder, _ in found])
    return [Subject(label, tuple(sources)) for label, (_, sources) in zip(labels, found)]


def state_dict_in(path: Path) -> Mapping[str, Tensor]:
    """The weights in a checkpoint file of any training code: a state dict, or one inside a dict; no code in it is run.

    Raises:
        UserError: torch cannot read it safely, or it holds no state dict.
    """
    try:
        content: Any = loading.load(path)
    except Exception as error:  # whatever the bytes make torch raise
        raise UserError(
            f"{path}: torch cannot read it as weights ({loading.reason(error)}); "
            "save model.state_dict() alone by torch.save"
        ) from error
    if is_runs(content):
        try:
            return judged_weights(content)  # of a scheme that averages them, the average
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    for inside in (content, *(content.get(key) for key in _INSIDE if isinstance(content, dict))):
        if isinstance(inside, Mapping) and inside and all(isinstance(value, Tensor) for value in inside.values()):
            return inside
    keys = ", ".join(map(repr, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path}: holds no state dict ({keys}), nor one under {', '.join(_INSIDE)}; save model.state_dict()"
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put ``weights`` into ``model``; what wrappers put before their names goes where the model has no such names.

    Raises:
        UserError: they are of another network, or not finite.
    """
    try:
        model.load_state_dict(_without_wrappers(weights, set(model.state_dict())))
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its weights do not fit {type(model).__name__} ({reason[:200]}); name the network they are of"
        ) from error
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} is not finite, training has diverged; take an earlier checkpoint")


def _without_wrappers(weights: Mapping[str, Tensor], wanted: Collection[str]) -> Mapping[str, Tensor]:
    for prefix in _BEFORE if weights.keys() != wanted else ():
        if all(name.startswith(prefix) for name in weights):
            return _without_wrappers({name.removeprefix(prefix): value for name, value in weights.items()}, wanted)
    return weights


def _checkpoint(path: Path, recipe: Recipe | None, model: str | None, options: Mapping[str, Any] | None) -> Source:
    if recipe is None:
        raise UserError(f"{path}: is a checkpoint; name a recipe by --recipe, it says which data and which network")
    if options and not model:
        raise UserError("option: has no effect without --model; the recipe has the options of its network")
    return Source(path, 0, recipe, model, options or None)


def _run(folder: Path) -> Source:
    name = folder.name.removeprefix("seed-")
    return Source(folder, int(name) if name.isdecimal() else 0, read_recipe(folder))


def _runs(target: Path) -> list[tuple[Path, list[Path]]]:
    """The subjects in a folder: folder -> its run folders."""
    if not target.is_dir():
        raise UserError(f"{target}: no such file or folder")
    if (target / runs.RECIPE).exists():
        return [(target, [target])]
    by_scheme: dict[Path, list[Path]] = {}
    for recipe in [*target.glob(f"seed-*/{runs.RECIPE}"), *target.glob(f"*/seed-*/{runs.RECIPE}")]:
        by_scheme.setdefault(recipe.parents[1], []).append(recipe.parent)
    if not by_scheme:
        raise UserError(
            f"{target}: holds no runs; name a run folder, <out>/<recipe>/<scheme>/seed-<k>, or one above it"
        )
    return [(folder, sorted(inside, key=_seed_of)) for folder, inside in sorted(by_scheme.items(), key=_baseline_first)]


def _baseline_first(item: tuple[Path, list[Path]]) -> tuple[bool, str]:
    return item[0].name != "standard", item[0].name


def _seed_of(folder: Path) -> tuple[int, str]:
    name = folder.name.removeprefix("seed-")
    return (int(name) if name.isdecimal() else 0, folder.name)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as they must be to differ; of one path, its last two parts."""
    whole = [path.resolve() for path in paths]
    if twice := [str(path) for number, path in enumerate(paths) if whole[number] in whole[:number]]:
        raise UserError(f"targets: {twice[0]} is named twice; name each once")
    parts = [(path.with_suffix("") if path.is_file() else path).parts for path in whole]
    if len(set(parts)) < len(parts):  # files that differ by their suffix alone
        parts = [path.parts for path in whole]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:] if paths[0].is_dir() else parts[0][-1:])]
    same = 0  # parts at the ends that all have in common, such as seed-0
    while len({one[-same - 1] for one in parts}) == 1:
        same += 1
    for shown in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(one[: len(one) - same][-shown:]) for one in parts]
        if len(set(labels)) == len(labels):
            break
    return labels
