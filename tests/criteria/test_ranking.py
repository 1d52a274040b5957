from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchreaper as tr
from torchreaper.criteria.ranking import capacity, quota, select

scores_of_layers = st.lists(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1.0, float("-inf")])), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
).map(lambda layers: {f"layer{k}": torch.tensor(v, dtype=torch.float64) for k, v in enumerate(layers)})


@given(scores_of_layers, st.floats(0.01, 0.99), st.integers(1, 4), st.floats(0.1, 1.0))
def test_selection(scores, fraction, min_filters, max_per_layer):
    """The definition, filter by filter: walk down the global ranking, pass over layers at their limit."""
    dropped, _ = select(scores, fraction, min_filters=min_filters, max_per_layer=max_per_layer)
    everyone = [(name, i, float(v)) for name, layer in scores.items() for i, v in enumerate(layer)]
    finite = [abs(v) for _, _, v in everyone if v != float("-inf")]
    unit = 1e-9 * max(finite, default=0)
    order = sorted(everyone, key=lambda f: -(round(f[2] / unit) if unit and abs(f[2]) != float("inf") else f[2]))
    left = quota(fraction, len(everyone))
    expected: dict[str, list[int]] = {}
    for name, i, _ in order:
        room = capacity(len(scores[name]), min_filters, max_per_layer) - len(expected.get(name, []))
        if left and room > 0:
            expected.setdefault(name, []).append(i)
            left -= 1
    assert dropped == {name: tuple(sorted(expected[name])) for name in scores if name in expected}
    for name, indices in dropped.items():
        assert len(scores[name]) - len(indices) >= min_filters


@given(st.integers(1, 99), st.integers(1, 5000))
def test_quota_is_the_floor_of_the_decimal_fraction(percent, ranked):
    assert quota(percent / 100, ranked) == Fraction(percent, 100) * ranked // 1


thousandths = st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=12), min_size=1, max_size=5)


@given(thousandths, st.floats(1e-300, 1e3), st.integers(0, 99))
def test_rounding_errors_do_not_decide(layers, largest, seed):
    """Not even where equal scores have errors of their own."""
    draw = torch.Generator().manual_seed(seed)
    rounded = {f"layer{k}": torch.tensor(v, dtype=torch.float64) / 1000 * largest for k, v in enumerate(layers)}
    disturbed = {
        k: v * (1 + 1e-13 * torch.randn(v.shape, generator=draw, dtype=torch.float64)) for k, v in rounded.items()
    }
    assert select(rounded, 0.4) == select(disturbed, 0.4)


def test_ties_go_to_the_lower_layer_then_the_lower_index():
    scores = {"b": torch.ones(3), "a": torch.ones(3)}
    assert select(scores, 0.5)[0] == {"b": (0, 1), "a": (0,)}


def test_limits_are_noted():
    scores = {"one": torch.tensor([9.0, 8.0, 7.0]), "two": torch.tensor([1.0, 2.0, 3.0])}
    dropped, notes = select(scores, 0.5, min_filters=2)
    assert dropped == {"one": (0,), "two": (2,)}
    assert notes == [
        "one: 2 more ranked as worst, held back by min_filters=2, max_per_layer=1.0",
        "2 filters dropped instead of 3: every layer is at its limit",
    ]


def test_nan_is_an_error_with_the_layer():
    with pytest.raises(tr.ReaperError, match="scores of layer 'two': NaN"):
        select({"one": torch.zeros(2), "two": torch.tensor([0.0, float("nan")])}, 0.5)


def test_ties_at_the_cut_are_told():
    """Then it was not the criterion that chose."""
    scores = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.zeros(3)}
    dropped, notes = select(scores, 0.5, min_filters=0)
    assert dropped == {"a": (0, 1, 2)}
    told = "2 of 3 dropped filters score the same as 3 that stay: among equals the lower layer goes first"
    assert notes == [f"{told}, then the lower index"]
    assert select({"a": torch.tensor([3.0, 2.0, 1.0])}, 0.5)[1] == []
    assert select({"a": torch.tensor([2.0, 2.0, 1.0, 1.0])}, 0.5)[1] == []
