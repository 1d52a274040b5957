"""Images that are read when they are needed, by worker processes; how many there are of these changes no number."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Int64
from torch import Tensor

from torchreaper.lab.data.augment import Augmentation, augment, epoch_generator, epoch_seed
from torchreaper.lab.data.picture import GREY, NUMBERS, check_mode, pixels
from torchreaper.lab.data.split import WHOLE, Images, Index, Share
from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import drawing, importable, reason

Found = tuple[Tensor, bool]
"""A batch of images, and whether all of them are stored as grey pictures."""


class Source(Protocol):
    """Where images are stored. It goes to the worker processes."""

    @property
    def random(self) -> bool:
        """Whether reading may draw random numbers."""

    def where(self, row: int) -> str:
        """Which image that is, for error texts."""

    def read(self, rows: list[int]) -> Iterable[Any]:
        """The images at ``rows``, each a PIL image, or a tensor [c, h, w] of bytes or of floats."""


@dataclass(frozen=True)
class Form:
    """What all images of a data set become: channels, height, width, type; ``size`` as in the recipe."""

    channels: int
    height: int
    width: int
    dtype: torch.dtype
    size: int | None

    @classmethod
    def of(cls, image: Any, size: int | None, where: str) -> Form:
        """The form of a data set with this image; of pictures with 3 channels, see `fit`."""
        form = cls(0, 0, 0, torch.uint8, size)
        values = form.values(image, where, None)
        channels, height, width = values.shape
        return cls(channels if isinstance(image, Tensor) else 3, height, width, values.dtype, size)

    def fit(self, image: Any, where: str, crop: Sequence[float] | None) -> Tensor:
        """The image in this form; grey becomes colour, but not the other way."""
        values = self.values(image, where, crop)
        channels, height, width = values.shape
        if values.dtype != self.dtype:
            raise UserError(f"{where}: image of {values.dtype}, others are {self.dtype}; all must have one type")
        if (height, width) != (self.height, self.width):
            raise UserError(
                f"{where}: image of {height}x{width} pixels, others have {self.height}x{self.width}; "
                + (
                    "resize in the data set"
                    if self.dtype.is_floating_point
                    else "set data.size to bring all to one size"
                )
            )
        if channels not in (1, self.channels):
            raise UserError(
                f"{where}: image of {channels} channels, others have {self.channels}; give all as many; "
                "of files, data.memory: true takes grey ones for coloured"
            )
        return values.expand(self.channels, -1, -1)

    def values(self, image: Any, where: str, crop: Sequence[float] | None) -> Tensor:
        """The image as a tensor [c, h, w], at its size in this form."""
        if not isinstance(image, Tensor):
            check_mode(image, where)
            return torch.from_numpy(pixels(image, size=self.size, crop=crop))
        if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(
                f"{where}: image of {image.dtype} and shape {list(image.shape)}; must be [channels, height, width] of "
                "uint8, or of floats that are ready for the network"
            )
        if _ends_in_channels(image.shape) and (not image.is_floating_point() or image.shape[0] == image.shape[1]):
            raise UserError(
                f"{where}: image of shape {list(image.shape)}, which looks like [height, width, channels]; must be "
                "[channels, height, width]: image.permute(2, 0, 1)"
            )
        if image.is_floating_point() and not image.isfinite().all():
            raise UserError(f"{where}: holds values that are not finite; mend the image or leave it out")
        if self.size is None:
            return image
        if image.is_floating_point() or image.shape[0] not in (1, 3):
            raise UserError(
                f"data.size={self.size}: {where} is an image of {image.dtype} and {image.shape[0]} channels, which "
                "cannot be resized here; leave size out and resize in the data set"
            )
        from PIL.Image import fromarray  # needed here only

        array = image.squeeze(0) if image.shape[0] == 1 else image.permute(1, 2, 0)
        return torch.from_numpy(pixels(fromarray(np.ascontiguousarray(array.numpy())), size=self.size, crop=crop))


def _ends_in_channels(shape: Sequence[int]) -> bool:
    """Whether three sizes look like [height, width, channels]: few at the end, and more before."""
    return shape[2] in (1, 3, 4) and min(shape[:2]) > 4


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split whose images are read from ``source`` batch by batch.

    Attributes:
        source, rows: where the images are stored, and which of them they are.
        labels: the class of each; its device is where batches go.
        form: of the images. workers: processes that read; 0: none but this one.
        base: modules of the user's are found in this folder.
    """

    source: Source
    rows: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    form: Form
    workers: int
    base: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.form.channels, self.form.height, self.form.width

    @property
    def prepared(self) -> bool:
        """Whether the images are floats."""
        return self.form.dtype.is_floating_point

    def to(self, device: torch.device | str) -> Streamed:
        """The same split, read to ``device``."""
        return replace(self, labels=self.labels.to(device))

    def same(self, other: object) -> bool:
        """Whether ``other`` reads the same images of the same source in the same order."""
        return self is other or (
            isinstance(other, Streamed)
            and self.source is other.source
            and self.form == other.form
            and torch.equal(self.rows, other.rows)
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
        """The images at the indices of each batch of ``order``, and their classes, read some batches ahead.

        What the source draws at random, and the numbers of "resized-crop", come from a seed of (seed, epoch, number of
        the batch), so that neither the number of readers nor what was read before changes them. Of each batch one
        ``share`` is read; only what the source itself draws is then another.
        """
        for (images, _), index in self.found(order, augmentation=augmentation, seed=seed, epoch=epoch, share=share):
            yield images, self.labels[index]

    def found(
        self,
        order: Iterable[Index],
        *,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Found, Index]]:
        """As `read`, but with whether all images of a batch are stored as grey pictures, and their indices."""
        indices, device = list(order), self.labels.device
        rows = [self.rows[index.cpu()] for index in indices]
        seeds = [epoch_seed(seed, epoch, f"batch-{number}") for number in range(len(rows))]
        batches = _Batches(self.source, self.form, rows, seeds, augmentation == "resized-crop", share)
        crops = epoch_generator(seed, epoch, "augment")
        fetched = fetch(batches, workers=self.workers, base=self.base, pin=device.type == "cuda")
        for (images, grey), index in zip(fetched, indices):
            part, of = share.part(len(index)), len(index)
            yield (augment(images.to(device, non_blocking=True), augmentation, crops, part, of), grey), index[part]


