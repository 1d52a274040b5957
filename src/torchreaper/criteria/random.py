"""Random ranking: the control every other criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank


@dataclass(frozen=True)
class Random:
    """Uniform scores from the bank's own generator; no global random state is touched."""

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """A number in [0, 1) for every filter, by layer."""
        return {
            layer.name: torch.rand(layer.filters, dtype=torch.float64, generator=bank.generator, device="cpu")
            for layer in bank.ranked
        }
