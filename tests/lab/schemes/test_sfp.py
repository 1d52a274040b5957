"""Soft filter pruning: which filters become 0 and when, and that they grow again."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import attach, network, optimizer_of, setup, train_epoch, weights_of
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.sfp import SFPSpec, shortest


@given(norms=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=20), share=st.floats(0.01, 0.99))
def test_the_shortest_go_and_of_equals_the_first(norms, share):
    weight = torch.tensor(norms).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    order = sorted(range(len(norms)), key=lambda index: (norms[index], index))
    assert shortest(weight, share).tolist() == order[: int(share * len(norms))]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_filters_become_0_at_the_end_of_an_epoch_and_grow_again(optimizer):
    model = network()
    on = setup(model, optimizer_of(optimizer, model))
    scheme = SFPSpec(fraction=0.4, every=2, until=0.8).attach(on)
    layers = {"0": 3, "3": 2}  # floor(0.4 * 8), floor(0.4 * 6)
    for epoch in range(1, 11):
        train_epoch(scheme, on)
        judged = weights_of(model)
        assert not any((judged[f"{name}.weight"].flatten(1) == 0).all(1).any() for name in layers)
        scheme.step()
        after = weights_of(model)
        changed = {key for key in judged if not torch.equal(judged[key], after[key])}
        if epoch in (2, 4, 6, 8):
            assert changed == {f"{name}.{what}" for name in layers for what in ("weight", "bias")}
            for name, count in layers.items():
                gone = (after[f"{name}.weight"].flatten(1) == 0).all(1)
                assert gone.sum() == count
                norms = judged[f"{name}.weight"].flatten(1).norm(dim=1)
                assert norms[gone].max() < norms[~gone].min()
                assert (after[f"{name}.bias"][gone] == 0).all()
                assert torch.equal(after[f"{name}.weight"][~gone], judged[f"{name}.weight"][~gone])
        else:
            assert not changed
        assert (scheme.phase, scheme.dropped) == ("full", {})


@given(every=st.integers(1, 6), until=st.floats(0.05, 0.95), epochs=st.integers(1, 40))
def test_a_schedule_is_refused_exactly_when_nothing_would_happen(every, until, epochs):
    spec = SFPSpec(every=every, until=until)
    times = [epoch for epoch in range(1, epochs + 1) if epoch % every == 0 and epoch <= spec.last(epochs)]
    assert epochs not in times  # those set to 0 are trained once more at least
    if times:
        spec.check(epochs)
        return
    with pytest.raises(UserError, match=f"^{re.escape(f'scheme: every={every}, until={until}: nothing is ever')}"):
        spec.check(epochs)


def test_what_cannot_grow_again_is_left_alone():
    """A frozen filter would be 0 for good; one that is computed is not set to 0 by what it is computed to."""
    model = nn.Sequential(*(nn.Conv2d(width, 8, 3) for width in (1, 8, 8)), nn.Flatten(), nn.Linear(32, 10))
    model[0].weight.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(model[1])
    before = weights_of(model)
    attach(SFPSpec(), model).step()
    after = weights_of(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"2.weight", "2.bias"}
    model[2].weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"^scheme='sfp': no convolution has a weight that is trained and its own; "):
        attach(SFPSpec(), model)


def test_depthwise_layers_are_left_alone_and_a_share_below_one_filter_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 36, 10))
    before = weights_of(model)
    attach(SFPSpec(), model).step()
    after = weights_of(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"0.weight", "0.bias"}
    with pytest.raises(UserError, match=r"^scheme\.fraction=0\.1: is less than one filter in every layer; raise it$"):
        attach(SFPSpec(fraction=0.1), model)
