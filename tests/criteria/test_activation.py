from __future__ import annotations

import pytest
import torch

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, MAPS, all_maps, built


@pytest.mark.parametrize("net", list(MAPS))
def test_mean_activation_is_the_mean_of_what_leaves_the_activation(net):
    model, bank = built(net)
    scores = tr.criteria.MeanActivation(BATCHES, normalise=False).scores(bank)
    for layer in bank.ranked:
        expected = -all_maps(model, net, layer.name).abs().mean((0, 2))
        torch.testing.assert_close(scores[layer.name], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("net", list(MAPS))
def test_apoz_is_the_share_of_zeros(net):
    model, bank = built(net)
    scores = tr.criteria.APoZ(BATCHES).scores(bank)
    for layer in bank.ranked:
        maps = all_maps(model, net, layer.name, active=False)
        torch.testing.assert_close(scores[layer.name], (maps.relu() == 0).double().mean((0, 2)), rtol=0, atol=1e-15)


def test_normalised_layers_have_length_one():
    _, bank = built("plain-norm")
    raw = tr.criteria.MeanActivation(BATCHES, normalise=False).scores(bank)
    scaled = tr.criteria.MeanActivation(BATCHES).scores(bank)
    for name, values in scaled.items():
        torch.testing.assert_close(values, raw[name] / raw[name].norm())


def test_a_silent_layer_scores_zero_and_stays_finite():
    model, bank = built("plain")
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    assert not tr.criteria.MeanActivation(BATCHES).scores(bank)["2"].any()
    assert (tr.criteria.APoZ(BATCHES).scores(bank)["2"] == 1).all()


@pytest.mark.parametrize("name", ["mean-activation", "taylor", "activation-correlation"])
def test_an_activation_that_works_in_place_changes_nothing(name):
    model, bank = built("plain-norm")
    expected = tr.criteria.make(name, BATCHES).scores(bank)
    for module in model:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    found = tr.criteria.make(name, BATCHES).scores(tr.find_filters(model, BATCHES[0][0], skip=None))
    for layer, values in expected.items():
        assert torch.equal(found[layer], values)
