"""Dropout (Srivastava et al. 2014): a random half of what a layer reads is missing, in training."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Setup, Spec


class _Drop:
    """In front of a layer: its input with a share of the numbers 0 and the others enlarged, in training."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return F.dropout(args[0], self.p, module.training), *args[1:]


class Dropout(Attached):
    """The hooks in front of the layers."""

    def __init__(self, layers: Sequence[nn.Module], p: float) -> None:
        self._handles = [layer.register_forward_pre_hook(_Drop(p)) for layer in layers]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _list(value: Any) -> Any:
    if value is None or isinstance(value, tuple):
        return value
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)  # YAML has lists only
    raise ValueError("must be the name of a layer or a list of names; * and ? are wildcards")


class DropoutSpec(Spec):
    """The scheme `dropout`.

    `p`: the share. `layers`: in front of which, by name (`*` and `?` are wildcards); None: in front of every fully
    connected layer.
    """

    summary: ClassVar[str] = "leave out a random share of what fully connected layers read"
    source: ClassVar[str] = "Srivastava et al. 2014"
    name: Literal["dropout"] = "dropout"
    p: float = Field(default=0.5, gt=0, lt=1)
    layers: Annotated[tuple[str, ...] | None, BeforeValidator(_list)] = None

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work, after whatever traces the network: it is found as it is."""
        modules = dict(setup.model.named_modules())
        if self.layers is None:
            found = [module for module in modules.values() if isinstance(module, nn.Linear)]
            if not found:
                raise UserError("scheme.layers=None: the network has no fully connected layer; name the layers")
            return Dropout(found, self.p)
        chosen: dict[str, nn.Module] = {}
        for pattern in self.layers:
            there = {name: module for name, module in modules.items() if name and fnmatchcase(name, pattern)}
            if not there:
                known = ", ".join(name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d))
                raise UserError(f"scheme.layers={pattern!r}: no such layer; the network has {known}")
            chosen |= there
        return Dropout(list(chosen.values()), self.p)
