"""Filter grafting: the share of each network, and a partner that trains by itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.lab.schemes.setups import hooks_on, network, optimizer_of, same, setup, train_epoch, train_step, weights_of
from tests.lab.tiny import recipe

import torchreaper as tr
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes import Attached
from torchreaper.lab.schemes.grafting import GraftingSpec, entropy, graft, share_of_own


@given(size=st.integers(2, 300), seed=st.integers(0, 99))
def test_entropy_is_that_of_a_histogram_of_ten_bins(size, seed):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    counts, _ = np.histogram(weight.numpy(), bins=10)
    assert entropy(weight) == pytest.approx(stats.entropy(counts), abs=1e-5)


def test_equal_weights_tell_nothing():
    assert entropy(torch.full((5, 3), 0.7)) == 0


@given(own=st.floats(0, 2.3), other=st.floats(0, 2.3), a=st.floats(0.01, 1), c=st.floats(0.1, 1000))
def test_the_shares_of_both_add_up_and_the_one_that_knows_more_has_more(own, other, a, c):
    share = share_of_own(own, other, a=a, c=c)
    assert 0.5 - a / 2 <= share <= 0.5 + a / 2
    assert share + share_of_own(other, own, a=a, c=c) == pytest.approx(1)
    assert share == pytest.approx(a / math.pi * math.atan(c * (own - other)) + 0.5)
    if abs(own - other) > 1e-6:
        assert (share > 0.5) == (own > other)


def test_both_become_the_same_mean_layer_by_layer():
    model, partner = network(), network(seed=1)
    model.train()(torch.randn(8, 1, 8, 8, dtype=torch.float64))  # other running statistics
    ours, theirs = weights_of(model), weights_of(partner)
    graft(model, partner, a=0.4, c=500)
    after = weights_of(model)
    shares = {}
    for name, value in after.items():
        if not value.is_floating_point():
            continue
        assert torch.equal(value, partner.state_dict()[name])
        layer = {"0": "0", "1": "0", "3": "3", "6": "3"}[name[0]]  # a convolution, and what follows it
        shares[layer] = share_of_own(entropy(ours[f"{layer}.weight"]), entropy(theirs[f"{layer}.weight"]), a=0.4, c=500)
        torch.testing.assert_close(value, shares[layer] * ours[name] + (1 - shares[layer]) * theirs[name])
    assert shares["0"] != shares["3"]
    assert all(0.3 < share < 0.7 for share in shares.values())


def test_what_is_frozen_stays_as_it_is_in_both():
    model, partner = network(), network(seed=1)
    for one in (model, partner):
        one[0].weight.requires_grad_(False)
    before = model[0].weight.clone(), partner[0].weight.clone()
    graft(model, partner, a=0.4, c=500)
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(partner[0].weight, before[1])
    assert torch.equal(model[0].bias, partner[0].bias)


def test_the_partner_trains_in_its_own_order_with_the_same_rate():
    model = network()
    on = setup(model)
    scheme = GraftingSpec().attach(on)
    assert not same(weights_of(scheme._partner), weights_of(model))
    by_hand, optimizer = on.sibling(on.seed)
    assert same(weights_of(by_hand), weights_of(scheme._partner))
    alone = setup(network())
    standard = Attached()
    for epoch in (1, 2):
        rates = iter([0.3, 0.02])
        model.train()
        by_hand.train()
        alone.model.train()
        theirs = on.drawn(on.seed, epoch)
        for images, targets in on.drawn(0, epoch):
            lr = next(rates)
            for group in (*on.optimizer.param_groups, *alone.optimizer.param_groups, *optimizer.param_groups):
                group["lr"] = lr
            train_step(scheme, on, images, targets)
            train_step(standard, alone, images, targets)
            other_images, other_targets = next(theirs)
            assert not torch.equal(other_images, images)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(by_hand(other_images), other_targets).backward()
            optimizer.step()
        assert same(weights_of(scheme._partner), weights_of(by_hand))
        assert same(weights_of(model), weights_of(alone.model))
        scheme.trained()
        graft(alone.model, by_hand, a=0.4, c=500)
        assert same(weights_of(model), weights_of(alone.model))
        assert same(
            {name: value for name, value in weights_of(model).items() if value.is_floating_point()},
            {name: value for name, value in weights_of(scheme._partner).items() if value.is_floating_point()},
        )
        scheme.step()
    scheme.close()
    assert hooks_on(model) == 0


def test_the_partners_gradients_are_clipped_where_the_recipes_are():
    def moved(clip):
        on = setup(network(), grad_clip=clip)
        on.optimizer.param_groups[0]["momentum"] = 0
        scheme = GraftingSpec().attach(on)
        before = weights_of(scheme._partner)
        images, targets = next(on.drawn(0, 1))
        train_step(scheme, on, images, targets)
        after = dict(scheme._partner.named_parameters())
        return sum((after[name] - before[name]).square().sum() for name in after).sqrt().item()

    assert moved(0.01) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert moved(None) > 10 * moved(0.01)


def test_a_partner_that_diverges_is_an_error_with_a_remedy():
    on = setup(network())
    scheme = GraftingSpec().attach(on)
    train_epoch(scheme, on)
    with torch.no_grad():
        scheme._partner[0].weight[0] = math.nan
    with pytest.raises(tr.ReaperError, match=r"^grafting: the partner's weights are not finite; lower optim\.lr"):
        scheme.trained()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_partner_is_in_the_state(optimizer):
    model = network()
    on = setup(model, optimizer_of(optimizer, model))
    scheme = GraftingSpec().attach(on)
    train_epoch(scheme, on)
    scheme.step()
    other = GraftingSpec().attach(setup(network()))
    other.load_state_dict(scheme.state_dict())
    assert same(weights_of(other._partner), weights_of(scheme._partner))
    assert other._optimizer.state_dict()["state"].keys() == scheme._optimizer.state_dict()["state"].keys()


def test_until_the_first_graft_the_network_is_trained_as_without_a_partner(tmp_path, one_thread):
    """It has Dropout: what the partner draws must not be drawn from the network's numbers."""
    losses = []
    for key in ("standard", "grafting"):
        train(recipe(), scheme=key, seed=0, out=tmp_path)
        losses.append([line["train_loss"] for line in read_metrics(folder_of(tmp_path, "tiny", key, 0))])
    assert losses[0][0] == losses[1][0]
    assert losses[0][1:] != losses[1][1:]
