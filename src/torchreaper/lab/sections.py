"""The sections of a recipe that are no room of their own: optimizer, learning rate, and where a network starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings, show

TaskName = Literal["classification", "detection", "vqa"]


class OptimSpec(Settings):
    """The recipe's ``optim:`` section: PyTorch's optimizers, with PyTorch's defaults for what is not here."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: float = Field(gt=0, le=1e30)  # what float32 holds
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0, le=1e30)

    @model_validator(mode="after")
    def _together(self) -> OptimSpec:
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise UserError(f"momentum={self.momentum}: has no effect with {self.name}; leave it out")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise UserError("nesterov=True: needs name: sgd and a momentum above 0")
        return self


class ScheduleSpec(Settings):
    """The recipe's ``schedule:`` section: the learning rate over time.

    Attributes:
        name: "constant"; "step": times ``gamma`` after each epoch of ``milestones``; "halving": times ``factor``
            after every ``every`` optimizer steps; "cosine": to 0 at the last epoch; "cyclic": in straight lines from
            ``low`` times the rate up to it and back, once in ``period`` epochs (Smith 2017, triangular); "restarts":
            along a cosine to 0, anew every ``period`` epochs (Loshchilov and Hutter 2017); "trapezoid": constant, then
            in a straight line to 0 over the last ``fall`` epochs. It suits RePr, whose filters must be back before the
            rate falls.
        warmup: epochs in which the rate first rises to its value.
    """

    name: Literal["constant", "step", "halving", "cosine", "cyclic", "restarts", "trapezoid"] = "constant"
    milestones: Annotated[tuple[int, ...], Field(strict=False)] = ()
    gamma: float = Field(default=0.1, gt=0, le=1000)
    every: int | None = Field(default=None, ge=1)
    factor: float = Field(default=0.5, gt=0, le=1000)
    period: int | None = Field(default=None, ge=1)
    low: float = Field(default=0.1, ge=0, lt=1)
    fall: int | None = Field(default=None, ge=1)
    warmup: int = Field(default=0, ge=0)

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
            raise ValueError("must be epochs from 1, ascending, each once")
        return milestones

    @model_validator(mode="after")
    def _together(self) -> ScheduleSpec:
        step, halving, cyclic = ("step",), ("halving",), ("cyclic",)
        owners = {
            "milestones": step,
            "gamma": step,
            "every": halving,
            "factor": halving,
            "low": cyclic,
            "fall": ("trapezoid",),
        }
        for key, names in {**owners, "period": ("cyclic", "restarts")}.items():
            value = getattr(self, key)
            if self.name not in names and value != type(self).model_fields[key].default:
                of = " and ".join(names)
                raise UserError(f"{key}={show(value)}: has no effect with name: {self.name}; it belongs to {of}")
        if self.name == "step" and not self.milestones:
            raise UserError("milestones: is missing; name the epochs after which the learning rate falls")
        if self.name == "halving" and self.every is None:
            raise UserError("every: is missing; after how many optimizer steps does the learning rate fall?")
        if self.name in ("cyclic", "restarts") and self.period is None:
            raise UserError("period: is missing; how many epochs does a cycle of the learning rate take?")
        if self.name == "trapezoid" and self.fall is None:
            raise UserError("fall: is missing; over how many epochs, the last ones, does the learning rate fall to 0?")
        return self


def _mapping(value: Any) -> Any:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError("must be a mapping (key: value)")
    return value


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if value is None:
        return None
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError("must be the name of a module or a list of names")


Section = Annotated[dict[str, Any] | None, BeforeValidator(_mapping)]


class SourceSpec(Settings):
    """The recipe's ``source:`` section: what the network has learnt before.

    Another network is trained first, by the scheme; the recipe's own starts from its weights and is trained the
    standard way, whatever the scheme.

    Attributes:
        task, data, model, epochs, batch, optim, schedule, augment, eval_batch: of that first training, where they
            differ from the recipe's; a section replaces the recipe's whole.
        into: the part of the recipe's network that gets the weights, by module name; None: the whole network.
        leave: modules of the first network whose weights are not taken over, one name or a list of them; None: its
            last layer, which knows the classes of the first data.
        freeze: keep what was taken over as it is; BatchNorm keeps its statistics too.
    """

    task: TaskName | None = None
    data: Section = None
    model: Section = None
    epochs: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    optim: Section = None
    schedule: Section = None
    augment: str | None = None
    eval_batch: int | None = Field(default=None, ge=1)
    into: str | None = Field(default=None, min_length=1)
    leave: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = None
    freeze: bool = False

    def changes(self) -> dict[str, Any]:
        """What is another's in the recipe of the first training."""
        own = {"into", "leave", "freeze"}
        values = self.model_dump(mode="json", exclude=own)
        return {key: value for key, value in values.items() if value is not None}
