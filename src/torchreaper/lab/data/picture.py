"""One picture into pixels: 8 bits, one size, ImageNet's crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from torchreaper.lab.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""

GREY = ("1", "L")  # modes
_MODES = {*GREY, "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}  # 8 bits or fewer
_TRIES = 10  # at a crop that lies inside the picture
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a crop: share of the picture, width / height
NUMBERS = 2 * _TRIES + 3
"""How many random numbers of [0, 1) one resized crop takes."""


def check_mode(image: Image, where: str) -> None:
    """Raise ``UserError`` for a picture of more than 8 bits a channel; ``where`` says which it is."""
    if image.mode not in _MODES:
        raise UserError(f"{where}: image mode {image.mode} is not 8 bits a channel; make it RGB")


def pixels(
    image: Image, *, size: int | None = None, crop: Sequence[float] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture of 8 bits as [channels, height, width]; 1 channel where its mode is grey, else 3.

    Args:
        image: of any mode that `check_mode` lets through.
        size: the shorter side is brought to that many pixels, then the middle ``size`` x ``size`` is taken;
            None: the picture as it is.
        crop: random numbers, ``NUMBERS`` of them: not the middle but a crop of random area and shape is brought to
            ``size`` x ``size``, see `crop_box`, and mirrored where the last number is below 1/2.
    """
    from PIL.Image import Resampling, Transpose  # needed here only

    image = image.convert("L" if image.mode in GREY else "RGB")
    if size is not None and crop is None:
        image = image.resize((size, size), Resampling.BILINEAR, box=_middle(*image.size))
    elif size is not None and crop is not None:
        image = image.crop(crop_box(*image.size, crop)).resize((size, size), Resampling.BILINEAR)
        if crop[-1] < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def crop_box(width: int, height: int, numbers: Sequence[float]) -> Box:
    """Where ImageNet's random crop lies: 8 to 100 % of the area, 3:4 to 4:3 in shape.

    Ten tries, a number for the area and one for the shape each; where none lies inside the picture, its middle, as
    far as the shape allows. Two more numbers for the place.
    Source: Szegedy et al. 2015, section 6; torchvision's RandomResizedCrop.
    """
    low, high = _RATIO
    for area, shape in zip(numbers[: 2 * _TRIES : 2], numbers[1 : 2 * _TRIES : 2]):
        pixels_in = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(low) + shape * (math.log(high) - math.log(low)))
        across, down = round(math.sqrt(pixels_in * ratio)), round(math.sqrt(pixels_in / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(numbers[-3] * (width - across + 1))
            top = int(numbers[-2] * (height - down + 1))
            return (left, top, left + across, top + down)
    across, down = width, height
    if width / height < low:
        down = max(1, round(width / low))
    elif width / height > high:
        across = max(1, round(height * high))
    left, top = (width - across) // 2, (height - down) // 2
    return (left, top, left + across, top + down)


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest square in the middle: what is left of the shorter side at its new size and a crop of that size."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)
