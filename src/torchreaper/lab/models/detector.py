"""A small detector of torch operators alone: one stage, no anchors, one map of points."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.boxes import area, assign, decode, giou, iou, points, suppress
from torchreaper.lab.models.common import draw_he_normal, refuse_small
from torchreaper.lab.settings import Settings

MOST = 100
_CANDIDATES = 400  # boxes of a picture that suppression looks at
_RADIUS = 1.5  # strides around the centre of a box in which points answer for it
_FOCUS = 2.0  # the exponent of the focal loss
_PRIOR = 0.01  # what every class starts with at every point
_BOX_WEIGHT = 2.0  # of the loss of the boxes, beside that of the classes

Outputs = tuple[Tensor, Tensor]


class DetectorOptions(Settings):
    """The options of ``detector``; the defaults are for pictures of about 100 pixels with dozens of things on them.

    Attributes:
        width: filters of the first stage; each next one has twice as many, up to 8 times.
        stages: of the backbone, each halves the map. depth: convolutions in each of them.
        stride: pixels between two points that may say "here is something".
        neck: filters of the neck and the head. head: convolutions in the head's two branches.
        norm: after each convolution, "batch" or "group" (of 8 channels; for batches of one or two pictures).
        min_score: a detection scores at least this much. nms: two detections of a class overlap at most this much.
    """

    width: int = Field(default=24, ge=1)
    stages: int = Field(default=4, ge=1, le=7)
    depth: int = Field(default=2, ge=1, le=100)
    stride: Literal[2, 4, 8, 16, 32] = 4
    neck: int = Field(default=48, ge=1)
    head: int = Field(default=1, ge=1, le=100)
    norm: Literal["batch", "group"] = "batch"
    min_score: float = Field(default=0.02, ge=0, lt=1)
    nms: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _together(self) -> DetectorOptions:
        if self.stride > 2**self.stages:
            raise UserError(
                f"stride={self.stride}: {self.stages} stages reach a stride of {2**self.stages}; use more stages"
            )
        return self


class Backbone(nn.Module):
    """``stage1``, ``stage2``, ...: convolutions without shortcuts; the first of each stage has stride 2.

    [n, in_channels, height, width] -> the maps [n, c, ceil(height / s), ceil(width / s)] of every stage from ``stride``
    on, finest first; ``widths`` are their c.
    """

    def __init__(self, options: DetectorOptions, in_channels: int) -> None:
        super().__init__()
        self.first = int(math.log2(options.stride)) - 1
        widths = [options.width * min(2**k, 8) for k in range(options.stages)]
        before = [in_channels, *widths[:-1]]
        for k, (inputs, filters) in enumerate(zip(before, widths, strict=True)):
            self.add_module(f"stage{k + 1}", _convolutions(inputs, filters, options.depth, options.norm, stride=2))
        self.widths = widths[self.first :]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[n, in_channels, height, width] -> maps, finest first."""
        maps = []
        for stage in self.children():
            x = stage(x)
            maps.append(x)
        return maps[self.first :]


