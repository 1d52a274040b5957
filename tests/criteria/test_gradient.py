from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

import torchreaper as tr
from tests.criteria.bruteforce import BATCHES, MAPS, built, mean_loss


def gradient_lengths(model, layer):
    """By a copy, its own backward on all samples at once, filter by filter."""
    copy = deepcopy(model).eval()
    mean_loss(copy).backward()
    return torch.stack([row.square().sum().sqrt() for row in copy.get_submodule(layer.name).weight.grad])


@pytest.mark.parametrize("net", list(MAPS))
def test_gradient_is_the_length_of_the_weights_gradient(net):
    model, bank = built(net)
    scores = tr.criteria.Gradient(BATCHES, normalise=False).scores(bank)
    for layer in bank.ranked:
        torch.testing.assert_close(scores[layer.name], -gradient_lengths(model, layer), rtol=1e-10, atol=1e-12)


def taylor(model, net, layer):
    """Sample by sample: the map, its slope, the mean of their product over positions, its absolute value."""
    place, _ = MAPS[net][layer.name]
    total, samples = torch.zeros(layer.filters, dtype=torch.float64), 0
    for images, labels in BATCHES:
        for image, label in zip(images, labels):
            copy, seen = deepcopy(model).eval(), []

            def hook(module, inputs, output, seen=seen):
                seen.append(output)
                output.retain_grad()

            copy.get_submodule(place).register_forward_hook(hook)
            F.cross_entropy(copy(image[None]), label[None]).backward()
            product = (seen[0] * seen[0].grad).detach()[0].flatten(1)
            total += product.mean(1).abs()
            samples += 1
    return total / samples


@pytest.mark.parametrize("net", list(MAPS))
def test_taylor_is_map_times_slope(net):
    model, bank = built(net)
    scores = tr.criteria.Taylor(BATCHES, normalise=False).scores(bank)
    for layer in bank.ranked:
        torch.testing.assert_close(scores[layer.name], -taylor(model, net, layer), rtol=1e-9, atol=1e-13)


def test_taylor_is_the_same_on_both_sides_of_a_relu():
    """Molchanov's feature maps are behind the ReLU."""
    model, bank = built("plain")
    before = tr.criteria.Taylor(BATCHES, normalise=False).scores(bank)["2"]
    images, labels = BATCHES[0]
    only = tr.criteria.Taylor([BATCHES[0]], normalise=False).scores(bank)["2"]
    maps = model[:4](images).detach().requires_grad_()
    slopes = torch.autograd.grad(F.cross_entropy(model[4:](maps), labels, reduction="sum"), maps)[0]
    behind = (maps * slopes).flatten(2).mean(2).abs().mean(0).detach()
    torch.testing.assert_close(-only, behind, rtol=1e-10, atol=1e-14)
    assert before.shape == only.shape


def test_taylor_foretells_a_small_change():
    """Scaling a filter's map by 1 - e changes the loss by e times the signed sum that Taylor averages."""
    model, bank = built("plain-norm")
    images, labels = BATCHES[0]
    one = [(images[:1], labels[:1])]
    score = tr.criteria.Taylor(one, normalise=False).scores(bank)["3"]
    model.eval()
    for index in range(6):
        losses = []
        for factor in (1.0, 1.0 - 1e-6):
            scale = torch.ones(6, 1, 1, dtype=torch.float64)
            scale[index] = factor
            handle = model[4].register_forward_hook(lambda m, i, o, scale=scale: o * scale)
            losses.append(F.cross_entropy(model(images[:1]), labels[:1]).item())
            handle.remove()
        positions = 64
        assert abs(losses[0] - losses[1]) / 1e-6 / positions == pytest.approx(-float(score[index]), rel=1e-4, abs=1e-8)


def test_frozen_layers_before_do_not_matter_to_taylor():
    model, bank = built("plain-norm")
    expected = tr.criteria.Taylor(BATCHES).scores(bank)
    for parameter in model[:6].parameters():
        parameter.requires_grad_(False)
    frozen = tr.find_filters(model, BATCHES[0][0], skip=None)
    assert [layer.name for layer in frozen.ranked] == ["6"]
    torch.testing.assert_close(tr.criteria.Taylor(BATCHES).scores(frozen)["6"], expected["6"])
    assert torch.isfinite(tr.criteria.Gradient(BATCHES).scores(frozen)["6"]).all()
    assert torch.isfinite(tr.criteria.Hessian(BATCHES).scores(frozen)["6"]).all()


@pytest.mark.parametrize("name", ["gradient", "hessian", "taylor", "oracle-loss"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_computed_weights_are_ranked_by_what_they_are_computed_from(name):
    model, _ = built("plain-norm")
    torch.nn.utils.parametrizations.weight_norm(model[3])
    bank = tr.find_filters(model, BATCHES[0][0])
    scores = tr.criteria.make(name, BATCHES).scores(bank)["3"]
    assert scores.shape == (6,)
    assert torch.isfinite(scores).all()
    assert scores.unique().numel() > 3
