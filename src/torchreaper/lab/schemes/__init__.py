"""What is compared: each scheme is one file here, and one entry in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchreaper.lab import settings
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Phase, Spec
from torchreaper.lab.schemes.repr_ import ReinitSpec, RePrSpec
from torchreaper.lab.schemes.standard import StandardSpec

__all__ = [
    "SCHEMES",
    "Attached",
    "Phase",
    "RePrSpec",
    "ReinitSpec",
    "Spec",
    "StandardSpec",
    "options_of",
    "parse",
]

SCHEMES: dict[str, type[Spec]] = {"standard": StandardSpec, "repr": RePrSpec}


def parse(options: Mapping[str, Any], *, where: str = "scheme") -> Spec:
    """The scheme that `options` describe: its `name`, and what its spec knows.

    Args:
        options: As they stand in a recipe.
        where: The place in the recipe, for the error texts.

    Raises:
        UserError: Unknown scheme, unknown option, or a value of the wrong type or range; one line each.
    """
    name = options.get("name")
    if name is None:
        raise UserError(f"{where}.name: is missing; choose one of {', '.join(SCHEMES)}")
    spec = SCHEMES.get(name) if isinstance(name, str) else None
    if spec is None:
        near = settings.did_you_mean(str(name), SCHEMES)
        raise UserError(f"{where}.name={settings.show(name)}: unknown scheme; {near}")
    return settings.parse(spec, options, at=where)


def options_of(key: str, scheme: Mapping[str, Any], schemes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of the scheme called `key` in a recipe.

    They are the recipe's own `scheme` where that has this name, else its `schemes` entry (which may name
    another scheme than its key, as in ``schemes: {repr-random: {name: repr, criterion: random}}``), else the
    defaults.
    """
    if scheme.get("name") == key:
        return dict(scheme)
    return {"name": key, **schemes.get(key, {})}
