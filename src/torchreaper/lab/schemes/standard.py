"""Standard training: the whole network, all the time. What every other scheme is compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

from torchreaper.lab.schemes.base import Attached, Setup, Spec


class StandardSpec(Spec):
    """The scheme `standard`; it has no options."""

    summary: ClassVar[str] = "the whole network, all the time"
    name: Literal["standard"] = "standard"

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work: there is nothing to do."""
        return Attached()
