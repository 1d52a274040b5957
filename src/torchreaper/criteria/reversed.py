"""A ranking turned round: a control."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank, make


@dataclass(frozen=True)
class Reversed:
    """What another criterion would keep longest goes first. If its ranking matters, this must do worse.

    Attributes:
        criterion: the other one, an object or a name, as ``RePr`` takes it.

    Raises:
        ReaperError: it is no criterion.
    """

    criterion: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "criterion", make(self.criterion))

    def __repr__(self) -> str:
        # As RePr's own fingerprint names criteria: an address would be another one in the process that goes on.
        inner = repr(self.criterion) if is_dataclass(self.criterion) else type(self.criterion).__name__
        return f"Reversed(criterion={inner})"

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """The other's scores with their sign changed, by layer."""
        return {name: -1.0 * torch.as_tensor(scores) for name, scores in self.criterion.scores(bank).items()}
