"""Another weight decay than the recipe's: what a tuned baseline gains, asked in the same comparison."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from torchreaper.lab.schemes.base import Attached, Setup, Spec
from torchreaper.lab.sections import OptimSpec


class DecaySpec(Spec):
    """The scheme `weight-decay`. `value`: the optimizer's weight decay, instead of the recipe's.

    A value each in several entries finds the best one for standard training, and `weight-decay+repr` that for RePr;
    a scheme is better than another only if it is with the value that is best for each.
    """

    summary: ClassVar[str] = "standard training, with another weight decay"
    source: ClassVar[str] = "Krogh and Hertz 1992"
    hands: ClassVar[frozenset[str]] = frozenset({"the weight decay"})
    name: Literal["weight-decay"] = "weight-decay"
    value: float = Field(default=5e-3, ge=0, le=1e30)

    def optim(self, spec: OptimSpec) -> OptimSpec:
        """The recipe's optimizer, with this decay."""
        return spec.model_copy(update={"weight_decay": self.value})

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work: the optimizer does it."""
        return Attached()
