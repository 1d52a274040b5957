"""Boxes and pixels move together: a painted rectangle is where its box says, whatever was done to both."""

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from torchreaper.lab.data.boxes import FILLING, in_photographs, letterbox, mirror
from torchreaper.lab.data.boxes.geometry import clip, fit, has_area, padded


def found(mask):
    """The smallest box around what is set in a mask [height, width]."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


sides = st.integers(1, 80)


@given(sides, sides, st.tuples(sides, sides), st.data())
def test_a_rectangle_is_found_again_in_the_letterbox(height, width, size, data):
    scale, high, wide = fit(height, width, size)
    assert high == size[0] or wide == size[1]
    assert 1 <= high <= size[0]
    assert 1 <= wide <= size[1]
    for side, covered in ((height, high), (width, wide)):
        assert covered <= max(1, side * scale + 1e-9), "no pixel is stretched"
        assert side * scale - covered < 1
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    image = letterbox(Image.fromarray(pixels), size)
    assert image.shape == (3, *size)
    assert image.dtype == torch.uint8
    beside = torch.ones(size, dtype=torch.bool)
    beside[:high, :wide] = False
    assert (image[:, beside] == FILLING).all()
    box = torch.tensor([x1, y1, x2, y2], dtype=torch.float64) * scale
    assume(min(box[2] - box[0], box[3] - box[1]) >= 2)  # narrower ones are lost between pixels
    seen = (image[0] > 127) & ~beside
    assert (torch.tensor(found(seen)) - box).abs().max() <= 1
    assert abs(seen.sum() - (box[2] - box[0]) * (box[3] - box[1])) <= 2 * (high + wide)


def test_a_photograph_of_the_inputs_size_stays_as_it_is_and_grey_becomes_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    image = letterbox(Image.fromarray(pixels), (6, 9))
    assert torch.equal(image, torch.from_numpy(pixels).expand(3, -1, -1))
    assert fit(480, 640, (96, 128)) == (0.2, 96, 128)


@st.composite
def scenes(draw):
    """An input of some images, the width that each photograph has there, and boxes of whole pixels inside, padded."""
    high, wide, count = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, wide), min_size=count, max_size=count))
    boxes = []
    for width in widths:
        those = []
        for _ in range(draw(st.integers(0, 3))):
            x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, high - 1))
            those.append(
                [x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, high)), draw(st.integers(0, 2))]
            )
        boxes.append(torch.tensor(those, dtype=torch.float32).reshape(-1, 5))
    images = torch.full((count, 1, high, wide), FILLING, dtype=torch.uint8)
    numbers = iter(range(10**6))
    for image, width in zip(images, widths):
        image[0, :, :width] = torch.tensor([next(numbers) % 100 for _ in range(high * width)]).view(high, width)
    chosen = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return images, padded(boxes, 3), torch.tensor(widths), chosen


@given(scenes())
def test_mirrored_pixels_lie_in_mirrored_boxes(scene):
    images, targets, widths, chosen = scene
    flipped, moved = mirror(images, targets, widths, chosen)
    for before, after, old, new, width, flip in zip(images, flipped, targets, moved, widths.tolist(), chosen.tolist()):
        assert torch.equal(after[..., width:], before[..., width:]), "what fills the input stays"
        assert torch.equal(old[:, 4], new[:, 4])
        assert torch.equal(old[old[:, 4] < 0], new[old[:, 4] < 0]), "padding stays"
        if not flip:
            assert torch.equal(after, before)
            assert torch.equal(old, new)
        for (a, b, c, d, kind), (e, f, g, h, _) in zip(old.int().tolist(), new.int().tolist()):
            if kind >= 0:
                there, here = before[0, b:d, a:c], after[0, f:h, e:g]
                assert torch.equal(here, there.flip(1) if flip else there)
    again, back = mirror(flipped, moved, widths, chosen)
    assert torch.equal(again, images)
    assert torch.equal(back, targets)


def test_of_a_box_that_sticks_out_what_is_seen_is_kept():
    images, widths = torch.zeros(1, 1, 4, 6, dtype=torch.uint8), torch.tensor([5])
    targets = torch.tensor([[[3.0, 0, 5.5, 2, 1], [5.1, 0, 5.5, 2, 0], [-1] * 5]])
    _, moved = mirror(images, targets, widths, torch.tensor([True]))
    assert moved.tolist() == [[[0, 0, 2, 2, 1], [-1] * 5, [-1] * 5]]


numbers = st.floats(-1e9, 1e9)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4), sides, sides)
def test_clipped_boxes_lie_inside_and_are_the_common_part(boxes, height, width):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate((np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])), axis=1)
    inside = clip(boxes, height, width)
    assert (inside >= 0).all()
    assert (inside[:, [0, 2]] <= width).all()
    assert (inside[:, [1, 3]] <= height).all()
    assert np.array_equal(clip(inside, height, width), inside)
    common = (np.minimum(boxes[:, 2:], [width, height]) - np.maximum(boxes[:, :2], 0)).clip(min=0)
    np.testing.assert_allclose((inside[:, 2:] - inside[:, :2]), common, atol=1e-12)
    assert np.array_equal(has_area(torch.from_numpy(inside)).numpy(), (inside[:, 2:] > inside[:, :2]).all(1))


def test_boxes_come_back_in_pixels_of_their_photographs():
    boxes = [torch.tensor([[1.0, 2, 3, 4, 0]]), torch.zeros(0, 5), torch.tensor([[2.0, 2, 4, 8, 1], [0, 0, 1, 1, 2]])]
    table = padded(boxes, 2)
    assert table.shape == (3, 2, 5)
    assert (table[1] == -1).all()
    back = in_photographs(table, torch.tensor([0.5, 1, 2]))
    assert back[0].tolist() == [[2, 4, 6, 8, 0]]
    assert back[1].shape == (0, 5)
    assert back[2].tolist() == [[1, 1, 2, 4, 1], [0, 0, 0.5, 0.5, 2]]
    assert in_photographs(table[:, :0], torch.ones(3))[0].shape == (0, 5)
