import pytest
import torch

from torchreaper.lab import models
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

SHAPE = {"in_channels": 1, "classes": 2, "image_size": (8, 8)}
SMALL = [("cnet", {"width": 2}), ("cnet", {"width": 2, "init": "normal"}), ("resnet20", {"width": 2})]


def weights(name, options, seed):
    model = models.build(name, options, **SHAPE, generator_seed=seed)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_weights_come_from_the_seed_alone(name, options):
    torch.manual_seed(1)
    first = weights(name, options, 5)
    torch.manual_seed(2)
    assert torch.equal(first, weights(name, options, 5))
    assert not torch.equal(first, weights(name, options, 6))


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_the_global_random_state_is_left_alone(name, options):
    before = torch.random.get_rng_state()
    weights(name, options, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_model_builds_and_its_spec_reads_itself_back():
    for name in models.MODELS:
        spec = parse(models.ModelSpec, {"name": name})
        assert spec.options, "all options stand in the spec"
        assert parse(models.ModelSpec, spec.model_dump()) == spec


def test_unknown_model_names_the_nearest():
    message = r"^model\.name='resnet_20': unknown model; did you mean 'resnet20'\? known: cnet, resnet20, .*$"
    with pytest.raises(UserError, match=message):
        models.build("resnet_20", {}, **SHAPE, generator_seed=0)
