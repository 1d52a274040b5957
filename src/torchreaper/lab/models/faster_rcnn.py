"""Faster R-CNN out of torchvision's parts, on a feature pyramid (FPN) or on the fourth stage of a ResNet (C4)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.common import refuse_small
from torchreaper.lab.models.library import TORCHVISION, import_library
from torchreaper.lab.objects import reason
from torchreaper.lab.settings import Settings

MOST = 100
VARIANTS = ("faster-rcnn-fpn", "faster-rcnn-c4")
_STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")  # torchvision's names, in order of thawing
_RATIOS = (0.5, 1.0, 2.0)  # of height to width of the anchors
_LEAST = 32  # pixels: five halvings


class FasterRCNNOptions(Settings):
    """The options of both Faster R-CNNs; the defaults are torchvision's.

    Attributes:
        backbone: the ResNet. C4 takes those of bottlenecks only, resnet50 and resnet101.
        weights: None (drawn) or "imagenet", which downloads torchvision's default weights of that ResNet.
        trainable_layers: stages of the ResNet that train, counted from the last, 0 to 5; None: 3 with weights, else 5.
        norm: of the ResNet: "frozen" (statistics, gain and shift of the weights, as constants) or "batch"; None: frozen
            with weights, else batch.
        anchor: side in pixels of the smallest anchor; the others have 2, 4, 8 and 16 times as much.
        proposals: regions of a picture that the second stage looks at. samples: of them a training step takes.
        min_score: a detection scores at least this much. nms: two detections of a class overlap at most this much.
    """

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    weights: Literal["imagenet"] | None = None
    trainable_layers: int | None = Field(default=None, ge=0, le=5)
    norm: Literal["frozen", "batch"] | None = None
    anchor: int = Field(default=32, ge=4, le=512)
    proposals: int = Field(default=1000, ge=1, le=10000)
    samples: int = Field(default=512, ge=1, le=10000)
    min_score: float = Field(default=0.05, ge=0, lt=1)
    nms: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _together(self) -> FasterRCNNOptions:
        if self.weights is None and self.norm == "frozen":
            raise UserError("norm='frozen': changes nothing without weights; set weights='imagenet' or norm='batch'")
        if self.weights is None and self.trainable_layers not in (None, 5):
            raise UserError(
                f"trainable_layers={self.trainable_layers}: would keep drawn weights; set weights='imagenet', or 5"
            )
        return self


class Sampled(NamedTuple):
    """The regions that the second stage looks at, by picture.

    Attributes:
        boxes: [k, 4] of every picture. sizes: (height, width) of every picture.
        labels, wanted: with targets, the class of each region, 0 for the background, and how its box should move.
        losses: with targets those of the first stage, by name.
    """

    boxes: list[Tensor]
    sizes: list[tuple[int, int]]
    labels: list[Tensor]
    wanted: list[Tensor]
    losses: dict[str, Tensor]


class Regions(nn.Module):
    """Where something may be, and which of these regions are looked at: torchvision's two stages without their layers.

    It has no parameters. What it does depends on what the tensors hold, so it cannot be traced; all that has weights
    stands before or after it. Half precision would round the corners of boxes to 4 pixels, so all of it is done in
    float32 at least, under autocast too.
    """

    def __init__(self, rpn: Any, roi_heads: Any, detection: Any) -> None:
        super().__init__()
        del rpn.head, roi_heads.box_head, roi_heads.box_predictor, roi_heads.box_roi_pool
        self.rpn, self.roi_heads = rpn, roi_heads
        self._image_list = detection.image_list.ImageList
        self._concatenated = detection.rpn.concat_box_prediction_layers

    def forward(self, images: Tensor, objectness: list[Tensor], moves: list[Tensor], targets: Tensor | None) -> Sampled:
        """The best boxes of every picture; with targets [n, most, 5] a sample of them.

        Args:
            objectness: [n, anchors, h, w] of every map. moves: [n, 4 * anchors, h, w].
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._sampled(images, [_wide(one) for one in objectness], [_wide(one) for one in moves], targets)

    def _sampled(
        self, images: Tensor, objectness: list[Tensor], moves: list[Tensor], targets: Tensor | None
    ) -> Sampled:
        rpn, sizes = self.rpn, [(images.shape[-2], images.shape[-1])] * len(images)
        anchors = rpn.anchor_generator(self._image_list(images, sizes), objectness)
        counts = [one[0].numel() for one in objectness]
        flat, flat_moves = self._concatenated(objectness, moves)
        boxes = rpn.box_coder.decode(flat_moves.detach(), anchors).view(len(images), -1, 4)
        found, _ = rpn.filter_proposals(boxes, flat, sizes, counts)
        if targets is None:
            return Sampled(found, sizes, [], [], {})
        truth = _listed(targets, boxes.dtype)
        labels, matched = rpn.assign_targets_to_anchors(anchors, truth)
        labels = [one.to(flat) for one in labels]  # the loss comes in their type
        of_objects, of_boxes = rpn.compute_loss(flat, flat_moves, labels, rpn.box_coder.encode(matched, anchors))
        found, _, labels, wanted = self.roi_heads.select_training_samples(found, truth)
        return Sampled(found, sizes, labels, list(wanted), {"objectness": of_objects, "rpn_box": of_boxes})


