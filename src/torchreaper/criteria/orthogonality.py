"""Inter-filter orthogonality (section 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.errors import ReaperError
from torchreaper.geometry import VARIANTS, overlap


@dataclass(frozen=True)
class Orthogonality:
    """Filters that overlap most with their layer go first: O_f of :func:`torchreaper.overlap`.

    Attributes:
        variant: "paper", "released" or "corrected".

    Cost: one product of J x d by d x J per layer; no data.
    """

    variant: str = "paper"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ReaperError(f"variant={self.variant!r}: must be one of {', '.join(VARIANTS)}")

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """O_f of every filter, by layer."""
        return {layer.name: overlap(layer.rows, self.variant, layer.groups) for layer in bank.ranked}
