"""Longer training: the whole network, for more epochs than the others. What more time alone would give."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from torchreaper.lab.schemes.base import Attached, Setup, Spec


class LongerSpec(Spec):
    """The scheme `longer`. `factor`: epochs, as a multiple of the recipe's; the schedule is stretched by as much."""

    summary: ClassVar[str] = "standard training, for more epochs"
    hands: ClassVar[frozenset[str]] = frozenset({"the epochs"})
    name: Literal["longer"] = "longer"
    factor: float = Field(default=2.0, gt=1)

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """One training, longer by the factor; at least by an epoch."""
        return (max(epochs + 1, round(self.factor * epochs)),)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work: there is nothing to do but to go on."""
        return Attached()
