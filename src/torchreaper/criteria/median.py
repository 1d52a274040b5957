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


_BLOCK = 256
"""Rows of the J x J distances that exist at a time."""
_NEAR = 1e-6
"""Of |a|^2 + |b|^2: below this, |a|^2 + |b|^2 - 2ab has lost half of its digits."""


def _mean_distances(rows: Float[Tensor, "filters dims"]) -> Float[Tensor, " filters"]:
    squares = rows.square().sum(1)
    means = []
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        sizes = squares[first : first + _BLOCK, None] + squares
        distances = sizes - 2 * block @ rows.T
        near = distances <= _NEAR * sizes
        # Near filters are the ones that count: from their difference, not from a product.
        for k in near.any(1).nonzero().flatten().tolist():
            distances[k, near[k]] = (rows[near[k]] - block[k]).square().sum(1)
        means.append(distances.clamp_min(0).sqrt().mean(1))
    return -torch.cat(means)
