import pytest
import torch

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.data.digits import digits
from torchreaper.lab.errors import UserError


def test_sizes_classes_and_range():
    train, test = digits()
    assert train.images.shape == (1000, 1, 8, 8)
    assert test.images.shape == (797, 1, 8, 8)
    both = torch.cat([train.images, test.images])
    assert both.dtype == torch.uint8
    assert len(both.unique()) == 17, "all the grey levels of the data"
    assert both.max() == 255
    shares = torch.cat([train.labels, test.labels]).bincount() * 797 / 1797
    assert (test.labels.bincount() - shares).abs().max() <= 1


def test_the_test_set_is_always_the_same_and_apart_from_training():
    a = load(DataSpec(name="digits", limit=100))
    b = load(DataSpec(name="digits", limit=200, validation=50, split_seed=3))
    assert torch.equal(a.test.images, b.test.images)
    assert not torch.equal(a.train.images, b.train.images[:100])
    train, test = digits()
    # The data hold some identical drawings; apart from those no image is on both sides.
    shared = {tuple(i.flatten().tolist()) for i in train.images} & {tuple(i.flatten().tolist()) for i in test.images}
    assert len(shared) < 5


def test_limit_and_validation():
    dataset = load(DataSpec(name="digits", limit=200, validation=100))
    assert dataset.train.labels.bincount().tolist() == [20] * 10
    assert dataset.validation is not None
    assert dataset.validation.labels.bincount(minlength=10).min() >= 9
    assert dataset.classes == tuple("0123456789")
    pixels = dataset.train.images.double() / 255
    torch.testing.assert_close(dataset.mean.double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(dataset.std.double(), pixels.std((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_a_limited_test_set_is_part_of_the_whole_one_and_leaves_the_rest_alone():
    whole = load(DataSpec(name="digits", limit=100))
    some = load(DataSpec(name="digits", limit=100, test_limit=50))
    assert some.test.labels.bincount().tolist() == [5] * 10
    there = {image.numpy().tobytes() for image in whole.test.images}
    assert all(image.numpy().tobytes() in there for image in some.test.images)
    assert torch.equal(some.train.images, whole.train.images)
    assert not torch.equal(
        some.test.images, load(DataSpec(name="digits", limit=100, test_limit=50, split_seed=1)).test.images
    )
    text = "^data.test_limit=798: only 797 test images are there; use test_limit <= 797$"
    with pytest.raises(UserError, match=text):
        load(DataSpec(name="digits", test_limit=798))
