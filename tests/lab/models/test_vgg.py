import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError


def build(options, size=(32, 32), classes=10):
    return models.build("vgg16", options, in_channels=3, classes=classes, image_size=size, generator_seed=0)


def on_meta(options, side, classes):
    """The full-size net with shapes only: nothing is drawn or computed."""
    with torch.device("meta"):
        net = models.vgg16(
            models.VGG16Options(**options), in_channels=3, classes=classes, image_size=(side, side)
        ).eval()
        shape = net(torch.empty(2, 3, side, side)).shape
    return sum(p.numel() for p in net.parameters()), tuple(shape)


@pytest.mark.parametrize(
    ("options", "side", "classes", "published"),
    [
        ({"head": "imagenet"}, 224, 1000, 138_357_544),  # torchvision's vgg16
        ({"head": "imagenet", "batch_norm": True}, 224, 1000, 138_365_992),  # torchvision's vgg16_bn
        ({"batch_norm": True}, 32, 10, 14_728_266),  # the CIFAR nets
        ({}, 32, 10, 14_728_266 - 2 * 4224),
        ({}, 32, 1000, 14_719_818 + 990 * 513),
    ],
)
def test_parameters_are_the_published_ones(options, side, classes, published):
    assert on_meta(options, side, classes) == (published, (2, classes))


def test_the_defaults_are_thirteen_3x3_convolutions_and_one_linear_layer():
    model = build({"width": 2})
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels // 2 for c in convolutions] == [1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8]
    assert {c.kernel_size for c in convolutions} == {(3, 3)}
    assert [name for name, m in model.named_modules() if isinstance(m, nn.Linear)] == ["fc"]
    assert model.fc.in_features == 16


def test_names_follow_the_options():
    model = build({"width": 1, "batch_norm": True, "head": "imagenet"})
    assert list(model.stage5._modules) == [
        *(f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "norm", "relu")),
        "pool",
    ]
    head = ["pool", "flatten", "fc1", "relu1", "dropout1", "fc2", "relu2", "dropout2", "fc"]
    assert list(model._modules) == [*(f"stage{i}" for i in range(1, 6)), *head]
    assert (model.fc1.in_features, model.fc1.out_features, model.fc.in_features) == (8 * 49, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hed": "cifar"}, r"^model\.options\.hed: unknown key; did you mean model\.options\.head\?$"),
        ({"head": "small"}, r"^model\.options\.head='small': must be 'cifar' or 'imagenet'$"),
        ({"width": 0}, r"^model\.options\.width=0: must be at least 1$"),
        ({"batch_norm": 1}, r"^model\.options\.batch_norm=1: must be true or false$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build(options)
