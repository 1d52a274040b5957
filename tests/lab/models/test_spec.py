import pytest
import torch

from torchreaper.lab import models
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

# Name, narrow options, and the smallest side that is taken.
SMALL = [
    ("cnet", {"width": 2}, 1),
    ("cnet", {"width": 2, "init": "normal"}, 1),
    ("resnet20", {"width": 2}, 4),
    ("densenet5", {"growth": 2}, 1),
    ("densenet5", {"growth": 2, "blocks": 2, "dropout": 0.2}, 2),
    ("densenet40", {"growth": 2}, 4),
    ("densenet40", {"growth": 2, "bottleneck": True, "reduction": 0.5}, 4),
    ("vgg16", {"width": 2}, 32),
    ("vgg16", {"width": 2, "batch_norm": True}, 32),
    ("vgg16", {"width": 1, "head": "imagenet"}, 32),
    ("resnet18", {"width": 2}, 32),
    ("resnet18", {"width": 2, "stem": "cifar"}, 8),
    ("resnet50", {"width": 2}, 32),
    ("inception-v1", {}, 32),
    ("inception-v1", {"lrn": False, "dropout": 0.0}, 32),
    ("inception-v2", {}, 32),
    ("inception-v2", {"separable": False, "dropout": 0.2}, 32),
    ("mobilenet_v2", {"width": 0.1}, 32),
    ("mobilenet_v2", {"width": 0.1, "strides": "cifar"}, 8),
]


def build(name, options, size, seed=0):
    return models.build(name, options, in_channels=1, classes=3, image_size=size, generator_seed=seed)


def weights(name, options, side, seed):
    return torch.cat([p.detach().flatten() for p in build(name, options, (side, side), seed).parameters()])


@pytest.mark.parametrize(("name", "options", "side"), SMALL)
def test_weights_come_from_the_seed_alone(name, options, side):
    torch.manual_seed(1)
    first = weights(name, options, side, 5)
    torch.manual_seed(2)
    assert torch.equal(first, weights(name, options, side, 5))
    assert not torch.equal(first, weights(name, options, side, 6))


@pytest.mark.parametrize(("name", "options", "side"), SMALL)
def test_the_global_random_state_is_left_alone(name, options, side):
    before = torch.random.get_rng_state()
    weights(name, options, side, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("name", "options", "least"), SMALL)
@pytest.mark.parametrize("more", [(0, 0), (5, 2)])
def test_the_smallest_images_give_logits_trace_and_train_every_weight(name, options, least, more):
    size = (least + more[0], least + more[1])
    model, images = build(name, options, size), torch.randn(3, 1, *size)
    torch.fx.symbolic_trace(model)(images).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    logits = model.eval()(images)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), logits)


@pytest.mark.parametrize(("name", "options", "least"), [case for case in SMALL if case[2] > 1])
def test_smaller_images_are_refused(name, options, least):
    message = rf"^model\.name='{name}': needs images of at least {least}x{least} pixels, these have 99x{least - 1}$"
    with pytest.raises(UserError, match=message):
        build(name, options, (99, least - 1))


def test_every_network_is_among_those_tested_here_or_is_a_deeper_one_of_them():
    def family(name):
        builder = models.MODELS[name]
        return builder.options, getattr(builder.build, "func", builder.build)

    named = [name for name, builder in models.MODELS.items() if builder.task == "classification"]
    assert {family(name) for name in named} == {family(name) for name, _, _ in SMALL}


def test_every_model_builds_and_its_spec_reads_itself_back():
    for name in models.MODELS:
        spec = parse(models.ModelSpec, {"name": name})
        assert spec.options, "all options stand in the spec"
        assert parse(models.ModelSpec, spec.model_dump()) == spec


def test_unknown_model_names_the_nearest():
    message = r"^model\.name='resnet_20': unknown model; did you mean 'resnet20'\? known: cnet, resnet20, .*$"
    with pytest.raises(UserError, match=message):
        build("resnet_20", {}, (8, 8))
