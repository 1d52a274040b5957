"""Where the feature map of a layer stands: behind its own norm, before its activation."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreaper as tr
from tests.families import FAMILIES
from tests.nets import inputs
from torchreaper.criteria.maps import feature_map_of


def maps_of(name):
    """Layer -> the module behind which its feature map stands, and the activation that follows at once."""
    bank = tr.find_filters(FAMILIES[name](), inputs()[0])
    return bank, {
        layer: (found.module, getattr(found.activation.target, "__name__", found.activation.target))
        if found.activation
        else (found.module, None)
        for layer, found in bank.flow.maps.items()
    }


def test_feature_maps_stand_behind_the_layers_own_norm():
    _, dense = maps_of("pre-activation")
    assert dense["stem"] == ("stem_norm", "relu")
    assert dense["convs.0"] == ("convs.0", None)  # the norms behind it are of several layers
    bank, _ = maps_of("untraceable")
    assert not bank.flow.maps
    assert feature_map_of(bank.flow, bank["box.conv"]).module == "box.norm"
    assert feature_map_of(bank.flow, bank["before"]).module == "before"


def test_an_activation_of_the_users_own_kind_is_no_activation():
    class Own(nn.Sequential):
        def __init__(self, act):
            super().__init__(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act, nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3)
            )

    class Doubling(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.ReLU):
        pass

    flows = [tr.find_filters(Own(act), inputs()[0]).flow for act in (nn.Identity(), Doubling(), Named(), nn.Hardtanh())]
    assert [flow.maps["0"].activation and flow.maps["0"].activation.target for flow in flows] == [
        None,
        F.relu,
        "2",
        "2",
    ]
    assert all(flow.maps["0"].module == "1" for flow in flows)


class Between(nn.Module):
    """What stands between a convolution and its activation, and how the activation is called."""

    def __init__(self, between, act):
        super().__init__()
        self.conv, self.between, self.act = nn.Conv2d(3, 4, 3, padding=1), between, act
        self.last, self.fc = nn.Conv2d(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.last(self.act(self.between(self.conv(x)))).relu().mean((2, 3)))


@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.MaxPool2d(2), nn.Identity(), nn.AvgPool2d(2)])
def test_pools_and_dropout_stand_in_nobodys_way(between):
    found = tr.find_filters(Between(between, nn.ReLU()), inputs()[0]).flow.maps["conv"]
    assert (found.module, found.activation.target) == ("conv", "act")


class Clamped(nn.Module):
    def forward(self, x):
        return torch.clamp(input=x, min=0)


class Scaled(nn.Module):
    def forward(self, x):
        return torch.clamp(x, max=x.shape[0] * 1e6, min=0)


def test_an_activation_that_takes_its_input_by_name():
    bank = tr.find_filters(Between(nn.Identity(), Clamped()), inputs()[0], skip=None)
    plain = tr.find_filters(Between(nn.Identity(), nn.ReLU()), inputs()[0], skip=None)
    plain.model.load_state_dict(bank.model.state_dict())
    found, expected = (tr.criteria.MeanActivation([inputs(1)]).scores(one) for one in (bank, plain))
    assert torch.equal(found["conv"], expected["conv"])
    assert pickle.loads(pickle.dumps(bank.flow)).maps == bank.flow.maps


def test_an_activation_that_needs_more_than_the_map_is_none():
    bank = tr.find_filters(Between(nn.Identity(), Scaled()), inputs()[0], skip=None)
    assert bank.flow.maps["conv"].activation is None
    assert tr.criteria.MeanActivation([inputs(1)]).scores(bank)["conv"].isfinite().all()


def test_a_layer_with_two_activations_has_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.again(self.again(self.first(x).relu()).tanh()).relu().mean((2, 3)))

    assert tr.find_filters(Twice(), inputs()[0]).flow.maps["again"].activation is None
