"""Label smoothing (Szegedy et al. 2016, section 7): the true class is one among others, a little."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from torchreaper.lab.schemes.base import Attached, Setup, Spec


class Smoothing(Attached):
    """Cross entropy with targets of 1 - e + e / classes for the true class, and e / classes for the others."""

    def __init__(self, smoothing: float) -> None:
        self.label_smoothing = smoothing


class SmoothingSpec(Spec):
    """The scheme `label-smoothing`. `smoothing`: e, the share that is spread over all classes."""

    summary: ClassVar[str] = "spread a share of the target over all classes"
    source: ClassVar[str] = "Szegedy et al. 2016, section 7"
    hands: ClassVar[frozenset[str]] = frozenset({"the smoothing"})
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification", "vqa"})  # it reads logits
    name: Literal["label-smoothing"] = "label-smoothing"
    smoothing: float = Field(default=0.1, gt=0, lt=1)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        return Smoothing(self.smoothing)
