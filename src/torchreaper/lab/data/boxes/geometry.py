"""Photographs and their boxes brought to one size, cut and mirrored; pixels and boxes move together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

FILLING = 114
"""The grey beside a photograph that is not of the input's shape: near the mean of photographs (as in YOLOv5)."""


class Fit(NamedTuple):
    """How a photograph comes to lie in the input, from its top left: pixels per pixel, and the pixels it covers."""

    scale: float
    height: int
    width: int


def fit(height: int, width: int, size: tuple[int, int]) -> Fit:
    """The largest place of a photograph's own shape in an input of ``size`` (height, width).

    One side is filled. The other is cut to whole pixels, less than one is lost, so that both have the same scale.
    """
    high, wide = size
    if wide * height <= high * width:
        return Fit(wide / width, max(1, height * wide // width), wide)
    return Fit(high / height, high, max(1, width * high // height))


def letterbox(image: Image, size: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
    """The photograph in an input of ``size`` (height, width), see `fit`; beside it lies `FILLING`."""
    from PIL.Image import Resampling  # needed here only

    scale, height, width = fit(image.height, image.width, size)
    part = (0.0, 0.0, min(image.width, width / scale), min(image.height, height / scale))
    pixels = np.full((*size, 3), FILLING, dtype=np.uint8)
    pixels[:height, :width] = np.asarray(image.convert("RGB").resize((width, height), Resampling.BILINEAR, box=part))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def clip(boxes: Float64[np.ndarray, "k 4"], height: int, width: int) -> Float64[np.ndarray, "k 4"]:
    """Boxes (x1, y1, x2, y2) as far as they lie in a photograph of that size; those outside have no area then."""
    inside: Float64[np.ndarray, "k 4"] = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float64))
    return inside


def has_area(boxes: Float[Tensor, "... 4"]) -> Bool[Tensor, "..."]:
    """Whether boxes (x1, y1, x2, y2) are wider and higher than 0."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def mirror(
    images: UInt8[Tensor, "n channels height width"],
    targets: Float[Tensor, "n most 5"],
    widths: Int64[Tensor, " n"],
    chosen: Bool[Tensor, " n"],
) -> tuple[UInt8[Tensor, "n channels height width"], Float[Tensor, "n most 5"]]:
    """The ``chosen`` images and their boxes, left and right exchanged; the others, and rows of padding, as they are.

    Only the first ``widths`` pixels of each row are the photograph: it stays at the left, what fills the input beside
    it at the right. Of a box that sticks out there, less than a pixel (see `fit`), what is seen is kept.
    """
    columns = torch.arange(images.shape[3], device=images.device)
    moved = chosen[:, None] & (columns < widths[:, None])
    columns = torch.where(moved, widths[:, None] - 1 - columns, columns)
    images = images.gather(3, columns[:, None, None, :].expand_as(images))

    width = widths[:, None].to(targets.dtype)
    left, right = (width - targets[..., 2]).clamp(min=0), width - targets[..., 0]
    boxes = torch.stack((left, targets[..., 1], right, targets[..., 3], targets[..., 4]), dim=2)
    boxes = torch.where(has_area(boxes[..., :4])[..., None], boxes, -1.0)
    there = chosen[:, None] & (targets[..., 4] >= 0)
    return images, torch.where(there[..., None], boxes, targets)


def padded(boxes: Sequence[Float[Tensor, "k 5"]], most: int) -> Float[Tensor, "n most 5"]:
    """The boxes of all images as one table, ``most`` rows an image; rows that are not filled are -1."""
    table = torch.full((len(boxes), most, 5), -1.0)
    for rows, those in zip(table, boxes):
        rows[: len(those)] = those
    return table


def in_photographs(table: Float[Tensor, "n most 5"], scale: Float[Tensor, " n"]) -> list[Float[Tensor, "k 5"]]:
    """The boxes of each image without the padding, in pixels of its photograph (``scale``: see `Fit`)."""
    found = []
    for rows, factor in zip(table, scale):
        rows = rows[rows[:, 4] >= 0]
        found.append(torch.cat((rows[:, :4] / factor, rows[:, 4:]), dim=1))
    return found
