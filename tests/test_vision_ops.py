"""The stand-ins for torchvision's compiled operators, by hand-computed cases, through torchvision's own functions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.vision_ops import with_operators

with_operators()
from torchvision.ops import batched_nms, nms, roi_align  # noqa: E402


def test_boxes_that_overlap_better_ones_go():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.7])
    # IoU with the second: 0.9 of the first, 5/9 of the third.
    assert nms(boxes, scores, 0.6).tolist() == [1, 2, 3]
    assert nms(boxes, scores, 0.5).tolist() == [1, 3]
    assert nms(boxes, scores, 0.95).tolist() == [1, 2, 3, 0]
    assert batched_nms(boxes, scores, torch.tensor([0, 1, 0, 0]), 0.5).tolist() == [1, 2, 3, 0]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
    assert nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5]]), torch.ones(2), 0.5).tolist() == [0, 1], "not more than"


def ramp() -> Tensor:
    """[1, 2, 6, 8]: the x of every cell, and 10 times its y."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    return torch.stack([x, 10 * y])[None].double()


@pytest.mark.parametrize("ratio", [1, 2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_regions_of_a_plane_hold_the_centres_of_their_bins(aligned, ratio):
    """Interpolation of a plane is exact, and its mean over points that lie evenly is the value in their middle."""
    box, shift = torch.tensor([[0.0, 2.0, 4.0, 12.0, 8.0]]).double(), 0.5 if aligned else 0.0
    found = roi_align(ramp(), box, (2, 5), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    assert found.shape == (1, 2, 2, 5)
    # In cells the box is x 1 to 6, y 2 to 4: bins of 1 and 1.
    torch.testing.assert_close(found[0, 0], (1.5 - shift + torch.arange(5.0)).expand(2, 5).double())
    torch.testing.assert_close(found[0, 1], 10 * (2.5 - shift + torch.arange(2.0))[:, None].expand(2, 5).double())


def test_outside_is_zero_and_the_edge_goes_on():
    ones = torch.ones(1, 1, 4, 4).double()
    far = torch.tensor([[0.0, 10, 0, 14, 4]]).double()
    assert roi_align(ones, far, 2, sampling_ratio=1).eq(0).all()
    # Points at x -0.75 and 0.25: up to one cell outside counts as the edge. Those at -1.25 count as 0.
    assert roi_align(ones, torch.tensor([[0.0, -1.25, 0, 0.75, 4]]).double(), 2, sampling_ratio=1).eq(1).all()
    left = roi_align(ones, torch.tensor([[0.0, -1.75, 0, 0.25, 4]]).double(), 2, sampling_ratio=1)
    assert left[0, 0].tolist() == [[0, 1], [0, 1]]


def test_each_region_reads_its_own_picture_and_gives_gradients_back():
    maps = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).double().requires_grad_()
    found = roi_align(maps, [torch.zeros(0, 4).double(), torch.tensor([[0.0, 0, 4, 4]]).double()], 2, sampling_ratio=2)
    assert found.eq(1).all()
    found.sum().backward()
    assert maps.grad is not None
    assert maps.grad[0].eq(0).all()
    assert float(maps.grad[1].sum()) == pytest.approx(3 * 4), "every bin is a mean"
    assert roi_align(maps, [torch.zeros(0, 4).double()] * 2, 2).shape == (0, 3, 2, 2)


def test_a_region_against_sums_over_points():
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(5, 6, generator=draw).double()
    box = [0.7, 0.3, 4.9, 3.8]
    found = roi_align(image[None, None], torch.tensor([[0.0, *box]]).double(), (3, 2), sampling_ratio=2)[0, 0]
    for p in range(3):
        for q in range(2):
            total = 0.0
            for i in range(2):
                for j in range(2):
                    y = box[1] + (box[3] - box[1]) / 3 * (p + (i + 0.5) / 2)
                    x = box[0] + (box[2] - box[0]) / 2 * (q + (j + 0.5) / 2)
                    r, c = int(y), int(x)
                    for dr, wr in ((0, 1 - y + r), (1, y - r)):
                        for dc, wc in ((0, 1 - x + c), (1, x - c)):
                            total += wr * wc * float(image[min(r + dr, 4), min(c + dc, 5)])
            assert float(found[p, q]) == pytest.approx(total / 4)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["from tests.zoo import torchvision_importable as f", "import tests.vision_ops as f"])
def test_either_helper_may_come_first(first):
    call = "f()" if "zoo" in first else "f.with_operators()"
    code = (
        f"{first}\n{call}\n"
        "from tests.zoo import torchvision_importable\nfrom tests.vision_ops import with_operators\n"
        "with_operators(); torchvision_importable(); with_operators()\n"
        "import torch, torchvision\n"
        "print(torchvision.ops.nms(torch.ones(1, 4), torch.ones(1), 0.5).tolist())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[0]\n"
