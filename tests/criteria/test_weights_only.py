"""The criteria that read no images: geometric median, scale of the norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, MAPS, built
from torchreaper.lab import models


@pytest.mark.parametrize("net", list(MAPS))
def test_geometric_median_is_the_mean_distance(net):
    _, bank = built(net)
    scores = tr.criteria.GeometricMedian().scores(bank)
    for layer in bank.ranked:
        rows = [row.tolist() for row in layer.rows]
        expected = [
            -sum(sum((a - b) ** 2 for a, b in zip(one, other)) ** 0.5 for other in rows) / len(rows) for one in rows
        ]
        torch.testing.assert_close(scores[layer.name], torch.tensor(expected, dtype=torch.float64))


def test_the_filter_in_the_middle_goes_first():
    _, bank = built("plain")
    layer = bank["2"]
    with torch.no_grad():
        layer.module.weight[4] = layer.module.weight[[0, 1, 2, 3, 5]].mean(0)
    assert tr.criteria.GeometricMedian().scores(bank)["2"].argmax() == 4


def test_near_filters_keep_their_distance():
    """A product of rows would lose it in the noise of their squares."""
    _, bank = built("plain")
    weight = bank["2"].module.weight
    with torch.no_grad():
        weight.copy_(weight[:1] + 1e-9 * torch.randn_like(weight))
    rows = weight.detach().flatten(1)
    expected = -torch.stack([(rows - row).norm(dim=1).mean() for row in rows])
    torch.testing.assert_close(tr.criteria.GeometricMedian().scores(bank)["2"], expected, rtol=1e-6, atol=0)


def test_groups_are_compared_inside():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 3)).double()
    bank = tr.find_filters(model, BATCHES[0][0])
    found = tr.criteria.GeometricMedian().scores(bank)["1"]
    first = model[1].weight.detach()[:3].flatten(1)
    torch.testing.assert_close(found[:3], -torch.cdist(first, first).mean(1))


def test_scale_is_the_norms_weight():
    model, bank = built("residual")
    scores = tr.criteria.BatchNormScale().scores(bank)
    for name, norm in {"block1.conv1": "block1.bn1", "block2.shortcut.0": "block2.shortcut.1"}.items():
        assert torch.equal(scores[name], -model.get_submodule(norm).weight.detach().abs())


def test_scale_is_the_mean_over_several_norms():
    model = models.build("densenet5", {}, in_channels=3, classes=10, image_size=(8, 8), generator_seed=0).double()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    with torch.no_grad():
        for norm in norms.values():
            norm.weight.uniform_(-1, 1)
    bank = tr.find_filters(model, BATCHES[0][0])
    scores = tr.criteria.BatchNormScale().scores(bank)
    for layer in bank.ranked:
        for k in range(layer.filters):
            entries = [
                norms[name].weight[position].abs().item()
                for name in norms
                for position, owner in enumerate(bank.flow.sites[name].origin.tolist())
                if owner == layer.start + k
            ]
            assert float(scores[layer.name][k]) == pytest.approx(-sum(entries) / len(entries), abs=1e-12)


def test_a_norm_that_sees_the_input_too():
    """Channels of no filter have entries in it."""

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 5, 3)
            self.norm, self.last = nn.BatchNorm2d(7), nn.BatchNorm2d(5)
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            x = self.second(self.norm(torch.cat([x, self.first(x)], 1)).relu())
            return self.fc(self.last(x).relu().mean((2, 3)))

    model = Growing().double()
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(7.0))
    scores = tr.criteria.BatchNormScale().scores(tr.find_filters(model, BATCHES[0][0], skip=None))
    assert scores["first"].tolist() == [-3, -4, -5, -6]


def test_many_filters_take_no_longer_than_their_products():
    """Block by block: the rows of a wide layer, duplicates among them."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 600, 3).double()
    with torch.no_grad():
        conv.weight[300:] = conv.weight[:300]
    model = nn.Sequential(nn.Conv2d(3, 4, 1).double(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(21600, 3).double())
    found = tr.criteria.GeometricMedian().scores(tr.find_filters(model, BATCHES[0][0]))["1"]
    rows = conv.weight.detach().flatten(1)
    exact = -torch.stack([(rows - row).norm(dim=1).mean() for row in rows])
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_a_layer_without_a_norm_is_named():
    _, bank = built("plain")
    with pytest.raises(
        tr.ReaperError, match="layer '0': has filters that no norm with a weight follows; name it in skip"
    ):
        tr.criteria.BatchNormScale().scores(bank)
