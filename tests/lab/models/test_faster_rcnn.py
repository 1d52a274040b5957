"""Faster R-CNN: the numbers are torchvision's own, and all that has weights can be traced."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.lab.models.test_detector import average_precision, pictures
from tests.twins import Twins
from tests.vision_ops import with_operators
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.models.faster_rcnn import VARIANTS, FasterRCNN, FasterRCNNOptions, faster_rcnn
from torchreaper.lab.objects import drawing

SIZE = (64, 72)
FPN, C4 = VARIANTS
BACKBONES = {FPN: "resnet18", C4: "resnet50"}


def made(variant: str = FPN, *, size: tuple[int, int] = SIZE, classes: int = 3, **options: Any) -> FasterRCNN:
    with_operators()
    given = {"backbone": BACKBONES[variant], "anchor": 8, "proposals": 12, "samples": 6, "min_score": 0.0, **options}
    with drawing(0):
        return faster_rcnn(FasterRCNNOptions(**given), variant=variant, in_channels=3, classes=classes, image_size=size)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    images, targets = pictures(2, seed, SIZE)
    return images.float(), targets.float()


def torchvisions(model: FasterRCNN) -> Any:
    """Torchvision's own detector out of the same parts, told to leave pictures as they are."""
    from torchvision.models.detection import FasterRCNN as Whole

    return Whole(
        model.backbone,
        rpn_anchor_generator=model.regions.rpn.anchor_generator,
        rpn_head=model.rpn_head,
        box_roi_pool=model.pooled.roi_align,
        box_head=model.box_head,
        box_predictor=_Predictor(model.box_predictor),
        min_size=min(SIZE),
        max_size=max(SIZE),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        size_divisible=1,
        **{f"rpn_{when}_nms_top_n_{mode}": 12 for when in ("pre", "post") for mode in ("train", "test")},
        box_batch_size_per_image=6,
        box_score_thresh=0.0,
    )


class _Predictor(nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers.cls_score(x), self.layers.bbox_pred(x)


@pytest.mark.parametrize("variant", [FPN, pytest.param(C4, marks=pytest.mark.slow)])
def test_it_computes_what_torchvision_computes(variant):
    model, (images, targets) = made(variant), batch()
    whole = torchvisions(model)
    listed = [{"boxes": one[:3, :4], "labels": one[:3, 4].long() + 1} for one in targets]
    state = copy.deepcopy(model.state_dict())
    with torch.random.fork_rng(), torch.no_grad():
        whole.train().transform.eval()  # in training it draws a size, out of one
        torch.manual_seed(1)
        losses = whole(list(images), listed)
        model.load_state_dict(state)
        torch.manual_seed(1)
        loss = model.train().loss(model(images, targets), targets)
        torch.testing.assert_close(loss, sum(losses.values()))
        expected = whole.eval()(list(images))
        found = model.detections(model.eval()(images))
    for rows, own in zip(found, expected, strict=True):
        assert len(rows) > 2
        torch.testing.assert_close(rows[:, :4], own["boxes"])
        torch.testing.assert_close(rows[:, 4], own["scores"])
        torch.testing.assert_close(rows[:, 5], own["labels"].float() - 1)


def test_losses_in_either_mode_and_nothing_of_it_stays():
    model, (images, targets) = made(), batch()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model.loss(model(images, targets), targets)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    assert all(rows.shape[1] == 6 for rows in model.detections(model(images)))


def test_pictures_without_boxes():
    model, (images, targets) = made(), batch()
    targets[1] = -1
    loss = model.loss(model(images, targets), targets)
    loss.backward()
    assert loss.isfinite()
    nothing = torch.full_like(targets, -1)
    assert model.loss(model(images, nothing), nothing).isfinite()


def watched(model: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """What the matcher is given, call by call: the anchors and the truth of every picture."""
    given, real = [], model.regions.rpn.assign_targets_to_anchors

    def assign(anchors: list[Tensor], truth: list[dict[str, Tensor]]) -> Any:
        given.append((anchors, truth))
        return real(anchors, truth)

    monkeypatch.setattr(model.regions.rpn, "assign_targets_to_anchors", assign)
    return given


@pytest.mark.parametrize("variant", [FPN, pytest.param(C4, marks=pytest.mark.slow)])
def test_mixed_precision_rounds_no_box(variant, monkeypatch):
    """In bfloat16 corners above 512 are multiples of 4, and class 300 is followed by class 302."""
    model = made(variant, size=(64, 640), classes=302, proposals=40, samples=20)
    images = torch.randn(1, 3, 64, 640, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[[601.3, 10.2, 622.9, 40.4, 300.0]]])
    matched, kinds = watched(model, monkeypatch), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, given, output: kinds.append(output.dtype))
    pooled: list[set[torch.dtype]] = []
    model.pooled.roi_align.register_forward_pre_hook(
        lambda layer, given: pooled.append({one.dtype for one in (*given[0].values(), *given[1])})
    )
    outputs, losses, detections = [], [], []
    for low in (False, True):
        kinds.clear()
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            torch.manual_seed(1)
            outputs.append(model.eval()(images, targets))
            losses.append(model.loss(outputs[-1], targets))
            detections.append(model.detections(model(images))[0])
        assert set(kinds) == {torch.bfloat16 if low else torch.float32}
    assert torch.equal(matched[0][0][0], matched[1][0][0]), "the anchors"
    for _, (truth,) in matched:
        assert torch.equal(truth["boxes"], targets[0, :, :4])
        assert truth["labels"].tolist() == [301]
    # Of one kind, as torchvision's compiled operator wants them, and as it does in mixed precision by itself.
    assert pooled == [{torch.float32}] * 4
    low = outputs[1].sampled
    assert {one.dtype for one in (*low.boxes, *low.wanted, *low.losses.values(), losses[1])} == {torch.float32}
    assert any(torch.equal(box, targets[0, 0, :4]) for box in outputs[0].sampled.boxes[0])
    for boxes in (low.boxes[0], detections[1][:, :4]):
        inside = boxes[(boxes > 512) & (boxes < 640)]
        assert len(inside) > 4
        assert (inside % 4 == 0).float().mean() < 0.5
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)
    losses[1].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_in_double_precision_all_is_double():
    model, (images, targets) = made().double(), batch()
    images = images.double()
    outputs = model(images, targets)
    rows = model.detections(model(images))
    kept = (*outputs, *outputs.sampled.boxes, *outputs.sampled.wanted, *outputs.sampled.losses.values(), *rows)
    assert {one.dtype for one in kept if isinstance(one, Tensor)} == {torch.float64}
    assert model.loss(outputs, targets).dtype == torch.float64


