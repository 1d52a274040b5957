"""Dense-sparse-dense: which weights are 0, how long, and what they get meanwhile."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import (
    attach,
    hooks_on,
    network,
    optimizer_of,
    setup,
    train_epoch,
    train_step,
    weights_of,
)
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import Attached, parse
from torchreaper.lab.schemes.dsd import DSDSpec, smallest

PRUNED = ("0.weight", "3.weight", "6.weight")


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0]), min_size=1, max_size=30),
    share=st.floats(0.01, 0.99),
)
def test_the_smallest_go_and_of_equals_the_first(values, share):
    found = smallest(torch.tensor(values), share).tolist()
    by_size = sorted(range(len(values)), key=lambda index: (abs(values[index]), index))
    assert [index for index, gone in enumerate(found) if gone] == sorted(by_size[: int(share * len(values))])


def test_the_share_is_exact_where_floating_point_numbers_are_not():
    assert 0.29 * 100 < 29  # as computed
    assert smallest(torch.arange(100.0), 0.29).sum() == 29


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("sam", [False, True])
def test_weights_left_out_stay_0_and_get_no_gradient_and_all_train_afterwards(optimizer, sam):
    model = network()
    on = setup(model, optimizer_of(optimizer, model))
    name = "dsd+sam" if sam else "dsd"
    options = {"name": "dsd", "dense": 2, "sparse": 2, "cycles": 2, "sparsity": 0.3}
    scheme = parse({"name": name, "parts": {"dsd": options}} if sam else options).attach(on)
    parameters = dict(model.named_parameters())
    phases, rates = [], []
    for _ in range(10):
        phases.append(scheme.phase)
        rates.append(scheme.lr_factor)
        sparse = scheme.phase == "sub"
        gone = {key: parameters[key] == 0 for key in PRUNED}
        assert sparse == all(gone[key].sum() == int(0.3 * gone[key].numel()) for key in PRUNED)
        model.train()
        for images, targets in on.drawn(0, scheme.epoch + 1):
            train_step(scheme, on, images, targets)
            for key in PRUNED:
                assert torch.equal(parameters[key] == 0, gone[key])
                assert bool((parameters[key].grad[gone[key]] == 0).all()) == (sparse or not gone[key].any())
        before = weights_of(model)
        scheme.trained()
        scheme.step()
        if scheme.phase == "sub" and not sparse:  # what has just gone was the smallest
            for key in PRUNED:
                assert torch.equal(parameters[key] == 0, smallest(before[key], 0.3))
        elif sparse and scheme.phase == "full":
            train_epoch(Attached(), on)
            assert not any((parameters[key] == 0).any() for key in PRUNED)
    assert phases == ["full"] * 2 + ["sub"] * 2 + ["full"] * 2 + ["sub"] * 2 + ["full"] * 2
    assert rates == [1.0] * 8 + [0.1] * 2
    scheme.close()
    assert hooks_on(model) == 0


def test_biases_and_norms_are_left_alone():
    model = network()
    scheme = attach(DSDSpec(dense=1, sparse=1, cycles=1), model)
    before = weights_of(model)
    scheme.step()
    after = model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(PRUNED)


@given(dense=st.integers(1, 9), sparse=st.integers(1, 9), cycles=st.integers(1, 4), epochs=st.integers(1, 80))
def test_a_schedule_must_end_with_a_dense_phase(dense, sparse, cycles, epochs):
    spec = DSDSpec(dense=dense, sparse=sparse, cycles=cycles)
    if epochs > cycles * (dense + sparse):
        spec.check(epochs)
        return
    text = f"scheme: dense={dense}, sparse={sparse}, cycles={cycles} need {cycles * (dense + sparse)} epochs and "
    with pytest.raises(UserError, match=f"^{re.escape(text)}.*the recipe has {epochs}; raise epochs or lower cycles$"):
        spec.check(epochs)


def test_a_share_of_less_than_one_weight_is_refused():
    with pytest.raises(UserError, match=r"^scheme\.sparsity=1e-05: is less than one weight in every layer; raise it$"):
        attach(DSDSpec(sparsity=1e-5), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
