"""How much the filters of each layer overlap, beside what random directions would give (sections 3 and 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper import geometry
from torchreaper.bank import FilterBank
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer


@dataclass(frozen=True, eq=False)
class LayerOverlap:
    """The overlap of one layer's filters; no units: 0 for orthogonal filters, towards 1 for copies of one.

    Attributes:
        layer: module name.
        filters: J, how many filters.
        dims: d, weights of one filter.
        groups: filters are compared inside each of this many groups.
        ranked: whether the filters take part in the global ranking.
        overlap: O_f of the paper, float64 on the CPU; 0 for a filter of zero length.
        expected: E O_f for random directions, in this d and in a group's J.
        spread: standard deviation of the layer's mean O_f for random directions.
    """

    layer: str
    filters: int
    dims: int
    groups: int
    ranked: bool
    overlap: Float[Tensor, " filters"]
    expected: float
    spread: float

    @property
    def mean(self) -> float:
        """Mean O_f."""
        return float(self.overlap.mean())

    @property
    def total(self) -> float:
        """Sum of O_f, what the paper plots against training time."""
        return float(self.overlap.sum())

    @property
    def expected_total(self) -> float:
        """Sum of O_f that random directions would have."""
        return self.filters * self.expected

    @property
    def ratio(self) -> float:
        """Mean over expected: 1 for random directions. Also 1 for one filter per group, where both are 0."""
        return self.mean / self.expected if self.expected else 1.0

    @property
    def sigmas(self) -> float:
        """How many standard deviations the mean lies above that of random directions; 0 where these do not vary."""
        return (self.mean - self.expected) / self.spread if self.spread else 0.0


def layer_overlaps(bank: FilterBank) -> list[LayerOverlap]:
    """The overlap of every layer of ``bank``, ranked or not, in order of execution; the model does not change.

    Raises:
        ReaperError: filters are dropped now (their weights are not in place), or weights are not finite.
    """
    if bank.dropped:
        raise ReaperError("overlap: filters are dropped, their weights are not in place; restore them before")
    return [_layer_overlap(layer) for layer in bank.layers]


def present_overlap(bank: FilterBank) -> float:
    """Mean O_f over the ranked filters that are there now: in a sub-network phase over those that were kept."""
    found = []
    for layer in bank.ranked:
        rows, groups = _rows(layer), layer.groups
        if gone := bank.dropped.get(layer.name, ()):
            if len(rows) == layer.filters:  # masked: zeros stand where filters are missing
                kept = torch.ones(len(rows), dtype=torch.bool)
                kept[list(gone)] = False
                rows = rows[kept.to(rows.device)]
            groups = groups if len(rows) % groups == 0 else 1  # unequal groups: compared across them
        found.append(geometry.overlap(rows, groups=groups))
    return float(torch.cat(found).mean())


def _layer_overlap(layer: FilterLayer) -> LayerOverlap:
    rows = _rows(layer)
    if not torch.isfinite(rows).all():
        raise ReaperError(
            f"overlap: the weights of layer {layer.name!r} are not finite, training has diverged; lower the learning "
            "rate or clip gradients, and go on from an earlier checkpoint"
        )
    return LayerOverlap(
        layer=layer.name,
        filters=layer.filters,
        dims=layer.dims,
        groups=layer.groups,
        ranked=layer.ranked,
        overlap=geometry.overlap(rows, groups=layer.groups).cpu(),
        expected=geometry.expected_overlap(layer.filters // layer.groups, layer.dims),
        spread=spread_of_mean(layer.filters, layer.dims, layer.groups),
    )


def _rows(layer: FilterLayer) -> Float[Tensor, "filters dims"]:
    """The filters; a computed weight is read in eval mode, where reading a spectral norm does not move it on."""
    parts = list(layer.module.modules())
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        return layer.rows
    finally:
        for part, mode in zip(parts, modes):
            part.training = mode


def spread_of_mean(filters: int, dims: int, groups: int = 1) -> float:
    """Standard deviation of a layer's mean O_f when its filters are random directions.

    |cos| of two random directions has mean m = ``expected_cosine(dims)`` and variance 1/d - m^2. Two pairs are
    uncorrelated even where they share a filter, so the variances of all pairs add up.
    """
    inside = filters // groups
    if dims == 1 or inside == 1:
        return 0.0
    variance = 1 / dims - geometry.expected_cosine(dims) ** 2
    # A group's mean O_f is 2 / J^2 times the sum over its J (J - 1) / 2 pairs; the layer's is the mean over groups.
    return sqrt(2 * (inside - 1) / inside**3 * variance / groups)


def network_overlap(layers: Iterable[LayerOverlap], *, ranked_only: bool = False) -> tuple[float, float]:
    """Sum of O_f over the network, and what random directions would have (section 7 of the paper).

    Args:
        layers: of :func:`layer_overlaps`.
        ranked_only: leave out the layers that take no part in the ranking.
    """
    chosen = [layer for layer in layers if layer.ranked or not ranked_only]
    return sum((layer.total for layer in chosen), 0.0), sum((layer.expected_total for layer in chosen), 0.0)
