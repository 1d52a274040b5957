"""The feature maps of layers, on a coarse grid: what the canonical correlations are taken of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchreaper.bank import FilterBank
from torchreaper.criteria.data import FromData
from torchreaper.criteria.maps import activated, check_called, every_map
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer


def feature_maps(
    bank: FilterBank,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    *,
    grid: int = 4,
    max_batches: int | None = None,
) -> dict[str, Float[Tensor, "images filters positions"]]:
    """What the filters of each layer answer to the images, behind norm and activation, averaged over a coarse grid.

    The model runs in evaluation mode and is left as it was found.

    Args:
        bank: the model's filters.
        batches: ``(inputs, targets)``, as for the criteria that read images; targets are not looked at.
        layers: their names; ``None``: the ranked ones.
        grid: at most so many cells a dimension: positions is at most ``grid ** 2`` for images.
        max_batches: read no more than so many.

    Returns:
        Layer -> maps on the CPU, in the precision of the model (half precision as single).

    Raises:
        ReaperError: an unknown layer, wrong batches, a map that is not finite, or filters that are dropped now.
    """
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise ReaperError(f"grid={grid!r}: must be a whole number of at least 1")
    if bank.dropped:
        raise ReaperError("feature_maps: filters are dropped; restore them before")
    wanted = bank.ranked if layers is None else [bank[name] for name in layers]
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for layer, output in every_map(bank, FromData(batches, max_batches=max_batches), wanted):
        parts[layer.name].append(_coarse(bank, layer, output, grid))
    check_called(wanted, parts)
    return {layer.name: torch.cat(parts[layer.name]) for layer in wanted}


def _coarse(
    bank: FilterBank, layer: FilterLayer, output: Tensor, grid: int
) -> Float[Tensor, "images filters positions"]:
    maps = activated(bank, layer, output)
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    sizes = _sizes(output, layer)
    shaped = maps.view(*maps.shape[:2], *sizes)
    pooled: Tensor = _POOLS[len(sizes)](shaped, [min(grid, size) for size in sizes])
    return pooled.flatten(2).cpu()


def _sizes(output: Tensor, layer: FilterLayer) -> list[int]:
    """The sizes of the map's own dimensions, as many as the convolution has."""
    return list(output.shape[-len(layer.module.kernel_size) :])


_POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
