"""Which photographs with boxes a recipe asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from torchreaper.lab.data.spec import Judge, check_judge, check_keys, check_split_seed, check_workers, listed
from torchreaper.lab.settings import Settings

_FOLDERS = ("train_images", "test_images")
_COLUMNS = ("image", "objects", "bbox", "category")
# Keys that say where the photographs are, and others that have an effect.
_WHERE = {"coco": ("train", "test", *_FOLDERS), "parquet": ("train", "test"), "hub": ("hub",)}
_MAY = {"coco": (), "parquet": _COLUMNS, "hub": ("train", "test", *_COLUMNS)}
Side = Annotated[int, Field(ge=1, le=2**14)]


Name = Literal["coco", "parquet", "hub"]
NAMES: tuple[str, ...] = get_args(Name)


class BoxesSpec(Settings):
    """The recipe's ``data:`` section where the task is detection. Checking it opens nothing; `load_boxes` does.

    Attributes:
        name: "coco" (COCO's JSON beside a folder of pictures), "parquet" (local files), "hub" (huggingface.co).
        train, test: coco: paths or globs of the files of annotations. parquet: of the files. hub: names of splits;
            None: "train" and "test".
        train_images, test_images: coco: the folders of the pictures.
        hub: the data set's name there, such as "cppe-5".
        image, objects: parquet, hub: names of the columns; None: found by their types. A row of ``objects`` holds the
            boxes of an image and their classes.
        bbox, category: parquet, hub: names of those two in ``objects``; None: found by their types, else by usual
            names.
        box: what four numbers mean, in pixels of the photograph: "xywh" (left, top, width, height; COCO's) or "xyxy"
            (left, top, right, bottom).
        classes: which classes to detect, in this order, boxes of others are left out; where the files only have
            numbers, the names of 0, 1, 2, ... None: those of the files.
        size: height and width of the network's input, or one number for both. Photographs are brought to it in their
            own proportions, at its top left; what is left over is grey.
        memory: keep all photographs in memory as pixels of that size; else they are read when they are needed.
        workers: without ``memory``: processes that read. It changes no number.
        limit, test_limit: training and test images kept, chosen at random; None: all.
        validation: images split off the training set at random, before ``limit``.
        judge: "test", or "validation": the test images are left alone, see ``DataSpec``.
        split_seed: the random choice of limit, test_limit and validation.
    """

    name: Name
    train: str | None = None
    test: str | None = None
    train_images: str | None = None
    test_images: str | None = None
    hub: str | None = None
    image: str | None = None
    objects: str | None = None
    bbox: str | None = None
    category: str | None = None
    box: Literal["xywh", "xyxy"] = "xywh"
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(listed)] = None
    size: Annotated[tuple[Side, Side], Field(strict=False)]
    memory: bool = True
    workers: int = Field(default=2, ge=0)
    limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation: int = Field(default=0, ge=0)
    judge: Judge = "test"
    split_seed: int = Field(default=0, ge=0)

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        if type(size) is int:
            if size < 1:
                raise ValueError("must be at least 1")
            return size, size
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise ValueError("must be [height, width] in pixels, or one whole number for both")
        return size

    @field_validator("classes")
    @classmethod
    def _different(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not classes or len(set(classes)) < len(classes) or not all(classes)):
            raise ValueError("must be one or more names, each once")
        return classes

    @model_validator(mode="after")
    def _together(self) -> BoxesSpec:
        keys = ("train", "test", *_FOLDERS, "hub", *_COLUMNS)
        check_keys(self, self.name, keys, needed=_WHERE[self.name], allowed=_MAY[self.name])
        check_workers(self)
        check_split_seed(self)
        check_judge(self)
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
