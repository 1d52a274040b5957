"""Boxes as detectors handle them: overlap, which point answers for which box, what is predicted of it, suppression.

A box is (x1, y1, x2, y2) in pixels. All functions take any floating dtype, keep it, and draw no random numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-9
_LARGEST_LOG = 8.0  # exp of it, times a stride, is larger than any picture; and no half-trained net overflows


class Assignment(NamedTuple):
    """Which box every point answers for.

    Attributes:
        box: index of the box, [n, points]; of no meaning where there is none.
        positive: whether there is one, [n, points].
    """

    box: Tensor
    positive: Tensor


def points(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """The centres of the cells of a map [height, width], row by row, as (x, y) in pixels: [height * width, 2]."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * stride
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * stride
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...], 0 where a box is turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, [..., 4] and [..., 4] -> [...], broadcast over the leading dimensions."""
    return _overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized intersection over union, in (-1, 1]: below 0 it tells how far apart two boxes are.

    Source: Rezatofighi et al., Generalized Intersection over Union (2019).
    """
    overlap, union = _overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = area(torch.cat([low, high], dim=-1))
    return overlap - (hull - union) / (hull + _TINY)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = area(torch.cat([low, high], dim=-1))
    union = area(a) + area(b) - both
    return both / (union + _TINY), union


def encode(boxes: Tensor, at: Tensor, stride: int) -> Tensor:
    """What a network predicts of boxes [..., 4] of some area at points [..., 2].

    That is the way from the point to the centre (x, y) and the logarithms of width and height, all in strides.
    """
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([(centre - at) / stride, (size / stride).log()], dim=-1)


def decode(predicted: Tensor, at: Tensor, stride: int) -> Tensor:
    """The boxes [..., 4] that predictions [..., 4] at points [..., 2] mean: `encode` the other way."""
    centre = at + stride * predicted[..., :2]
    half = stride / 2 * predicted[..., 2:].clamp(max=_LARGEST_LOG).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def assign(boxes: Tensor, real: Tensor, height: int, width: int, stride: int, radius: float) -> Assignment:
    """Give every box the points near its centre, so that each is learnt from several and the rest are background.

    A point belongs to a box if it is inside it and, along both axes, within ``radius`` strides of its centre; the cell
    that the centre lies in always belongs to it, however small the box is. Of several boxes a point takes the
    smallest, then the first.

    Args:
        boxes: [n, most, 4]. real: [n, most], false for padding. height, width: of the map.

    Source: Tian et al., FCOS (2019), with the centre sampling of its second version (2020).
    """
    at = points(height, width, stride, boxes)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]  # [n, most, 1, 2]
    centre = (low + high) / 2
    inside = ((at > low) & (at < high)).all(-1)
    near = ((at - centre).abs() <= radius * stride).all(-1)
    cell = (centre / stride).floor()
    most = torch.tensor([width - 1, height - 1], device=cell.device, dtype=cell.dtype)
    home = ((cell.clamp(min=0).minimum(most) + 0.5) * stride == at).all(-1)
    claimed = (inside & near | home) & real[..., None]
    size = area(boxes)[..., None].expand_as(claimed).masked_fill(~claimed, torch.inf)
    if not boxes.shape[1]:
        none = torch.zeros(len(boxes), len(at), dtype=torch.long, device=boxes.device)
        return Assignment(none, none.bool())
    return Assignment(size.argmin(1), claimed.any(1))


def suppress(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression inside each class and picture, boxes [n, k, 4] being sorted best first.

    A box goes if it overlaps a better one of its class, which stays itself, by more than ``threshold``. All pictures
    are looked at together: what a box does depends on better ones only, so to repeat the question until nothing
    changes gives the greedy answer, in as many rounds as suppressions hang on each other.

    Returns:
        Which boxes stay, [n, k].
    """
    same = classes[:, :, None] == classes[:, None, :]
    better = torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool, device=boxes.device).triu(1)
    rivals = (iou(boxes[:, :, None], boxes[:, None]) > threshold) & same & better
    stays = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    while True:
        now = ~(rivals & stays[:, :, None]).any(1)
        if torch.equal(now, stays):
            return stays
        stays = now