def routes(model: FasterRCNN, inputs: Any) -> tuple[dict[str, str], set[str], set[str]]:
    """Of each child its routes; what is not ranked; what could not be traced."""
    bank = tr.find_filters(model, inputs)
    found: dict[str, set[str]] = {}
    for layer in bank.ranked:
        found.setdefault(layer.name.split(".")[0], set()).add(layer.route)
    left = {layer.name for layer in bank.layers if not layer.ranked}
    return {name: " ".join(sorted(kinds)) for name, kinds in found.items()}, left, set(bank.flow.untraced)


@pytest.mark.parametrize("with_targets", [False, True])
def test_all_that_has_weights_is_traced(with_targets):
    images, targets = batch()
    inputs = (images, targets) if with_targets else images
    found, left, untraced = routes(made(), inputs)
    assert found == {"backbone": "narrow scatter", "rpn_head": "narrow"}
    assert left == {"backbone.body.conv1", "rpn_head.cls_logits", "rpn_head.bbox_pred"}
    assert untraced == {"regions", "pooled"}


@pytest.mark.slow
def test_all_of_c4_that_has_weights_is_traced():
    found, left, untraced = routes(made(C4), batch()[0])
    assert found == {"backbone": "narrow scatter", "rpn_head": "narrow", "box_head": "narrow scatter"}
    assert left == {"backbone.conv1", "rpn_head.cls_logits", "rpn_head.bbox_pred"}
    assert untraced == {"regions", "pooled"}


@pytest.mark.slow
def test_frozen_norms_go_with_the_filters():
    options = FasterRCNNOptions(backbone="resnet18", anchor=8, proposals=12, samples=6)
    with_operators()
    frozen = options.model_copy(update={"norm": "frozen"})  # refused without weights, which would be a download
    model = faster_rcnn(frozen, variant=FPN, in_channels=3, classes=3, image_size=SIZE)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert routes(model, batch()[0])[0] == {"backbone": "narrow scatter", "rpn_head": "narrow"}


GONE = {
    "backbone.body.layer1.0.conv1": [0, 7, 40],
    "backbone.body.layer1.0.conv2": range(20),
    "backbone.body.layer2.0.downsample.0": [5],
    "backbone.fpn.inner_blocks.0.0": range(100, 200),
    "backbone.fpn.layer_blocks.0.0": [1, 2, 250],
    "rpn_head.conv.0.0": range(80),
}


