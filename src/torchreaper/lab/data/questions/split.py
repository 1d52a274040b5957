"""A split of questions about pictures: built around one of the pictures, each of which is there once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from torchreaper.lab.data.augment import Augmentation
from torchreaper.lab.data.split import WHOLE, Images, Index, Readable, Share
from torchreaper.lab.errors import UserError

Inputs = tuple[Images, Int64[Tensor, "batch words"]]
"""Pictures and questions: what the network reads."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions, the pictures they are about, and people's answers. All on one device; not to be written to.

    Attributes:
        pictures: the different pictures, in memory or not; the classes they have there mean nothing.
        picture: of each question, the place of its picture there.
        questions: word numbers, 0 behind the end, 1 for unknown words.
        labels: numbers of the answers, the most frequent in column 0; -1 for one that is not kept.
        kinds: of each question's answer: an index into ``KINDS``.
    """

    pictures: Readable
    picture: Int64[Tensor, " n"]
    questions: Int64[Tensor, "n words"]
    labels: Int64[Tensor, "n people"]
    kinds: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        return self.pictures.shape

    @property
    def prepared(self) -> bool:
        """Whether the pictures are floats: they never are."""
        return self.pictures.prepared

    def to(self, device: torch.device | str) -> Questions:
        """The same split, its pictures read to ``device``."""
        return Questions(
            self.pictures.to(device),
            self.picture.to(device),
            self.questions.to(device),
            self.labels.to(device),
            self.kinds.to(device),
        )

    def same(self, other: object) -> bool:
        """Whether ``other`` asks the same of the same pictures in the same order, with the same answers."""
        return self is other or (
            isinstance(other, Questions)
            and self.pictures.same(other.pictures)
            and all(
                torch.equal(getattr(self, name), getattr(other, name))
                for name in ("picture", "questions", "labels", "kinds")
            )
        )

    def read(
        self,
        order: Iterable[Index],
        *,
        augmentation: Augmentation = "none",
        seed: int = 0,
        epoch: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Inputs, Int64[Tensor, "batch people"]]]:
        """((pictures, questions), answers) at the indices of each batch of ``order``; of each batch one ``share``.

        A picture with several questions in a batch is read once for it. Nothing is drawn at random.
        Raises ``UserError`` for any ``augmentation``: what is left of what would no longer be so.
        """
        if augmentation != "none":
            raise UserError(
                f"augment={augmentation!r}: a mirror image or a crop would make the answers to questions wrong; use "
                "augment: none"
            )
        return self._read(list(order), seed, epoch, share)

    def _read(
        self, order: list[Index], seed: int, epoch: int, share: Share
    ) -> Iterator[tuple[Inputs, Int64[Tensor, "batch people"]]]:
        parts = [index[share.part(len(index))] for index in order]
        different = [torch.unique(self.picture[index], return_inverse=True) for index in parts]
        images = self.pictures.read([pictures for pictures, _ in different], seed=seed, epoch=epoch)
        for index, (_, place), (found, _) in zip(parts, different, images):
            yield (found[place], self.questions[index]), self.labels[index]
