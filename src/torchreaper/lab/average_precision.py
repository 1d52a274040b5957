"""How well detections fit the boxes that are there: COCO's average precision, by pycocotools."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from torchreaper.lab.errors import UserError

_SIZES = ("small", "medium", "large")
_ALL, _MOST = 0, -1  # places in pycocotools' tables: boxes of all sizes, the most detections an image (100 of a class)


def average_precision(
    found: Sequence[Float[Tensor, "k 6"]],
    truths: Sequence[Float[Tensor, "m 5"]],
    classes: Sequence[str],
    *,
    crowd: Sequence[Float[Tensor, "c 5"]] | None = None,
) -> dict[str, float]:
    """Average precision (0 to 1) of detections, as COCO measures it.

    Precision averaged over 101 recalls and over the classes; "mAP" also over overlaps (IoU) of 0.50, 0.55, ..., 0.95,
    "AP50" and "AP75" at one each. Of each image the 100 best detections of a class count. "AP small", "AP medium" and
    "AP large" are of boxes below 32 x 32, up to 96 x 96, and above, in pixels of the photograph, by the area of the box
    (COCO's own tables take that of the object's outline); those of one class are called as ``names_of_classes`` says.
    Source: Lin et al. 2014 and https://cocodataset.org/#detection-eval, which pycocotools implements.

    Args:
        found: For each image (x1, y1, x2, y2, score, class), in pixels of the photograph, in any order.
        truths: For each image (x1, y1, x2, y2, class), likewise.
        classes: Their names, by number.
        crowd: As ``truths``, crowds of objects: a detection inside one is neither right nor wrong.

    Returns:
        The figures by name; those of which there is no truth are left out. No detection at all gives 0.

    Raises:
        UserError: pycocotools is not installed.
        ValueError: lists of different lengths, values that are not finite, classes out of range.
    """
    try:
        from pycocotools import cocoeval  # type: ignore[import-untyped]  # needed here only
    except ImportError as error:
        raise UserError(
            f"average precision needs pycocotools, which cannot be imported ({error}); pip install pycocotools"
        ) from None

    crowds = [truth[:0] for truth in truths] if crowd is None else crowd
    if not len(found) == len(truths) == len(crowds):
        raise ValueError(f"found, truths, crowd: of {len(found)}, {len(truths)}, {len(crowds)} images; give one each")
    known, told = _Annotations(len(truths), len(classes)), _Annotations(len(truths), len(classes))
    for image, (here, there, crowded) in enumerate(zip(found, truths, crowds)):
        told.add(image, _rows(here, 6, len(classes), f"found[{image}]"))
        known.add(image, _rows(there, 5, len(classes), f"truths[{image}]"))
        known.add(image, _rows(crowded, 5, len(classes), f"crowd[{image}]"), crowd=1)
    if not len(truths):
        return {}
    evaluation = cocoeval.COCOeval(known, told, "bbox")
    for name in ("evaluate", "accumulate"):
        _silent(cocoeval, getattr(cocoeval.COCOeval, name))(evaluation)
    # [overlap, recall, class, size, most detections]; -1 where there is no truth.
    precision = evaluation.eval["precision"][..., _MOST]
    figures = {"mAP": precision[:, :, :, _ALL], "AP50": precision[0, :, :, _ALL], "AP75": precision[5, :, :, _ALL]}
    figures |= {f"AP {size}": precision[:, :, :, 1 + place] for place, size in enumerate(_SIZES)}
    figures |= {name: precision[:, :, number, _ALL] for number, name in enumerate(names_of_classes(classes))}
    there_is = {name: values[values > -1] for name, values in figures.items()}
    return {name: float(values.mean()) for name, values in there_is.items() if values.size}


def names_of_classes(classes: Sequence[str]) -> list[str]:
    """What the figure of each class is called: "AP <class>", with " (class)" behind where that is taken.

    No two are the same, and none is that of a size.
    """
    names: list[str] = []
    taken = {f"AP {size}" for size in _SIZES}
    for one in classes:
        name = f"AP {one}"
        while name in taken:
            name += " (class)"
        taken.add(name)
        names.append(name)
    return names


class _Annotations:
    """The boxes of all images, as much of pycocotools' ``COCO`` as its evaluation asks for; that class would print."""

    def __init__(self, images: int, classes: int) -> None:
        self._images, self._classes = list(range(images)), list(range(classes))
        self._boxes: list[dict[str, Any]] = []

    def add(self, image: int, rows: list[list[float]], *, crowd: int = 0) -> None:
        for left, top, right, bottom, *score, number in rows:
            width, height = right - left, bottom - top
            about: dict[str, Any] = {
                "image_id": image,
                "category_id": int(number),
                "iscrowd": crowd,
                "area": width * height,
            }
            # From 1: 0 stands for "not matched".
            about |= {"id": len(self._boxes) + 1, "bbox": [left, top, width, height]}
            self._boxes.append(about | ({"score": score[0]} if score else {}))

    def getImgIds(self) -> list[int]:  # noqa: N802
        return self._images

    def getCatIds(self) -> list[int]:  # noqa: N802
        return self._classes

    def getAnnIds(self, **_: Any) -> list[int]:  # noqa: N802
        return [one["id"] for one in self._boxes]

    def loadAnns(self, ids: list[int]) -> list[dict[str, Any]]:  # noqa: N802
        return [self._boxes[one - 1] for one in ids]


def _rows(boxes: Tensor, columns: int, classes: int, what: str) -> list[list[float]]:
    values = boxes.detach().cpu().double().numpy()
    if values.ndim != 2 or values.shape[1] != columns:
        raise ValueError(f"{what}: of shape {list(values.shape)}; must be [boxes, {columns}]")
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: holds values that are not finite")
    numbers = values[:, -1]
    if not np.isin(numbers, np.arange(classes)).all():
        raise ValueError(f"{what}: holds a class that is not one of 0 to {classes - 1}")
    rows: list[list[float]] = values.tolist()
    return rows


def _silent(module: types.ModuleType, function: types.FunctionType) -> types.FunctionType:
    """The same function, with a ``print`` of its own that prints nothing: the output of others goes on as it was."""
    names = {**vars(module), "print": lambda *_, **__: None}
    return types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
