"""Following channels through operations that only move them: pure functions on where a tensor's entries come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor

from torchreaper.flow.channels import NOBODY, Origin

Key = tuple[str, ...]
"""Names an operation: ``("module", name)``, or ``("node", mode, name)`` in one of the two graphs."""


@dataclass(frozen=True)
class Channels:
    """Where the channels of one tensor come from.

    Attributes:
        origin: filter id of every entry, or ``NOBODY``; as many dimensions as the tensor, of size 1 where the id does
            not depend on the position (usually everywhere but in the channel dimension).
        since: the operation that gave absent channels a value other than 0, while no mask has followed it.
    """

    origin: Int[Tensor, "..."]
    since: Key | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions in which the origin varies."""
        return tuple(d for d, size in enumerate(self.origin.shape) if size > 1)

    @property
    def line(self) -> tuple[Origin, int] | None:
        """The origin along the channel dimension, and that dimension, counted from the end; ``None`` if not one."""
        if len(self.dims) != 1:
            return None
        return self.origin.flatten(), self.dims[0] - self.origin.ndim

    def at(self, origin: Int[Tensor, "..."] | None) -> Channels | None:
        """The same channels elsewhere."""
        return None if origin is None else Channels(origin, self.since)


def laid(origin: Origin, dim: int, ndim: int) -> Int[Tensor, "..."]:
    """A line of ids as the origin of a tensor with ``ndim`` dimensions, along ``dim`` (negative)."""
    shape = [1] * ndim
    shape[dim] = len(origin)
    return origin.view(shape)


def nobody(width: int) -> Origin:
    """The origin of a tensor that no filter has a part in."""
    return torch.full((width,), NOBODY, device="cpu")


def agree(first: Channels, second: Channels) -> bool:
    """Whether two tensors hold the same filters in the same places."""
    return first.origin.shape == second.origin.shape and torch.equal(first.origin, second.origin)


def reshaped(origin: Int[Tensor, "..."], before: Sequence[int], after: Sequence[int]) -> Int[Tensor, "..."] | None:
    """The origin after a row-major reshape from ``before`` to ``after``.

    Dimensions are merged and split in groups of equal size; inside a group each entry's id is followed exactly.
    ``None`` where channels are merged into the batch: what came out would depend on the size of the batch.
    """
    found: list[Int[Tensor, "..."]] = []
    for old, new in _groups(before, after):
        part = [origin.shape[d] for d in old]
        sizes, result = [before[d] for d in old], [after[d] for d in new]
        if all(size == 1 for size in part):
            found.append(torch.zeros([1] * len(new), dtype=torch.int64, device="cpu"))
        elif sizes == result:
            found.append(_positions(part, sizes).view(part))
        elif 0 in old and origin.shape[0] == 1 and len(old) > 1:
            return None
        else:
            found.append(_positions(part, sizes).reshape(result))
    return _gathered(origin, before, after, found)


def _positions(part: Sequence[int], sizes: Sequence[int]) -> Int[Tensor, "..."]:
    """For every entry of a group of dimensions, which entry of the origin (restricted to the group) it has."""
    return torch.arange(prod(part), device="cpu").view(*part).expand(*sizes)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split both shapes into runs of dimensions with equal products, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        if i < len(before):
            old.append(i)
            i += 1
        if j < len(after):
            new.append(j)
            j += 1
        left, right = prod(before[d] for d in old), prod(after[d] for d in new)
        while left != right:
            if left < right:
                left *= before[i]
                old.append(i)
                i += 1
            else:
                right *= after[j]
                new.append(j)
                j += 1
        groups.append((old, new))
    return groups


def _gathered(
    origin: Int[Tensor, "..."], before: Sequence[int], after: Sequence[int], found: list[Int[Tensor, "..."]]
) -> Int[Tensor, "..."]:
    """Put the groups together: the origin at every combination of their positions."""
    groups = _groups(before, after)
    flat = origin.reshape([prod(origin.shape[d] for d in old) for old, _ in groups])
    for k, part in enumerate(found):
        flat = flat.index_select(k, part.flatten())
    shape = [size for part in found for size in part.shape]
    return flat.reshape(shape)


Index = Sequence[object]
"""What stands in the brackets of ``tensor[...]``."""


def sliced(origin: Int[Tensor, "..."], shape: Sequence[int], index: Index) -> Int[Tensor, "..."] | None:
    """The origin of ``tensor[index]`` for integers, slices, ``None`` and ``...``; ``None`` for anything else."""
    applied: list[object] = []
    for d, one in _by_dimension(shape, index):
        varies = d is not None and origin.shape[d] > 1
        if one is None:
            applied.append(None)
        elif isinstance(one, slice) and all(p is None or isinstance(p, int) for p in (one.start, one.stop, one.step)):
            applied.append(one if varies else slice(None))
        elif isinstance(one, int) and not isinstance(one, bool):
            applied.append(one if varies else 0)
        elif isinstance(one, slice) and not varies:  # bounds that are computed, in a dimension of no concern
            applied.append(slice(None))
        else:
            return None
    result: Tensor = origin[tuple(applied)]  # type: ignore[index]
    return result


def counts_channels(origin: Int[Tensor, "..."], shape: Sequence[int], index: Index) -> bool:
    """Whether ``tensor[index]`` counts positions in a dimension of channels, so that it needs them all."""
    return any(
        d is not None and origin.shape[d] > 1 and not (isinstance(one, slice) and _is_all(one, shape[d]))
        for d, one in _by_dimension(shape, index)
    )


def _by_dimension(shape: Sequence[int], index: Index) -> list[tuple[int | None, object]]:
    """Every part of an index with the dimension it is for; ``None`` makes a new one. ``...`` is written out."""
    index = list(index)
    missing = len(shape) - sum(one is not None and one is not Ellipsis for one in index)
    at = next((k for k, one in enumerate(index) if one is Ellipsis), len(index))
    index[at : at + 1] = [slice(None)] * missing
    dims = iter(range(len(shape)))
    return [(None if one is None else next(dims), one) for one in index]


def _is_all(part: slice, size: int) -> bool:
    """Also ``[:size]``: of a narrower tensor it takes everything, too."""
    ends = part.stop is None or (isinstance(part.stop, int) and part.stop >= size)
    return part.start in (None, 0) and ends and part.step in (None, 1)
