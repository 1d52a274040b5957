"""The part of a tensor that a sub-network is without: taken out, kept, put back.

Along each of its first two dimensions a tensor has entries that are *removed* (the tensor becomes smaller) and entries
that are *held* (they stay, as zeros). Everything goes by positions, never by boolean masks, so that a GPU is not waited
for; a weight, its gradient, its moments and its averages are all treated by the same :class:`Part`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Union

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a tensor.

    Attributes:
        removed: positions that leave the tensor.
        kept: the others.
        held: which of the kept ones hold 0, counted among the kept.
    """

    removed: Int[Tensor, " removed"]
    kept: Int[Tensor, " kept"]
    held: Int[Tensor, " held"]

    def to(self, device: torch.device) -> Axis:
        """The same positions on ``device``; the same object where they are there already."""
        if self.kept.device == device:
            return self
        return Axis(self.removed.to(device), self.kept.to(device), self.held.to(device))

    def __len__(self) -> int:
        return len(self.removed) + len(self.kept)

    def __bool__(self) -> bool:
        return bool(len(self.removed) or len(self.held))


@dataclass(frozen=True, eq=False)
class Stored:
    """What a part held, one tensor for every axis that has removed, or held, entries; nothing else of the tensor.

    Attributes:
        removed: of the axes with removed entries, in order.
        held: of those with held ones.
        strides: how the full tensor lay in memory.
    """

    removed: tuple[Tensor, ...]
    held: tuple[Tensor, ...]
    strides: tuple[int, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return self.removed + self.held

    @property
    def bytes(self) -> int:
        """What it takes where it is kept."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


Contents = Union[Stored, float]
"""What to put into a part: what was stored, or one number."""


@dataclass(frozen=True, eq=False)
class Part:
    """The part of one tensor that a sub-network is without.

    Attributes:
        rows: along dimension 0, or ``None`` where nothing goes.
        columns: along dimension 1.
        keeps_values: held entries keep their values and only get no gradient. For weights that are computed from this
            tensor: the direction of a filter of zeros is 0 / 0.
    """

    rows: Axis | None
    columns: Axis | None
    keeps_values: bool = False

    @property
    def narrows(self) -> bool:
        """Whether the tensor becomes smaller."""
        return any(len(axis.removed) for _, axis in self._axes)

    @property
    def holds(self) -> bool:
        """Whether entries stay as zeros."""
        return any(len(axis.held) for _, axis in self._axes)

    def to(self, device: torch.device) -> Part:
        """The same part with its positions on ``device``."""
        rows, columns = (None if axis is None else axis.to(device) for axis in (self.rows, self.columns))
        return self if rows is self.rows and columns is self.columns else replace(self, rows=rows, columns=columns)

    @torch.no_grad()
    def take(self, tensor: Tensor) -> tuple[Tensor, Stored]:
        """The tensor without the part, and what was there.

        Where nothing is removed it is ``tensor`` itself, with zeros in place; else a new one in the same memory format.
        """
        axes, rest = self._axes_of(tensor), tensor.detach()
        removed, held = [], []
        for dim, axis in axes:
            if len(axis.removed):
                removed.append(rest.index_select(dim, axis.removed))
                rest = rest.index_select(dim, axis.kept)
        rest = rest if not removed else in_layout_of(tensor, rest)
        for dim, axis in axes:
            if len(axis.held):
                held.append(rest.index_select(dim, axis.held))
        stored = Stored(tuple(removed), tuple(held), tensor.stride())
        return rest if self.keeps_values else self.hold(rest), stored

    def without(self, tensor: Tensor) -> Tensor:
        """The same, for what need not be kept: a gradient, whose held entries are zeros always."""
        rest = tensor.detach()
        for dim, axis in self._axes_of(tensor):
            if len(axis.removed):
                rest = rest.index_select(dim, axis.kept)
        return self.hold(in_layout_of(tensor, rest) if self.narrows else rest)

    @torch.no_grad()
    def hold(self, tensor: Tensor) -> Tensor:
        """Zeros where entries are held, in place; ``tensor`` is without the removed ones."""
        for dim, axis in self._axes_of(tensor):
            if len(axis.held):
                tensor.index_fill_(dim, axis.held, 0)
        return tensor

    @torch.no_grad()
    def put(self, rest: Tensor, contents: Contents) -> Tensor:
        """The full tensor: ``rest`` and what belongs into the part.

        Held entries are written into ``rest`` itself; where nothing was removed, that is what is returned. What was
        stored takes the device and type of ``rest``: the model may have been moved or cast since.
        """
        rest, axes = rest.detach(), self._axes_of(rest)
        stored = contents if isinstance(contents, Stored) else None
        held = list(stored.held) if stored else []
        for dim, axis in axes:
            if len(axis.held):
                _write(rest, dim, axis.held, held.pop(0) if stored else contents)
        removed = list(stored.removed) if stored else []
        for dim, axis in reversed(axes):
            if len(axis.removed):
                shape = list(rest.shape)
                shape[dim] = len(axis)
                if stored and len(removed) == 1:  # the last one: as it lay before, also where a size of 1 hides it
                    whole = rest.new_empty_strided(shape, stored.strides)
                else:
                    whole = torch.empty_permuted(shape, layout(rest), dtype=rest.dtype, device=rest.device)
                whole.index_copy_(dim, axis.kept, rest)
                _write(whole, dim, axis.removed, removed.pop() if stored else contents)
                rest = whole
        return rest

    def completed(self, rest: Tensor, contents: Contents) -> Tensor:
        """The same as a tensor of its own; ``rest`` stays as it is."""
        return self.put(rest.detach().clone() if self.holds else rest, contents)

    def _axes_of(self, tensor: Tensor) -> list[tuple[int, Axis]]:
        """With their positions where the tensor is: a model may be moved, and its optimizer's state live elsewhere."""
        return self.to(tensor.device)._axes

    @property
    def _axes(self) -> list[tuple[int, Axis]]:
        return [(dim, axis) for dim, axis in enumerate((self.rows, self.columns)) if axis is not None]


def layout(tensor: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest in memory: channels_last is [0, 2, 3, 1]."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda dim: -strides[dim])


def in_layout_of(model: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` with its dimensions in the memory order of ``model``."""
    order = layout(model)
    if order == list(range(tensor.ndim)):
        return tensor
    laid_out = torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype, device=tensor.device)
    return laid_out.copy_(tensor)


def _write(tensor: Tensor, dim: int, positions: Tensor, values: Contents | Tensor) -> None:
    if isinstance(values, Tensor):
        tensor.index_copy_(dim, positions, values.to(tensor))
    else:
        tensor.index_fill_(dim, positions, values)  # type: ignore[arg-type]
