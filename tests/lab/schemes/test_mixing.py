"""Mixup and CutMix: the share of the pixels is the share in the targets, and numbers depend on seed and epoch alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import attach, hooks_on, network, setup, train_epoch

from torchreaper.lab.schemes.mixing import CutMixSpec, MixupSpec, cutmix, mixup

SPECS = [MixupSpec, CutMixSpec]


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_mixup_lays_two_images_over_each_other(share, seed):
    images, others = torch.rand(2, 4, 3, 5, 7, dtype=torch.float64)
    mixed, stays = mixup(images, others, share, np.random.default_rng(seed))
    assert stays == share
    torch.testing.assert_close(mixed, share * images + (1 - share) * others)


@given(share=st.floats(0, 1), height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_cutmix_puts_one_rectangle_of_the_other_into_each(share, height, width, seed):
    images, others = torch.zeros(2, 3, height, width), torch.ones(2, 3, height, width)
    mixed, stays = cutmix(images, others, share, np.random.default_rng(seed))
    assert (images == 0).all()  # not in place
    assert 1 - mixed.mean().item() == pytest.approx(stays, abs=1e-6)
    assert stays >= share - 1e-9 - (1 / height + 1 / width)  # what lies outside is not lost to the target
    where = mixed[0, 0].nonzero()
    if len(where):
        top, left = where.min(0).values
        bottom, right = where.max(0).values
        assert (mixed[..., top : bottom + 1, left : right + 1] == 1).all()
        assert torch.equal(mixed[0], mixed[1])
        assert torch.equal(mixed[:, 0], mixed[:, 2])


@pytest.mark.parametrize("spec", SPECS)
def test_targets_are_probabilities_with_the_share_of_the_pixels(spec):
    on = setup(network())
    scheme = spec().attach(on)
    # Image k holds the pixel value k alone, so that the pixels say what was mixed.
    images = torch.arange(10, dtype=torch.float64).reshape(10, 1, 1, 1).expand(10, 1, 8, 8)
    targets = torch.arange(10)
    shares = []
    for _ in range(50):
        mixed, aims = scheme.mix(images, targets)
        torch.testing.assert_close(aims.sum(1), torch.ones(10, dtype=torch.float64))
        assert (aims >= 0).all()
        torch.testing.assert_close(mixed.mean((1, 2, 3)), aims @ torch.arange(10, dtype=torch.float64))
        shares.append(float(aims.max(1).values.min()))
    assert len({round(share, 6) for share in shares}) > 10  # one share a batch, of many
    scheme.close()
    assert hooks_on(on.model) == 0


def test_small_alphas_mix_less():
    def kept(alpha):
        scheme = attach(MixupSpec(alpha=alpha), network())
        images = torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 1, 8, 8)
        found = [scheme.mix(images, torch.arange(10))[1].max(1).values.mean() for _ in range(100)]
        return torch.stack(found).mean().item()

    assert kept(0.05) > kept(1.0) + 0.1


@pytest.mark.parametrize("spec", SPECS)
def test_the_numbers_depend_on_seed_and_epoch_alone(spec):
    images, targets = torch.randn(16, 1, 8, 8), torch.arange(16) % 10

    def epochs(scheme, count):
        found = []
        for _ in range(count):
            found.append([scheme.mix(images, targets) for _ in range(3)])
            scheme.step()
        return found

    whole = epochs(attach(spec(), network()), 4)
    torch.manual_seed(5)  # of no concern
    np.random.seed(5)
    begun = attach(spec(), network())
    epochs(begun, 2)
    resumed = attach(spec(), network())
    resumed.load_state_dict(begun.state_dict())
    for first, second in zip(whole[2:], epochs(resumed, 2), strict=True):
        for (a, b), (c, d) in zip(first, second, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    other = epochs(attach(spec(), network(), seed=2), 1)
    assert not torch.equal(whole[0][0][1], whole[1][0][1])
    assert not torch.equal(whole[0][0][1], other[0][0][1])


@pytest.mark.parametrize("spec", SPECS)
def test_attaching_leaves_the_network_as_it_is(spec):
    model = network().train()
    scheme = attach(spec(), model)
    assert all(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 0
    on = setup(model)
    assert all(loss.isfinite() for loss in train_epoch(scheme, on))
