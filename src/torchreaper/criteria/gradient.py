"""Criteria on gradients of the loss: the weights' (gradient), and the feature maps' (Taylor)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import Batch, FromData, check_differentiable, measuring, outputs_of
from torchreaper.criteria.maps import as_maps, check_called, check_finite, watched
from torchreaper.criteria.scaling import by_layer_norm
from torchreaper.criteria.weights import own_weights, per_filter
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer


@dataclass(frozen=True, eq=False)
class Gradient(FromData):
    """Filters whose weights the loss feels least go first ("gradient" in the paper's table, which gives no formula).

    Score = minus the Euclidean length of the gradient of the mean loss with respect to the filter's weights. Where the
    weight is computed (weight norm), with respect to what it is computed from.

    Attributes:
        normalise: divide the scores of each layer by their Euclidean length, as Molchanov 2016 does to compare layers.

    Cost: one forward and one backward pass over the batches; memory for one more gradient of the ranked weights.
    """

    normalise: bool = True

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the length of every filter's gradient, by layer."""
        samples = 0
        with measuring(bank.model), torch.enable_grad():
            weights = {layer.name: own_weights(bank, layer) for layer in bank.ranked}
            flat = [weight for own in weights.values() for weight in own]
            sums = {weight: torch.zeros_like(weight.parameter, dtype=torch.float64) for weight in flat}
            for batch in self.read(bank.model):
                loss = self.loss(outputs_of(bank.model, batch), batch)
                check_differentiable(loss)
                found = torch.autograd.grad(loss, [weight.parameter for weight in flat], allow_unused=True)
                for weight, gradient in zip(flat, found):
                    if gradient is not None:
                        sums[weight] += batch.size * gradient.double()
                for layer in bank.ranked:
                    for weight in weights[layer.name]:
                        _check(layer, sums[weight], batch)
                samples += batch.size
        lengths = {}
        for layer in bank.ranked:
            squares = [(weight, (sums[weight] / samples).square()) for weight in weights[layer.name]]
            lengths[layer.name] = per_filter(layer, squares).sqrt()
        return {name: -values for name, values in (by_layer_norm(lengths) if self.normalise else lengths).items()}


@dataclass(frozen=True, eq=False)
class Taylor(FromData):
    """Filters without which the loss would change least, to first order, go first (Molchanov 2016, equation 8).

    Score = minus the mean over samples of |mean over positions of a dL/da|, a the filter's feature map and L the
    sample's loss. a is taken behind the layer's norm and before its activation; behind a ReLU it is the same number.

    Attributes:
        normalise: divide the scores of each layer by their Euclidean length, as the source does to compare layers.

    Cost: one forward and one backward pass over the batches; memory for the gradients of all ranked maps.
    """

    normalise: bool = True

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the first-order change of the loss without each filter, by layer."""
        sums: dict[str, Tensor] = {}
        samples = 0
        with measuring(bank.model), torch.enable_grad():
            for batch in self.read(bank.model):
                for layer, change in self._changes(bank, batch):
                    sums[layer.name] = sums[layer.name] + change if layer.name in sums else change
                samples += batch.size
        check_called(bank.ranked, sums)
        means = {layer.name: sums[layer.name] / samples for layer in bank.ranked}
        return {name: -values for name, values in (by_layer_norm(means) if self.normalise else means).items()}

    def _changes(self, bank: Bank, batch: Batch) -> Sequence[tuple[FilterLayer, Float[Tensor, " filters"]]]:
        seen: list[tuple[FilterLayer, Tensor]] = []

        def see(layer: FilterLayer, output: Tensor) -> Tensor:
            if not output.requires_grad:  # nothing before it is trained
                output = output.detach().requires_grad_()
            seen.append((layer, output))
            return output.clone()  # an activation that works in place must not change what was seen

        with watched(bank.model, bank.flow, bank.ranked, see):
            loss = self.loss(outputs_of(bank.model, batch), batch)
        check_differentiable(loss)
        found = torch.autograd.grad(loss, [output for _, output in seen], allow_unused=True)
        changes: dict[str, tuple[FilterLayer, Tensor]] = {}
        for (layer, output), gradient in zip(seen, found):
            check_finite(layer, output, batch)
            slope = torch.zeros_like(output) if gradient is None else gradient
            # In evaluation mode a sample's output is its own: the mean loss has 1/n of the slope of the sample's loss.
            product = as_maps(bank.flow, layer, output.detach().double() * slope.double() * batch.size).mean(2)
            before = changes[layer.name][1] if layer.name in changes else 0.0  # a layer called twice has two maps
            changes[layer.name] = layer, product + before
        for layer, product in changes.values():
            _check(layer, product, batch)
        return [(layer, product.abs().sum(0).cpu()) for layer, product in changes.values()]


def _check(layer: FilterLayer, values: Tensor, batch: Batch) -> None:
    if not values.isfinite().all():
        raise ReaperError(
            f"layer {layer.name!r}: its gradient is not finite on batch {batch.number}; look for weights or inputs "
            "that are not finite, or for an overflow of half precision"
        )
