import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError


def build(options, size=(32, 32), channels=3, classes=10, seed=0):
    return models.build("cnet", options, in_channels=channels, classes=classes, image_size=size, generator_seed=seed)


def conv_weights(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))


def test_the_papers_c3_32_has_96_filters_and_about_20k_convolution_weights():
    model = build({})
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(c.out_channels for c in convolutions) == 96
    assert conv_weights(model) == 27 * 32 + 2 * 288 * 32
    assert 19_000 < conv_weights(model) < 21_000
    assert model.fc.in_features == 32 * 32 * 32


def test_the_releases_form_pools_32_pixels_down_to_4():
    model = build({"kernel": 5, "pool": True, "init": "normal"})
    assert conv_weights(model) == 75 * 32 + 2 * 800 * 32
    assert model.fc.in_features == 32 * 4 * 4


@given(
    depth=st.integers(1, 4),
    width=st.integers(1, 5),
    kernel=st.sampled_from([1, 3, 5]),
    batch_norm=st.booleans(),
    pool=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    size=st.tuples(st.integers(9, 16), st.integers(9, 16)),
    channels=st.integers(1, 3),
    classes=st.integers(2, 4),
)
def test_any_options_give_a_traceable_net_of_the_promised_shape(size, channels, classes, **options):
    model = build(options, size, channels, classes)
    images = torch.randn(2, channels, *size)
    model.eval()
    logits = model(images)
    assert logits.shape == (2, classes)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), logits)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert names == [*(f"conv{i}" for i in range(1, options["depth"] + 1)), "fc"]
    assert ("norm1" in dict(model.named_modules())) == options["batch_norm"]


def test_normal_init_is_cut_at_two_deviations_and_has_zero_biases():
    model = build({"init": "normal", "std": 0.1, "width": 64})
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    assert weights.abs().max() <= 0.2
    # A normal cut at two deviations has 0.88 of its deviation.
    assert weights.std().item() == pytest.approx(0.088, rel=0.02)
    assert all(m.bias.abs().max() == 0 for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize(("side", "deepest"), [(8, 3), (9, 4), (2, 1), (32, 5)])
def test_pooling_a_single_pixel_is_refused(side, deepest):
    build({"depth": deepest, "pool": True, "width": 1}, (side, side))
    with pytest.raises(UserError, match=rf"model\.options\.depth={deepest + 1}: too deep .*<= {deepest}"):
        build({"depth": deepest + 1, "pool": True, "width": 1}, (side, side + 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dpth": 3}, r"^model\.options\.dpth: unknown key; did you mean model\.options\.depth\?$"),
        ({"depth": 0}, r"^model\.options\.depth=0: must be at least 1$"),
        ({"depth": 3.0}, r"^model\.options\.depth=3\.0: must be a whole number$"),
        ({"pool": "yes"}, r"^model\.options\.pool='yes': must be true or false$"),
        ({"kernel": 4}, r"^model\.options\.kernel=4: must be odd, .*$"),
        ({"std": 0.1}, r"^model\.options\.std=0\.1: has no effect with init='torch'; set init='normal'$"),
        ({"dropout": 1}, r"^model\.options\.dropout=1: must be less than 1$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build(options)
