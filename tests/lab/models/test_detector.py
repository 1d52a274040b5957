"""The one-stage detector: its losses against a reference, what it learns, and the method on it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.models.test_boxes import assigned, pair
from tests.twins import assert_all_close
from torch import Tensor

import torchreaper as tr
from torchreaper.lab.errors import UserError
from torchreaper.lab.models.boxes import decode, points
from torchreaper.lab.models.detector import Detector, DetectorOptions, detector
from torchreaper.lab.objects import drawing

SMALL = {"width": 8, "neck": 8, "stages": 3}
SIZE = (32, 40)


def made(*, seed: int = 0, classes: int = 3, size: tuple[int, int] = SIZE, **options) -> Detector:
    with drawing(seed):
        return detector(
            DetectorOptions(**{**SMALL, **options}), in_channels=3, classes=classes, image_size=size
        ).double()


def pictures(count: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    """Noise with bright rectangles, a colour a class; the last row of the targets is padding."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *size, generator=draw, dtype=torch.float64) * 0.1
    targets = torch.full((count, 4, 5), -1.0, dtype=torch.float64)
    for n in range(count):
        for k in range(3):
            wide, high = (int(torch.randint(6, 14, (), generator=draw)) for _ in range(2))
            x = k * size[1] // 3 + int(torch.randint(0, max(1, size[1] // 3 - wide), (), generator=draw))
            y = int(torch.randint(0, size[0] - high, (), generator=draw))
            kind = (n + k) % 3
            images[n, kind, y : y + high, x : x + wide] += 2
            targets[n, k] = torch.tensor([x, y, x + wide, y + high, kind])
    return images, targets


def one_by_one(logits: Tensor, predicted: Tensor, rows: list[list[float]], stride: int) -> float:
    """The loss of one picture, point by point: logits [classes, h, w], predicted [4, h, w]."""
    classes, height, width = logits.shape
    owners = assigned([row[:4] for row in rows], height, width, 1.5)
    at = points(height, width, stride, predicted).tolist()
    total = 0.0
    for p, owner in enumerate(owners):
        i, j = divmod(p, width)
        quality = 0.0
        if owner is not None:
            dx, dy, w, h = predicted[:, i, j].tolist()
            cx, cy = at[p][0] + stride * dx, at[p][1] + stride * dy
            half = stride * math.exp(w) / 2, stride * math.exp(h) / 2
            quality, general = pair([cx - half[0], cy - half[1], cx + half[0], cy + half[1]], rows[owner][:4])
            total += 2 * (1 - general)
        for c in range(classes):
            said = 1 / (1 + math.exp(-float(logits[c, i, j])))
            wanted = quality if owner is not None and rows[owner][4] == c else 0.0
            entropy = -wanted * math.log(said) - (1 - wanted) * math.log(1 - said)
            total += (wanted - said) ** 2 * entropy
    return total / max(1, sum(owner is not None for owner in owners))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_the_loss_is_that_of_points_one_by_one(seed, counts):
    model, draw = made(), torch.Generator().manual_seed(seed)
    outputs = tuple(torch.randn(len(counts), c, 6, 6, generator=draw, dtype=torch.float64) for c in (3, 4))
    targets = torch.full((len(counts), 6, 5), -1.0, dtype=torch.float64)
    for one, count in zip(targets, counts, strict=True):
        corners = torch.randint(0, 12, (count, 2), generator=draw), torch.randint(1, 12, (count, 2), generator=draw)
        # Padding comes first: nothing may depend on where it stands.
        one[6 - count :] = torch.cat([corners[0], sum(corners), torch.randint(0, 3, (count, 1), generator=draw)], 1)
    expected = [
        one_by_one(logits, predicted, [row for row in rows.tolist() if row[4] >= 0], 4)
        for logits, predicted, rows in zip(*outputs, targets, strict=True)
    ]
    assert float(model.loss(outputs, targets)) == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_the_reached_overlap_is_a_target_not_a_way_to_move_boxes():
    """Boxes learn from GIoU alone: their gradient is the same whatever the classes say."""
    model, targets = made(), pictures()[1]
    draw, gradients = torch.Generator().manual_seed(0), []
    boxes = torch.randn(2, 4, 8, 10, generator=draw, dtype=torch.float64).requires_grad_()
    for _ in range(2):
        logits = torch.randn(2, 3, 8, 10, generator=draw, dtype=torch.float64)
        gradients += torch.autograd.grad(model.loss((logits, boxes), targets), boxes)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("most", [0, 3])
