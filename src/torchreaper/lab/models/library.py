"""Networks of timm and torchvision, untrained; neither package is needed unless a recipe names one of its networks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import call, guess, reason

LIBRARIES = ("timm", "torchvision")
_LINKS = "hf-hub", "hf_hub", "local-dir"  # in front of timm's names: weights and settings from elsewhere
#: What to do where torchvision, or what is compiled of it, cannot be loaded.
TORCHVISION = "install the build of torchvision that belongs to this torch, see pytorch.org/get-started"


def library_of(name: str) -> str | None:
    """The library in front of a model's name, as in ``timm:resnet18``; None: it is not named that way."""
    library, colon, _ = name.partition(":")
    return library if colon and library in LIBRARIES else None


def build_from_library(
    name: str, options: Mapping[str, Any], *, argument: str, in_channels: int, classes: int, seed: int
) -> nn.Module:
    """Make the network of a library, ``options`` being arguments of its builder; weights are drawn from ``seed``.

    Raises:
        UserError: the library is missing or broken, has no such network, or cannot make it that way.
    """
    library, _, short = name.partition(":")
    if library == "timm":
        timm = import_library("timm", name, argument, "pip install timm")
        if short.partition(":")[0] in _LINKS or not timm.is_model(short):
            told = guess(short, timm.list_models(), "timm.list_models()")
            raise UserError(f"{argument}={name!r}: timm has no network of that name; {told}")
        offered = {"model_name": short, "pretrained": False, "num_classes": classes, "in_chans": in_channels}
        make = timm.create_model
    else:
        models = import_library("torchvision.models", name, argument, TORCHVISION)
        known = models.list_models(module=models)  # those that classify images
        if short.lower() not in known:
            told = guess(short.lower(), known, "torchvision.models.list_models()")
            raise UserError(f"{argument}={name!r}: torchvision has no classification network of that name; {told}")
        if in_channels != 3:
            raise UserError(
                f"{argument}={name!r}: torchvision's networks read images of 3 channels, these have {in_channels}; "
                "use timm's, or coloured images"
            )
        offered = {"name": short, "weights": None, "num_classes": classes}
        make = models.get_model
    if own := sorted(set(options) & set(offered)):
        raise UserError(
            f"{argument}={name!r}: options.{own[0]} is set by the recipe's data or by the name; leave it out"
        )
    made, written = call(make, make.__name__, {**offered, **options}, f"{argument}={name!r}", seed=seed)
    if not isinstance(made, nn.Module):
        raise UserError(f"{argument}={name!r}: {written} makes a {type(made).__name__}; leave out what makes it so")
    return made


def import_library(module: str, name: str, argument: str, remedy: str) -> Any:
    """A module of a library that ``name``, given as ``argument``, needs; ``remedy`` says how to come by it.

    Raises:
        UserError: it is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        if "torchvision::" in str(error):  # timm imports it too
            remedy = TORCHVISION
        raise UserError(f"{argument}={name!r}: {module} cannot be imported ({reason(error)}); {remedy}") from error
