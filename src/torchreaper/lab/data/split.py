"""What a split of images is, in memory or not, and how some images are chosen: by class, from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchreaper.lab.data.augment import Augmentation, augment, epoch_generator
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import did_you_mean

Images = UInt8[Tensor, "n channels height width"] | Float[Tensor, "n channels height width"]
Index = Int64[Tensor, " batch"]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: block `rank` of `of`."""

    rank: int = 0
    of: int = 1

    def part(self, count: int) -> slice:
        """Where it lies in a batch of ``count`` images."""
        return slice(count * self.rank // self.of, count * (self.rank + 1) // self.of)


WHOLE = Share()


class Readable(Protocol):
    """Images and their targets, in memory or not: what training, judging and criteria read.

    Targets are classes, boxes or answers; what is read may be images, or a tuple that begins with them.
    """

    @property
    def labels(self) -> Tensor:
        """The target of each image [n, ...], on the device where images are read to."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @property
    def prepared(self) -> bool:
        """Whether the images are floats that are ready for the network; else they are bytes."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Readable:
        """The same split, its images read to ``device``."""

    def same(self, other: Readable) -> bool:
        """Whether both hold the same images with the same classes in the same order."""

    def read(
        self,
        order: Iterable[Index],
        *,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Any, Tensor]]:
        """The images at the indices of each batch of ``order``, and their targets; of each batch one ``share``.

        What is drawn at random depends on (seed, epoch) and on the order only, not on the share.
        """


@dataclass(frozen=True)
class Split:
    """Images and their classes in memory, in step. Both on one device; shared, so not to be written to."""

    images: Images
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def prepared(self) -> bool:
        """Whether the images are floats."""
        return self.images.is_floating_point()

    def to(self, device: torch.device | str) -> Split:
        """The same split on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def same(self, other: Readable) -> bool:
        """Whether ``other`` holds the same images with the same classes in the same order."""
        return self is other or (
            isinstance(other, Split)
            and torch.equal(self.labels, other.labels)
            and torch.equal(self.images, other.images)
        )

    def read(
        self,
        order: Iterable[Index],
        *,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Images, Int64[Tensor, " batch"]]]:
        """The images at the indices of each batch of ``order``, and their classes; of each batch one ``share``."""
        crops = epoch_generator(seed, epoch, "augment")
        for whole in order:
            part = share.part(len(whole))
            index = whole[part]
            yield augment(self.images[index], augmentation, crops, part, len(whole)), self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """What a run trains and is judged on.

    ``mean`` and ``std`` are per channel, in units of full brightness (0 to 1), from the images of ``train``.
    """

    train: Readable
    validation: Readable | None
    test: Readable
    classes: tuple[str, ...]
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]


def judged_on(what: str, dataset: Kept) -> Kept:
    """The same data set; for "validation" its validation images stand in the place of the test images.

    They are then the same object, so that a run judges them once.
    """
    given: Any = dataset
    return replace(given, test=given.validation) if what == "validation" else dataset


def choose(labels: Int64[Tensor, " n"], count: int, *, seed: int, balanced: bool) -> Int64[Tensor, " count"]:
    """Indices, ascending, of ``count`` random items: as many of each class (``balanced``) or in proportion.

    Where a class runs out, the others fill up. Every class differs from its due share by less than one item.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    # An item's due: its rank in its class, as a number of items (balanced) or as a share of the class.
    due = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        mine = shuffled == label
        size = int(mine.sum())
        rank = torch.arange(size, dtype=torch.float64)
        due[mine] = rank if balanced else (rank + 0.5) / size
    # Stable: among equals the random order decides.
    chosen: Tensor = order[due.argsort(stable=True)[:count]].sort().values
    return chosen


def of_classes(
    labels: Int64[Tensor, " n"], classes: Sequence[str], chosen: Sequence[str]
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " kept"]]:
    """The items of the chosen classes, ascending, and their classes as numbers in the order of ``chosen``.

    Raises ``UserError`` for a class that there is not.
    """
    for name in chosen:
        if name not in classes:
            raise UserError(f"data.classes: there is no class {name!r}; {did_you_mean(name, classes)}")
    new = torch.full((len(classes),), -1, dtype=torch.int64)
    new[torch.tensor([list(classes).index(name) for name in chosen])] = torch.arange(len(chosen))
    mine = new[labels]
    there = (mine >= 0).nonzero().squeeze(1)
    return there, mine[there]


def divide(
    labels: Int64[Tensor, " n"], *, validation: int, limit: int | None, classes: int, seed: int
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Split the training set: indices to train on, and to validate on.

    The validation images go first, so that ``limit`` does not change them.
    Raises ``UserError`` if there are too few images.
    """
    if validation >= len(labels):
        raise UserError(f"data.validation={validation}: leaves nothing to train on, there are {len(labels)} images")
    held_out = choose(labels, validation, seed=seed, balanced=False)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    rest = kept.nonzero().squeeze(1)
    return rest[_limited(labels[rest], limit, classes, seed, "limit", "training")], held_out


def keep_of_test(labels: Int64[Tensor, " n"], *, limit: int | None, classes: int, seed: int) -> Int64[Tensor, " test"]:
    """The test images that are kept, as indices: all, or ``limit`` of them, as many of each class.

    Raises ``UserError`` if there are too few images.
    """
    return _limited(labels, limit, classes, seed, "test_limit", "test")


def _limited(
    labels: Int64[Tensor, " n"], limit: int | None, classes: int, seed: int, key: str, what: str
) -> Int64[Tensor, " kept"]:
    there = len(labels)
    if limit is None:
        return torch.arange(there)
    if limit > there:
        raise UserError(f"data.{key}={limit}: only {there} {what} images are there; use {key} <= {there}")
    if limit < classes:
        raise UserError(f"data.{key}={limit}: fewer than the {classes} classes; use {key} >= {classes}")
    return choose(labels, limit, seed=seed, balanced=True)


def with_noise(labels: Int64[Tensor, " n"], share: float, *, classes: int, seed: int) -> Int64[Tensor, " n"]:
    """The labels, ``share`` of them (rounded) replaced by another class, which ones and by which at random.

    Raises ``UserError`` where that is none of them, or where there is no other class.
    """
    if not share:
        return labels
    count = round(share * len(labels))
    if not count or classes < 2:
        raise UserError(
            f"data.label_noise={share}: has no effect on {len(labels)} training images of {classes} classes; use a "
            "larger share, or leave it out"
        )
    generator = epoch_generator(seed, 0, "label noise")
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    shift = torch.randint(1, classes, (count,), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def channel_moments(
    images: UInt8[Tensor, "n channels height width"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and standard deviation per channel, in 0 to 1, exact: from the histogram of the 256 values.

    A channel of one value only gets the deviation 1, so that it can be divided by.
    """
    return moments_of(histogram(images))


def histogram(images: UInt8[Tensor, "n channels height width"]) -> Int64[Tensor, "channels 256"]:
    """How often each of the 256 values occurs, per channel."""
    return torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])


def moments_of(
    counts: Int64[Tensor, "channels 256"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """`channel_moments` of the images that ``counts`` is the histogram of."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for count in counts.double():
        share = count / count.sum()
        mean = (share * values).sum()
        var = (share * (values - mean) ** 2).sum()
        means.append(mean)
        stds.append(var.sqrt() if var > 1e-12 else torch.ones_like(var))
    return torch.stack(means).float(), torch.stack(stds).float()
