import pytest
import torch

from torchreaper.lab import models
from torchreaper.lab.errors import UserError


def build(name, options=None, size=(32, 32), **shape):
    shape = {"in_channels": 3, "classes": 10, "generator_seed": 0, **shape}
    return models.build(name, options or {}, image_size=size, **shape)


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_parameters_are_those_of_he_et_al_table_6(name, published):
    count = sum(p.numel() for p in build(name).parameters())
    assert f"{count / 1e6:.2g}" == f"{published:.2g}"


def test_resnet20_has_exactly_the_parameters_of_option_a():
    assert sum(p.numel() for p in build("resnet20").parameters()) == 269_722
    # Option B adds two 1x1 convolutions and their norms.
    option_b = sum(p.numel() for p in build("resnet20", {"shortcut": "conv"}).parameters())
    assert option_b == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (7, 9), (4, 5)])
def test_shapes_trace_and_names(shortcut, size):
    model = build("resnet20", {"shortcut": shortcut, "width": 4}, size, in_channels=1, classes=3).eval()
    images = torch.randn(2, 1, *size)
    logits = model(images)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), logits)
    names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert names[:3] == ["conv1", "stage1.block1.conv1", "stage1.block1.conv2"]
    assert len(names) == 19 + 2 * (shortcut == "conv")


@pytest.mark.parametrize(("name", "exact"), [("resnet110", 1_727_962), ("resnet182", 2_894_554)])
def test_the_deep_nets_have_exactly_the_parameters_and_layers_of_option_a(name, exact):
    model, blocks = build(name), (int(name[6:]) - 2) // 6
    convolutions = 27 * 16 + 9 * sum(c * c * (2 * blocks) for c in (16, 32, 64)) - 9 * (16 * 32 + 32 * 64)
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + 65 * 10 == exact
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == int(name[6:])


def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    block = build("resnet20").stage2[0]
    images = torch.randn(1, 16, 8, 8)
    out = block.shortcut(images)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == out[:, 24:].abs().max() == 0


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"^model\.name='resnet20': needs images of at least 4x4 pixels, .* 3x8$"):
        build("resnet20", size=(3, 8))
