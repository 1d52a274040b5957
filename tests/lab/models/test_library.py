"""Networks of timm and torchvision, by name."""

import re
import subprocess
import sys

import pytest
import torch
from tests.zoo import torchvision_importable

from torchreaper.lab import models
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

SMALL = [
    ("timm:test_resnet", {}, 3),
    ("timm:test_efficientnet", {"drop_rate": 0.2}, 1),
    ("torchvision:mobilenet_v3_small", {"dropout": 0.1}, 3),
    ("torchvision:shufflenet_v2_x0_5", {}, 3),
]


@pytest.fixture(scope="module", autouse=True)
def _torchvision():
    torchvision_importable()


def build(name, options=(), channels=3, seed=0, classes=4, side=32):
    size = (side, side)
    return models.build(
        name, dict(options), in_channels=channels, classes=classes, image_size=size, generator_seed=seed
    )


def refused(name, options=(), channels=3, **how):
    with pytest.raises(UserError) as error:
        build(name, options, channels, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "options", "channels"), SMALL)
def test_a_network_reads_the_channels_and_tells_the_classes_of_the_data(name, options, channels):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = build(name, options, channels, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    torch.manual_seed(2)
    again, other = build(name, options, channels, seed=5), build(name, options, channels, seed=6)
    state = model.state_dict()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())
    assert not all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())
    assert all((state[key] == 0).all() for key in state if key.endswith(("running_mean", "num_batches_tracked")))
    assert model.eval()(torch.zeros(2, channels, 32, 32)).shape == (2, 4)


ERRORS = {
    ("timm:resnet8", 3): r"timm has no network of that name; did you mean 'resnet18'.*\? timm\.list_models\(\) lists",
    ("timm:hf-hub:timm/resnet18", 3): r"timm has no network of that name; .*timm\.list_models\(\) lists them$",
    ("torchvision:resnet17", 3): r"no classification network of that name; did you mean 'resnet1.*list_models\(\)",
    ("torchvision:fcn_resnet50", 3): "no classification network of that name",
    ("torchvision:resnet18", 1): r"read images of 3 channels, these have 1; use timm's, or coloured images$",
    ("timm:", 3): r"names no network; timm:resnet18 is one$",
}


@pytest.mark.parametrize(("name", "channels"), ERRORS)
def test_what_a_library_cannot_make_is_told(name, channels):
    message = refused(name, channels=channels)
    assert message.startswith(f"model.name={name!r}: ")
    assert re.search(ERRORS[name, channels], message), message


def test_wrong_options_are_told_with_the_call():
    message = refused("timm:test_resnet", {"depht": 3})
    assert message.startswith("model.name='timm:test_resnet': create_model(model_name='test_resnet', pretrained=False")
    assert "depht" in message
    assert refused("timm:test_resnet", {"num_classes": 3}) == (
        "model.name='timm:test_resnet': options.num_classes is set by the recipe's data or by the name; leave it out"
    )
    assert refused("timm:test_resnet", {"pretrained": True}).endswith("leave it out")


def test_more_outputs_than_the_logits_are_refused_and_can_be_switched_off():
    message = refused("torchvision:googlenet", {"init_weights": False})
    assert message.startswith("model.name='torchvision:googlenet': gives a GoogLeNetOutputs in training; must give one")
    assert "{aux_logits: false}" in message
    assert build("torchvision:googlenet", {"init_weights": False, "aux_logits": False}, side=64)
    assert refused("timm:test_resnet", {"features_only": True}).startswith(
        "model.name='timm:test_resnet': gives a list; must give one tensor"
    )


def test_images_too_small_are_told_with_their_size():
    assert "fails on 2 images of 3x4x4 (" in refused("torchvision:squeezenet1_1", side=4)


def test_a_recipe_with_such_a_network_is_checked_without_importing_anything():
    script = (
        "import sys\nfrom torchreaper.lab.models import ModelSpec\n"
        "for name in ('timm:resnet18', 'torchvision:resnet18', 'nopackage.at:all'):\n"
        "    ModelSpec(name=name, options={'a': [1, {'b': None}]})\n"
        "assert not {'timm', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_library_that_is_missing_or_broken_is_told(tmp_path):
    (tmp_path / "timm.py").write_text("raise ImportError('no such thing')")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms is lost')")
    script = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom torchreaper.lab import errors, models\n"
        "for name in ('timm:resnet18', 'torchvision:resnet18'):\n"
        "    try: models.build(name, {}, in_channels=3, classes=2, image_size=(8, 8), generator_seed=0)\n"
        "    except errors.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "model.name='timm:resnet18': timm cannot be imported (ImportError: no such thing); pip install timm",
        "model.name='torchvision:resnet18': torchvision.models cannot be imported (RuntimeError: operator "
        "torchvision::nms is lost); install the build of torchvision that belongs to this torch, see "
        "pytorch.org/get-started",
    ]


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1: 2}}, (1, 2), float("nan"), b"x", [object()]])
def test_options_that_a_recipe_cannot_keep_are_refused(value):
    with pytest.raises(UserError, match=r"^model\.options=.*: width must be text, a number, true"):
        parse(models.ModelSpec, {"name": "timm:resnet18", "options": {"width": value}}, at="model")