class Part(NamedTuple):
    """Some images of a source, and their classes."""

    source: Source
    rows: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]


class _Batches(torch.utils.data.Dataset[Any]):
    """Batches by number. What is wrong with an image comes back as a text, because errors change on the way."""

    def __init__(
        self, source: Source, form: Form, rows: list[Tensor], seeds: list[int], crop: bool, share: Share
    ) -> None:
        self._source, self._form, self._rows, self._seeds, self._crop = source, form, rows, seeds, crop
        self._share = share

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Found | str:
        try:
            return self._load(self._rows[number].tolist(), self._seeds[number])
        except UserError as error:
            return str(error)

    def _load(self, rows: list[int], seed: int) -> Found:
        crops: list[Any] = [None] * len(rows)
        if self._crop:
            generator = torch.Generator().manual_seed(seed)
            crops = torch.rand(len(rows), NUMBERS, generator=generator, dtype=torch.float64).tolist()
        part = self._share.part(len(rows))
        rows, crops, seed = rows[part], crops[part], seed + self._share.rank
        with drawing(seed) if self._source.random else nullcontext():
            found = self._source.read(rows)
        form = self._form
        images = torch.empty(len(rows), form.channels, form.height, form.width, dtype=form.dtype)
        grey = True
        for i, (row, image, crop) in enumerate(zip(rows, found, crops)):
            grey = grey and not isinstance(image, Tensor) and image.mode in GREY
            images[i] = form.fit(image, self._source.where(row), crop)
        return images, grey


def own_modules(base: Path | None) -> AbstractContextManager[None]:
    """Modules of the user's own are found in the block; None: there are none, and what lies about is not imported."""
    return nullcontext() if base is None else importable(base)


def fetch(
    batches: torch.utils.data.Dataset[Any], *, workers: int, base: Path | None = None, pin: bool = False
) -> Iterator[Any]:
    """The items of ``batches`` in order, made by ``workers`` processes; a single one here, without any.

    Raises:
        UserError: an item is a text, which says what is wrong, or a process has died.
    """
    workers = min(workers, len(batches) - 1)  # type: ignore[arg-type]
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        # A process of `--jobs` would start others by spawn: each epoch would wait for them to import torch.
        multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
        pin_memory=pin,
        generator=torch.Generator(),  # else the seeds of its workers would be drawn from the global one
    )
    with own_modules(base):  # the processes take the search path along
        items = iter(loader)
    while True:
        try:
            with own_modules(base):  # what the user's code imports only when it reads
                item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if not workers:
                raise
            raise UserError(
                f"data.workers={workers}: a process that reads images has died ({reason(error)}); give the machine "
                "more memory or shared memory (/dev/shm), or set data.workers: 0"
            ) from error
        if isinstance(item, str):
            raise UserError(item)
        yield item
