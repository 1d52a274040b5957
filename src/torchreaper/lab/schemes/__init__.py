"""What is compared: each scheme is one file here, and one entry in `SCHEMES`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import yaml

from torchreaper.lab import objects, settings
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.averaging import EMASpec, SWASpec
from torchreaper.lab.schemes.ban import BANSpec
from torchreaper.lab.schemes.base import Attached, Batch, Phase, Setup, Spec, drawing_aside, loss_of
from torchreaper.lab.schemes.decay import DecaySpec
from torchreaper.lab.schemes.distillation import KDSpec
from torchreaper.lab.schemes.dropout import DropoutSpec
from torchreaper.lab.schemes.dsd import DSDSpec
from torchreaper.lab.schemes.grafting import GraftingSpec
from torchreaper.lab.schemes.longer import LongerSpec, ShorterSpec
from torchreaper.lab.schemes.mixing import CutMixSpec, MixupSpec
from torchreaper.lab.schemes.orthogonality import OrthogonalityLossSpec
from torchreaper.lab.schemes.own import OwnSpec, imported
from torchreaper.lab.schemes.repr_ import ReinitSpec, RePrSpec
from torchreaper.lab.schemes.sam import SAMSpec
from torchreaper.lab.schemes.selfkd import SelfKDSpec
from torchreaper.lab.schemes.sfp import SFPSpec
from torchreaper.lab.schemes.smoothing import SmoothingSpec
from torchreaper.lab.schemes.standard import StandardSpec
from torchreaper.lab.schemes.together import TogetherSpec

__all__ = [
    "PLUS",
    "SCHEMES",
    "Attached",
    "Batch",
    "OwnSpec",
    "Phase",
    "RePrSpec",
    "ReinitSpec",
    "Setup",
    "Spec",
    "StandardSpec",
    "TogetherSpec",
    "describe",
    "drawing_aside",
    "imported",
    "loss_of",
    "options_of",
    "parse",
]

#: Between the names of schemes that work together in one run.
PLUS = "+"

SCHEMES: dict[str, type[Spec]] = {
    "standard": StandardSpec,
    "repr": RePrSpec,
    "dsd": DSDSpec,
    "ban": BANSpec,
    "kd": KDSpec,
    "self-kd": SelfKDSpec,
    "ol": OrthogonalityLossSpec,
    "dropout": DropoutSpec,
    "sfp": SFPSpec,
    "grafting": GraftingSpec,
    "ema": EMASpec,
    "swa": SWASpec,
    "sam": SAMSpec,
    "label-smoothing": SmoothingSpec,
    "weight-decay": DecaySpec,
    "mixup": MixupSpec,
    "cutmix": CutMixSpec,
    "longer": LongerSpec,
    "shorter": ShorterSpec,
}


def parse(options: Mapping[str, Any], *, where: str = "scheme") -> Spec:
    """The scheme that `options` describe: its `name`, and what its spec knows.

    A name such as "repr+kd" stands for several that work together; their options are in `parts`, by key. One such as
    "package.module:Spec" is one of the user's own; its options are in `options`.

    Args:
        options: As they stand in a recipe.
        where: The place in the recipe, for the error texts.

    Raises:
        UserError: Unknown scheme, unknown option, or a value of the wrong type or range; one line each.
    """
    name = options.get("name")
    if name is None:
        raise UserError(f"{where}.name: is missing; choose one of {', '.join(SCHEMES)}")
    if isinstance(name, str) and PLUS in name:
        return _together(name, options, where)
    if isinstance(name, str) and objects.is_object(name):
        return settings.parse(OwnSpec, options, at=where)
    spec = SCHEMES.get(name) if isinstance(name, str) else None
    if spec is None:
        near = settings.did_you_mean(str(name), SCHEMES)
        raise UserError(f"{where}.name={settings.show(name)}: unknown scheme; {near}")
    return settings.parse(spec, options, at=where)


def describe(spec: type[Spec]) -> list[str]:
    """What a scheme does, where it comes from, and its options with their defaults, as lines of text."""
    fields = {key: field for key, field in spec.model_fields.items() if key != "name"}
    source = f" ({spec.source})" if spec.source else ""
    head = f"{spec.summary}{source}".strip()
    lines = [*([head, ""] if head else []), *inspect.cleandoc(spec.__doc__ or "").splitlines()]
    if fields:
        place = "" if spec.model_fields["name"].default in SCHEMES else ", below options"
        lines += ["", f"Options and their defaults, as they stand in a recipe{place}:"]
        lines += [f"{key}:  # must be given" for key, field in fields.items() if field.is_required()]
        defaults = spec.model_construct().model_dump(mode="json", exclude={"name"})
        lines += yaml.safe_dump(defaults, sort_keys=False, default_flow_style=False).splitlines() if defaults else []
    return lines


def _together(name: str, options: Mapping[str, Any], where: str) -> Spec:
    keys, given = name.split(PLUS), options.get("parts", {})
    if unknown := sorted(options.keys() - {"name", "parts"}):
        raise UserError(f"{where}.{unknown[0]}: unknown key; options belong under {where}.parts.<scheme>")
    if not isinstance(given, Mapping) or not all(isinstance(part, Mapping) for part in given.values()):
        raise UserError(f"{where}.parts={settings.show(given)}: must be a mapping of schemes to their options")
    if not all(keys):
        raise UserError(f"{where}.name={name!r}: a scheme is missing beside a plus sign; such as repr+kd")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{where}.name={name!r}: {twice[0]} stands there twice; name each once")
    if extra := [key for key in given if key not in keys]:
        raise UserError(f"{where}.parts.{extra[0]}: is not in {name!r}; {settings.did_you_mean(str(extra[0]), keys)}")
    parts = {key: parse({"name": key, **given.get(key, {})}, where=f"{where}.parts.{key}") for key in keys}
    return TogetherSpec(name=name, parts=parts)


def options_of(key: str, scheme: Mapping[str, Any], schemes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of the scheme called `key` in a recipe.

    They are the recipe's own `scheme` where that has this name, else its `schemes` entry (which may name
    another scheme than its key, as in ``schemes: {repr-random: {name: repr, criterion: random}}``), else the
    defaults. Of several together, `a+b`, each part that is not given there is what its own key stands for.
    """
    own = scheme.get("name") == key
    options = dict(scheme) if own else {"name": key, **schemes.get(key, {})}
    name = options["name"]
    if isinstance(name, str) and PLUS in name and isinstance(options.get("parts", {}), Mapping):
        rest = {} if own else scheme  # no part of the recipe's own scheme is that scheme
        parts = {part: options_of(part, rest, schemes) for part in name.split(PLUS) if part != key}
        options["parts"] = {**parts, **options.get("parts", {})}
    return options
