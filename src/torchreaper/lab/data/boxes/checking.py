"""What files say of boxes, checked one by one and brought to pixels of the network's input."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchreaper.lab.data.boxes.categories import Numbers, class_of
from torchreaper.lab.data.boxes.geometry import clip, fit, has_area
from torchreaper.lab.data.boxes.photographs import Photographs, Size
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show

log = logging.getLogger("torchreaper")

_MOST = 1e9  # pixels: beyond is no place in a picture
_SHARE = 1.01  # boxes that all end here, a pixel from the corner, are counted in shares of the picture
_FLAT = "boxes without area in their picture, left out"
_OUT = "boxes that stick out of their picture by more than a pixel, clipped (if they are many, is data.box right?)"


class Notes:
    """What is put right on the way: how often, and where first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, where: str) -> None:
        """Count one more."""
        count, first = self._found.get(what, (0, where))
        self._found[what] = count + 1, first

    def tell(self) -> None:
        """One line in the log for each kind."""
        for what, (count, first) in self._found.items():
            log.warning("%s: %d, first in %s", what, count, first)


class Marked(NamedTuple):
    """The pictures of a split at ``rows``, with their boxes in pixels of the input; see `BoxSplit`."""

    rows: Int64[Tensor, " n"]
    sizes: dict[int, Size]
    boxes: list[Float[Tensor, "k 5"]]
    crowds: list[Float[Tensor, "k 5"]]
    scale: Float[Tensor, " n"]
    filled: Int64[Tensor, "n 2"]


def marked(
    photographs: Photographs, rows: Int64[Tensor, " n"], *, form: str, size: Size, numbers: Numbers, notes: Notes
) -> Marked:
    """The boxes of the pictures at ``rows``: clipped to their picture, those without area left out, both noted.

    Args:
        photographs: What the files say.
        rows: The pictures that are used; nothing else is looked at.
        form: What four numbers mean, "xywh" or "xyxy".
        size: Of the network's input.
        numbers: The class of each category.
        notes: Where to count.

    Raises:
        UserError: Four numbers that are none, or not finite, or of negative size; an unknown category; all boxes within
            the first pixel.
    """
    chosen = rows.tolist()
    sizes = photographs.sizes(chosen)
    boxes, crowds, fits = [], [], []
    furthest = 0.0
    for row, (height, width), objects in zip(chosen, sizes, photographs.objects(chosen)):
        scale, high, wide = fit(height, width, size)
        found = np.empty((len(objects), 6))
        places, count = [], 0
        for one in objects:
            where = photographs.where(row, one.number)
            corners = corners_of(one.box, form, where)
            if (number := class_of(one.category, numbers, where)) is None:
                continue
            found[count], count = (*corners, number, one.crowd), count + 1
            places.append(where)
        found = found[:count]
        furthest = max(furthest, float(found[:, :4].max(initial=0)))
        inside = clip(found[:, :4], height, width)
        for place in (np.abs(inside - found[:, :4]).max(axis=1, initial=0) > 1).nonzero()[0].tolist():
            notes.add(_OUT, places[place])
        scaled = np.minimum(inside * scale, [size[1], size[0]] * 2)  # which rounding could exceed
        table = torch.from_numpy(np.column_stack((scaled, found[:, 4:]))).float()
        seen = has_area(table[:, :4])
        for place in (~seen).nonzero().flatten().tolist():
            notes.add(_FLAT, places[place])
        crowd = table[:, 5] == 1
        boxes.append(table[seen & ~crowd, :5])
        crowds.append(table[seen & crowd, :5])
        fits.append((scale, high, wide))
    if 0 < furthest <= _SHARE:
        raise UserError(
            f"{photographs.table.key}: all boxes lie within 0 to 1, but are read in pixels of their picture; multiply "
            "shares by its width and height"
        )
    scales, filled = torch.tensor([scale for scale, *_ in fits]), torch.tensor([rest for _, *rest in fits])
    return Marked(rows, dict(zip(chosen, sizes)), boxes, crowds, scales, filled)


def corners_of(box: Any, form: str, where: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box as it stands in a file; see `marked`."""
    if not isinstance(box, list | tuple) or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        raise UserError(f"{where}: bbox={show(box)}: must be four numbers; mend it or leave the box out")
    if not all(abs(value) <= _MOST for value in box):  # NaN is not either
        raise UserError(f"{where}: bbox={show(box)}: must be finite, in pixels; mend it or leave the box out")
    left, top, third, fourth = map(float, box)
    xywh = form == "xywh"
    right, bottom = (left + third, top + fourth) if xywh else (third, fourth)
    if min(third, fourth) < 0 if xywh else right < left or bottom < top:
        other = "xyxy" if xywh else "xywh"
        raise UserError(
            f"{where}: bbox={show(box)}: has a negative width or height; mend it, or set data.box: {other} if that is "
            "what the numbers are"
        )
    return left, top, right, bottom
