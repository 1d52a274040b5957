"""From images to batches: the order of an epoch, normalisation, what criteria read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchreaper.lab.data.augment import Augmentation, epoch_generator
from torchreaper.lab.data.split import WHOLE, Index, Readable, Share, choose
from torchreaper.lab.errors import UserError

Arguments = Callable[[Any, Tensor], tuple[Any, ...]]


def batches(
    split: Readable, *, batch: int, seed: int, epoch: int, shuffle: bool, drop_last: bool = False
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


def training(
    split: Readable,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    *,
    batch: int,
    augment: Augmentation,
    seed: int,
    epoch: int,
    share: Share = WHOLE,
) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch of training: inputs, augmented and normalised, and their targets.

    Order and augmentation depend on (seed, epoch) only, whether the images are in memory or not, and whether a batch is
    read whole or in shares.
    """
    # A last batch of a few images would be a full step on noise, right before the network is judged.
    order = batches(split, batch=batch, seed=seed, epoch=epoch, shuffle=True, drop_last=True)
    for images, labels in split.read(order, augmentation=augment, seed=seed, epoch=epoch, share=share):
        yield prepared(images, mean, std), labels


def judging(
    split: Readable,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    *,
    batch: int,
    share: Share = WHOLE,
    only: Index | None = None,
) -> Iterator[tuple[Any, Tensor]]:
    """All inputs of a split in its own order, or those at ``only``, or a share of each batch; and their targets."""
    order = batches(split, batch=batch, seed=0, epoch=0, shuffle=False)
    if only is not None:
        order = iter(torch.split(only.to(split.labels.device), batch))
    for images, labels in split.read(order, share=share):
        if len(labels):
            yield prepared(images, mean, std), labels


def first(split: Readable, count: int, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> Any:
    """The first inputs of a split, as the network reads them."""
    index = torch.arange(min(count, len(split)), device=split.labels.device)
    return prepared(next(iter(split.read([index])))[0], mean, std)


def check_augmentation(split: Readable, kind: Augmentation) -> None:
    """Raise ``UserError`` where images cannot be augmented because they come as the network is to read them."""
    if kind != "none" and split.prepared:
        raise UserError(
            f"augment={kind!r}: the data set gives floats, which are taken as they are; use augment: none, and "
            "transforms in the data set itself"
        )


def prepared(inputs: Any, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> Any:
    """What a split gives, images or a tuple that begins with them, as the network reads it: images normalised."""
    if isinstance(inputs, tuple):
        return (normalise(inputs[0], mean, std), *inputs[1:])
    return normalise(inputs, mean, std)


def normalise(
    images: UInt8[Tensor, "n channels height width"] | Float[Tensor, "n channels height width"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "n channels height width"]:
    """(images / 255 - mean) / std per channel, in the type of ``mean``, on the images' device.

    Images of floats are taken for normalised; they only get that type.
    """
    if images.is_floating_point():
        return images.to(mean.dtype)
    scale = (1 / (255 * std)).to(images.device)
    shift = (mean / std).to(images.device)
    return images.to(scale.dtype) * scale[:, None, None] - shift[:, None, None]


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
        arguments: what a network is called with, from inputs and targets; ``None``: the inputs.
    """

    split: Readable
    what: str
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]
    batch: int = 100
    count: int | None = None
    seed: int = 0
    arguments: Arguments | None = None

    @classmethod
    def held_out(
        cls,
        train: Readable,
        validation: Readable | None,
        *,
        mean: Float[Tensor, " channels"],
        std: Float[Tensor, " channels"],
        batch: int = 100,
        arguments: Arguments | None = None,
    ) -> FixedBatches:
        """The images that criteria read: those held out for validation, or without any those of training."""
        split, what = (train, "training") if validation is None else (validation, "validation")
        return cls(split, what, mean, std, batch, arguments=arguments)

    @property
    def images(self) -> int:
        """How many images one iteration gives."""
        return len(self.split) if self.count is None else self.count

    def take(self, count: int, *, seed: int) -> FixedBatches:
        """Only ``count`` of the split's images; which ones and in what order depends on ``seed``."""
        return replace(self, count=count, seed=seed)

    def __len__(self) -> int:
        return -(-self.images // self.batch)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for images, labels in self.split.read(torch.split(self._order, self.batch)):
            inputs = prepared(images, self.mean, self.std)
            yield inputs if self.arguments is None else self.arguments(inputs, labels), labels

    @cached_property
    def _order(self) -> Int64[Tensor, " images"]:
        labels = self.split.labels
        if self.count is None:
            return torch.arange(len(labels), device=labels.device)
        # Boxes, say, are no classes to be balanced.
        kinds = labels.cpu() if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.int64)
        chosen = choose(kinds, self.count, seed=self.seed, balanced=True)
        # A data set sorted by class would give batches of one class, and the gradient of one class is no sample.
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed))
        return chosen[order].to(labels.device)
