import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError


def build(name, options=None, size=(32, 32), classes=10):
    return models.build(name, options or {}, in_channels=3, classes=classes, image_size=size, generator_seed=0)


def on_meta(depth, side, classes, **options):
    """The full-size net with shapes only: nothing is drawn or computed."""
    options = models.ImageNetResNetOptions(**options)
    with torch.device("meta"):
        net = models.imagenet_resnet(
            options, depth=depth, in_channels=3, classes=classes, image_size=(side, side)
        ).eval()
        shape = net(torch.empty(2, 3, side, side)).shape
    return sum(p.numel() for p in net.parameters()), tuple(shape)


@pytest.mark.parametrize(
    ("depth", "published"),  # torchvision's, which are He et al.'s with option B
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameters_are_the_published_ones(depth, published):
    assert on_meta(depth, 224, 1000) == (published, (2, 1000))


def test_resnet18_for_small_images_has_the_11_2_million_of_the_cifar_nets():
    assert on_meta(18, 32, 10, stem="cifar") == (11_173_962, (2, 10))


@pytest.mark.parametrize(("depth", "shortcuts"), [(18, 3), (34, 3), (50, 4), (101, 4), (152, 4)])
def test_depth_counts_the_convolutions_but_those_of_shortcuts_and_the_fully_connected_layer(depth, shortcuts):
    with torch.device("meta"):
        options = models.ImageNetResNetOptions(width=1)
        net = models.ImageNetResNet(options, depth=depth, in_channels=3, classes=10)
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(names) - sum("shortcut" in name for name in names) == depth
    assert sum("shortcut" in name for name in names) == shortcuts


def test_a_stage_halves_the_image_in_its_first_3x3_convolution():
    basic, bottleneck = build("resnet18", {"width": 2}), build("resnet50", {"width": 2})
    for net, conv in ((basic, "conv1"), (bottleneck, "conv2")):
        strided = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        stages = [[f"stage{i}.block1.{conv}", f"stage{i}.block1.shortcut.conv"] for i in (2, 3, 4)]
        assert strided == ["conv1", *(name for names in stages for name in names)]


def test_the_small_image_stem_keeps_the_size_of_the_image():
    model = build("resnet18", {"width": 2, "stem": "cifar"}, (9, 8))
    assert "pool1" not in dict(model.named_modules())
    assert model.stage1(model.relu1(model.norm1(model.conv1(torch.randn(2, 3, 9, 8))))).shape == (2, 2, 9, 8)


def test_the_cifar_nets_keep_their_names():
    assert isinstance(build("resnet20", {"width": 2}), models.ResNet)
    assert isinstance(build("resnet34", {"width": 2}), models.ImageNetResNet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut": "conv"}, r"^model\.options\.shortcut: unknown key; known: width, stem$"),
        ({"stem": "small"}, r"^model\.options\.stem='small': must be 'imagenet' or 'cifar'$"),
        ({"width": 0}, r"^model\.options\.width=0: must be at least 1$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build("resnet18", options)
