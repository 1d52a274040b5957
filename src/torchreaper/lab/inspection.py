"""A look at an untrained network: its filters, and which of them would go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchreaper as tr
from torchreaper.bank import Preview
from torchreaper.lab import data, models, objects
from torchreaper.lab.errors import UserError
from torchreaper.lab.models import ModelSpec
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.schemes import RePrSpec
from torchreaper.lab.settings import parse
from torchreaper.lab.tasks import TASKS, Loaded
from torchreaper.lab.yaml_text import YAMLProblem, parse_yaml

Size = tuple[int, int, int]
#: Of a network that answers questions, where no data say it: words it knows, and the longest question.
_WORDS, _LONGEST = 100, 10
_CHOICE = ("fraction", "criterion", "images", "min_filters", "max_per_layer")


def inspect(
    recipe: Recipe | None,
    model: str = "",
    options: Mapping[str, Any] | None = None,
    *,
    size: Size | None = None,
    classes: int | None = None,
    seed: int = 0,
    **asked: Any,
) -> tuple[tr.FilterBank, Preview]:
    """The filters of an untrained network, and what would be dropped first.

    Args:
        recipe: What to look at, or with a `source` its first network; None: the network called `model`.
        model, options: Without a recipe: the network's name and its options.
        size: [channels, height, width] of an image; None: the recipe's data, or 3x32x32.
        classes: How many; None: the recipe's data, or 10.
        seed: Of the weights.
        asked: `fraction` and `criterion` where they are not to be the recipe's; None does not count.

    Raises:
        UserError: No such network, wrong options, or a criterion that reads images without a recipe.
        ReaperError: What the method refuses.
    """
    if recipe is not None and recipe.source is not None:
        recipe = recipe.first()  # there the filters go
    own = {} if recipe is None else _of_repr(recipe.scheme)
    choice: dict[str, Any] = {key: own[key] for key in _CHOICE if key in own}
    choice |= {key: value for key, value in asked.items() if value is not None}
    criterion, images = choice.pop("criterion", "orthogonality"), choice.pop("images", None)
    reads = tr.criteria.needs_data(criterion) or objects.is_object(criterion)
    if recipe is not None:
        network, example = _of_recipe(recipe, size, classes, seed)
    elif reads:
        raise UserError(f"criterion={criterion!r}: may read images; name a recipe instead of {model}")
    else:
        network, example = _named(model, options or {}, size or (3, 32, 32), classes or 10, seed)
    which = {key: own[key] for key in ("skip", "include", "scope") if key in own}
    bank = tr.find_filters(network, example, seed=seed, **which)
    if recipe is not None and reads:
        criterion = _ranking(recipe, criterion, images, network, seed)
    return bank, bank.preview(criterion=criterion, **choice)


def _ranking(
    recipe: Recipe, criterion: str, images: int | None, network: nn.Module, seed: int
) -> tr.criteria.Criterion:
    """The criterion with the images that the run of this seed would read."""
    task = TASKS[recipe.task]
    dataset = task.load(recipe.data, recipe.base)
    batches = data.FixedBatches.held_out(
        dataset.train,
        dataset.validation,
        mean=dataset.mean,
        std=dataset.std,
        batch=task.read_at_once(recipe.batch),
        arguments=partial(task.arguments, network) if task.needs_targets(network) else None,
    )
    return RePrSpec(criterion=criterion, images=images).ranking(
        batches,
        seed=data.epoch_seed(seed, 0, "scheme"),
        base=recipe.base,
        loss_fn=partial(task.loss, network),
        answers=task.answers,
    )


def _named(
    model: str,
    options: Mapping[str, Any],
    size: Size,
    classes: int,
    seed: int,
    task: str = "",
    base: Path | None = None,
) -> tuple[nn.Module, Any]:
    """A network for images of this size, and inputs of it."""
    task = task or next(iter(parse(ModelSpec, {"name": model, "options": dict(options)}, at="model").tasks), "")
    more = {"vocabulary": _WORDS, "words": _LONGEST} if task == "vqa" else {}
    network = models.build(
        model,
        options,
        in_channels=size[0],
        classes=classes,
        image_size=size[1:],
        generator_seed=seed,
        base=base,
        task=task,
        **more,
    )
    images = torch.zeros(2, *size)
    return network, (images, torch.ones(2, _LONGEST, dtype=torch.int64)) if task == "vqa" else images


def _of_recipe(recipe: Recipe, size: Size | None, classes: int | None, seed: int) -> tuple[nn.Module, Any]:
    """The network of a recipe, and inputs of it; for other images than the recipe's where that is asked for."""
    if size is None or classes is None:
        task, dataset = TASKS[recipe.task], _some_of(recipe)
        if size is None and classes is None:
            network = task.build(recipe.model, dataset, seed=seed, base=recipe.base)
            return network, data.first(dataset.train, 2, dataset.mean, dataset.std)
        size, classes = size or dataset.train.shape, classes or len(dataset.classes)
    return _named(recipe.model.name, recipe.model.options, size, classes, seed, recipe.task, recipe.base)


def _of_repr(scheme: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of RePr in a recipe's own scheme, alone or together with others; none of another's."""
    found = scheme if scheme["name"] == "repr" else scheme.get("parts", {}).get("repr", {})
    return dict(found)


def options_of_network(overrides: Iterable[str], argument: str = "set") -> dict[str, Any]:
    """``--set`` of a network, or what ``argument`` names: key=value with the value in YAML."""
    options: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{argument}={override!r}: must be key=value, such as depth=8")
        try:
            options[key.strip()] = parse_yaml(text)
        except YAMLProblem:
            raise UserError(f"{argument}={override!r}: the value is not valid YAML") from None
    return options


def _some_of(recipe: Recipe) -> Loaded:
    """The recipe's data; a few images tell what a network has to be like, and decoding the others takes the time."""
    load = TASKS[recipe.task].load
    some = {"limit": 1000, "test_limit": 1000, "validation": 0, "judge": "test"}
    try:
        return load(recipe.data.model_copy(update=some), recipe.base)
    except UserError:  # fewer images, more classes, or what is wrong with the data
        return load(recipe.data, recipe.base)
