"""Canonical correlation of activations: how much two filters, or two runs, see the same (section 7 of the paper)."""

from __future__ import annotations

from math import isqrt, nan

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchreaper.errors import ReaperError

_NUMBERS = 2**22
"""How many float64 numbers of work space a block may take (32 MiB)."""


def canonical_correlations(
    x: Float[Tensor, "samples p"], y: Float[Tensor, "others q"]
) -> Float[Tensor, " correlations"]:
    """The canonical correlations of two sets of features over the same samples.

    They do not change under invertible linear maps and shifts of either side. Constant and collinear features count
    once or not at all: a direction is left out where rounding alone, in the precision of the input, could have made
    it. So hand over values in the precision they were computed in.

    Where rank x + rank y >= samples, some of them are 1 by construction although no error is raised; more samples, or
    :func:`chance_cca` beside them, tell.

    Args:
        x: ``[samples, p]``, floating point.
        y: ``[samples, q]``, row by row of the same samples.

    Returns:
        float64 on the CPU, in [0, 1], descending; as many as the smaller of the two ranks, none where a side is
        constant.

    Raises:
        ReaperError: different numbers of samples, values that are not finite, or so few samples that one side spans
            them all and every correlation is 1 by construction.
    """
    if len(x) != len(y):
        raise ReaperError(f"x, y: {len(x)} and {len(y)} samples; both must hold the same samples")
    (a, rank_a), (b, rank_b) = (_bases(side[None], name) for side, name in ((x, "x"), (y, "y")))
    shared = int(min(rank_a, rank_b))
    return _singular_values(a[0].T @ b[0])[:shared]


def between_runs(first: Float[Tensor, "samples filters"], second: Float[Tensor, "others filters2"]) -> float:
    """Mean canonical correlation between one layer's activations in two runs: 1 = they span the same; 0 if constant.

    Args:
        first: ``[images * positions, filters]`` of one run.
        second: the same images and positions in the other run; the layer may have another width there.

    Raises:
        ReaperError: as :func:`canonical_correlations`.
    """
    found = canonical_correlations(first, second)
    return float(found.mean()) if len(found) else 0.0


