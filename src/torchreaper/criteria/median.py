"""Distance to the layer's geometric median (He 2019, FPGM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank


@dataclass(frozen=True)
class GeometricMedian:
    """Filters nearest to all others, which the others can best stand in for, go first.

    Score = minus the mean Euclidean distance of the filter to the filters of its layer (its group, where there are
    groups), itself included at 0: the source's sum of distances, over J, so that layers of different widths compare. It
    grows with the length of the filters, so that layers with short ones lose more.

    Cost: one J x J matrix of distances per layer; no data.
    """

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the mean distance of every filter, by layer."""
        return {
            layer.name: torch.cat([_mean_distances(rows) for rows in layer.rows.double().chunk(layer.groups)])
            for layer in bank.ranked
        }


def _mean_distances(rows: Float[Tensor, "filters dims"]) -> Float[Tensor, " filters"]:
    # Differences, not products: near filters, the ones that count, would lose their digits.
    return -torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").mean(1)
