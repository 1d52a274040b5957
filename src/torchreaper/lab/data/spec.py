"""Which images a recipe asks for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings

_WHERE = {"digits": (), "parquet": ("train", "test"), "hub": ("hub",)}  # keys that say where the images are
_MAY = {"digits": (), "parquet": ("image", "label"), "hub": ("train", "test", "image", "label")}


class DataSpec(Settings):
    """The recipe's ``data:`` section.

    Attributes:
        name: "digits" (scikit-learn's, 8x8, no files), "parquet" (local files) or "hub" (huggingface.co).
        train, test: parquet: paths or globs of files. hub: names of splits (None: "train", "test").
        hub: the data set's name there, such as "uoft-cs/cifar10".
        image, label: names of the columns; None: found by their types.
        limit: training images kept, balanced over the classes as far as they go; None: all.
        test_limit: test images kept, likewise. Judging is most of the time of a run on few training images.
        validation: images split off the training set, before ``limit``, classes in proportion.
        split_seed: the random choice of all three.
    """

    name: Literal["digits", "parquet", "hub"]
    train: str | None = None
    test: str | None = None
    hub: str | None = None
    image: str | None = None
    label: str | None = None
    limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation: int = Field(default=0, ge=0)
    split_seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> DataSpec:
        for key in ("train", "test", "hub", "image", "label"):
            value = getattr(self, key)
            if key in _WHERE[self.name]:
                if not value:
                    raise UserError(f"{key}: is missing; name={self.name!r} needs it")
            elif value is not None and key not in _MAY[self.name]:
                raise UserError(f"{key}={value!r}: has no effect with name={self.name!r}; leave it out")
        if self.split_seed and self.limit is None and self.test_limit is None and not self.validation:
            raise UserError(f"split_seed={self.split_seed}: has no effect without limit, test_limit or validation")
        return self