def pairwise_cca(maps: Float[Tensor, "images filters positions"]) -> Float[Tensor, "filters filters"]:
    """Mean canonical correlation between the maps of every two filters of a layer: the paper's heat map.

    Each filter is one variable of ``positions`` features over the images. Compare with :func:`chance_cca`: few images
    per position correlate by chance alone.

    Args:
        maps: a layer's activations, positions flattened; pool to a coarse grid before, for the cost of a pair grows
            with its cube.

    Returns:
        Symmetric, float64 on the CPU; the diagonal is 1. A constant filter, such as one that a ReLU keeps silent, has
        no correlation: NaN with all, itself included.

    Raises:
        ReaperError: values that are not finite, or so few images that a filter spans them all.
    """
    bases, ranks = _filter_bases(maps)
    _, filters, width = bases.shape
    found = torch.zeros(filters, filters, dtype=torch.float64, device="cpu")
    side = max(1, isqrt(_NUMBERS) // max(1, width))
    for top in range(0, filters, side):
        for left in range(top, filters, side):
            rows, columns = slice(top, top + side), slice(left, left + side)
            # [filters, filters, k, k]: one small matrix per pair, all of them from one product.
            products = bases[:, rows].flatten(1).T @ bases[:, columns].flatten(1)
            pairs = products.view(len(ranks[rows]), width, len(ranks[columns]), width).transpose(1, 2)
            found[rows, columns] = _mean_correlation(pairs, torch.minimum(ranks[rows, None], ranks[None, columns]))
    found = found.triu(1)
    found = found + found.T + torch.eye(filters, dtype=torch.float64, device="cpu")
    found[ranks == 0, :] = found[:, ranks == 0] = torch.nan
    return found


def chance_cca(
    maps: Float[Tensor, "images filters positions"], generator: torch.Generator, *, draws: int = 64
) -> float:
    """What two filters of :func:`pairwise_cca` would have if their images had nothing to do with each other.

    The mean over random pairs of filters that are not constant, the images of one of the two permuted. A single filter
    is paired with itself; NaN where all are constant.

    Args:
        maps: as for :func:`pairwise_cca`.
        generator: a CPU generator; the only source of randomness.
        draws: how many pairs.

    Raises:
        ReaperError: as :func:`pairwise_cca`; fewer draws than 1, or no filter.
    """
    if draws < 1:
        raise ReaperError(f"draws={draws}: must be at least 1")
    if not maps.shape[1]:
        raise ReaperError("maps: 0 filters; there must be at least 1")
    bases, ranks = _filter_bases(maps)
    bases, ranks = bases[:, ranks > 0], ranks[ranks > 0]
    images, filters, _ = bases.shape
    if not filters:
        return nan
    total = 0.0
    for _ in range(draws):
        first = int(torch.randint(filters, (), generator=generator, device="cpu"))
        step = 1 + int(torch.randint(filters - 1, (), generator=generator, device="cpu")) if filters > 1 else 0
        second = (first + step) % filters
        order = torch.randperm(images, generator=generator, device="cpu")
        product = bases[:, first].T @ bases[order, second]
        total += float(_mean_correlation(product, torch.minimum(ranks[first], ranks[second])))
    return total / draws


def _mean_correlation(products: Float[Tensor, "*pairs k k2"], ranks: Int[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """The mean of the first ``ranks`` singular values; the others are 0, as bases are filled up with zero columns."""
    return _singular_values(products).sum(dim=-1) / ranks.clamp_min(1)


def _singular_values(products: Float[Tensor, "*pairs k k2"]) -> Float[Tensor, "*pairs correlations"]:
    found: Tensor = torch.linalg.svdvals(products)
    return found.clamp(0, 1)


def _filter_bases(
    maps: Float[Tensor, "images filters positions"],
) -> tuple[Float[Tensor, "images filters k"], Int[Tensor, " filters"]]:
    """An orthonormal basis per filter, so many filters at a time."""
    if maps.ndim != 3:
        raise ReaperError(
            f"maps: shape {list(maps.shape)}; must be [images, filters, positions], as feature_maps gives"
        )
    images, filters, positions = maps.shape
    bases = torch.empty(images, filters, min(images, positions), dtype=torch.float64, device="cpu")
    ranks = torch.empty(filters, dtype=torch.int64, device="cpu")
    at_once = max(1, _NUMBERS // max(1, images * positions))
    for first in range(0, filters, at_once):
        some = slice(first, first + at_once)
        found, ranks[some] = _bases(maps[:, some].transpose(0, 1), "maps")
        bases[:, some] = found.transpose(0, 1)
    return bases, ranks


def _bases(
    x: Float[Tensor, "batch samples p"], argument: str
) -> tuple[Float[Tensor, "batch samples k"], Int[Tensor, " batch"]]:
    """Orthonormal bases of the centred columns, filled up with zero columns, and their ranks."""
    samples, features = x.shape[1:]
    if not torch.isfinite(x).all():
        raise ReaperError(f"{argument}: not finite; look for a run that has diverged, or an input that is not finite")
    rounding = 10 * torch.finfo(x.dtype).eps
    x = x.detach().cpu().double()
    if samples < 2:
        raise _too_few(argument, samples, features)
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    before = x.norm(dim=1, keepdim=True)
    x = x - x.mean(dim=1, keepdim=True)
    length = x.norm(dim=1, keepdim=True)
    varies = length > rounding * before
    length = torch.where(varies, length, 1.0)
    # Columns at unit length, so that a feature's scale does not decide whether it counts.
    x = torch.where(varies, x / length, 0.0)
    u, singular, _ = torch.linalg.svd(x, full_matrices=False)
    # Rounding moves a column by up to its length before centring times the precision, and no singular value by more
    # than the norm of all that (Weyl): what is no larger may be nothing else.
    noise = rounding * torch.where(varies, before / length, 0.0).norm(dim=2)
    counts = singular > noise
    ranks = counts.sum(dim=1)
    # Centred columns have samples - 1 dimensions.
    if bool((ranks >= samples - 1).any()):
        raise _too_few(argument, samples, features)
    return u * counts.unsqueeze(1), ranks


def _too_few(argument: str, samples: int, features: int) -> ReaperError:
    return ReaperError(
        f"{argument}: {samples} samples for {features} features span every direction, so that all correlations are 1 "
        "by construction; take more images or a coarser grid"
    )
