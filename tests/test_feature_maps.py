"""Where the feature map of a layer stands: behind its own norm, before its activation."""

from __future__ import annotations

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
