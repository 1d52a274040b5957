"""torchvision's compiled operators ``nms`` and ``roi_align``, of torch's own, for where they cannot be loaded.

PyPI's torchvision is compiled for a torch with CUDA; beside a CPU torch its operators are missing, and without them no
Faster R-CNN trains or detects. Here they are written down from their definitions, slow and easy to check; where the
compiled ones work nothing happens.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tests.zoo import torchvision_importable

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
}
_libraries: list[torch.library.Library] = []


def with_operators() -> None:
    """Make torchvision importable, and its detectors able to run; for the rest of the process."""
    torchvision_importable()
    import torchvision

    if torchvision.extension._has_ops() or _libraries:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):  # the import may have needed a schema already
            library.define(schema)
    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    _libraries.append(library)  # its definitions live as long as it does
    for module in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[module]._has_ops = lambda: True


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better kept one overlaps by more than the threshold, best first."""
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for k in range(len(boxes)):
        if stays[k]:
            low = torch.maximum(boxes[k, :2], boxes[k + 1 :, :2])
            high = torch.minimum(boxes[k, 2:], boxes[k + 1 :, 2:])
            both = (high - low).clamp(min=0).prod(1)
            stays[k + 1 :] &= both / (size[k] + size[k + 1 :] - both) <= iou_threshold
    return order[stays]


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The mean, in each bin of each region, of the map at evenly spaced points; rows of ``rois`` are (image, box)."""
    if not len(rois):
        return input.new_zeros(0, input.shape[1], pooled_height, pooled_width) + 0 * input.sum()
    return torch.stack(
        [
            _region(input[int(roi[0])], roi[1:] * spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)
            for roi in rois
        ]
    )


def _region(image: Tensor, box: Tensor, height: int, width: int, ratio: int, aligned: bool) -> Tensor:
    low, high = (box - 0.5).split(2) if aligned else box.split(2)
    size = high - low if aligned else (high - low).clamp(min=1.0)
    rows, columns = (
        _weights(float(low[axis]), float(size[axis]), bins, ratio, image.shape[2 - axis], image)
        for axis, bins in ((1, height), (0, width))
    )
    return torch.einsum("ph,chw,qw->cpq", rows, image, columns)


def _weights(start: float, size: float, bins: int, ratio: int, cells: int, like: Tensor) -> Tensor:
    """How much each cell of one axis counts in each bin, [bins, cells]: bilinear interpolation is a product of two."""
    points = ratio if ratio > 0 else max(1, -int(-size / bins // 1))
    at = start + size / bins * (
        torch.arange(bins, dtype=torch.float64)[:, None] + (torch.arange(points, dtype=torch.float64) + 0.5) / points
    )
    outside = (at < -1) | (at > cells)  # counts as 0
    at = at.clamp(0, cells - 1)
    cell = torch.arange(cells, dtype=torch.float64)
    share = (1 - (at[..., None] - cell).abs()).clamp(min=0).masked_fill(outside[..., None], 0.0)
    return share.mean(1).to(like)
