from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchreaper.subnetwork.parts import Axis, Part


@st.composite
def axes(draw, size: int) -> Axis | None:
    """What happens to one dimension; one entry at least is kept."""
    fates = draw(st.lists(st.sampled_from(["kept", "removed", "held"]), min_size=size, max_size=size))
    if all(fate == "removed" for fate in fates):
        fates[0] = "kept"
    removed = torch.tensor([fate == "removed" for fate in fates])
    held = torch.tensor([fate == "held" for fate in fates])[~removed]
    axis = Axis(removed.nonzero().flatten(), (~removed).nonzero().flatten(), held.nonzero().flatten())
    return axis or None


@st.composite
def tensors_and_parts(draw) -> tuple[Tensor, Part]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = (rows, columns, *draw(st.sampled_from([(), (2,), (2, 3), (1, 1)])))
    tensor = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    if draw(st.booleans()) and tensor.ndim == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor, Part(draw(axes(rows)), draw(axes(columns)))


def missing(tensor: Tensor, part: Part, fate: str) -> Tensor:
    """Where the full tensor has removed, or held, entries: told one by one."""
    found = torch.zeros(tensor.shape, dtype=torch.bool)
    for dim, axis in enumerate((part.rows, part.columns)):
        for position in [] if axis is None else axis.removed if fate == "removed" else axis.kept[axis.held]:
            found.select(dim, int(position))[...] = True
    return found


@given(tensors_and_parts())
def test_take_and_put_are_inverse(given_):
    tensor, part = given_
    before, strides = tensor.clone(), tensor.stride()
    rest, stored = part.take(tensor)
    removed, held = missing(before, part, "removed"), missing(before, part, "held")
    assert part.narrows == bool(removed.any())
    assert part.holds == bool((held & ~removed).any() or (held.any() and not part.narrows))
    assert rest.numel() == (~removed).sum()
    assert rest.sum() == before[~removed & ~held].sum(), "zeros where entries are held, all others as they were"
    assert (rest.data_ptr() == tensor.data_ptr()) != part.narrows, "in place where nothing is removed"
    taken = sum(t.numel() for t in stored.removed)
    assert taken == removed.sum(), "only what is left out is stored"
    whole = part.put(rest, stored)
    assert torch.equal(whole, before)
    assert whole.stride() == strides


@given(tensors_and_parts())
def test_putting_a_number(given_):
    tensor, part = given_
    gone = missing(tensor, part, "removed") | missing(tensor, part, "held")
    expected = torch.where(gone, torch.tensor(7.0), tensor)
    rest, _ = part.take(tensor.clone())
    assert torch.equal(part.put(rest, 7.0), expected)


@given(tensors_and_parts())
def test_a_gradient_goes_along(given_):
    tensor, part = given_
    rest, _ = part.take(tensor.clone())
    assert torch.equal(part.without(tensor.clone()), rest)


@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (4, 4, 1, 1), (4, 1, 3, 3), (4, 4, 2, 3, 3)])
@pytest.mark.parametrize("last", [False, True])
def test_the_memory_format_is_kept(shape, last):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if last:
        tensor = tensor.to(memory_format=formats[len(shape)])
    axis = Axis(torch.tensor([1]), torch.tensor([0, 2, 3]), torch.tensor([], dtype=torch.int64))
    part = Part(axis, axis if shape[1] > 1 else None)
    strides = tensor.stride()
    rest, stored = part.take(tensor)
    assert rest.is_contiguous(memory_format=formats[len(shape)] if last else torch.contiguous_format)
    assert part.put(rest, stored).stride() == strides


def test_held_values_can_stay():
    """For a weight that is computed from this one: the direction of a filter of zeros is 0 / 0."""
    none = torch.tensor([], dtype=torch.int64)
    part = Part(Axis(none, torch.arange(3), torch.tensor([1])), None, keeps_values=True)
    tensor = torch.arange(1.0, 7).view(3, 2)
    rest, stored = part.take(tensor)
    assert torch.equal(rest, torch.arange(1.0, 7).view(3, 2))
    rest.mul_(2)
    assert torch.equal(part.put(rest, stored)[1], torch.tensor([3.0, 4.0]))
