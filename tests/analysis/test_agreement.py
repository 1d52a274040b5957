from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import torchreaper as tr
from torchreaper.analysis import agreement, by_layer
from torchreaper.criteria import select

# Multiples of 1/8: scores closer than 1e-9 of the largest would be ties to us and none to scipy.
eighths = st.integers(-400, 400).map(lambda k: k / 8)
few = st.integers(0, 3).map(float)


@st.composite
def two_sides(draw):
    """Scores and truth of up to four layers, with and without ties."""
    values = draw(st.sampled_from([eighths, few]))
    sizes = draw(st.lists(st.integers(1, 10), min_size=1, max_size=4))

    def side():
        return {
            f"layer{k}": torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64)
            for k, n in enumerate(sizes)
        }

    return side(), side()


def flat(side):
    return np.concatenate([v.numpy() for v in side.values()])


def positions(values):
    """Place of each filter in the global ranking: worst first, ties in order."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return np.argsort(order)


@given(two_sides())
def test_against_scipy(sides):
    a, b = map(flat, sides)
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    found = agreement(*sides)
    assert found.filters == len(a)
    assert found.pearson == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert found.spearman == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
    ranked = stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic
    assert found.spearman == pytest.approx(ranked, abs=1e-9)
    assert found.pearson_ranks == pytest.approx(stats.pearsonr(positions(a), positions(b)).statistic, abs=1e-9)
    ordinal = [stats.rankdata(-v, method="ordinal") for v in (a, b)]
    assert found.pearson_ranks == pytest.approx(stats.pearsonr(*ordinal).statistic, abs=1e-9)


@given(two_sides())
def test_it_is_symmetric_and_bounded(sides):
    scores, truth = sides
    found, back = agreement(scores, truth), agreement(truth, scores)
    for name in ("pearson", "pearson_ranks", "spearman"):
        assert getattr(found, name) == pytest.approx(getattr(back, name), abs=1e-12, nan_ok=True)
        assert -1 <= getattr(found, name) <= 1 or any(len(set(flat(side))) == 1 for side in sides)


@given(two_sides(), st.floats(1e-100, 1e100), st.sampled_from([1.0, -1.0]))
def test_scale_does_not_matter_and_the_sign_turns(sides, scale, sign):
    scores, truth = sides
    found, scaled = agreement(scores, truth), agreement({k: v * scale * sign for k, v in scores.items()}, truth)
    assert scaled.pearson == pytest.approx(sign * found.pearson, abs=1e-9, nan_ok=True)
    assert scaled.spearman == pytest.approx(sign * found.spearman, abs=1e-9, nan_ok=True)
    if sign > 0:
        assert scaled.pearson_ranks == pytest.approx(found.pearson_ranks, abs=1e-9, nan_ok=True)


@given(two_sides(), st.integers(0, 1000))
def test_rounding_errors_do_not_decide(sides, seed):
    """Ranks stay as they are when scores move by less than the ranking can see."""
    scores, truth = sides
    generator = torch.Generator().manual_seed(seed)
    largest = max(float(v.abs().max()) for v in scores.values())
    moved = {
        k: v + 1e-12 * largest * torch.randn(v.shape, generator=generator, dtype=torch.float64)
        for k, v in scores.items()
    }
    found, again = agreement(scores, truth), agreement(moved, truth)
    assert found.pearson_ranks == pytest.approx(again.pearson_ranks, abs=0, nan_ok=True)
    assert found.spearman == pytest.approx(again.spearman, abs=0, nan_ok=True)


@given(two_sides())
def test_ranks_are_those_of_the_selection(sides):
    """Dropping one more filter at a time visits the filters in the order that the ranks tell."""
    scores, _ = sides
    filters = sum(map(len, scores.values()))
    assume(filters > 1)
    starts = np.cumsum([0, *map(len, scores.values())])
    places = np.full(filters, filters - 1)
    before: set[int] = set()
    for count in range(1, filters):
        dropped, _ = select(scores, (count + 0.5) / filters, min_filters=0)
        now = {int(starts[list(scores).index(name)]) + i for name, indices in dropped.items() for i in indices}
        (new,) = now - before
        places[new], before = count - 1, now
    ideal = {name: torch.tensor(-places[start : start + len(v)]) for start, (name, v) in zip(starts, scores.items())}
    found = agreement(scores, ideal)
    assert found.pearson_ranks == pytest.approx(1.0 if len(set(flat(scores))) > 1 else nan, nan_ok=True)


def test_ties_go_in_order_of_layer_then_index():
    scores = {"b": torch.tensor([1.0, 1.0]), "a": torch.tensor([1.0, 0.0])}
    truth = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([4.0, 3.0])}
    assert agreement(scores, truth).pearson_ranks == pytest.approx(1.0)
    assert agreement(scores, truth).spearman < 0.9


@pytest.mark.parametrize("value", [0.0, 0.1, -1e200, 3.0])
def test_a_side_that_ranks_nothing_has_no_correlation(value):
    constant = {"a": torch.full((7,), value, dtype=torch.float64)}
    nearly = {"a": constant["a"] * (1 + 1e-13 * torch.arange(7))}
    other = {"a": torch.arange(7.0)}
    for side in (constant, nearly):
        for found in (agreement(side, other), agreement(other, side)):
            assert found.filters == 7
            assert all(isnan(value) for value in (found.pearson, found.pearson_ranks, found.spearman))


def test_one_filter_ranks_nothing():
    assert isnan(agreement({"a": torch.ones(1)}, {"a": torch.ones(1)}).spearman)


@given(two_sides())
def test_by_layer_is_each_layer_alone(sides):
    scores, truth = sides
    found = by_layer(scores, truth)
    assert list(found) == list(scores)
    for name in scores:
        assert found[name] == agreement({name: scores[name]}, {name: truth[name]})


def test_types_do_not_matter():
    scores, truth = {"a": torch.tensor([1, 5, 2])}, {"a": torch.tensor([0.5, 2.0, 1.0], requires_grad=True)}
    assert agreement(scores, truth).spearman == pytest.approx(1.0)


@pytest.mark.parametrize("function", [agreement, by_layer])
def test_other_layers_are_named(function):
    one, two = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(2)}
    with pytest.raises(tr.ReaperError, match="truth: no layer 'b', 'c'; both sides must hold the same"):
        function(one, two)
    with pytest.raises(tr.ReaperError, match="scores: no layer 'b', 'c'"):
        function(two, one)


@pytest.mark.parametrize("function", [agreement, by_layer])
def test_other_shapes_are_named(function):
    with pytest.raises(tr.ReaperError, match="layer 'a': 2 filters in scores, 3 in truth; must be as many"):
        function({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(tr.ReaperError, match=r"truth of layer 'a': shape \[2, 1\]; must be \[filters\]"):
        function({"a": torch.ones(2)}, {"a": torch.ones(2, 1)})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(wrong):
    good, bad = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.tensor([0.0, wrong])}
    with pytest.raises(tr.ReaperError, match="scores of layer 'b': not finite"):
        agreement(bad, good)
    with pytest.raises(tr.ReaperError, match="truth of layer 'b': not finite"):
        agreement(good, bad)


def test_no_layer():
    with pytest.raises(tr.ReaperError, match=r"scores=\{\}: no layer"):
        agreement({}, {})