def test_pictures_without_boxes(most):
    """Finite losses, and gradients for all parameters: DDP waits for each of them."""
    model, images = made(), pictures()[0]
    loss = model.loss(model(images), torch.full((2, most, 5), -1.0))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_detections_are_the_best_boxes_in_the_picture():
    model = made(min_score=0.1, nms=0.4)
    draw = torch.Generator().manual_seed(1)
    outputs = tuple(torch.randn(2, c, 8, 10, generator=draw, dtype=torch.float64) for c in (3, 4))
    for k, found in enumerate(model.detections(outputs)):
        scores, boxes = outputs[0][k].sigmoid(), outputs[1][k].flatten(1).T
        every = decode(boxes, points(8, 10, 4, boxes), 4).clamp(min=0).minimum(torch.tensor([40.0, 32, 40, 32]))
        rows = sorted(
            ((float(scores[c].flatten()[p]), c, every[p].tolist()) for c in range(3) for p in range(80)), reverse=True
        )
        kept: list[tuple[float, int, list[float]]] = []
        for score, c, box in rows:
            whole = box[0] < box[2] and box[1] < box[3] and score >= 0.1
            if whole and all(c != other or pair(box, better)[0] <= 0.4 for _, other, better in kept):
                kept.append((score, c, box))
        assert len(kept) > 3
        expected = torch.tensor([[*box, score, c] for score, c, box in kept[:100]], dtype=torch.float64)
        torch.testing.assert_close(found, expected)


def test_at_most_a_hundred_and_none():
    model = made(classes=80, min_score=0.0)
    with torch.no_grad():
        outputs = model(pictures()[0])
    assert [len(one) for one in model.detections(outputs)] == [100, 100]
    model.min_score = 0.99
    assert [one.shape for one in model.detections(outputs)] == [(0, 6)] * 2


def average_precision(found: list[Tensor], targets: Tensor) -> float:
    """The mean over the classes of AP at IoU 0.5, the precision at each recall being the best from there on."""
    values = []
    for c in targets[..., 4].unique()[1:].tolist():
        rows = sorted(((float(row[4]), n, row.tolist()) for n, one in enumerate(found) for row in one if row[5] == c))
        wanted = {(n, k) for n, one in enumerate(targets) for k, row in enumerate(one) if row[4] == c}
        left, hits = set(wanted), []
        for _, n, row in reversed(rows):
            hit = [(m, k) for m, k in left if m == n and pair(row[:4], targets[m, k, :4].tolist())[0] >= 0.5]
            left -= set(hit[:1])
            hits.append(bool(hit))
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        values.append(sum(max(precisions[i:]) for i, hit in enumerate(hits) if hit) / len(wanted))
    return sum(values) / len(values)


def train(model: Detector, batch: tuple[Tensor, Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(model(batch[0]), batch[1]).backward()
        optimizer.step()


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.slow)])
def test_it_learns_two_pictures(norm):
    batch = tuple(one.float() for one in pictures())
    model = made(norm=norm).float()
    assert average_precision(model.detections(model(batch[0])), batch[1]) < 0.1
    train(model, batch, 90)
    with torch.no_grad():  # in the mode of training: so few steps do not settle running statistics
        assert average_precision(model.detections(model(batch[0])), batch[1]) > 0.9


