"""A split of photographs with boxes: the boxes around a split of images that are read by their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchreaper.lab.data.augment import Augmentation, epoch_generator
from torchreaper.lab.data.boxes.geometry import in_photographs, mirror
from torchreaper.lab.data.split import WHOLE, Index, Share, Split
from torchreaper.lab.data.stream import Streamed
from torchreaper.lab.errors import UserError


def check_box_augmentation(kind: str) -> None:
    """Raise ``UserError`` where images with boxes cannot be augmented like that."""
    if kind not in ("none", "flip"):
        raise UserError(f"augment={kind!r}: would cut the images but not their boxes; with boxes use flip or none")


@dataclass(frozen=True, eq=False)
class BoxSplit:
    """Photographs brought to one size, in memory or not, and the boxes around the objects on them.

    Attributes:
        inner: the images; the "class" of each is its number here.
        labels: what a detector is trained on: (x1, y1, x2, y2, class) in pixels of the input, rows of -1 where there
            are no more boxes. Its device is where images are read to.
        scale: pixels of the input per pixel of the photograph.
        filled: height and width, in pixels of the input, that the photograph covers, from the top left.
        crowd: as ``labels``, boxes around crowds of objects that were not told apart: nothing to train on, and neither
            right nor wrong to detect.
    """

    inner: Split | Streamed
    labels: Float[Tensor, "n most 5"]
    scale: Float[Tensor, " n"]
    filled: Int64[Tensor, "n 2"]
    crowd: Float[Tensor, "n mostcrowd 5"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.inner.shape

    @property
    def prepared(self) -> bool:
        """Whether the images are floats: never."""
        return self.inner.prepared

    def truths(self) -> list[Float[Tensor, "k 5"]]:
        """The boxes of each image in pixels of its photograph: what its detections are judged by."""
        return in_photographs(self.labels, self.scale)

    def crowds(self) -> list[Float[Tensor, "k 5"]]:
        """The crowds of each image in pixels of its photograph."""
        return in_photographs(self.crowd, self.scale)

    def to(self, device: torch.device | str) -> BoxSplit:
        """The same split, read to ``device``."""
        there = {name: getattr(self, name).to(device) for name in ("inner", "labels", "scale", "filled", "crowd")}
        return replace(self, **there)

    def same(self, other: object) -> bool:
        """Whether ``other`` has the same images with the same boxes in the same order."""
        return self is other or (
            isinstance(other, BoxSplit)
            and all(
                torch.equal(getattr(self, name), getattr(other, name))
                for name in ("labels", "scale", "filled", "crowd")
            )
            and self.inner.same(other.inner)
        )

    def read(
        self,
        order: Iterable[Index],
        *,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[UInt8[Tensor, "batch 3 height width"], Float[Tensor, "batch most 5"]]]:
        """The images at the indices of each batch of ``order``, and their boxes; of each batch one ``share``.

        "flip": each with probability 1/2 mirrored, see `mirror`; the numbers depend on (seed, epoch) and the order.
        Raises ``UserError`` for other augmentations; see `check_box_augmentation`.
        """
        check_box_augmentation(augmentation)
        return self._read(list(order), flip=augmentation == "flip", seed=seed, epoch=epoch, share=share)

    def _read(
        self, order: list[Index], *, flip: bool, seed: int, epoch: int, share: Share
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chances = epoch_generator(seed, epoch, "augment")
        found = self.inner.read(order, seed=seed, epoch=epoch, share=share)
        for whole, (images, items) in zip(order, found):
            targets = self.labels[items]
            if flip:
                # Of the whole batch, whatever the share: processes together see what one would.
                chosen = (torch.rand(len(whole), generator=chances) < 0.5)[share.part(len(whole))]
                images, targets = mirror(
                    images, targets, self.filled[items, 1], chosen.to(images.device, non_blocking=True)
                )
            yield images, targets
