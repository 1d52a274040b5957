import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError

# Szegedy et al. 2015, table 1: 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pool proj.
GOOGLENET = [
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
]
BIG = {"in_channels": 3, "classes": 1000, "image_size": (224, 224)}


def build(name, options=None, size=(32, 32), classes=10):
    return models.build(name, options or {}, in_channels=3, classes=classes, image_size=size, generator_seed=0)


def on_meta(make, options, **shape):
    """The full-size net with shapes only: nothing is drawn or computed."""
    with torch.device("meta"):
        net = make(options, **shape).eval()
        out = net(torch.empty(2, 3, 224, 224)).shape
    assert out == (2, 1000)
    return net, sum(p.numel() for p in net.parameters())


def conv(inputs, filters, kernel):
    return filters * (inputs * kernel**2 + 1)


def googlenet_by_hand():
    """Weights and biases of the published table."""
    count, inputs = conv(3, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3), 192
    for one, reduce3, three, reduce5, five, pool in GOOGLENET:
        count += conv(inputs, one, 1) + conv(inputs, pool, 1)
        count += conv(inputs, reduce3, 1) + conv(reduce3, three, 3)
        count += conv(inputs, reduce5, 1) + conv(reduce5, five, 5)
        inputs = one + three + five + pool
    return count + 1000 * (inputs + 1)


@pytest.mark.parametrize("lrn", [True, False])
def test_v1_has_the_parameters_of_the_published_table(lrn):
    _, count = on_meta(models.inception_v1, models.InceptionV1Options(lrn=lrn), **BIG)
    assert count == googlenet_by_hand() == 6_998_552


def test_v1_with_auxiliary_heads_has_the_parameters_of_the_released_model():
    _, count = on_meta(models.InceptionV1, models.InceptionV1Options(aux=True), **BIG)
    heads = sum(conv(inputs, 128, 1) + conv(2048, 1024, 1) + conv(1024, 1000, 1) for inputs in (512, 528))
    assert count == googlenet_by_hand() + heads == 13_378_280


def test_v2_has_the_parameters_of_its_authors_code():
    net, count = on_meta(models.inception_v2, models.InceptionV2Options(), **BIG)
    assert count == 11_188_288
    normed = sum(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    fc = 1000 * (1024 + 1)
    # TensorFlow's slim counts 10,173,112 without fc: three entries a normed channel (shift and statistics) where
    # PyTorch has two parameters, and a bias in place of the norm after the separable convolution.
    assert count - fc + normed - 3 * 64 + 64 == 10_173_112


def test_v2_with_a_plain_first_convolution():
    _, count = on_meta(models.inception_v2, models.InceptionV2Options(separable=False), **BIG)
    assert count == 11_188_288 - (8 * 3 * 49 + 24 * 64) + 3 * 49 * 64


@pytest.mark.parametrize(
    ("make", "options", "channels"),
    [
        (models.inception_v1, models.InceptionV1Options(), [256, 480, 512, 512, 512, 528, 832, 832, 1024]),
        (models.inception_v2, models.InceptionV2Options(), [256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024]),
    ],
)
def test_modules_put_out_the_published_shapes(make, options, channels):
    shapes = []
    with torch.device("meta"):
        net = make(options, **BIG).eval()
        for name, module in net.named_children():
            if name.startswith("module"):
                module.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape[1:])))
        net(torch.empty(2, 3, 224, 224))
    assert [shape[0] for shape in shapes] == channels
    sides = [28] * 2 + [14] * 5 + [7] * (2 if make is models.inception_v1 else 3)
    assert [shape[1] for shape in shapes] == sides


def test_branches_stand_side_by_side_in_the_order_of_the_tables():
    v1 = build("inception-v1").module3a
    v2 = build("inception-v2").eval()
    images = torch.randn(2, 192, 4, 5)
    branches = [v1.one, v1.three, v1.five, v1.pool]
    assert torch.equal(v1(images), torch.cat([branch(images) for branch in branches], 1))
    same = v2.module3a
    branches = [same.one, same.three, same.twice, same.pool]
    assert torch.equal(same(images), torch.cat([branch(images) for branch in branches], 1))
    halved = v2.module3c(torch.randn(2, 320, 5, 6))
    assert halved.shape == (2, 576, 3, 3)


def test_v2_pools_by_mean_but_where_it_halves_and_in_the_last_module():
    model = build("inception-v2")
    kinds = {name[-2:]: type(m.pool.pool) for name, m in model.named_children() if name.startswith("module")}
    assert {name for name, kind in kinds.items() if kind is nn.MaxPool2d} == {"3c", "4e", "5b"}


def test_auxiliary_heads_act_in_training_only():
    options = models.InceptionV1Options(aux=True)
    net = models.InceptionV1(options, in_channels=3, classes=4, image_size=(80, 96))
    images = torch.randn(2, 3, 80, 96)
    assert [logits.shape for logits in net(images)] == [(2, 4)] * 3
    assert [logits.shape for logits in torch.fx.symbolic_trace(net)(images)] == [(2, 4)] * 3
    sum(logits.square().sum() for logits in net(images)).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval()(images).shape == (2, 4)


def test_auxiliary_heads_need_larger_images():
    options = models.InceptionV1Options(aux=True)
    with pytest.raises(UserError, match=r"^model\.name='inception-v1': needs images of at least 80x80 pixels, .*$"):
        models.InceptionV1(options, in_channels=3, classes=4, image_size=(79, 96))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inception-v1", {"aux": True}, r"^model\.options\.aux=True: the training loop takes one logits tensor .*$"),
        ("inception-v1", {"lnr": True}, r"^model\.options\.lnr: unknown key; did you mean model\.options\.lrn\?$"),
        ("inception-v1", {"dropout": 1.0}, r"^model\.options\.dropout=1\.0: must be less than 1$"),
        ("inception-v2", {"aux": True}, r"^model\.options\.aux: unknown key; known: separable, dropout$"),
        ("inception-v2", {"separable": "yes"}, r"^model\.options\.separable='yes': must be true or false$"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, options, (96, 96))
