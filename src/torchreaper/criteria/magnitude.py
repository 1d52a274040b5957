"""Weight norm (Li 2017; "weight norm" in the paper's table of criteria)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.errors import ReaperError


@dataclass(frozen=True)
class Magnitude:
    """The shortest filters go first: score = minus the norm of the filter's weights, without its bias.

    Attributes:
        p: 1 or 2, the order of the norm.

    Cost: one pass over the weights; no data.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ReaperError(f"p={self.p!r}: must be 1 or 2")

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the norm of every filter, by layer."""
        return {layer.name: -layer.rows.double().norm(p=self.p, dim=1) for layer in bank.ranked}
