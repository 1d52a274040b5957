"""Feature maps: what the filters of a layer answer to a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import Batch, FromData, measuring, outputs_of
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer
from torchreaper.flow.channels import FeatureMap, Flow

Maps = Float[Tensor, "samples filters positions"]


def feature_map_of(flow: Flow, layer: FilterLayer) -> FeatureMap:
    """Where the map of a layer can be seen: behind its own norm, before its activation.

    In a part of the model that cannot be traced, what follows the norm is not known, and no activation is assumed.
    """
    if layer.name in flow.maps:
        return flow.maps[layer.name]
    own = torch.arange(layer.start, layer.start + layer.filters, device="cpu")
    mine = [name for name, site in flow.sites.items() if torch.equal(site.origin, own)]
    return FeatureMap(([name for name in mine if name in flow.norms] or [layer.name])[-1])


@contextmanager
def watched(
    model: nn.Module, flow: Flow, layers: Sequence[FilterLayer], see: Callable[[FilterLayer, Tensor], Tensor | None]
) -> Iterator[None]:
    """In the block, ``see(layer, output)`` is called with the map of a layer, before its activation, as it is computed.

    What it returns, unless ``None``, goes on in its place.
    """
    with ExitStack() as stack:
        for layer in layers:

            def hook(module: nn.Module, inputs: Any, output: Tensor, layer: FilterLayer = layer) -> Tensor | None:
                return see(layer, output)

            module = model.get_submodule(feature_map_of(flow, layer).module)
            stack.enter_context(_removed(module.register_forward_hook(hook)))
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def as_maps(flow: Flow, layer: FilterLayer, output: Tensor) -> Maps:
    """The output of the map's module as samples x filters x positions."""
    dim = flow.sites[feature_map_of(flow, layer).module].dim
    if output.ndim == -dim:  # without a batch
        output = output.unsqueeze(0)
    moved = output.movedim(dim, 1)
    return moved.reshape(*moved.shape[:2], -1)


def activated(bank: Bank, layer: FilterLayer, output: Tensor) -> Maps:
    """The maps behind the layer's activation; where none follows at once (before a sum), as they are."""
    activation = feature_map_of(bank.flow, layer).activation
    return as_maps(bank.flow, layer, output if activation is None else activation(bank.model, output))


def averages(
    bank: Bank,
    data: FromData,
    statistic: Callable[[FilterLayer, Tensor], Float[Tensor, " filters"]],
) -> dict[str, Float[Tensor, " filters"]]:
    """The sum of ``statistic(layer, output)`` over all batches, per sample and position of the layer's maps.

    Raises:
        ReaperError: a map is not finite, or a layer is not called in evaluation mode.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    for layer, output in every_map(bank, data, bank.ranked):
        found = statistic(layer, output).double().cpu()
        sums[layer.name] = sums[layer.name] + found if layer.name in sums else found
        counts[layer.name] += output.numel() // layer.filters
    check_called(bank.ranked, sums)
    return {layer.name: sums[layer.name] / counts[layer.name] for layer in bank.ranked}


def every_map(bank: Bank, data: FromData, layers: Sequence[FilterLayer]) -> Iterator[tuple[FilterLayer, Tensor]]:
    """The output behind which each layer's map stands, batch by batch, in evaluation mode and without gradients.

    A layer that is called several times gives its map as often.
    """
    with measuring(bank.model), torch.no_grad():
        for batch in data.read(bank.model):
            seen: list[tuple[FilterLayer, Tensor]] = []

            def see(layer: FilterLayer, output: Tensor, seen: Any = seen) -> None:
                seen.append((layer, output.clone()))  # an activation that works in place comes next

            with watched(bank.model, bank.flow, layers, see):
                outputs_of(bank.model, batch)
            for layer, output in seen:
                check_finite(layer, output, batch)
                yield layer, output


def check_finite(layer: FilterLayer, values: Tensor, batch: Batch) -> None:
    """Raise :class:`ReaperError` where a feature map is not finite."""
    if not values.isfinite().all():
        raise ReaperError(
            f"layer {layer.name!r}: its feature map is not finite on batch {batch.number}; look for weights or inputs "
            "that are not finite, or for an overflow of half precision"
        )


def check_called(layers: Sequence[FilterLayer], found: Any) -> None:
    """Raise :class:`ReaperError` where a layer has put out nothing."""
    if missing := [layer.name for layer in layers if layer.name not in found]:
        raise ReaperError(
            f"layer {missing[0]!r}: is not called in evaluation mode, so there is nothing to rank its filters by; name "
            "it in skip"
        )
