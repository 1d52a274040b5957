"""Correlation of feature maps: overlap of what filters answer, where orthogonality is overlap of what they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import FromData
from torchreaper.criteria.maps import activated, check_called, every_map
from torchreaper.filters import FilterLayer


@dataclass(frozen=True, eq=False)
class ActivationCorrelation(FromData):
    """Filters whose feature maps resemble the others' most go first.

    Score = sum_j |C[f, j]| / J over the other filters j, C the Pearson correlation of two filters' feature maps, behind
    norm and activation, over samples and positions: the paper's O_f (section 3) with answers in the place of weights. A
    filter whose map is constant correlates with none.

    Cost: one forward pass over the batches, and a product of J x (samples positions) by its transpose per layer.
    """

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """The mean absolute correlation of every filter with its layer, 0 to 1, by layer."""
        return {name: _mean_of_others(found) for name, found in self.correlations(bank).items()}

    def correlations(self, bank: Bank) -> dict[str, Float[Tensor, "filters filters"]]:
        """C of every ranked layer; 0 in the rows and columns of constant maps, 1 in the rest of the diagonal."""
        moments: dict[str, _Moments] = {}
        for layer, output in every_map(bank, self, bank.ranked):
            moments.setdefault(layer.name, _Moments(layer)).add(activated(bank, layer, output))
        check_called(bank.ranked, moments)
        return {layer.name: moments[layer.name].correlations() for layer in bank.ranked}


class _Moments:
    """First and second moments of one layer's filters, around the mean of the first batch: no digits are lost."""

    def __init__(self, layer: FilterLayer) -> None:
        self.count = 0
        self.around: Tensor | None = None
        self.sums = torch.zeros(layer.filters, dtype=torch.float64)
        self.products = torch.zeros(layer.filters, layer.filters, dtype=torch.float64)

    def add(self, maps: Float[Tensor, "samples filters positions"]) -> None:
        values = maps.double().transpose(0, 1).flatten(1)
        if self.around is None:
            self.around = values.mean(1, keepdim=True)
        values = values - self.around
        self.count += values.shape[1]
        self.sums += values.sum(1).cpu()
        self.products += (values @ values.T).cpu()

    def correlations(self) -> Float[Tensor, "filters filters"]:
        covariances = self.products / self.count - torch.outer(self.sums, self.sums) / self.count**2
        variances = covariances.diagonal().clamp_min(0)
        # What rounding leaves of a constant is no variance.
        least = 1e-12 * (self.products.diagonal() / self.count + torch.finfo(torch.float64).tiny)
        deviations = torch.where(variances > least, variances, torch.inf).sqrt()
        return (covariances / torch.outer(deviations, deviations)).clamp(-1, 1)


def _mean_of_others(correlations: Float[Tensor, "filters filters"]) -> Float[Tensor, " filters"]:
    return (correlations.abs().sum(1) - correlations.diagonal().abs()) / len(correlations)
