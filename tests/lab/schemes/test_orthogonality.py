"""Orthogonality loss: its value and gradient by the formula, and dropped filters that cost nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import attach, hooks_on, network, setup, train_epoch, train_step
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import Batch, parse
from torchreaper.lab.schemes.orthogonality import OrthogonalityLossSpec, overlap_sum


def brute_force(weight, groups=1):
    """Sum over pairs of different filters of a group of |cos|, without a matrix."""
    total = torch.zeros((), dtype=weight.dtype)
    rows = weight.flatten(1)
    size = len(rows) // groups
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j and i // size == j // size and rows[i].any() and rows[j].any():
                total = total + (rows[i] @ rows[j]).abs() / (rows[i].square().sum() * rows[j].square().sum()).sqrt()
    return total


@given(size=st.integers(1, 3), groups=st.integers(1, 3), dims=st.integers(2, 9), seed=st.integers(0, 99))
def test_value_and_gradient_are_the_formulas(size, groups, dims, seed):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(size * groups, dims, 1, 1, dtype=torch.float64, generator=random)
    found, expected = (weight.clone().requires_grad_() for _ in range(2))
    value, by_hand = overlap_sum(found, groups), brute_force(expected, groups)
    assert value.item() == pytest.approx(by_hand.item(), abs=1e-12)
    if size > 1:
        value.backward()
        by_hand.backward()
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12)


def test_rows_of_0_add_nothing_and_get_no_gradient():
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    weight[[1, 4]] = 0
    full, narrow = weight.clone().requires_grad_(), weight[[0, 2, 3, 5]].clone().requires_grad_()
    values = overlap_sum(full), overlap_sum(narrow)
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-13)
    for value in values:
        value.backward()
    assert (full.grad[[1, 4]] == 0).all()
    torch.testing.assert_close(full.grad[[0, 2, 3, 5]], narrow.grad, rtol=1e-12, atol=1e-12)


def test_rounding_does_not_decide_on_the_gradient_of_orthogonal_filters():
    weight = torch.eye(3, 9).double().requires_grad_()
    noise = 1e-16 * torch.randn(3, 9, dtype=torch.float64)
    overlap_sum(weight + noise).backward()
    assert (weight.grad == 0).all()


def test_it_adds_its_strength_times_the_sum_over_all_convolutions():
    model = network()
    scheme = attach(OrthogonalityLossSpec(strength=0.2), model)
    batch = Batch(model, (torch.zeros(1),), torch.zeros(4, dtype=torch.int64), torch.randn(4, 10, dtype=torch.float64))
    loss = F.cross_entropy(batch.outputs, batch.targets)
    added = scheme.loss(batch, loss) - loss
    expected = 0.2 * (brute_force(model[0].weight) + brute_force(model[3].weight))
    assert added.item() == pytest.approx(expected.item(), rel=1e-12)


def test_masked_and_compact_sub_networks_cost_the_same():
    found = []
    for mode in ("masked", "compact"):
        model = network()
        on = setup(model)
        options = {"full": 1, "sub": 2, "cycles": 1, "fraction": 0.4, "skip": None, "subnetwork": mode}
        scheme = parse({"name": "repr+ol", "parts": {"repr": options}}).attach(on)
        losses = []
        for _ in range(4):
            losses += train_epoch(scheme, on)
            scheme.step()
        found.append((torch.stack(losses), copy.deepcopy(model.state_dict())))
        scheme.close()
        assert hooks_on(model) == 0
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-10, atol=1e-10)


def test_it_makes_filters_less_alike():
    def after(strength):
        model = network()
        on = setup(model)
        scheme = OrthogonalityLossSpec(strength=strength).attach(on)
        for _ in range(5):
            for images, targets in on.drawn(0, 1):
                train_step(scheme, on, images, targets)
        return brute_force(model[3].weight.detach())

    assert after(0.05) < 0.7 * after(1e-9)


def test_a_network_without_two_filters_side_by_side_is_refused():
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), depthwise, nn.Flatten(), nn.Linear(8 * 36, 10))  # one weight a filter
    with pytest.raises(UserError, match=r"^scheme: ol finds no convolution of several filters in the network"):
        attach(OrthogonalityLossSpec(), model)
