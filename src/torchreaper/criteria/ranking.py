"""From scores to a choice: one ranking over the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchreaper.errors import ReaperError

Scores = Mapping[str, Float[Tensor, " filters"]]


def quota(fraction: float, ranked: int) -> int:
    """How many of ``ranked`` filters go: floor(fraction * ranked), safe from 0.29 * 100 = 28.999...96."""
    return floor(fraction * ranked * (1 + 1e-12))


def capacity(filters: int, min_filters: int, max_per_layer: float) -> int:
    """How many filters one layer may lose."""
    return max(0, min(filters - min_filters, quota(max_per_layer, filters)))


def select(
    scores: Scores, fraction: float, *, min_filters: int = 1, max_per_layer: float = 1.0
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The worst ``fraction`` of all filters, ranked over the whole network (Algorithm 1 of the paper).

    Args:
        scores: layer -> one score per filter, higher = dropped earlier; layers in order. Only ranked layers.
        fraction: p, of all filters in ``scores``.
        min_filters: no layer keeps fewer.
        max_per_layer: no layer loses more than this share of its filters.

    Returns:
        Layer -> indices in order, only layers that lose any; and notes where a limit held filters back, or where ties
        decided. Scores that agree to 1e-9 of the largest are ties: the lower layer goes first, then the lower index.

    Raises:
        ReaperError: a score is NaN.
    """
    names = list(scores)
    for name in names:
        if torch.isnan(scores[name]).any():
            raise ReaperError(
                f"scores of layer {name!r}: NaN; look for weights that are not finite, or at the criterion"
            )
    limits = [capacity(len(scores[name]), min_filters, max_per_layer) for name in names]
    flat = torch.cat([scores[name].detach().double().cpu() for name in names])
    owner = torch.cat([torch.full((len(scores[name]),), k, device="cpu") for k, name in enumerate(names)])
    order = worst_first(flat)
    # A layer's own ranking decides which of its filters may go at all; the global one, which of those do.
    eligible = torch.zeros(len(flat), dtype=torch.bool, device="cpu")
    for k, limit in enumerate(limits):
        eligible[order[owner[order] == k][:limit]] = True
    wanted = quota(fraction, len(flat))
    chosen = order[eligible[order]][:wanted]
    among_the_worst = torch.bincount(owner[order[:wanted]], minlength=len(names)).tolist()
    dropped: dict[str, tuple[int, ...]] = {}
    notes = []
    first = 0
    for k, name in enumerate(names):
        mine = chosen[owner[chosen] == k] - first
        first += len(scores[name])
        if len(mine):
            dropped[name] = tuple(sorted(mine.tolist()))
        if among_the_worst[k] > limits[k]:
            notes.append(
                f"{name}: {among_the_worst[k] - limits[k]} more ranked as worst, held back by "
                f"min_filters={min_filters}, max_per_layer={max_per_layer}"
            )
    notes += _ties(flat, chosen)
    if len(chosen) < wanted:
        notes.append(f"{len(chosen)} filters dropped instead of {wanted}: every layer is at its limit")
    return dropped, notes


def _ties(scores: Float[Tensor, " filters"], chosen: Int[Tensor, " chosen"]) -> list[str]:
    """A note where filters that go score the same as others that stay: then it was not the criterion that chose."""
    if not len(chosen):
        return []
    values, stays = rounded(scores), torch.ones(len(scores), dtype=torch.bool, device="cpu")
    stays[chosen] = False
    last = values[chosen].min()
    going, staying = int((values[chosen] == last).sum()), int((values[stays] == last).sum())
    if not staying:
        return []
    return [
        f"{going} of {len(chosen)} dropped filters score the same as {staying} that stay: "
        "among equals the lower layer goes first, then the lower index"
    ]


def worst_first(scores: Float[Tensor, " filters"]) -> Int[Tensor, " filters"]:
    """Positions from the highest score to the lowest; ties, as :func:`rounded` makes them, in order of position."""
    return rounded(scores).argsort(descending=True, stable=True)


def rounded(scores: Float[Tensor, " filters"]) -> Float[Tensor, " filters"]:
    """Multiples of 1e-9 of the largest finite score, so that rounding errors do not decide."""
    finite = scores[torch.isfinite(scores)]
    unit = 1e-9 * float(finite.abs().max()) if len(finite) else 0.0
    return (scores / unit).round() if unit > 0 else scores
