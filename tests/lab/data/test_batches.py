import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data import FixedBatches, Split, augment, batches, epoch_generator, epoch_seed, normalise
from torchreaper.lab.data.split import channel_moments
from torchreaper.lab.errors import UserError


def images(n=3, channels=2, height=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, channels, height, width), dtype=np.uint8))


def split(n):
    return Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def order(n, **options):
    return torch.cat(list(batches(split(n), **{"batch": 4, "seed": 0, "epoch": 1, "shuffle": True, **options})))


@given(n=st.integers(1, 40), batch=st.integers(1, 10), shuffle=st.booleans(), drop_last=st.booleans())
def test_every_image_comes_once(n, batch, shuffle, drop_last):
    if drop_last and n < batch:
        with pytest.raises(UserError, match=rf"^batch={batch}: larger than the {n} images; use batch <= {n}$"):
            batches(split(n), batch=batch, seed=0, epoch=1, shuffle=shuffle, drop_last=drop_last)
        return
    found = list(batches(split(n), batch=batch, seed=0, epoch=1, shuffle=shuffle, drop_last=drop_last))
    assert {len(b) for b in found[:-1]} <= {batch}
    whole = n - n % batch if drop_last else n
    seen = torch.cat(found).tolist()
    assert len(seen) == len(set(seen)) == whole
    if not shuffle:
        assert seen == list(range(whole))


def test_the_order_is_that_of_seed_and_epoch_alone():
    before = torch.random.get_rng_state()
    first = order(100)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(first, order(100))
    assert torch.equal(first, order(100, batch=7)), "the batch size does not change it"
    assert not torch.equal(first, order(100, epoch=2))
    assert not torch.equal(first, order(100, seed=1))


def test_epoch_seeds_are_pinned_and_do_not_collide():
    # A change here changes every run that anybody wants to repeat.
    assert epoch_seed(0, 1) == 6190714797572888661
    seeds = {epoch_seed(s, e, use) for s in range(30) for e in range(30) for use in ("order", "augment")}
    assert len(seeds) == 30 * 30 * 2
    assert epoch_generator(0, 1).initial_seed() == epoch_seed(0, 1)


@given(seed=st.integers(0, 100), channels=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9))
def test_each_augmented_image_is_a_crop_of_the_padded_one_or_its_mirror(seed, channels, height, width):
    before = images(4, channels, height, width, seed)
    after = augment(before, "crop-flip", torch.Generator().manual_seed(seed))
    assert after.shape == before.shape
    assert after.dtype == torch.uint8
    padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
    for image, pad in zip(after, padded):
        crops = pad.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4)
        found = (crops == image).all((2, 3, 4)).any() or (crops == image.flip(2)).all((2, 3, 4)).any()
        assert found


def test_augmentation_reaches_all_offsets_and_both_mirrors():
    # One white pixel in the middle of 9x9: its new place tells the offset; a second one beside it the mirror.
    one = torch.zeros(4000, 1, 17, 17, dtype=torch.uint8)
    one[:, :, 8, 8], one[:, :, 8, 9] = 255, 128
    after = augment(one, "crop-flip", torch.Generator().manual_seed(0))
    places = (after[:, 0] == 255).nonzero()[:, 1:].unique(dim=0)
    assert len(places) == 81
    row, column = (after[:, 0] == 255).nonzero()[:, 1:].unbind(1)
    mirrored = after[torch.arange(4000), 0, row, column - 1] == 128
    assert 0.45 < mirrored.float().mean() < 0.55


def test_none_draws_nothing_and_the_generator_decides():
    before, generator = images(), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert augment(before, "none", generator) is before
    assert torch.equal(generator.get_state(), state)
    first = augment(before, "crop-flip", generator)
    again = augment(before, "crop-flip", torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(before, "crop-flip", generator))


def test_normalised_training_images_have_mean_0_and_deviation_1():
    some = images(50)
    mean, std = channel_moments(some)
    out = normalise(some, mean, std)
    assert out.dtype == torch.float32
    assert out.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-5, atol=1e-5)
    expected = (some.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    torch.testing.assert_close(normalise(some, mean.double(), std.double()), expected)


def test_fixed_batches_are_normalised_in_the_splits_order_and_the_same_each_time():
    some = images(10)
    mean, std = channel_moments(some)
    reading = FixedBatches(Split(some, torch.arange(10)), "training", mean, std, batch=4)
    assert (len(reading), reading.images) == (3, 10)
    for _ in range(2):
        found = list(reading)
        assert [len(labels) for _, labels in found] == [4, 4, 2]
        assert torch.equal(torch.cat([labels for _, labels in found]), torch.arange(10))
        assert torch.equal(torch.cat([batch for batch, _ in found]), normalise(some, mean, std))


def test_nothing_is_computed_before_a_batch_is_asked_for(monkeypatch):
    module = sys.modules[FixedBatches.__module__]  # `data.batches` is the function
    calls = []
    monkeypatch.setattr(module, "choose", lambda *a, **k: calls.append("choose") or torch.arange(4))
    monkeypatch.setattr(module, "normalise", lambda images, *a: calls.append("normalise") or images)
    held_out = FixedBatches.held_out(split(9), split(8), mean=torch.zeros(1), std=torch.ones(1), batch=2)
    reading = held_out.take(4, seed=1)
    assert (held_out.what, len(reading), reading.images, calls) == ("validation", 2, 4, [])
    next(iter(reading))
    assert calls == ["choose", "normalise"]
    assert len(list(reading)) == 2
    assert calls == ["choose", *["normalise"] * 3], "the choice is made once"


def test_without_validation_images_criteria_read_those_of_training():
    reading = FixedBatches.held_out(split(9), None, mean=torch.zeros(1), std=torch.ones(1), batch=2)
    assert (reading.what, reading.images, len(reading)) == ("training", 9, 5)
