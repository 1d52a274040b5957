"""A ranking turned round: a control."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank, Criterion


@dataclass(frozen=True)
class Reversed:
    """What another criterion would keep longest goes first. If its ranking matters, this must do worse.

    Attributes:
        criterion: the other one, as ``RePr`` takes it.
    """

    criterion: Criterion

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """The other's scores with their sign changed, by layer."""
        return {name: -scores for name, scores in self.criterion.scores(bank).items()}
