from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs
from torchreaper.analysis import LayerOverlap, layer_overlaps, network_overlap, present_overlap, spread_of_mean
from torchreaper.geometry import expected_cosine


class Mixed(nn.Module):
    """Dense, grouped, depthwise, transposed with groups, spectral norm, one filter; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.transposed = nn.ConvTranspose2d(12, 6, 3, padding=1, groups=3)
        self.coupled = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 5, 1))
        self.last = nn.Conv2d(5, 1, 1)

    def forward(self, x):
        for layer in self.children():
            x = layer(x).relu()
        return x.flatten(1)


@pytest.fixture
def mixed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tr.find_filters(Mixed(), inputs()[0])


def test_every_layer_is_measured_in_order(mixed):
    found = layer_overlaps(mixed)
    assert [o.layer for o in found] == ["dense", "grouped", "depthwise", "transposed", "coupled", "last"]
    for o, layer in zip(found, mixed.layers):
        assert (o.filters, o.dims, o.groups, o.ranked) == (layer.filters, layer.dims, layer.groups, layer.ranked)
        assert o.overlap.shape == (layer.filters,)
        assert o.overlap.dtype == torch.float64
        assert o.mean == pytest.approx(o.total / o.filters)
        assert o.expected_total == pytest.approx(o.filters * o.expected)


def test_overlap_is_the_papers_inside_each_group(mixed):
    for o, layer in zip(layer_overlaps(mixed), mixed.layers):
        weight = layer.module.eval().weight.detach().double()
        if layer.name == "transposed":  # input channels first, and filters counted inside a group
            blocks = [w.transpose(0, 1).flatten(1) for w in weight.chunk(layer.groups)]
        else:
            blocks = weight.flatten(1).chunk(layer.groups)
        expected = []
        for block in blocks:
            unit = block / block.norm(dim=1, keepdim=True)
            expected.append(((unit @ unit.T).abs().sum(1) - 1) / len(unit))
        torch.testing.assert_close(o.overlap, torch.cat(expected), rtol=0, atol=1e-12)
        assert o.expected == pytest.approx((1 - layer.groups / layer.filters) * expected_cosine(layer.dims))


def test_one_filter_per_group_has_no_overlap(mixed):
    for o in layer_overlaps(mixed):
        if o.layer in ("depthwise", "last"):
            assert (o.mean, o.total, o.expected, o.spread, o.ratio, o.sigmas) == (0, 0, 0, 0, 1, 0)


def test_the_model_does_not_change(mixed):
    model = mixed.model.train()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    layer_overlaps(mixed)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(module.training for module in model.modules())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_filter_of_zero_length_has_overlap_zero(mixed):
    weight = mixed["dense"].module.weight.data
    weight[2] = 0
    weight[5] = weight[6] * 3
    found = layer_overlaps(mixed)[0].overlap
    assert torch.isfinite(found).all()
    assert found[2] == 0
    assert found[5] >= 1 / 8


def test_copies_and_orthogonal_filters_are_far_from_random(mixed):
    weight = mixed["dense"].module.weight.data
    nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(0))
    apart = layer_overlaps(mixed)[0]
    assert apart.mean == pytest.approx(0, abs=1e-6)
    assert apart.sigmas == pytest.approx(-apart.expected / apart.spread, rel=1e-4)
    weight[:] = weight[:1].clone()
    assert layer_overlaps(mixed)[0].mean == pytest.approx(7 / 8)
    assert layer_overlaps(mixed)[0].sigmas > 10


@pytest.mark.parametrize(("filters", "dims", "groups"), [(6, 5, 1), (32, 27, 1), (2, 3, 1), (12, 4, 3), (16, 2, 1)])
def test_spread_is_that_of_random_directions(filters, dims, groups):
    """4000 layers of random directions: mean and standard deviation of their mean O_f."""
    generator = torch.Generator().manual_seed(filters)
    unit = torch.randn(4000, groups, filters // groups, dims, generator=generator, dtype=torch.float64)
    unit /= unit.norm(dim=-1, keepdim=True)
    cosines = (unit @ unit.transpose(-1, -2)).abs()
    inside = filters // groups
    means = (cosines.sum((1, 2, 3)) - filters) / inside / filters
    spread = spread_of_mean(filters, dims, groups)
    assert means.std().item() == pytest.approx(spread, rel=0.05)
    expected = (inside - 1) / inside * expected_cosine(dims)
    assert means.mean().item() == pytest.approx(expected, abs=4 * spread / 4000**0.5)


def test_cosines_of_pairs_that_share_a_filter_are_uncorrelated():
    generator = torch.Generator().manual_seed(1)
    unit = torch.randn(100_000, 3, 3, generator=generator, dtype=torch.float64)
    unit /= unit.norm(dim=-1, keepdim=True)
    first, second = (unit[:, 0] * unit[:, 1]).sum(1).abs(), (unit[:, 0] * unit[:, 2]).sum(1).abs()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.015


def test_where_random_directions_do_not_vary_there_is_no_sigma():
    assert spread_of_mean(16, 1) == 0
    assert spread_of_mean(1, 9) == 0
    assert spread_of_mean(8, 9, 8) == 0


@given(st.integers(2, 64), st.integers(2, 10_000), st.integers(1, 4))
def test_more_filters_dimensions_and_groups_vary_less(filters, dims, groups):
    spread = spread_of_mean(filters * groups, dims, groups)
    assert spread > 0
    assert spread_of_mean(filters * groups, dims + 1, groups) < spread
    assert spread_of_mean(filters * groups * 2, dims, groups * 2) < spread
    if filters > 2:
        assert spread_of_mean((filters + 1) * groups, dims, groups) < spread


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_random_weights_lie_near_one(seed):
    bank = tr.find_filters(build("residual", seed=seed)[0], inputs()[0])
    for module in bank.model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(seed))
    assert all(abs(o.sigmas) < 6 for o in layer_overlaps(bank))


def test_network_overlap_adds_up(mixed):
    found = layer_overlaps(mixed)
    total, expected = network_overlap(found)
    assert total == pytest.approx(sum(float(o.overlap.sum()) for o in found))
    assert expected == pytest.approx(sum(o.filters * o.expected for o in found))
    ranked = [o for o in found if o.ranked]
    assert 0 < len(ranked) < len(found)
    assert network_overlap(found, ranked_only=True) == network_overlap(ranked)
    assert network_overlap([]) == (0.0, 0.0)


def test_ratio():
    o = LayerOverlap("a", 2, 3, 1, True, torch.tensor([0.3, 0.5], dtype=torch.float64), 0.2, 0.1)
    assert o.ratio == pytest.approx(2)
    assert o.sigmas == pytest.approx(2)


def test_dropped_filters_are_an_error():
    bank = tr.find_filters(build("residual")[0], inputs()[0])
    with bank.without({"block1.conv1": [1]}):
        with pytest.raises(tr.ReaperError, match=r"overlap: filters are dropped, .*; restore them before"):
            layer_overlaps(bank)
    assert layer_overlaps(bank)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_with_the_layer(mixed, wrong):
    mixed["grouped"].module.weight.data[1, 0, 0, 0] = wrong
    with pytest.raises(tr.ReaperError, match="overlap: the weights of layer 'grouped' are not finite"):
        layer_overlaps(mixed)


@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_present_overlap_is_of_the_filters_that_are_there(mode):
    """The second layer loses two filters; the third then reads two channels less, zeros say as much as nothing."""
    model, _ = build("plain")
    bank = tr.find_filters(model, inputs()[0], skip=None)
    first, second, third = (layer.rows.clone() for layer in bank.ranked)
    assert present_overlap(bank) == pytest.approx(mean_overlap(first, second, third), abs=1e-12)
    third.view(5, 6, 9)[:, [0, 2]] = 0
    with bank.without({bank.ranked[1].name: [0, 2]}, mode=mode):
        found = present_overlap(bank)
    assert found == pytest.approx(mean_overlap(first, second[[1, 3, 4, 5]], third), abs=1e-12)


def mean_overlap(*layers) -> float:
    return float(torch.cat([tr.overlap(rows) for rows in layers]).mean())
