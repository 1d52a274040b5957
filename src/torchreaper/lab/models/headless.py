"""Networks that classify images, without their last layer: what that layer would have read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import reason


def without_classifier(
    network: nn.Module, named: str, *, in_channels: int, image_size: tuple[int, int]
) -> tuple[nn.Module, int]:
    """The same network with an ``nn.Identity`` in the place of its classifier, and how many features it gives.

    The classifier is the ``nn.Linear`` whose result is what the network returns, found by sending 2 images of noise
    through it, as in evaluation: so it may have any name and stand anywhere. All other names stay.

    Args:
        network: [n, in_channels, *image_size] -> logits [n, classes]; changed in place.
        named: which one it is, for error texts.

    Raises:
        UserError: it fails, does not end in one ``nn.Linear``, or gives no [n, features] without it.
    """
    images = torch.randn(2, in_channels, *image_size)
    logits, made = _run(network, images, named)
    ends = [name for name, result in made if result is logits]
    if len(ends) != 1 or not ends[0] or [name for name, _ in made].count(ends[0]) != 1:
        raise UserError(
            f"{named}: its classifier cannot be taken off: must end in one nn.Linear, used once, whose result it "
            f"returns; of the zoo all do, such as cnet and resnet20"
        )
    holder, _, child = ends[0].rpartition(".")
    classifier = network.get_submodule(ends[0])
    assert isinstance(classifier, nn.Linear)
    setattr(network.get_submodule(holder), child, nn.Identity())
    features, _ = _run(network, images, named)
    if not isinstance(features, Tensor) or features.shape != (2, classifier.in_features):
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"{named}: gives {shape} for 2 images without its classifier; must give [2, {classifier.in_features}], one "
            "row of features an image"
        )
    return network, classifier.in_features


def _run(network: nn.Module, images: Tensor, named: str) -> tuple[Any, list[tuple[str, Any]]]:
    """What the network returns, and what each ``nn.Linear`` of it does, in order."""
    made: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, result, name=name: made.append((name, result)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            return network.eval()(images), made
    except Exception as error:  # the user's own code
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(f"{named}: fails on 2 images of {shape} ({reason(error)})") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
