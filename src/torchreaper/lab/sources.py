"""Where a network starts from: the weights of another one, trained before on other data, by the scheme.

That first run lies beside those of the comparison, `<out>/<recipe>/source-<model>-<hash>/<scheme>/seed-<k>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.sections import SourceSpec
from torchreaper.lab.settings import did_you_mean, show


@dataclass(frozen=True, eq=False)
class Start:
    """What a finished first training gives: its weights, its test score from 0 to 1, its epochs and what it cost."""

    weights: dict[str, Any]
    score: float
    metric: str
    epochs: int
    seconds: float
    teacher_seconds: float = 0.0

    def costs(self) -> dict[str, float]:
        """What a result says of it beside its own."""
        return {
            "source_seconds": self.seconds,
            "source_epochs": self.epochs,
            "teacher_seconds": self.teacher_seconds,
        }

    def parts(self) -> dict[str, float]:
        """How good it was on its own data."""
        return {f"source: {self.metric}": self.score}


def untrained(network: nn.Module) -> Start:
    """What stands for a first training that has not been done: to see whether its weights would fit."""
    return Start(network.state_dict(), 0.0, "accuracy", 0, 0.0)


@dataclass(frozen=True)
class Moved:
    """What a network took over: names of its tensors, and those of the first network that were left.

    `frozen` are the modules that must stay in evaluation mode for what they hold to stay as it is.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    frozen: tuple[nn.Module, ...] = ()


def last_layer(weights: Mapping[str, Any]) -> str:
    """The module that holds the last weights of two or more dimensions: a classifier."""
    names = [name for name, value in weights.items() if name.endswith("weight") and value.ndim > 1]
    return names[-1].rpartition(".")[0] if names else ""


def move(network: nn.Module, weights: Mapping[str, Any], spec: SourceSpec) -> Moved:
    """Copy the weights of a first network into `network`, or into its part `spec.into`; the rest of it stays.

    Raises:
        UserError: There is no such part, or no such module to leave; or a tensor that is not left has no place of its
            own shape in the network.
    """
    part = _part(network, spec.into)
    prefix = f"{spec.into}." if spec.into else ""
    leave = (last_layer(weights),) if spec.leave is None else spec.leave
    for name in leave:
        if not any(_inside(key, name) for key in weights):
            modules = dict.fromkeys(key.rpartition(".")[0] for key in weights)
            raise UserError(
                f"source.leave={name!r}: the first network has no such module; {did_you_mean(name, modules)}"
            )
    there = part.state_dict()
    taken, left = [], []
    for name, value in weights.items():
        if any(_inside(name, one) for one in leave):
            left.append(name)
            continue
        place = there.get(name)
        if place is None or place.shape != value.shape:
            where = f"in {spec.into}" if spec.into else "in this one"
            how = "is not there" if place is None else f"is {show(tuple(place.shape))}"
            raise UserError(
                f"source: {name} {show(tuple(value.shape))} of the first network {how} {where}; give both the same "
                "model, name in source.into the part of this one that is the first, or in source.leave what is not to "
                "be taken over"
            )
        taken.append(name)
    with torch.no_grad():
        for name in taken:
            there[name].copy_(weights[name])
    return Moved(tuple(prefix + name for name in taken), tuple(left), _freeze(part, set(taken)) if spec.freeze else ())


def _part(network: nn.Module, into: str | None) -> nn.Module:
    if into is None:
        return network
    parts: dict[str, nn.Module] = dict(network.named_modules())
    if into not in parts:
        raise UserError(
            f"source.into={into!r}: the network has no such module; {did_you_mean(into, filter(None, parts))}"
        )
    return parts[into]


def _inside(key: str, module: str) -> bool:
    return key == module or key.startswith(f"{module}.")


def _freeze(part: nn.Module, taken: set[str]) -> tuple[nn.Module, ...]:
    """Nothing that was taken over is trained; returns the modules that must stay as in evaluation for it to stay so.

    All of a part that was taken over whole; else what stands, in the order of definition, up to the last layer that
    was: a Dropout behind it belongs to what is new.
    """
    for name, parameter in part.named_parameters():
        if name in taken:
            parameter.requires_grad_(False)
    own = {name: module for name, module in part.named_modules() if not any(module.children())}
    held = {name: {f"{name}.{key}".lstrip(".") for key in module.state_dict()} for name, module in own.items()}
    if taken >= {name for name, _ in part.named_parameters()}:
        return (part,)
    last = max(place for place, keys in enumerate(held.values()) if keys & taken)
    return tuple(own[name] for place, (name, keys) in enumerate(held.items()) if place <= last and keys <= taken)


def frozen_mode(modules: tuple[nn.Module, ...]) -> None:
    """Put modules into evaluation mode, whatever the rest of the network is in."""
    for module in modules:
        module.eval()
