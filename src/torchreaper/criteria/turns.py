"""Filters in turn: a control that renews every filter as often as any other, whatever it is like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank


@dataclass(frozen=True)
class InTurn:
    """Those that have come back least often go first; which of them, chance says, by the bank's own generator.

    Overlap nearly has it so by itself: what has just returned is orthogonal to the rest, and seldom goes again at once.
    What it gains beyond this control, it gains by the overlap of those that are due.
    """

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """A number in [0, 1) minus how often the filter has come back, by layer."""
        found = {
            layer.name: torch.rand(layer.filters, dtype=torch.float64, generator=bank.generator, device="cpu")
            for layer in bank.ranked
        }
        for transition in bank.history:
            if transition.kind == "restore":
                for name, indices in transition.filters.items():
                    found[name][list(indices)] -= 1
        return found
