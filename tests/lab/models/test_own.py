"""Networks of the user's own in a recipe: what they are given, what is asked of them."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from torchreaper.lab import models
from torchreaper.lab.errors import UserError

NETS = """
import random
import numpy as np
import torch
from torch import nn


class Given(nn.Module):
    def __init__(self, in_chans, num_classes, *, image_size=None, width=3, spread=None, **rest):
        super().__init__()
        self.given = {"in_chans": in_chans, "num_classes": num_classes, "image_size": image_size, **rest}
        self.conv = nn.Conv2d(in_chans, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, num_classes)
        self.spread = (spread or random.random)() + np.random.rand()

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x))).mean((2, 3)))


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))


def many():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(1000))


def nothing():
    return nn.Flatten()


def double(in_channels, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)).double()


class Said:
    def __init__(self, logits):
        self.logits = logits


class Speaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(3)

    def forward(self, x):
        return Said(self.fc(x.flatten(1)))
"""


@pytest.fixture
def nets(mine):
    """In a folder that is not the current one."""
    (mine / "recipes").mkdir()
    (mine / "recipes" / "mynets_beside.py").write_text(NETS)
    yield mine / "recipes"
    import sys

    sys.modules.pop("mynets_beside", None)


def build(base, name, seed=0, **options):
    return models.build(
        f"mynets_beside:{name}", options, in_channels=2, classes=3, image_size=(4, 5), generator_seed=seed, base=base
    )


def refused(base, name, **options):
    with pytest.raises(UserError) as error:
        build(base, name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_given_what_its_signature_names_unless_the_options_do(nets):
    assert build(nets, "Given").given == {"in_chans": 2, "num_classes": 3, "image_size": (4, 5)}
    assert build(nets, "Given", image_size=7, more=1).given["image_size"] == 7
    assert refused(nets, "Given", num_classes=4) == (
        "model.name='mynets_beside:Given': gives torch.float32 of shape [2, 4] for 2 images; must give logits [2, 3], "
        "one for each class of the data"
    )


def test_everything_is_drawn_from_the_seed_and_the_state_is_put_back(nets):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    one, same, other = (build(nets, "Given", seed=seed) for seed in (1, 1, 2))
    assert state() == before
    assert one.spread == same.spread != other.spread
    assert torch.equal(one.conv.weight, same.conv.weight)
    assert not torch.equal(one.conv.weight, other.conv.weight)
    assert one.training
    assert one.norm.num_batches_tracked == 0
    assert torch.equal(one.norm.running_mean, torch.zeros(3))


def test_lazy_layers_get_their_shapes_and_weights_of_the_seed(nets):
    one, same, other = (build(nets, "lazy", seed=seed) for seed in (1, 1, 2))
    assert one[0].weight.shape == (4, 2, 1, 1)
    assert torch.equal(one[3].weight, same[3].weight)
    assert not torch.equal(one[3].weight, other[3].weight)
    assert torch.equal(one[1].running_mean, torch.zeros(4))
    assert one[1].num_batches_tracked == 0


def test_double_precision_is_kept(nets):
    assert next(build(nets, "double").parameters()).dtype == torch.float64


def test_what_gives_no_logits_is_refused(nets):
    assert "gives torch.float32 of shape [2, 1000] for 2 images; must give logits [2, 3]" in refused(nets, "many")
    assert refused(nets, "nothing").endswith("has no parameters, so there is nothing to train")
    assert "gives a Said; must give one tensor, the logits" in refused(nets, "Speaking")
    assert "fails on 2 images of 2x4x5 (" in refused(nets, "Given", in_chans=3)


def test_without_its_folder_it_is_not_found(nets):
    message = refused(None, "Given")
    assert f"install it, or put it into {nets.parent}" in message
    assert isinstance(build(nets, "lazy"), nn.Module)
