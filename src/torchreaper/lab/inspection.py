"""A look at an untrained network: its filters, and which of them would go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

import torchreaper as tr
from torchreaper.bank import Preview
from torchreaper.lab import data, models, objects
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.schemes import RePrSpec
from torchreaper.lab.yaml_text import YAMLProblem, parse_yaml

Size = tuple[int, int, int]
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
        recipe: What to look at; None: the network called `model`.
        model, options: Without a recipe: the network's name and its options.
        size: [channels, height, width] of an image; None: the recipe's data, or 3x32x32.
        classes: How many; None: the recipe's data, or 10.
        seed: Of the weights.
        asked: `fraction` and `criterion` where they are not to be the recipe's; None does not count.

    Raises:
        UserError: No such network, wrong options, or a criterion that reads images without a recipe.
        ReaperError: What the method refuses.
    """
    own = {} if recipe is None else _of_repr(recipe.scheme)
    choice: dict[str, Any] = {key: own[key] for key in _CHOICE if key in own}
    choice |= {key: value for key, value in asked.items() if value is not None}
    criterion, images = choice.pop("criterion", "orthogonality"), choice.pop("images", None)
    reads = tr.criteria.needs_data(criterion) or objects.is_object(criterion)
    if recipe is None:
        if reads:
            raise UserError(f"criterion={criterion!r}: may read images; name a recipe instead of {model}")
        name, options, size, classes = model, options or {}, size or (3, 32, 32), classes or 10
    else:
        name, options = recipe.model.name, recipe.model.options
        if size is None or classes is None:
            found = _shape_of_data(recipe)
            size, classes = size or found[0], classes or found[1]
    network = models.build(
        name,
        options,
        in_channels=size[0],
        classes=classes,
        image_size=size[1:],
        generator_seed=seed,
        base=None if recipe is None else recipe.base,
    )
    which = {key: own[key] for key in ("skip", "include", "scope") if key in own}
    bank = tr.find_filters(network, torch.zeros(2, *size), seed=seed, **which)
    if recipe is not None and reads:
        dataset = data.load(recipe.data, recipe.base)
        batches = data.FixedBatches.held_out(dataset.train, dataset.validation, mean=dataset.mean, std=dataset.std)
        # The images that the run of this seed would read.
        spec = RePrSpec(criterion=criterion, images=images)
        criterion = spec.ranking(batches, seed=data.epoch_seed(seed, 0, "scheme"), base=recipe.base)
    return bank, bank.preview(criterion=criterion, **choice)


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


def _shape_of_data(recipe: Recipe) -> tuple[Size, int]:
    """Image size [channels, height, width] and number of classes of the recipe's data."""
    try:  # a few images tell it; decoding the others takes most of the time
        found = data.load(
            recipe.data.model_copy(update={"limit": 1000, "test_limit": 1000, "validation": 0}), recipe.base
        )
    except UserError:  # fewer images, more classes, or what is wrong with the data
        found = data.load(recipe.data, recipe.base)
    return found.train.shape, len(found.classes)
