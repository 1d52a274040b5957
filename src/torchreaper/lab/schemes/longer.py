"""Longer training, what more time alone would give; shorter, so that a scheme of costly steps takes no more time."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Setup, Spec


class LongerSpec(Spec):
    """The scheme `longer`. `factor`: epochs, as a multiple of the recipe's; the schedule is stretched by as much."""

    summary: ClassVar[str] = "standard training, for more epochs"
    hands: ClassVar[frozenset[str]] = frozenset({"the epochs"})
    name: Literal["longer"] = "longer"
    factor: float = Field(default=2.0, gt=1, le=1000)

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """One training, longer by the factor; at least by an epoch."""
        return (max(epochs + 1, round(self.factor * epochs)),)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work: there is nothing to do but to go on."""
        return Attached()


class ShorterSpec(Spec):
    """The scheme `shorter`. `factor`: epochs, as a share of the recipe's; the schedule is pressed together by as much.

    With a scheme whose steps cost twice as much, as in `sam+shorter`, it takes the time of standard training.
    """

    summary: ClassVar[str] = "standard training, for fewer epochs"
    hands: ClassVar[frozenset[str]] = frozenset({"the epochs"})
    name: Literal["shorter"] = "shorter"
    factor: float = Field(default=0.5, gt=0, lt=1)

    def check(self, epochs: int) -> None:
        """Refuse a training that cannot be shorter."""
        if epochs < 2:
            raise UserError(f"epochs={epochs}: leaves nothing to shorten; use at least 2, or leave out {self.name}")

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """One training, shorter by the factor; at least by an epoch, where there are two."""
        return (max(1, min(epochs - 1, round(self.factor * epochs))),)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work: there is nothing to do but to stop earlier."""
        return Attached()