class Neck(nn.Module):
    """From the coarsest map to the finest: enlarge, put beside the next finer one, ``merge`` (3x3).

    Concatenation in place of a feature pyramid's sums: no channel is tied to another one. ``sizes`` are those of the
    maps; [n, c, h, w] of each -> [n, neck, h, w] of the finest.
    """

    def __init__(self, options: DetectorOptions, widths: list[int], sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        inputs = widths[-1]
        for k in range(len(widths) - 2, -1, -1):
            self.add_module(f"up{k + 1}", nn.Upsample(size=sizes[k]))
            inputs += widths[k]
            self.add_module(f"merge{k + 1}", _convolutions(inputs, options.neck, 1, options.norm))
            inputs = options.neck
        if len(widths) == 1:
            self.add_module("merge1", _convolutions(inputs, options.neck, 1, options.norm))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[n, c, h, w] of every map, finest first -> [n, neck, h, w] of the finest."""
        x = maps[-1]
        if len(maps) == 1:
            x = self.get_submodule("merge1")(x)
        for k in range(len(maps) - 1, 0, -1):
            enlarged = self.get_submodule(f"up{k}")(x)
            x = self.get_submodule(f"merge{k}")(torch.cat([enlarged, maps[k - 1]], dim=1))
        return x


class Head(nn.Module):
    """Two branches of convolutions, ``classes`` and ``boxes``, and what each says of every point.

    [n, neck, h, w] -> logits [n, classes, h, w] and predictions of boxes [n, 4, h, w].
    """

    def __init__(self, options: DetectorOptions, classes: int) -> None:
        super().__init__()
        self.classes = _branch(options, classes, start=math.log(_PRIOR / (1 - _PRIOR)))
        self.boxes = _branch(options, 4, start=0.0)

    def forward(self, x: Tensor) -> Outputs:
        """[n, neck, h, w] -> [n, classes, h, w], [n, 4, h, w]."""
        return self.classes(x), self.boxes(x)


class Detector(nn.Module):
    """``backbone``, ``neck`` and ``head``: what is where on one map of points, each point answering for itself.

    Boxes are learnt as in FCOS (Tian et al. 2019), from several points each, with one map for all sizes as in
    CenterNet (Zhou et al. 2019): from few pictures that learns faster than one peak a box, and small things keep a
    map of their own resolution. A point predicts centre and size (YOLOX, Ge et al. 2021), learnt by generalized IoU;
    the score of its class is taught the IoU that it reached (quality focal loss, Li et al. 2020), so that of several
    points of one thing the best box comes first.
    """

    takes_targets = False

    def __init__(
        self, options: DetectorOptions, *, in_channels: int, classes: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stride, self.image_size = options.stride, image_size
        self.min_score, self.nms = options.min_score, options.nms
        self.backbone = Backbone(options, in_channels)
        sizes = [_halved(image_size, k + self.backbone.first + 1) for k in range(len(self.backbone.widths))]
        self.neck = Neck(options, self.backbone.widths, sizes)
        self.head = Head(options, classes)
        draw_he_normal(self.backbone)
        draw_he_normal(self.neck)

    def forward(self, images: Tensor) -> Outputs:
        """[n, in_channels, height, width] -> logits [n, classes, h, w], predictions of boxes [n, 4, h, w]."""
        outputs: Outputs = self.head(self.neck(self.backbone(images)))
        return outputs

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The mean over the pictures of quality focal loss and 1 - GIoU, each a mean over the points of some box.

        Args:
            outputs: of ``forward``. targets: [n, most, 5], rows (x1, y1, x2, y2, class); class -1 is padding.
        """
        logits, predicted = (_by_point(output) for output in outputs)
        targets = targets.to(logits)
        boxes, real = targets[..., :4], targets[..., 4] >= 0
        height, width = outputs[0].shape[2:]
        chosen, positive = assign(boxes, real, height, width, self.stride, _RADIUS)
        if not targets.shape[1]:
            wanted = torch.zeros_like(logits)
            boxes_lost = predicted.sum(dim=(1, 2)) * 0
        else:
            own = targets.gather(1, chosen[..., None].expand(-1, -1, 5))
            found = decode(predicted, points(height, width, self.stride, predicted), self.stride)
            reached = iou(found.detach(), own[..., :4]) * positive
            label = own[..., 4].clamp(min=0).long()
            wanted = F.one_hot(label, logits.shape[2]) * reached[..., None]
            boxes_lost = ((1 - giou(found, own[..., :4])) * positive).sum(1)
        distance = (wanted - logits.sigmoid()).abs()
        cost = F.binary_cross_entropy_with_logits(logits, wanted.to(logits), reduction="none")
        classes_lost = (distance**_FOCUS * cost).sum(dim=(1, 2))
        count = positive.sum(1).clamp(min=1)
        return ((classes_lost + _BOX_WEIGHT * boxes_lost) / count).mean()

    @torch.no_grad()
    def detections(self, outputs: Outputs) -> list[Tensor]:
        """Of every picture at most ``MOST`` rows (x1, y1, x2, y2, score, class), best first, cut at its edges."""
        logits, predicted = (_by_point(output) for output in outputs)
        height, width = outputs[0].shape[2:]
        classes = logits.shape[2]
        boxes = decode(predicted, points(height, width, self.stride, predicted), self.stride)
        # Sorting is stable, so that equal scores keep the order of the points on every device.
        scores, order = logits.sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :_CANDIDATES], order[:, :_CANDIDATES]
        boxes = boxes.gather(1, (order // classes)[..., None].expand(-1, -1, 4))
        high, wide = self.image_size
        limits = torch.tensor([wide, high, wide, high], device=boxes.device, dtype=boxes.dtype)
        boxes = boxes.clamp(min=0).minimum(limits)
        labels = order % classes
        shown = (scores >= self.min_score) & (area(boxes) > 0)
        # What is not shown pushes out nothing: it is worse than all that is shown, or has no area.
        stays = suppress(boxes, labels, self.nms) & shown
        rows = torch.cat([boxes, scores[..., None], labels[..., None].to(boxes)], dim=-1)
        return [found[keep][:MOST] for found, keep in zip(rows, stays, strict=True)]


def detector(options: DetectorOptions, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> Detector:
    """Make the detector for pictures [n, in_channels, *image_size]; weights come from the global random state.

    Raises ``UserError`` for pictures whose halvings, one a stage, would end under 2x2.
    """
    refuse_small("detector", image_size, least=2 ** (options.stages + 1))
    return Detector(options, in_channels=in_channels, classes=classes, image_size=image_size)


def _convolutions(inputs: int, filters: int, depth: int, norm: str, *, stride: int = 1) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, depth + 1):
        layers[f"conv{k}"] = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
        layers[f"norm{k}"] = nn.BatchNorm2d(filters) if norm == "batch" else nn.GroupNorm(max(1, filters // 8), filters)
        layers[f"relu{k}"] = nn.ReLU()
        inputs, stride = filters, 1
    return nn.Sequential(layers)


def _branch(options: DetectorOptions, outputs: int, *, start: float) -> nn.Sequential:
    layers = _convolutions(options.neck, options.neck, options.head, options.norm)
    draw_he_normal(layers)
    out = nn.Conv2d(options.neck, outputs, 3, padding=1)
    nn.init.normal_(out.weight, std=0.01)  # so that every point starts with the same words
    nn.init.constant_(cast(Tensor, out.bias), start)
    layers.add_module("out", out)
    return layers


def _by_point(output: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, h * w, c], in float32 at least."""
    wide = output if output.dtype == torch.float64 else output.float()
    return wide.flatten(2).transpose(1, 2)


def _halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    return -(-size[0] // 2**times), -(-size[1] // 2**times)
