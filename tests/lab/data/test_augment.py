"""``augment: flip``: about half of the images mirrored, drawn from seed and epoch alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data import WHOLE, Share, Split, augment, epoch_generator

ORDER = torch.arange(60)


def images(n, channels=3, height=5, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, channels, height, width), dtype=np.uint8))


def mirrored(after, before):
    """Which images are mirrored; every other one must be as it was."""
    turned = (after == before.flip(3)).flatten(1).all(1)
    assert (turned | (after == before).flatten(1).all(1)).all()
    return turned


@given(seed=st.integers(0, 1000), n=st.integers(1, 12), width=st.integers(2, 9), channels=st.sampled_from([1, 3]))
def test_each_image_is_as_it_was_or_its_mirror(seed, n, width, channels):
    before = images(n, channels, 7, width, seed)
    kept = before.clone()
    mirrored(augment(before, "flip", torch.Generator().manual_seed(seed)), before)
    assert torch.equal(before, kept), "what is kept in memory does not change"


def test_about_half_are_mirrored_each_by_itself():
    before = images(4000, 1, 2, 2)
    before[..., 0], before[..., 1] = 0, 255
    turned = mirrored(augment(before, "flip", torch.Generator().manual_seed(0)), before).double()
    assert abs(turned.mean() - 0.5) < 0.03  # 4 standard deviations
    assert abs(torch.corrcoef(torch.stack([turned[:-1], turned[1:]]))[0, 1]) < 0.07


@given(seed=st.integers(0, 1000), n=st.integers(1, 20), of=st.integers(1, 5))
def test_the_shares_of_a_batch_join_to_the_whole(seed, n, of):
    before = images(n)
    whole = augment(before, "flip", torch.Generator().manual_seed(seed))
    parts = [Share(rank, of).part(n) for rank in range(of)]
    joined = [augment(before[part], "flip", torch.Generator().manual_seed(seed), part, n) for part in parts]
    assert torch.equal(torch.cat(joined), whole)


@given(seed=st.integers(0, 100), epoch=st.integers(1, 100), batch=st.integers(1, 60), of=st.integers(1, 3))
def test_seed_and_epoch_alone_decide(seed, epoch, batch, of):
    split = Split(images(60), torch.arange(60))

    def read(share=WHOLE, **how):
        how = {"augmentation": "flip", "seed": seed, "epoch": epoch, **how}
        return [found for found, _ in split.read(torch.split(ORDER, batch), share=share, **how)]

    whole = read()
    torch.rand(3)  # from the global generator, which has no say
    before = torch.random.get_rng_state()
    assert all(map(torch.equal, whole, read()))
    shares = zip(*(read(Share(rank, of)) for rank in range(of)))
    assert all(torch.equal(torch.cat(parts), one) for parts, one in zip(shares, whole, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before), "nor is anything drawn from it"
    turned = mirrored(torch.cat(whole), split.images)
    for other in ({"seed": seed + 1}, {"epoch": epoch + 1}):  # 60 images: by chance alike once in 10^18
        assert not torch.equal(turned, mirrored(torch.cat(read(**other)), split.images))


@pytest.mark.parametrize("kind", ["none", "resized-crop"])
def test_others_draw_nothing(kind):
    generator = epoch_generator(0, 1, "augment")
    before = generator.get_state()
    one = images(3)
    assert augment(one, kind, generator) is one
    assert torch.equal(generator.get_state(), before)
