"""Networks of the user's own: what ``package.module:callable`` makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.library import library_of
from torchreaper.lab.objects import call, find, is_object

EXAMPLE = "mynets.small:make"


def is_callable(name: str) -> bool:
    """Whether a model's name is ``package.module:callable``: neither the zoo's nor a library's."""
    return is_object(name) and library_of(name) is None


def build_callable(
    name: str,
    options: Mapping[str, Any],
    *,
    argument: str = "model",
    base: Path | None = None,
    offered: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """What ``callable(**options)`` of ``package.module`` makes; weights are drawn from ``seed``, if there is one.

    Those of ``offered`` that its signature names are passed too, unless ``options`` has them. Modules of ``base``
    and of the current folder are found. This runs the user's own code, which may do anything.

    Raises:
        UserError: no such module or name, it fails, or it makes no ``nn.Module``.
    """
    found = find(name, argument, base=base, example=EXAMPLE)
    named, what = f"{argument}={name!r}", name.partition(":")[2]
    made, written = call(found, what, options, named, base=base, offered=offered, seed=seed)
    if not isinstance(made, nn.Module):
        raise UserError(f"{named}: {written} makes a {type(made).__name__}; must be a torch.nn.Module")
    return made