def test_it_is_the_same_again():
    results = []
    for _ in range(2):
        model = made()
        train(model, pictures(), 3)
        results.append([*model.state_dict().values(), *model.eval().detections(model(pictures()[0]))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (32, 40)),
        ({"stride": 8}, (30, 45)),
        ({"stride": 2, "depth": 1}, (30, 45)),
        ({"norm": "group", "head": 2}, (32, 40)),
    ],
)
def test_all_but_the_outputs_is_narrow(options, size):
    model = made(size=size, **options)
    stride = options.get("stride", 4)
    logits, boxes = model(torch.randn(1, 3, *size, dtype=torch.float64))
    cells = -(-size[0] // stride), -(-size[1] // stride)
    assert (logits.shape, boxes.shape) == ((1, 3, *cells), (1, 4, *cells))
    bank = tr.find_filters(model, torch.randn(2, 3, *size, dtype=torch.float64))
    outside = {"backbone.stage1.conv1", "head.classes.out", "head.boxes.out"}
    assert {layer.name for layer in bank.layers if not layer.ranked} == outside
    assert {layer.name.split(".")[0] for layer in bank.ranked} == {"backbone", "neck", "head"}
    if "norm" not in options:
        assert {layer.route for layer in bank.ranked} == {"narrow"}
    assert not bank.flow.untraced


@pytest.mark.parametrize("scope", [None, "backbone"])
def test_compact_is_masked_under_the_real_loss(scope):
    batches = [pictures(seed=k) for k in range(6)]
    models = {mode: made(seed=3, depth=1) for mode in ("masked", "compact")}
    whole = {name: value.shape for name, value in models["masked"].state_dict().items()}
    full = sum(p.numel() for p in models["masked"].parameters())
    found: dict[str, list[dict[str, Tensor]]] = {}
    for mode, model in models.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        settings = {"full": 1, "sub": 2, "cycles": 2, "fraction": 0.4, "max_per_layer": 0.5}
        # With zeros a layer that has hardly trained since would overlap most.
        settings["reinit"] = tr.Reinit(consumers="keep")
        scheme = tr.RePr(model, optimizer, batches[0][0], scope=scope, subnetwork=mode, **settings)
        found[mode] = []
        for images, targets in batches:
            outputs = model(images)
            loss = model.loss(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheme.step()
            state = copy.deepcopy(model.state_dict())
            assert {name: value.shape for name, value in state.items()} == whole
            found[mode].append({"loss": loss.detach(), "logits": outputs[0], "boxes": outputs[1], **state})
            if scheme.phase == "sub":
                assert (sum(p.numel() for p in model.parameters()) < full) == (mode == "compact")
                touched = {name.split(".")[0] for name in scheme.dropped}
                assert touched == {"backbone"} if scope else touched > {"backbone"}
        assert [t.kind for t in scheme.history] == ["drop", "restore"] * 2
    for masked, compact in zip(found["masked"], found["compact"], strict=True):
        assert_all_close(masked, compact, f"scope {scope}")


def test_sizes_and_options_that_cannot_be():
    with pytest.raises(UserError, match=r"'detector'.*at least 32x32 pixels, these have 24x64"):
        detector(DetectorOptions(), in_channels=3, classes=3, image_size=(24, 64))
    with pytest.raises(ValueError, match=r"stride=32: 4 stages reach a stride of 16; use more stages"):
        DetectorOptions(stride=32)


def test_low_precision_loses_no_loss():
    model, (images, targets) = made().float(), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images.float())
        loss = model.loss(outputs, targets.float())
    assert outputs[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert all(one.dtype == torch.float32 for one in model.detections(outputs))


def test_low_precision_rounds_no_box():
    """Corners around 1,000, as they are and to the next number that bfloat16 has, and class 300."""
    model = made(classes=302, size=(1024, 1024), stages=5, stride=32).float()
    draw = torch.Generator().manual_seed(0)
    outputs = tuple((torch.randn(1, c, 32, 32, generator=draw) - low).bfloat16() for c, low in ((302, 9), (4, 0)))
    targets = torch.tensor([[[3.3, 5.1, 1001.3, 1003.9, 300.0], [601.3, 501.2, 622.9, 530.4, 1.0]]])
    plain, boxes = model.loss(outputs, targets), model.detections(outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.loss(outputs, targets), plain)
        assert all(torch.equal(a, b) for a, b in zip(boxes, model.detections(outputs), strict=True))
    assert abs(model.loss(outputs, targets.bfloat16()) - plain) > 1e-4 * plain, "it would be another loss"
