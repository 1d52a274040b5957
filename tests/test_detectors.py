"""The method on torchvision's own detectors: their parts as torchvision makes them, and whole ones as users do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import torchreaper as tr
from tests.vision_ops import with_operators
from tests.zoo import CLASSES, Entry, check, with_every_shift, without_chance


class Averaged(nn.Module):
    """A part of a detector on one or several maps, each of its outputs averaged over positions, [n, all channels]."""

    def __init__(self, part: nn.Module, maps: int = 0) -> None:
        super().__init__()
        self.part, self.maps = part, maps

    def forward(self, x: Tensor) -> Tensor:
        given = [F.max_pool2d(x, 2**k) for k in range(self.maps)] if self.maps else x
        found = self.part(given)
        leaves = tree_leaves(dict(found) if isinstance(found, dict) else found)
        return torch.cat([leaf.flatten(2).mean(2) if leaf.ndim > 2 else leaf for leaf in leaves], 1)


@dataclass(frozen=True)
class Part(Entry):
    """A part of a detector, in the place of an architecture of the zoo; ``make`` builds it."""

    make: Callable[[], nn.Module] = nn.Identity
    channels: int = 3

    def build(self, seed: int = 0) -> nn.Module:
        with_operators()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
            without_chance(model)
            with_every_shift(model)
            for module in model.modules():
                if type(module).__name__ == "FrozenBatchNorm2d":  # its entries are constants, and not all the same
                    for buffer in module.buffers():
                        nn.init.uniform_(buffer, 0.5, 1.5)
        return model.double().train()

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = (self.batch, self.channels, self.size, self.size)
        maps = torch.randn(size, generator=generator, dtype=torch.float64)
        return maps, torch.randint(CLASSES, (self.batch,), generator=generator)


def pyramid(name: str, norm: str) -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    norms = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    return Averaged(resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norms, trainable_layers=5))


def mobile() -> nn.Module:
    from torchvision.models import detection

    return Averaged(
        detection.backbone_utils.mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    )


def fifth_stage(name: str) -> nn.Module:
    from torchvision.models import get_model

    from torchreaper.lab.models.faster_rcnn import C4Head

    return C4Head(get_model(name, weights=None).layer4)


def heads(name: str) -> nn.Module:
    from torchvision.models.detection import faster_rcnn, fcos, retinanet, rpn

    made: dict[str, Callable[[], nn.Module]] = {
        "rpn": lambda: Averaged(rpn.RPNHead(16, 5, conv_depth=2), 2),
        "box": lambda: faster_rcnn.FastRCNNConvFCHead((16, 7, 7), [24, 70], [CLASSES], norm_layer=nn.BatchNorm2d),
        "fcos": lambda: Averaged(fcos.FCOSHead(64, 1, CLASSES, num_convs=2), 2),
        "retinanet": lambda: Averaged(retinanet.RetinaNetHead(32, 2, CLASSES, norm_layer=nn.BatchNorm2d), 2),
    }
    return made[name]()


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


PARTS = {
    "rpn head": Part("rpn head", 16, make=lambda: heads("rpn"), channels=16),
    "box head": Part("box head", 7, make=lambda: heads("box"), channels=16),
    "fcos head": Part("fcos head", 16, make=lambda: heads("fcos"), channels=64),
    "retinanet head": Part("retinanet head", 16, make=lambda: heads("retinanet"), channels=32),
    "fpn, frozen resnet18": Part("fpn18", 64, 2, make=lambda: pyramid("resnet18", "frozen")),
    "fpn, resnet18": Part("fpn18", 64, 2, make=lambda: pyramid("resnet18", "batch")),
    "fpn, frozen resnet50": Part("fpn50", 64, 2, make=lambda: pyramid("resnet50", "frozen")),
    "fpn, resnet101": Part("fpn101", 64, 2, make=lambda: pyramid("resnet101", "batch")),
    "fpn, mobilenet": Part("mobile", 64, 2, make=mobile),
    "c4 head, resnet50": Part("layer4", 14, 2, make=lambda: fifth_stage("resnet50"), channels=1024),
}
FAST = {"rpn head", "box head"}


@pytest.mark.parametrize("part", [name if name in FAST else slow(name) for name in PARTS])
def test_every_promise_on_the_parts_of_detectors(part):
    row = check(PARTS[part])
    assert row.result == "ok", row
    assert row.narrow + row.scatter > 0
    assert row.share < 0.9


def routes(part: str) -> dict[str, str]:
    bank = tr.find_filters(PARTS[part].build(), PARTS[part].inputs()[0])
    assert not bank.flow.untraced
    return {layer.name.removeprefix("part."): layer.route if layer.ranked else layer.reason for layer in bank.layers}


def test_outputs_of_heads_are_not_ranked():
    output = "reaches an output of the model"
    assert routes("rpn head") == {
        **{"conv.0.0": "skipped", "conv.1.0": "narrow", "cls_logits": output, "bbox_pred": output}
    }
    fcos = routes("fcos head")
    assert {name for name, route in fcos.items() if route == output} == {
        *("classification_head.cls_logits", "regression_head.bbox_reg")
    }
    assert fcos["regression_head.bbox_ctrness"] == "has one filter only"


def test_frozen_norms_of_torchvision_leave_blocks_narrow():
    frozen, batch = routes("fpn, frozen resnet18"), routes("fpn, resnet18")
    assert frozen == batch
    assert [batch[f"body.layer{k}.{b}.conv1"] for k in range(1, 5) for b in range(2)] == ["narrow"] * 8


def whole() -> tuple[Any, list[Tensor], list[dict[str, Tensor]]]:
    """A Faster R-CNN as users build it, with what they train it on."""
    with_operators()
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        few = {f"rpn_{when}_nms_top_n_{mode}": 8 for when in ("pre", "post") for mode in ("train", "test")}
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
        model = FasterRCNN(backbone, num_classes=3, min_size=48, max_size=64, box_batch_size_per_image=4, **few)
        images = [torch.rand(3, 48, 64), torch.rand(3, 48, 48)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 30]]), "labels": torch.tensor([k + 1])} for k in range(2)]
    return model, images, targets


def test_a_whole_detector_is_masked_and_trains():
    """Nothing of it can be traced: lists of pictures of several sizes. It says so, and every convolution is masked."""
    model, images, targets = whole()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    keys = list(model.state_dict())
    settings = {"full": 1, "sub": 1, "cycles": 1, "criterion": "random", "max_per_layer": 0.5}
    scheme = tr.RePr(model, optimizer, (images, targets), scope="backbone", **settings)
    assert {layer.route for layer in scheme.bank.ranked} == {"masked"}
    assert "cannot be traced" in scheme.bank["backbone.fpn.inner_blocks.0.0"].reason
    assert {layer.reason for layer in scheme.bank.layers if layer.name.startswith("rpn.")} == {"outside scope"}
    bank = tr.find_filters(model, (images, targets))
    left = {layer.name for layer in bank.layers if not layer.ranked}
    assert left == {"backbone.body.conv1", "rpn.head.cls_logits", "rpn.head.bbox_pred"}, "classes and boxes"
    kinds = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(3):
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            assert loss.isfinite()
            optimizer.step()
            if scheme.phase == "sub":
                for name, filters in scheme.dropped.items():
                    assert not model.get_submodule(name).weight[list(filters)].any()
            step = scheme.step()
            kinds.append(step and step.kind)
            assert all(name.startswith("backbone.") for name in scheme.dropped)
    assert kinds == ["drop", "restore", None]
    assert list(model.state_dict()) == keys
    scheme.remove()
    assert len(model.eval()(images)) == 2


def test_what_a_whole_detector_lacks_is_said():
    model, images, targets = whole()
    with pytest.raises(tr.ReaperError, match=r"targets should not be none when in training mode.*pass a batch as in t"):
        tr.find_filters(model, (images,))
    with pytest.raises(tr.ReaperError, match=r"scope='neck': no convolution inside; the layers are backbone\.body"):
        tr.find_filters(model, (images, targets), scope="neck")
    bank = tr.find_filters(model, (images, targets), scope=["backbone.fpn", "rpn.head.c*"])
    assert {layer.name.split(".")[1] for layer in bank.layers if layer.reason != "outside scope"} == {"fpn", "head"}