def phase_equals(model: FasterRCNN, gone: Mapping[str, Sequence[int]]) -> None:
    """A phase without these filters, a step in it, and the return, masked and compact side by side.

    One step: on C4 rounding errors grow twentyfold with each.
    """

    def step(seed: int) -> Callable[[Any, Any], Tensor]:
        images, targets = (one.double() for one in batch(seed))

        def take(model: FasterRCNN, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model.loss(model(images, targets), targets)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return take

    twins = Twins(
        model.double(), batch()[0].double(), lambda p: torch.optim.SGD([q for q in p if q.requires_grad], 0.005, 0.9)
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        twins.drop({name: list(indices) for name, indices in gone.items()})
        assert twins.smaller
        twins.each(step(1))
        twins.restore()


def test_compact_is_masked_under_the_real_losses():
    model = made()
    # In place of 22 million weights:
    model.backbone.body["layer4"] = nn.Conv2d(256, 512, 1, stride=2)
    model.box_head = nn.Sequential(nn.Flatten(), nn.Linear(256 * 49, 8))
    model.box_predictor.cls_score, model.box_predictor.bbox_pred = nn.Linear(8, 4), nn.Linear(8, 16)
    phase_equals(model, GONE)


@pytest.mark.slow
def test_compact_is_masked_on_c4():
    phase_equals(
        made(C4), {"backbone.layer1.0.conv1": [3], "box_head.layer4.0.conv1": range(99), "box_head.layer4.2.conv3": [7]}
    )


@pytest.mark.parametrize("scope", ["backbone", pytest.param("backbone.body.layer[34]", marks=pytest.mark.slow)])
def test_nothing_outside_the_scope_goes(scope):
    bank = tr.find_filters(made(), batch()[0], scope=scope)
    dropped = bank.preview(0.3, "random").filters
    assert dropped
    assert all(name.startswith(scope.partition("[")[0]) for name in dropped)


@pytest.mark.slow
def test_it_learns_two_pictures():
    model, (images, targets) = made(proposals=100, samples=32, min_score=0.3, norm="batch"), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(60):
            optimizer.zero_grad()
            model.loss(model(images, targets), targets).backward()
            optimizer.step()
    with torch.no_grad():  # in the mode of training: so few steps do not settle running statistics
        assert average_precision(model.detections(model(images)), targets) > 0.9


def test_published_weights_are_loaded_as_weights_alone(monkeypatch):
    with_operators()
    from torchvision.models import resnet18
    from torchvision.models._api import WeightsEnum

    asked: list[dict[str, Any]] = []
    with drawing(7):
        state = resnet18().state_dict()
    state["layer1.0.bn1.running_mean"] += 3

    def get_state_dict(weights: Any, **options: Any) -> dict[str, Tensor]:
        asked.append({"weights": str(weights), **options})
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    model = made(weights="imagenet")
    (request,) = asked
    assert request.pop("weights") == "ResNet18_Weights.IMAGENET1K_V1"
    assert request == {"progress": False, "check_hash": True, "weights_only": True}
    own = model.backbone.body.state_dict()
    assert own
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    stages = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert stages == {"layer2", "layer3", "layer4"}
    everything = made(weights="imagenet", norm="batch", trainable_layers=5).backbone.body
    assert all(p.requires_grad for p in everything.parameters())

    def fails(weights: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fails)
    with pytest.raises(UserError, match=r"weights='imagenet': .*no network.*download https://.*/checkpoints, or use"):
        made(weights="imagenet")


def test_what_cannot_be(monkeypatch):
    with_operators()
    options = FasterRCNNOptions()
    with pytest.raises(UserError, match="'faster-rcnn-fpn': reads images of 3 channels, these have 1"):
        faster_rcnn(options, variant=FPN, in_channels=1, classes=3, image_size=SIZE)
    with pytest.raises(UserError, match="at least 32x32 pixels, these have 31x64"):
        faster_rcnn(options, variant=FPN, in_channels=3, classes=3, image_size=(31, 64))
    with pytest.raises(UserError, match=r"backbone='resnet18': faster-rcnn-c4 needs resnet50 or resnet101; or use f"):
        made(C4, backbone="resnet18")
    with pytest.raises(ValueError, match="norm='frozen': changes nothing without weights"):
        FasterRCNNOptions(norm="frozen")
    with pytest.raises(ValueError, match="trainable_layers=3: would keep drawn weights"):
        FasterRCNNOptions(trainable_layers=3)
    import torchvision

    def broken(*_: Any) -> None:
        raise RuntimeError("Couldn't load custom C++ ops")

    with monkeypatch.context() as patch:
        patch.setattr(torchvision.ops, "nms", broken)
        with pytest.raises(UserError, match=r"compiled operators do not run.*pytorch\.org"):
            made()
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(UserError, match=r"model.name='faster-rcnn-fpn': torchvision.models.detection cannot be import"):
        made()
