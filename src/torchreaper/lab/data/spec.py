"""Which images a recipe asks for."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from torchreaper.lab.data.own import EXAMPLE
from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import check_form, check_options, is_object
from torchreaper.lab.settings import Settings, did_you_mean, show

NAMES = ("digits", "folder", "parquet", "hub")
Judge = Literal["test", "validation"]
_OWN = "package.module:callable"
# Keys that say where the images are, and others that have an effect.
_WHERE = {"digits": (), "folder": ("train", "test"), "parquet": ("train", "test"), "hub": ("hub",), _OWN: ()}
_READ = ("size", "workers")
_MAY = {
    "digits": (),
    "folder": _READ,
    "parquet": ("image", "label", *_READ),
    "hub": ("train", "test", "image", "label", *_READ),
    _OWN: ("options", *_READ),
}


def listed(value: Any) -> Any:
    """A list as YAML has it as a tuple, None as it is; ``ValueError`` for anything else."""
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError("must be a list of names")
    return None if value is None else tuple(value)


def _texts(value: Any) -> Any:
    """Labels may be numbers; as names they are their digits."""
    return None if value is None else tuple(map(str, listed(value)))


class DataSpec(Settings):
    """The recipe's ``data:`` section. Checking it opens and imports nothing; `load` does.

    Attributes:
        name: "digits" (scikit-learn's, 8x8, no files), "folder" (of images, a subfolder for each class), "parquet"
            (local files), "hub" (huggingface.co), or ``package.module:callable``, which gives two data sets
            (train, test), each with ``__len__`` and ``__getitem__`` of a pair (image, class): a PIL image, or a tensor
            [channels, height, width] of uint8 or of floats, which are taken as they are.
        train, test: folder: the folders. parquet: paths or globs of files. hub: names of splits; None: "train" and
            "test".
        hub: the data set's name there, such as "uoft-cs/cifar10".
        image, label: parquet, hub: names of the columns; None: found by their types.
        options: arguments of the callable.
        classes: keep only images of these classes, by name, numbered in this order; None: all. A recipe can so learn
            some classes first and others later.
        size: bring images to ``size`` x ``size`` pixels: the shorter side, then the middle. None: all have one size.
        memory: keep all images in memory as pixels; else they are read when they are needed. Default: true, but
            false of a callable, which may change its images at random.
        workers: without ``memory``: processes that read. It changes no number.
        limit: training images kept, balanced over the classes as far as they go; None: all.
        test_limit: test images kept, likewise. Judging is most of the time of a run on few training images.
        validation: images split off the training set, before ``limit``, classes in proportion.
        judge: the images that networks are judged on: "test", or "validation": the test images are left alone while
            settings are chosen, and results tell of the validation images in their place.
        label_noise: share of the training images, 0 to 1, that get another class than theirs, which ones and by which
            drawn at random; those of validation and test keep theirs. Training accuracy is then of the noisy classes.
        split_seed: the random choices of all these, and what a callable draws at random when it makes the data sets.
    """

    name: str
    train: str | None = None
    test: str | None = None
    hub: str | None = None
    image: str | None = None
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_texts)] = None
    size: int | None = Field(default=None, ge=1)
    memory: bool = Field(default=None, validate_default=True)
    workers: int = Field(default=2, ge=0)
    limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation: int = Field(default=0, ge=0)
    judge: Judge = "test"
    label_noise: float = Field(default=0.0, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0)

    @property
    def own(self) -> bool:
        """Whether the user's own code gives the data sets."""
        return is_object(self.name)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if is_object(name):
            check_form(name, EXAMPLE)
        elif name not in NAMES:
            raise ValueError(f"unknown data; {did_you_mean(name, NAMES)}, {_OWN}")
        return name

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError("must be two or more names of classes, each once")
        return classes

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_options(options)
        return options

    @field_validator("memory", mode="before")
    @classmethod
    def _in_memory(cls, memory: Any, info: ValidationInfo) -> Any:
        return not is_object(info.data.get("name", "")) if memory is None else memory

    @model_validator(mode="after")
    def _together(self) -> DataSpec:
        kind = _OWN if self.own else self.name
        keys = ("train", "test", "hub", "image", "label", "options", "size", "workers")
        check_keys(self, self.name, keys, needed=_WHERE[kind], allowed=_MAY[kind])
        if not self.memory and self.name == "digits":
            raise UserError("memory=False: digits are always in memory; leave it out")
        if not self.own:
            check_workers(self)
        if not self.own:
            check_split_seed(self)
        check_judge(self)
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def check_keys(
    section: Settings, name: str, keys: Iterable[str], *, needed: Container[str], allowed: Container[str]
) -> None:
    """Raise ``UserError`` for one of ``keys`` that is needed with ``name`` and missing, or given without an effect."""
    for key in keys:
        value, default = getattr(section, key), type(section).model_fields[key].get_default(call_default_factory=True)
        if key in needed:
            if not value:
                raise UserError(f"{key}: is missing; name={name!r} needs it")
        elif value != default and key not in allowed:
            raise UserError(f"{key}={show(value)}: has no effect with name={name!r}; leave it out")


def check_workers(section: Any) -> None:
    """Raise ``UserError`` where readers are asked for that have nothing to read."""
    if section.memory and section.workers != type(section).model_fields["workers"].default:
        raise UserError(f"workers={section.workers}: has no effect with memory=True; leave it out or set memory: false")


def check_split_seed(section: Any) -> None:
    """Raise ``UserError`` where a choice is seeded that is not made."""
    seeded = [key for key in ("limit", "test_limit", "validation", "label_noise") if key in type(section).model_fields]
    if section.split_seed and not any(getattr(section, key) for key in seeded):
        either = f"{', '.join(seeded[:-1])} or {seeded[-1]}"
        raise UserError(f"split_seed={section.split_seed}: has no effect without {either}")


def check_judge(section: Any) -> None:
    """Raise ``UserError`` where validation is to judge and nothing is held out for it."""
    if section.judge == "validation" and not section.validation:
        raise UserError("judge='validation': needs something held out to judge on; set validation to how much")
