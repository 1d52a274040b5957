"""Which way to be without filters: compact where that is exact and pays, masked everywhere else, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer
from torchreaper.state import is_elementwise

Mode = Literal["masked", "compact"]
MODES = ("auto", "masked", "compact")


@dataclass(frozen=True)
class Obstacle:
    """Why the sub-network is not compact.

    Attributes:
        reason: one clause.
        remedy: what to do about it.
        forbids: whether compact would be wrong; else it only needs care, and is there for who asks for it by name.
    """

    reason: str
    remedy: str
    forbids: bool = True


def check_mode(mode: str) -> None:
    """Raise :class:`ReaperError` for a way of leaving filters out that does not exist."""
    if mode not in MODES:
        raise ReaperError(f'subnetwork={mode!r}: must be "auto", "masked" or "compact"')


def resolve(
    mode: str,
    model: nn.Module,
    layers: Sequence[FilterLayer],
    optimizers: Sequence[Optimizer] = (),
    graphs: int = 0,
) -> tuple[Mode, str]:
    """The way that ``mode`` comes to here.

    Args:
        mode: "auto", "masked" or "compact".
        model: the model.
        layers: those that may lose filters.
        optimizers: those that train it.
        graphs: how many compiled graphs compact would need in all; 0: the model is not compiled.

    Returns:
        "compact" or "masked", and why it is masked where "auto" was asked for; else "".

    Raises:
        ReaperError: an unknown mode, or "compact" where it would not be exact.
    """
    check_mode(mode)
    if mode == "masked":
        return "masked", ""
    obstacles = [one for one in _obstacles(model, layers, optimizers, graphs) if mode == "auto" or one.forbids]
    if not obstacles:
        return "compact", ""
    if mode == "compact":
        raise ReaperError(f'subnetwork="compact": {obstacles[0].reason}; {obstacles[0].remedy}')
    return "masked", obstacles[0].reason


def _obstacles(
    model: nn.Module, layers: Sequence[FilterLayer], optimizers: Sequence[Optimizer], graphs: int
) -> Iterator[Obstacle]:
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if not is_elementwise(optimizer):
            yield Obstacle(f"{name} is not elementwise", f'use "masked", or tr.elementwise({name}) if it is')
        if any(group.get("capturable") for group in optimizer.param_groups):
            yield Obstacle(f"{name} is capturable, and CUDA graphs keep addresses", 'use "masked", or capturable=False')
    parameters = list(model.parameters())
    if kinds := {type(parameter).__name__ for parameter in parameters if type(parameter) is not nn.Parameter}:
        yield Obstacle(f"parameters are of type {', '.join(sorted(kinds))}", 'use "masked"')
    shared = Counter(p.untyped_storage().data_ptr() for p in parameters if p.numel() and p.device.type != "meta")
    if any(count > 1 for count in shared.values()):
        yield Obstacle("parameters lie in one flat storage", 'use "masked", or give each parameter its own')
    if not any(layer.route != "masked" for layer in layers):
        yield Obstacle("no layer can be made smaller (see the table of the bank)", 'use "masked"')
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield Obstacle(
            "torch.distributed is initialised, and DDP would have to wrap the model anew after every transition",
            'use "masked"',
            forbids=False,
        )
    if graphs and graphs > (limit := torch._dynamo.config.recompile_limit):
        yield Obstacle(
            f"compiled, {graphs} graphs would be needed and torch._dynamo.config.recompile_limit is {limit}",
            'use "masked", or raise the limit',
            forbids=False,
        )
