"""The criteria once more, from their definitions: one filter, one sample, one position at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchreaper as tr
from tests.nets import NETS, build, inputs

BATCHES = [inputs(seed, n, torch.float64) for seed, n in ((1, 6), (2, 4))]
CASES = [(net, name) for net in NETS for name in ("2", "3", "block1.conv1", "block1.conv2", "conv2", "conv3")]


def built(net: str, seed: int = 0) -> tuple[nn.Module, tr.FilterBank]:
    """A float64 network with every shift on, and its filters."""
    model = build(net, seed=seed)[0].double()
    return model, tr.find_filters(model, BATCHES[0][0], skip=None)


# Where a network hands out the feature map of a layer: the module, and what follows at once.
MAPS: dict[str, dict[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    "plain": {"0": ("0", F.relu), "2": ("2", F.relu), "4": ("4", F.relu)},
    "plain-norm": {"0": ("1", F.relu), "3": ("4", F.relu), "6": ("7", F.relu)},
    "residual": {
        "stem": ("norm", F.relu),
        "block1.conv1": ("block1.bn1", F.relu),
        "block1.conv2": ("block1.bn2", lambda x: x),
        "block2.conv1": ("block2.bn1", F.relu),
        "block2.conv2": ("block2.bn2", lambda x: x),
        "block2.shortcut.0": ("block2.shortcut.1", lambda x: x),
    },
    "conv1d": {
        "conv1": ("conv1", F.leaky_relu),
        "conv2": ("bn", F.silu),
        "conv3": ("conv3", F.gelu),
    },
}


def maps_of(model: nn.Module, net: str, layer: str, images: Tensor, active: bool = True) -> Tensor:
    """[n, J, positions], by a copy of the network run image by image."""
    model, found = deepcopy(model).eval(), []
    place, activation = MAPS[net][layer]
    model.get_submodule(place).register_forward_hook(lambda m, i, o: found.append(o.detach().clone()))
    with torch.no_grad():
        for image in images:
            model(image[None])
    maps = torch.cat(found).flatten(2)
    return activation(maps) if active else maps


def all_maps(model: nn.Module, net: str, layer: str, active: bool = True) -> Tensor:
    return torch.cat([maps_of(model, net, layer, images, active) for images, _ in BATCHES])


def mean_loss(model: nn.Module) -> Tensor:
    """Of all samples of all batches."""
    images, labels = (torch.cat(parts) for parts in zip(*BATCHES))
    return F.cross_entropy(model(images), labels)
