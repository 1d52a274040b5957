from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchreaper as tr
from torchreaper.analysis import Distribution, distributions

losses = st.lists(st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 0.5, -0.5])), min_size=1, max_size=40)


@given(st.lists(losses, min_size=1, max_size=4))
def test_against_numpy(layers):
    lost = {f"layer{k}": torch.tensor(v, dtype=torch.float64) for k, v in enumerate(layers)}
    found = distributions(lost)
    assert [d.layer for d in found] == list(lost)
    for d, values in zip(found, layers):
        assert d.filters == len(values)
        assert d.mean == pytest.approx(np.mean(values), abs=1e-9)
        expected = np.quantile(values, [0.05, 0.5, 0.95])
        assert (d.low, d.median, d.high) == pytest.approx(tuple(expected), abs=1e-9)
        assert (d.least, d.most) == (min(values), max(values))
        assert d.least <= d.low <= d.median <= d.high <= d.most
        assert d.harmless == sum(v <= 0 for v in values) / len(values)


def test_one_layer():
    """21 filters: each quantile is a filter's own value."""
    lost = {"conv": torch.arange(-4.0, 17.0).flip(0)}
    assert distributions(lost) == [
        Distribution("conv", 21, mean=6.0, median=6.0, low=-3.0, high=15.0, least=-4.0, most=16.0, harmless=5 / 21)
    ]


def test_integers_are_numbers_too():
    """A count of images instead of a share."""
    assert distributions({"conv": torch.tensor([3, -1])})[0].mean == 1.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(wrong):
    with pytest.raises(tr.ReaperError, match="lost of layer 'b': not finite; look for weights that are not"):
        distributions({"a": torch.zeros(2), "b": torch.tensor([0.0, wrong])})


@pytest.mark.parametrize("shape", [(0,), (2, 2), ()])
def test_one_value_per_filter(shape):
    with pytest.raises(tr.ReaperError, match=r"lost of layer 'a': shape \[.*\]; must be \[filters\]"):
        distributions({"a": torch.zeros(shape)})


def test_no_layer():
    with pytest.raises(tr.ReaperError, match=r"lost=\{\}: no layer"):
        distributions({})
