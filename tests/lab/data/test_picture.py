"""One picture into pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchreaper.lab.data.picture import NUMBERS, check_mode, crop_box, pixels
from torchreaper.lab.errors import UserError

share = st.floats(0, 1, exclude_max=True)
numbers = st.lists(share, min_size=NUMBERS, max_size=NUMBERS)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_without_a_size_pixels_stay_and_grey_stays_grey():
    array = noise(5, 7)
    assert np.array_equal(pixels(Image.fromarray(array)), array.transpose(2, 0, 1))
    grey = Image.fromarray(array[..., 0])
    assert np.array_equal(pixels(grey), array[None, ..., 0])
    assert np.array_equal(pixels(grey.convert("1"))[0], 255 * np.asarray(grey.convert("1")))
    assert pixels(Image.fromarray(array).convert("P")).shape == (3, 5, 7)
    assert pixels(grey.convert("LA")).shape == (3, 5, 7)


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 40))
def test_the_middle_square_is_brought_to_the_size(height, width, size):
    array = noise(height, width)
    found = pixels(Image.fromarray(array), size=size)
    assert found.shape == (3, size, size)
    side = min(height, width)
    if size == side and (height - side) % 2 == (width - side) % 2 == 0:
        top, left = (height - side) // 2, (width - side) // 2
        assert np.array_equal(found, array[top : top + side, left : left + side].transpose(2, 0, 1))
    plain = pixels(Image.new("RGB", (width, height), (10, 20, 30)), size=size)
    assert (plain == np.array([10, 20, 30])[:, None, None]).all()


@given(width=st.integers(1, 300), height=st.integers(1, 300), numbers=numbers)
def test_a_crop_lies_inside_and_has_the_area_and_the_shape(width, height, numbers):
    left, top, right, bottom = crop_box(width, height, numbers)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    across, down = right - left, bottom - top
    # Half a pixel is lost or won on each side by rounding.
    assert (across + 0.5) / (down - 0.5) >= 3 / 4 - 1e-9 or down == 1
    assert (across - 0.5) / (down + 0.5) <= 4 / 3 + 1e-9
    assert (across + 0.5) * (down + 0.5) >= 0.08 * width * height or (across, down) != (width, height)


def test_crops_are_spread_over_areas_shapes_and_places():
    draw = np.random.default_rng(0).random((4000, NUMBERS))
    boxes = np.array([crop_box(100, 100, one) for one in draw])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, shape = across * down / 1e4, np.log(across / down) / math.log(4 / 3)
    small = area < 0.5
    # Where every try fits, areas are uniform; large crops of an odd shape do not fit and are drawn anew.
    assert area[small].mean() == pytest.approx((0.08 + 0.5) / 2, abs=0.02)
    assert area.min() < 0.1
    assert area.max() > 0.9
    assert abs(shape[small]).max() <= 1.1
    assert shape[small].std() == pytest.approx(1 / math.sqrt(3), abs=0.03)
    assert boxes[small, 0].min() == boxes[small, 1].min() == 0
    assert boxes[small, 2].max() == boxes[small, 3].max() == 100


def test_what_never_fits_is_cut_in_the_middle():
    numbers = [0.99] * NUMBERS
    assert crop_box(10, 100, numbers) == (0, 43, 10, 56)
    assert crop_box(100, 9, numbers) == (44, 0, 56, 9)


def test_the_last_number_mirrors():
    image = Image.fromarray(noise(20, 20))
    draw = torch.rand(NUMBERS - 1, generator=torch.Generator().manual_seed(0)).tolist()
    one, other = (pixels(image, size=8, crop=[*draw, last]) for last in (0.49, 0.5))
    assert np.array_equal(one, other[:, :, ::-1])


def test_a_crop_is_the_part_of_the_picture():
    image = Image.fromarray(noise(30, 40))
    draw = torch.rand(NUMBERS - 1, generator=torch.Generator().manual_seed(3)).tolist()
    box = crop_box(40, 30, [*draw, 0.9])
    expected = np.asarray(image.crop(box).resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(pixels(image, size=8, crop=[*draw, 0.9]), expected)


def test_more_than_8_bits_are_refused():
    with pytest.raises(UserError, match=r"^data\.train: row 3: image mode I is not 8 bits a channel; make it RGB$"):
        check_mode(Image.new("I", (2, 2)), "data.train: row 3")
