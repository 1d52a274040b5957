import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError

BC = {"bottleneck": True, "reduction": 0.5}


def build(name, options=None, size=(32, 32), classes=10):
    return models.build(name, options or {}, in_channels=3, classes=classes, image_size=size, generator_seed=0)


def on_meta(depth, classes=10, **options):
    """The full-size net with shapes only: nothing is drawn or computed."""
    options = models.DenseNetOptions(**options)
    with torch.device("meta"):
        net = models.densenet(options, depth=depth, in_channels=3, classes=classes, image_size=(32, 32)).eval()
        shape = net(torch.empty(2, 3, 32, 32)).shape
    assert shape == (2, classes)
    return net, sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("depth", "options", "published"),  # Huang et al., table 2, in millions
    [
        (40, {}, "1.0"),
        (100, {}, "7.0"),
        (100, {"growth": 24}, "27.2"),
        (100, BC, "0.8"),
        (250, {"growth": 24, **BC}, "15.3"),
        (190, {"growth": 40, **BC}, "25.6"),
    ],
)
def test_parameters_are_those_of_huang_et_al_table_2(depth, options, published):
    assert f"{on_meta(depth, **options)[1] / 1e6:.1f}" == published


def test_exact_parameters():
    assert on_meta(40)[1] == 1_019_722
    assert on_meta(100, **BC)[1] == 769_162
    assert on_meta(40, classes=1000)[1] == 1_019_722 + 990 * (448 + 1)


@pytest.mark.parametrize(("blocks", "convolutions"), [(1, 4), (2, 4)])
def test_densenet5_has_five_layers_in_one_block_or_two(blocks, convolutions):
    model = build("densenet5", {"blocks": blocks})
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(names) == convolutions
    assert len([name for name in names if "layer" in name]) == (3 if blocks == 1 else 2)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 1


def test_densenet5_has_its_hand_count():
    convolutions = 27 * 16 + 9 * 12 * (16 + 28 + 40)
    norms = 2 * (16 + 28 + 40 + 52)
    assert sum(p.numel() for p in build("densenet5").parameters()) == convolutions + norms + 53 * 10


@pytest.mark.parametrize("depth", [40, 100])
@pytest.mark.parametrize("options", [{}, BC])
def test_depth_counts_the_convolutions_and_the_fully_connected_layer(depth, options):
    net, _ = on_meta(depth, **options)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth
    assert net.conv1.out_channels == (24 if options else 16)


def test_a_layer_appends_its_filters_to_its_input():
    layer = build("densenet40", {"growth": 3}, (8, 8)).block1[2]
    images = torch.randn(2, 16 + 2 * 3, 8, 8)
    out = layer(images)
    assert out.shape == (2, 16 + 3 * 3, 8, 8)
    assert torch.equal(out[:, :-3], images)
    assert torch.equal(out[:, -3:], layer.new(images))


def test_names_and_a_transition_that_keeps_half():
    model = build("densenet40", {"growth": 4, "dropout": 0.2, **BC})
    layer = ["norm1", "relu1", "conv1", "dropout1", "norm2", "relu2", "conv2", "dropout2"]
    assert list(model.block1.layer1.new._modules) == layer
    assert list(model.transition1._modules) == ["norm", "relu", "conv", "dropout", "pool"]
    assert (model.transition1.conv.in_channels, model.transition1.conv.out_channels) == (8 + 6 * 4, 16)
    assert model.transition1(torch.randn(2, 32, 8, 6)).shape == (2, 16, 4, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densenet40", {"growh": 12}, r"^model\.options\.growh: unknown key; did you mean model\.options\.growth\?$"),
        ("densenet40", {"growth": 0}, r"^model\.options\.growth=0: must be at least 1$"),
        ("densenet40", {"reduction": 1.5}, r"^model\.options\.reduction=1\.5: must be at most 1$"),
        ("densenet5", {"dropout": 1.0}, r"^model\.options\.dropout=1\.0: must be less than 1$"),
        ("densenet5", {"reduction": 0.5}, r"^model\.options\.reduction=0\.5: has no effect with blocks=1, .*$"),
        ("densenet5", {"blocks": 3}, r"^model\.options\.blocks=3: a DenseNet of depth 5 .* possible: 1, 2$"),
        ("densenet5", {"bottleneck": True}, r"^model\.options\.blocks=1: .* bottleneck=True .* possible: none$"),
        ("densenet40", {"blocks": 4}, r"^model\.options\.blocks=4: a DenseNet of depth 40 .* possible: 1, 3, 13$"),
        ("densenet40", {"blocks": 39}, r"^model\.options\.blocks=39: .* possible: 1, 3, 13$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, options)
