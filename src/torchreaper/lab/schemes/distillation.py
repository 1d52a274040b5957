"""Distillation (Hinton et al. 2015): learn what a larger network, trained before, thinks of each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec

#: What of a recipe may be another one's for the teacher.
CHANGES = ("model", "epochs", "batch", "optim", "schedule", "augment")


def divergence(
    outputs: Float[Tensor, "batch classes"], teachers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the classes' probabilities at a temperature, a mean over the images, times its square.

    The square keeps the gradients as large as those of the cross entropy (section 2).
    """
    student = F.log_softmax(outputs / temperature, dim=1)
    teacher = F.log_softmax(teachers.to(outputs.dtype) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class Distillation(Attached):
    """The loss is (1 - weight) times the cross entropy, and weight times the divergence from the teacher."""

    def __init__(self, teacher: nn.Module, temperature: float, weight: float) -> None:
        self._teacher, self._temperature, self._weight = teacher, temperature, weight

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Ask the teacher about the same images."""
        with torch.no_grad():
            said = batch.said_by(self._teacher)
        return torch.lerp(loss, divergence(batch.outputs, said, self._temperature), self._weight)


def _teacher(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping (key: value)")
    for key in value:
        if key not in CHANGES:
            raise UserError(f"{key}: unknown key; known: {', '.join(CHANGES)}")
    if "model" not in value:
        raise UserError("model: is missing; name a larger network, such as {name: resnet20}")
    return dict(value)


class KDSpec(Spec):
    """The scheme `kd`.

    `teacher`: changes to the recipe that make it the teacher's: its `model`, and where they differ `epochs`, `batch`,
    `optim`, `schedule`, `augment`. It is trained first, on the same images, with the same seed, once for all schemes.
    `temperature`, `weight`: of the teacher's part in the loss.
    """

    summary: ClassVar[str] = "learn from a larger network that is trained first"
    source: ClassVar[str] = "Hinton et al. 2015, section 2"
    hands: ClassVar[frozenset[str]] = frozenset({"the teacher"})
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification", "vqa"})  # it reads logits
    name: Literal["kd"] = "kd"
    teacher: Annotated[
        dict[str, Any] | None, BeforeValidator(lambda value: None if value is None else _teacher(value))
    ] = None
    temperature: float = Field(default=4.0, gt=0)
    weight: float = Field(default=0.9, gt=0, le=1)

    def check(self, epochs: int) -> None:
        """Refuse to learn from nobody; here, so that a recipe may say who it is in `schemes`."""
        if self.teacher is None:
            raise UserError(
                "scheme.teacher: is missing; name a larger network, such as {model: {name: resnet20}}, under schemes.kd"
            )

    def teachers(self) -> tuple[dict[str, Any], ...]:
        """The one."""
        return () if self.teacher is None else (self.teacher,)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work with the teacher of `setup`."""
        assert setup.teacher is not None, "check has asked for one"
        return Distillation(setup.teacher, self.temperature, self.weight)