class Pooled(nn.Module):
    """What is seen in the regions: torchvision's ``roi_align`` on the maps; no parameters."""

    def __init__(self, roi_align: Any) -> None:
        super().__init__()
        self.roi_align = roi_align

    def forward(self, maps: list[Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Maps [n, channels, h, w], boxes [k, 4] of every picture -> [regions, channels, 7 or 14, 7 or 14]."""
        # Lists, which a tracer cannot make of what it knows nothing of: it must not go on into torchvision's code.
        boxes, sizes, dtype = list(boxes), list(sizes), maps[0].dtype
        with torch.autocast(boxes[0].device.type, enabled=False):
            named = OrderedDict((str(k), _wide(one)) for k, one in enumerate(maps))
            seen: Tensor = self.roi_align(named, boxes, sizes)
        return seen.to(dtype)


class Outputs(NamedTuple):
    """Of every region logits [regions, 1 + classes] and moves [regions, 4 * (1 + classes)], and which these are."""

    logits: Tensor
    moves: Tensor
    sampled: Sampled


class FasterRCNN(nn.Module):
    """Children ``backbone``, ``rpn_head``, ``regions``, ``pooled``, ``box_head`` and ``box_predictor``.

    Torchvision's own order of things, taken apart so that all that has weights can be traced. Its frame that resizes
    and normalises is left out: pictures come ready and all of one size, boxes are pixels of the input. With targets
    anchors and regions are sampled at random, from the global generator of their device, in either mode.
    """

    takes_targets = True

    def __init__(self, whole: Any, detection: Any) -> None:
        super().__init__()
        self.backbone, self.rpn_head = whole.backbone, whole.rpn.head
        self.pooled = Pooled(whole.roi_heads.box_roi_pool)
        self.box_head, self.box_predictor = whole.roi_heads.box_head, whole.roi_heads.box_predictor
        self.regions = Regions(whole.rpn, whole.roi_heads, detection)
        self._second_loss = detection.roi_heads.fastrcnn_loss

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Outputs:
        """[n, 3, height, width], targets [n, most, 5] or none -> what ``loss`` or ``detections`` reads."""
        maps = list(self.backbone(images).values())
        objectness, moves = self.rpn_head(maps)
        sampled = self.regions(images, objectness, moves, targets)
        seen = self.box_head(self.pooled(maps, sampled.boxes, sampled.sizes))
        return Outputs(self.box_predictor.cls_score(seen), self.box_predictor.bbox_pred(seen), sampled)

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The sum of the four losses, each a mean over what was sampled of the whole batch, as torchvision has it."""
        logits, moves, sampled = _wide(outputs.logits), _wide(outputs.moves), outputs.sampled
        with torch.autocast(logits.device.type, enabled=False):
            second = self._second_loss(logits, moves, sampled.labels, sampled.wanted)
            return torch.stack([*sampled.losses.values(), *second]).sum()

    @torch.no_grad()
    def detections(self, outputs: Outputs) -> list[Tensor]:
        """Of every picture at most ``MOST`` rows (x1, y1, x2, y2, score, class), best first."""
        logits, moves, sampled = _wide(outputs.logits), _wide(outputs.moves), outputs.sampled
        with torch.autocast(logits.device.type, enabled=False):
            found = self.regions.roi_heads.postprocess_detections(logits, moves, sampled.boxes, sampled.sizes)
        return [
            torch.cat([box, score[:, None], label[:, None].to(box) - 1], dim=1)
            for box, score, label in zip(*found, strict=True)
        ]


class C4Head(nn.Sequential):
    """The fifth stage of a ResNet on every region (``layer4``), then the mean over its pixels.

    [regions, 1024, 14, 14] -> [regions, 2048].
    """

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__(OrderedDict(layer4=layer4, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


def faster_rcnn(
    options: FasterRCNNOptions, *, variant: str, in_channels: int, classes: int, image_size: tuple[int, int]
) -> FasterRCNN:
    """Make the Faster R-CNN of ``VARIANTS``; what is drawn comes from the global random state.

    Raises ``UserError`` without a torchvision that works, for pictures that are not coloured or under 32x32, and for a
    ResNet that the variant cannot use.
    Sources: Ren et al., Faster R-CNN (2015); Lin et al., Feature Pyramid Networks (2017); C4 after He et al. 2016.
    """
    if in_channels != 3:
        raise UserError(f"model.name={variant!r}: reads images of 3 channels, these have {in_channels}; colour them")
    refuse_small(variant, image_size, least=_LEAST)
    c4 = variant == "faster-rcnn-c4"
    if c4 and options.backbone in ("resnet18", "resnet34"):
        raise UserError(
            f"model.options.backbone={options.backbone!r}: {variant} needs resnet50 or resnet101; or use {VARIANTS[0]}"
        )
    vision = _torchvision(variant)
    norm = options.norm or ("frozen" if options.weights else "batch")
    norms = vision.ops.FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    net = vision.models.get_model(options.backbone, weights=None, norm_layer=norms)
    if options.weights:
        _load_weights(net, options.backbone, vision, variant)
    default = 3 if options.weights else 5
    _freeze(net, default if options.trainable_layers is None else options.trainable_layers)
    return _on_c4(vision, net, options, classes) if c4 else _on_pyramid(vision, net, options, classes)


def _on_pyramid(vision: Any, net: Any, options: FasterRCNNOptions, classes: int) -> FasterRCNN:
    widths = [net.inplanes // 8 * 2**k for k in range(4)]
    names = {f"layer{k + 1}": str(k) for k in range(4)}
    backbone = vision.models.detection.backbone_utils.BackboneWithFPN(net, names, widths, 256)
    sizes = tuple((options.anchor * 2**k,) for k in range(5))
    anchors = vision.models.detection.anchor_utils.AnchorGenerator(sizes, (_RATIOS,) * 5)
    # A map reads things from its stride on, so the pyramid's levels shift with the smallest anchor.
    pool = vision.ops.MultiScaleRoIAlign(
        ["0", "1", "2", "3"], output_size=7, sampling_ratio=2, canonical_scale=7 * options.anchor
    )
    return _with_heads(vision, backbone, anchors, pool, options, num_classes=classes + 1)


def _on_c4(vision: Any, net: Any, options: FasterRCNNOptions, classes: int) -> FasterRCNN:
    head, features = C4Head(net.layer4), net.inplanes
    backbone = vision.models._utils.IntermediateLayerGetter(net, {"layer3": "0"})
    backbone.out_channels = features // 2
    sizes = (tuple(options.anchor * 2**k for k in range(5)),)
    anchors = vision.models.detection.anchor_utils.AnchorGenerator(sizes, (_RATIOS,))
    pool = vision.ops.MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)
    predictor = vision.models.detection.faster_rcnn.FastRCNNPredictor(features, classes + 1)
    return _with_heads(vision, backbone, anchors, pool, options, box_head=head, box_predictor=predictor)


def _with_heads(
    vision: Any, backbone: nn.Module, anchors: Any, pool: Any, options: FasterRCNNOptions, **parts: Any
) -> FasterRCNN:
    whole = vision.models.detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        **{f"rpn_{when}_nms_top_n_{mode}": options.proposals for when in ("pre", "post") for mode in ("train", "test")},
        box_batch_size_per_image=options.samples,
        box_score_thresh=options.min_score,
        box_nms_thresh=options.nms,
        box_detections_per_img=MOST,
        **parts,
    )
    return FasterRCNN(whole, vision.models.detection)


def _torchvision(variant: str) -> Any:
    import_library("torchvision.models.detection", variant, "model.name", TORCHVISION)
    vision = import_library("torchvision", variant, "model.name", TORCHVISION)
    try:  # what is compiled may be missing although everything can be imported
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        vision.ops.nms(boxes, torch.ones(1), 0.5)
        vision.ops.roi_align(torch.zeros(1, 1, 2, 2), [boxes], 1)
    except Exception as error:
        raise UserError(
            f"model.name={variant!r}: torchvision's compiled operators do not run ({reason(error)}); {TORCHVISION}"
        ) from error
    return vision


def _load_weights(net: nn.Module, backbone: str, vision: Any, variant: str) -> None:
    weights = vision.models.get_model_weights(backbone).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a file that is not what it was
        raise UserError(
            f"model.options.weights='imagenet': {weights} cannot be had for {variant} ({reason(error)}); "
            f"download {weights.url} to {torch.hub.get_dir()}/checkpoints, or use weights: null"
        ) from error
    net.load_state_dict(state)


def _freeze(net: nn.Module, layers: int) -> None:
    """As torchvision does: the last ``layers`` stages train, and the first norm where all five do."""
    trained = _STAGES[: layers + (layers == 5)]
    for name, parameter in net.named_parameters():
        if name.split(".")[0] not in trained:
            parameter.requires_grad_(False)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _listed(targets: Tensor, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Targets as torchvision takes them: padding left out, class 0 is the background."""
    rows = [one[one[:, 4] >= 0] for one in targets]
    return [{"boxes": one[:, :4].to(dtype), "labels": one[:, 4].long() + 1} for one in rows]
