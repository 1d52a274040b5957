"""Criteria on feature maps alone: mean activation, and the share of zeros (APoZ)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import FromData
from torchreaper.criteria.maps import activated, as_maps, averages
from torchreaper.criteria.scaling import by_layer_norm
from torchreaper.filters import FilterLayer


@dataclass(frozen=True, eq=False)
class MeanActivation(FromData):
    """Filters that answer weakly go first (Molchanov 2016, section 2.2; "mean activation" in the paper's table).

    Score = minus the mean of |a| over samples and positions, a the feature map behind the layer's norm and activation;
    where no activation follows at once (before a sum), behind the norm.

    Attributes:
        normalise: divide the scores of each layer by their Euclidean length, as Molchanov 2016 does to compare layers.

    Cost: one forward pass over the batches.
    """

    normalise: bool = True

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the mean activation of every filter, by layer."""

        def size(layer: FilterLayer, output: Tensor) -> Float[Tensor, " filters"]:
            return activated(bank, layer, output).double().abs().sum((0, 2))

        found = averages(bank, self, size)
        return {name: -values for name, values in (by_layer_norm(found) if self.normalise else found).items()}


@dataclass(frozen=True, eq=False)
class APoZ(FromData):
    """Filters that are silent most often go first (Hu 2016, average percentage of zeros).

    Score = share of positions and samples at which the feature map behind the layer's norm is not above 0: the share of
    zeros that a ReLU leaves. For other activations it is the share where they are in their low part.

    Cost: one forward pass over the batches.
    """

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """The share of zeros of every filter, 0 to 1, by layer."""

        def zeros(layer: FilterLayer, output: Tensor) -> Float[Tensor, " filters"]:
            return (as_maps(bank.flow, layer, output) <= 0).double().sum((0, 2))

        return averages(bank, self, zeros)
