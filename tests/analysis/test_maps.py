from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, MAPS, all_maps, built
from torchreaper.analysis import feature_maps


@pytest.mark.parametrize("net", ["plain", "plain-norm", "residual", "conv1d"])
def test_maps_are_what_the_activation_hands_on(net):
    model, bank = built(net)
    found = feature_maps(bank, BATCHES, grid=64)
    assert list(found) == [layer.name for layer in bank.ranked] == list(MAPS[net])
    for layer, maps in found.items():
        torch.testing.assert_close(maps, all_maps(model, net, layer), rtol=1e-12, atol=1e-12)


def test_a_coarse_grid_holds_means():
    model, bank = built("plain-norm")
    found = feature_maps(bank, BATCHES, ["3"], grid=2)
    whole = all_maps(model, "plain-norm", "3").view(10, 6, 8, 8)
    torch.testing.assert_close(found["3"], F.avg_pool2d(whole, 4).flatten(2))
    assert feature_maps(bank, BATCHES, ["3"], max_batches=1)["3"].shape == (6, 6, 16)


def test_half_precision_comes_as_single():
    model, _ = built("residual")
    bank = tr.find_filters(model.to(torch.bfloat16), BATCHES[0][0].to(torch.bfloat16))
    assert feature_maps(bank, BATCHES)["block2.conv1"].dtype == torch.float32


def test_wrong_arguments():
    _, bank = built("plain")
    with pytest.raises(tr.ReaperError, match="layer='conv9': no such layer; the layers are 0, 2, 4"):
        feature_maps(bank, BATCHES, ["conv9"])
    with pytest.raises(tr.ReaperError, match="grid=0: must be a whole number of at least 1"):
        feature_maps(bank, BATCHES, grid=0)
    with pytest.raises(tr.ReaperError, match="batches: there are none"):
        feature_maps(bank, [])
    with bank.without({"2": [0]}):
        with pytest.raises(tr.ReaperError, match="feature_maps: filters are dropped; restore them before"):
            feature_maps(bank, BATCHES)
