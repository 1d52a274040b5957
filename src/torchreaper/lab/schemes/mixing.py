"""Mixed images: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

torchvision has both, but is no dependency of the lab; here the numbers come from a generator of the epoch, so that a
run that was stopped goes on with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import torchreaper as tr
from torchreaper.lab.data import epoch_seed
from torchreaper.lab.schemes.base import Attached, Images, Setup, Spec, Targets

#: From images, the same in another order, the share that is to stay, and a generator: mixed ones, and what stayed.
Mixer = Callable[[Tensor, Tensor, float, np.random.Generator], tuple[Tensor, float]]


def mixup(images: Tensor, others: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """`share` of each image and 1 - `share` of the other, laid over each other (equation 2)."""
    return torch.lerp(others, images, share), share


def cutmix(images: Tensor, others: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Each image with a rectangle of the other: 1 - `share` of the area, or what of it lies inside (section 3.1)."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    y, x = generator.integers(height), generator.integers(width)
    top, bottom = (int(np.clip(y + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(x + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class Mixing(Attached):
    """Mixes each batch with itself in another order; targets become probabilities of the classes."""

    def __init__(self, mixer: Mixer, alpha: float, classes: int, seed: int) -> None:
        self._mixer, self._alpha, self._classes, self._seed = mixer, alpha, classes, seed
        self._generator: np.random.Generator | None = None

    def mix(self, images: Images, targets: Targets) -> tuple[Images, Targets]:
        """One share for the whole batch, drawn from Beta(alpha, alpha)."""
        if self._generator is None:
            self._generator = np.random.default_rng(epoch_seed(self._seed, self.epoch, "mix"))
        share = float(self._generator.beta(self._alpha, self._alpha))
        order = torch.from_numpy(self._generator.permutation(len(images))).to(images.device, non_blocking=True)
        mixed, share = self._mixer(images, images[order], share, self._generator)
        if targets.ndim == 1:
            targets = F.one_hot(targets, self._classes).to(images.dtype)
        return mixed, torch.lerp(targets[order], targets, share)

    def ended(self, epoch: int) -> tr.Transition | None:
        """The next epoch has random numbers of its own."""
        self._generator = None
        return None


class _MixingSpec(Spec):
    alpha: float = Field(default=1.0, gt=0)
    hands: ClassVar[frozenset[str]] = frozenset({"the images"})
    mixer: ClassVar[Mixer]
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification"})

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        with torch.no_grad():
            was = setup.model.training
            classes = setup.model.eval()(setup.example_inputs).shape[1]
            setup.model.train(was)
        return Mixing(type(self).mixer, self.alpha, classes, setup.seed)


class MixupSpec(_MixingSpec):
    """The scheme `mixup`. `alpha`: of the Beta distribution of the shares; smaller mixes less."""

    summary: ClassVar[str] = "lay two images over each other"
    source: ClassVar[str] = "Zhang et al. 2018, equation 2"
    mixer: ClassVar[Mixer] = staticmethod(mixup)
    name: Literal["mixup"] = "mixup"


class CutMixSpec(_MixingSpec):
    """The scheme `cutmix`. `alpha`: of the Beta distribution of the areas."""

    summary: ClassVar[str] = "put a rectangle of one image into another"
    source: ClassVar[str] = "Yun et al. 2019, section 3.1"
    mixer: ClassVar[Mixer] = staticmethod(cutmix)
    name: Literal["cutmix"] = "cutmix"
