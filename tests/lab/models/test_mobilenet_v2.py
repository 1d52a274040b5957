import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError


def build(options, size=(32, 32), classes=10):
    return models.build("mobilenet_v2", options, in_channels=3, classes=classes, image_size=size, generator_seed=0)


def on_meta(side, classes, **options):
    """The full-size net with shapes only: nothing is drawn or computed."""
    options = models.MobileNetV2Options(**options)
    with torch.device("meta"):
        net = models.mobilenet_v2(options, in_channels=3, classes=classes, image_size=(side, side)).eval()
        shape = net(torch.empty(2, 3, side, side)).shape
    return sum(p.numel() for p in net.parameters()), tuple(shape)


@pytest.mark.parametrize(
    ("width", "published"),  # torchvision's
    [(1.0, 3_504_872), (0.35, 1_677_128), (0.5, 1_968_680), (0.75, 2_636_424), (1.4, 6_108_776)],
)
def test_parameters_are_the_published_ones(width, published):
    assert on_meta(224, 1000, width=width) == (published, (2, 1000))


@pytest.mark.parametrize("strides", ["imagenet", "cifar"])
def test_strides_change_no_parameter(strides):
    assert on_meta(32, 10, strides=strides) == (3_504_872 - 990 * 1281, (2, 10))


@pytest.mark.parametrize(
    ("strides", "sides"), [("imagenet", [16, 8, 4, 2, 2, 1, 1]), ("cifar", [32, 32, 16, 8, 8, 4, 4])]
)
def test_where_the_image_is_halved(strides, sides):
    model = build({"width": 0.25, "strides": strides})
    x, found = model.first(torch.randn(2, 3, 32, 32)), []
    for i in range(1, 8):
        x = model.get_submodule(f"stage{i}")(x)
        found.append(x.shape[-1])
    assert found == sides


def test_shortcuts_stand_where_shapes_agree():
    with torch.device("meta"):
        net = models.MobileNetV2(models.MobileNetV2Options(), in_channels=3, classes=10)
    # Of the published widths no two stages are alike, so only blocks after a stage's first keep the shape.
    blocks = {2: 2, 3: 3, 4: 4, 5: 3, 6: 3}
    with_shortcut = [name for name, m in net.named_modules() if getattr(m, "residual", False)]
    assert with_shortcut == [f"stage{i}.block{j}" for i, n in blocks.items() for j in range(2, n + 1)]


def test_a_block_adds_its_input_to_the_projection():
    block = build({"width": 0.25}).eval().stage3.block2
    images = torch.randn(2, 8, 5, 5)
    projected = block.norm(block.project(block.depthwise(block.expand(images))))
    assert torch.equal(block(images), images + projected)


def test_names_and_the_depthwise_convolutions():
    model = build({"width": 0.25, "dropout": 0.0})
    children = ["first", *(f"stage{i}" for i in range(1, 8)), "last", "pool", "flatten", "fc"]
    assert list(model._modules) == children
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 17
    assert all(m.groups == m.in_channels == m.out_channels and m.kernel_size == (3, 3) for m in depthwise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 1.0}, r"^model\.options\.widht: unknown key; did you mean model\.options\.width\?$"),
        ({"width": 0.0}, r"^model\.options\.width=0\.0: must be greater than 0$"),
        ({"strides": "small"}, r"^model\.options\.strides='small': must be 'imagenet' or 'cifar'$"),
        ({"dropout": 1.0}, r"^model\.options\.dropout=1\.0: must be less than 1$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build(options)
