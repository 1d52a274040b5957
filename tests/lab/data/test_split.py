import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchreaper.lab.data.split import channel_moments, choose, divide, keep_of_test, with_noise
from torchreaper.lab.errors import UserError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@given(labels=LABELS, data=st.data(), seed=st.integers(0, 1000), balanced=st.booleans())
def test_choose_gives_distinct_ascending_indices_from_the_seed(labels, data, seed, balanced):
    count = data.draw(st.integers(0, len(labels)))
    chosen = choose(labels, count, seed=seed, balanced=balanced)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == count
    assert torch.equal(chosen, choose(labels, count, seed=seed, balanced=balanced))


@given(labels=LABELS, data=st.data(), seed=st.integers(0, 1000))
def test_balanced_counts_differ_by_at_most_one_where_a_class_is_not_used_up(labels, data, seed):
    count = data.draw(st.integers(1, len(labels)))
    chosen = labels[choose(labels, count, seed=seed, balanced=True)].bincount(minlength=5)
    there = labels.bincount(minlength=5)
    for one in range(5):
        for other in range(5):
            assert chosen[one] - chosen[other] <= 1 or chosen[other] == there[other]


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), factor=st.integers(1, 5))
def test_proportional_shares_are_exact_where_they_are_whole(sizes, factor):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes) * factor)
    chosen = labels[choose(labels, sum(sizes), seed=0, balanced=False)].bincount()
    assert chosen.tolist() == sizes


def test_the_seed_matters():
    labels = torch.arange(100) % 2
    assert not torch.equal(choose(labels, 50, seed=0, balanced=True), choose(labels, 50, seed=1, balanced=True))


@given(validation=st.integers(0, 39), seed=st.integers(0, 50), limits=st.tuples(st.integers(4, 40), st.integers(4, 40)))
def test_divide_never_shares_an_image_and_limit_leaves_the_validation_images(validation, seed, limits):
    labels = torch.arange(50) % 4
    held = []
    for limit in (*(min(limit, 50 - validation) for limit in limits), None):
        if limit is not None and limit < 4:
            continue
        kept, out = divide(labels, validation=validation, limit=limit, classes=4, seed=seed)
        assert not set(kept.tolist()) & set(out.tolist())
        assert len(out) == validation
        assert len(kept) == (limit or 50 - validation)
        held.append(out.tolist())
    assert all(out == held[0] for out in held)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"validation": 20}, "data.validation=20: leaves nothing to train on, there are 20 images"),
        ({"limit": 16, "validation": 5}, "data.limit=16: only 15 training images are there; use limit <= 15"),
        ({"limit": 3}, "data.limit=3: fewer than the 4 classes; use limit >= 4"),
    ],
)
def test_asking_for_too_much_is_refused(asked, message):
    with pytest.raises(UserError) as caught:
        divide(torch.arange(20) % 4, **{"validation": 0, "limit": None, **asked}, classes=4, seed=0)
    assert str(caught.value) == message


def test_test_images_are_kept_by_class_and_seed():
    labels = torch.arange(40) % 4
    assert keep_of_test(labels, limit=None, classes=4, seed=0).tolist() == list(range(40))
    kept = keep_of_test(labels, limit=12, classes=4, seed=0)
    assert labels[kept].bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(kept, keep_of_test(labels, limit=12, classes=4, seed=0))
    assert not torch.equal(kept, keep_of_test(labels, limit=12, classes=4, seed=1))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (21, "data.test_limit=21: only 20 test images are there; use test_limit <= 20"),
        (3, "data.test_limit=3: fewer than the 4 classes; use test_limit >= 4"),
    ],
)
def test_asking_for_too_many_or_too_few_test_images_is_refused(limit, message):
    with pytest.raises(UserError) as caught:
        keep_of_test(torch.arange(20) % 4, limit=limit, classes=4, seed=0)
    assert str(caught.value) == message


@settings(max_examples=40)
@given(labels=LABELS, share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 1000), classes=st.integers(5, 9))
def test_noise_gives_the_share_asked_for_another_class_and_leaves_the_others(labels, share, seed, classes):
    before, count = labels.clone(), round(share * len(labels))
    if share and not count:
        with pytest.raises(UserError, match=f"data.label_noise={share}: has no effect on {len(labels)} training"):
            with_noise(labels, share, classes=classes, seed=seed)
        return
    noisy = with_noise(labels, share, classes=classes, seed=seed)
    assert torch.equal(labels, before)  # they may be those of a data set that is kept
    assert int((noisy != labels).sum()) == count
    assert 0 <= noisy.min() <= noisy.max() < classes
    assert torch.equal(noisy, with_noise(labels, share, classes=classes, seed=seed))


def test_noise_draws_places_and_classes_from_its_seed():
    labels = torch.zeros(300, dtype=torch.int64)
    one, other = (with_noise(labels, 0.5, classes=4, seed=seed) for seed in (0, 1))
    assert not torch.equal(one > 0, other > 0)
    assert min(one.bincount(minlength=4)[1:].tolist()) > 30  # 50 each are due
    with pytest.raises(UserError, match="has no effect on 300 training images of 1 classes"):
        with_noise(labels, 0.5, classes=1, seed=0)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4)))
def test_moments_are_those_of_the_pixels(pixels):
    mean, std = channel_moments(torch.from_numpy(pixels))
    values = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=1e-6)
    expected = values.std((0, 2, 3))
    np.testing.assert_allclose(std, np.where(expected > 1e-6, expected, 1), atol=1e-6)
