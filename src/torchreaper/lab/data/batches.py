"""From images in memory to batches: the order of an epoch, augmentation, normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchreaper.lab.data.split import Split, choose
from torchreaper.lab.errors import UserError

Augmentation = Literal["none", "crop-flip"]
_MARGIN = 4  # pixels, of the crop (He et al. 2016)


def epoch_seed(seed: int, epoch: int, use: str = "order") -> int:
    """A 63-bit seed for one use of randomness in one epoch of one run.

    The first 8 bytes of BLAKE2b("use:seed:epoch"), top bit cleared: the same on every machine, and unlike
    ``seed + epoch`` never shared by two runs. It depends on nothing that happened before, so that any epoch
    can be repeated alone.
    """
    digest = hashlib.blake2b(f"{use}:{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_generator(seed: int, epoch: int, use: str = "order") -> torch.Generator:
    """A fresh CPU generator from ``epoch_seed``."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch, use))


def batches(
    split: Split, *, batch: int, seed: int, epoch: int, shuffle: bool, drop_last: bool = False
) -> Iterator[Int64[Tensor, " batch"]]:
    """The indices of each batch of one epoch, on the split's device.

    The order depends on (seed, epoch) only. ``drop_last`` leaves out a last batch that is not full; with
    fewer images than one batch that would leave none, which is a ``UserError``.
    """
    count = len(split)
    if drop_last and count < batch:
        raise UserError(f"batch={batch}: larger than the {count} images; use batch <= {count}")
    order = torch.randperm(count, generator=epoch_generator(seed, epoch)) if shuffle else torch.arange(count)
    end = count - count % batch if drop_last else count
    return iter(torch.split(order[:end].to(split.labels.device), batch))


def normalise(
    images: UInt8[Tensor, "n channels height width"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "n channels height width"]:
    """(images / 255 - mean) / std per channel, in the type of ``mean``, on the images' device."""
    scale = (1 / (255 * std)).to(images.device)
    shift = (mean / std).to(images.device)
    return images.to(scale.dtype) * scale[:, None, None] - shift[:, None, None]


def augment(
    images: UInt8[Tensor, "n channels height width"], kind: Augmentation, generator: torch.Generator
) -> UInt8[Tensor, "n channels height width"]:
    """Change each image at random, all at once, on the images' device.

    "crop-flip": a crop of the image's own size out of the image with 4 black pixels added on each side, then
    its mirror image with probability 1/2. "none": the images as they are, and nothing drawn.
    The numbers come from ``generator``, on its own device: a CPU generator gives the same crops everywhere.
    Source: He et al. 2016, section 4.2.
    """
    if kind == "none":
        return images
    n, channels, height, width = images.shape
    device = images.device
    top, left = (
        torch.randint(0, 2 * _MARGIN + 1, (2, n), generator=generator, device=generator.device).to(device).unbind()
    )
    mirrored = torch.rand(n, generator=generator, device=generator.device).to(device) < 0.5
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (_MARGIN,) * 4)
    n_index = torch.arange(n, device=device)[:, None, None, None]
    c_index = torch.arange(channels, device=device)[None, :, None, None]
    return padded[n_index, c_index, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True, eq=False)
class FixedBatches:
    """Images of a split for criteria to read: the same batches (images, labels) each time they are iterated over.

    A batch is normalised, on the split's device, and made when it is asked for; nothing is kept.

    Attributes:
        split: where the images are from.
        what: what they are, for error texts: "validation" or "training".
        mean, std: see ``normalise``.
        batch: images at a time, at most. A number of its own: how a run is judged must not change what goes.
        count: how many images of the split; ``None``: all of them, in the split's own order.
        seed: which ones those ``count`` are, as many of each class as they go, and their order.
    """

    split: Split
    what: str
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]
    batch: int = 100
    count: int | None = None
    seed: int = 0

    @classmethod
    def held_out(
        cls,
        train: Split,
        validation: Split | None,
        *,
        mean: Float[Tensor, " channels"],
        std: Float[Tensor, " channels"],
    ) -> FixedBatches:
        """The images that criteria read: those held out for validation, or without any those of training."""
        if validation is None:
            return cls(train, "training", mean, std)
        return cls(validation, "validation", mean, std)

    @property
    def images(self) -> int:
        """How many images one iteration gives."""
        return len(self.split) if self.count is None else self.count

    def take(self, count: int, *, seed: int) -> FixedBatches:
        """Only ``count`` of the split's images; which ones and in what order depends on ``seed``."""
        return replace(self, count=count, seed=seed)

    def __len__(self) -> int:
        return -(-self.images // self.batch)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "n channels height width"], Int64[Tensor, " n"]]]:
        for index in torch.split(self._order, self.batch):
            yield normalise(self.split.images[index], self.mean, self.std), self.split.labels[index]

    @cached_property
    def _order(self) -> Int64[Tensor, " images"]:
        labels = self.split.labels
        if self.count is None:
            return torch.arange(len(labels), device=labels.device)
        chosen = choose(labels.cpu(), self.count, seed=self.seed, balanced=True)
        # A data set sorted by class would give batches of one class, and the gradient of one class is no sample.
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed))
        return chosen[order].to(labels.device)
