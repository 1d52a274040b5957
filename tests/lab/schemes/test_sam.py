"""Sharpness-aware minimisation: against two passes written out, with BatchNorm, and with weights that come back."""

import pytest
import torch
import torch.nn.functional as F
from tests.lab.schemes.setups import (
    attach,
    hooks_on,
    network,
    optimizer_of,
    same,
    setup,
    train_epoch,
    train_step,
    weights_of,
)
from torch import nn

from torchreaper.lab.schemes import Attached, parse
from torchreaper.lab.schemes.sam import SAMSpec, statistics_kept


def by_hand(model, optimizer, images, targets, rho):
    """One step of algorithm 1; running statistics are those of the first pass."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), targets).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    length = torch.cat([g.flatten() for g in gradients.values()]).norm()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += rho * gradients[name] / length
    optimizer.zero_grad()
    F.cross_entropy(model(images), targets).backward()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_is_that_of_two_passes_written_out(name):
    model, other = network(), network()
    on, optimizer = setup(model, optimizer_of(name, model)), optimizer_of(name, other)
    scheme = SAMSpec(rho=0.1).attach(on)
    for epoch in (1, 2):
        for images, targets in on.drawn(0, epoch):
            train_step(scheme, on, images, targets)
            by_hand(other, optimizer, images, targets, 0.1)
            for key, value in other.state_dict().items():
                torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-11)
    assert model[1].num_batches_tracked == 4
    assert model[1].momentum == 0.1
    scheme.close()
    assert hooks_on(model) == 0


def test_the_weights_come_back_bit_for_bit_and_the_gradient_is_another():
    model = network(torch.float32)
    scheme = attach(SAMSpec(), model)
    images, targets = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    at = []

    def backward():
        model.zero_grad()
        at.append(weights_of(model))
        F.cross_entropy(model(images), targets).backward()

    backward()
    first = model[0].weight.grad.clone()
    after_first = weights_of(model)  # its running statistics have moved
    scheme.gradients(backward)
    assert same(weights_of(model), after_first)
    assert not torch.equal(model[0].weight.grad, first)
    moved = sum((at[1][name] - at[0][name]).square().sum() for name, _ in model.named_parameters()).sqrt()
    assert moved.item() == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_do_not_count_a_second_pass(momentum):
    norms = nn.BatchNorm2d(3, momentum=momentum), nn.InstanceNorm2d(3, track_running_stats=True, momentum=0.2)
    model = nn.Sequential(*norms, nn.BatchNorm2d(3, track_running_stats=False)).train()
    model(torch.randn(4, 3, 5, 5))
    before = weights_of(model)
    with statistics_kept(model):
        model(torch.randn(4, 3, 5, 5))
    assert same(weights_of(model), before)
    assert [norm.momentum for norm in model] == [momentum, 0.2, 0.1]
    model(torch.randn(4, 3, 5, 5))
    assert not torch.equal(model.state_dict()["0.running_mean"], before["0.running_mean"])


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = weights_of(model)
    on = setup(model)
    train_epoch(SAMSpec().attach(on), on)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])


def test_a_tiny_climb_is_standard_training():
    found = []
    for make in (lambda on: Attached(), SAMSpec(rho=1e-9).attach):
        model = network()
        on = setup(model)
        train_epoch(make(on), on)
        found.append(weights_of(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-8)


def test_masked_and_compact_sub_networks_climb_alike():
    found = []
    for mode in ("masked", "compact"):
        model = network()
        on = setup(model)
        options = {"full": 1, "sub": 2, "cycles": 1, "fraction": 0.4, "skip": None, "subnetwork": mode}
        scheme = parse({"name": "repr+sam", "parts": {"repr": options}}).attach(on)
        for _ in range(4):
            train_epoch(scheme, on)
            scheme.step()
        found.append(weights_of(model))
        scheme.close()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9)
