"""Dense-sparse-dense (Han et al. 2017): leave out the smallest weights for a while, then let them start anew at 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.criteria.ranking import quota
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Batch, Phase, Setup, Spec

Prunable = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def smallest(weight: Float[Tensor, "..."], share: float) -> Bool[Tensor, "..."]:
    """Where the `share` of a layer's weights with the smallest absolute values is; of equals, the first."""
    count = quota(share, weight.numel())
    found = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    found[weight.abs().flatten().argsort(stable=True)[:count]] = True
    return found.view_as(weight)


class DenseSparseDense(Attached):
    """Holds the smallest weights of every layer at 0 in the sparse phases; their gradients are 0 as well."""

    def __init__(self, weights: Mapping[str, nn.Parameter], spec: DSDSpec) -> None:
        self._weights, self._spec = dict(weights), spec
        self._masks: dict[str, Tensor] = {}
        # On the weights, not once a step: a scheme that takes a second gradient (SAM) must not climb along them either.
        self._handles = [
            weight.register_post_accumulate_grad_hook(self._masking(name))  # type: ignore[no-untyped-call]
            for name, weight in self._weights.items()
        ]

    @property
    def phase(self) -> Phase:
        """A sparse phase is one of a sub-network."""
        return "sub" if self._masks else "full"

    def stepped(self, batch: Batch) -> None:
        """Momentum moves weights without gradients too: put them back to 0."""
        self._hold()

    def ended(self, epoch: int) -> tr.Transition | None:
        """At the end of a dense phase choose the weights to leave out, at the end of a sparse one let all train."""
        length = self._spec.dense + self._spec.sparse
        cycle, within = divmod(epoch, length)
        if within == self._spec.dense and cycle < self._spec.cycles:
            self._masks = {
                name: smallest(weight.detach(), self._spec.sparsity) for name, weight in self._weights.items()
            }
            self._hold()
        elif within == 0 and cycle <= self._spec.cycles:
            self._masks = {}
        self._rate()
        return None

    def state_dict(self) -> dict[str, Any]:
        """Which weights are left out."""
        return {**super().state_dict(), "masks": self._masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out those of `state`."""
        super().load_state_dict(state)
        self._masks = {name: mask.to(self._weights[name].device) for name, mask in state["masks"].items()}
        self._rate()

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _masking(self, name: str) -> Callable[[Tensor], None]:
        def mask(weight: Tensor) -> None:
            if name in self._masks and weight.grad is not None:
                weight.grad.masked_fill_(self._masks[name], 0)

        return mask

    @torch.no_grad()
    def _hold(self) -> None:
        for name, mask in self._masks.items():
            self._weights[name].masked_fill_(mask, 0)

    def _rate(self) -> None:
        last = self.epoch >= self._spec.cycles * (self._spec.dense + self._spec.sparse)
        self.lr_factor = self._spec.final_lr if last else 1.0


class DSDSpec(Spec):
    """The scheme `dsd`; the schedule has RePr's defaults.

    `dense`, `sparse`: epochs of the phases. `cycles`: how often. `sparsity`: share of each layer's weights that goes.
    `final_lr`: what the learning rate is multiplied by after the last sparse phase; a tenth, as the authors have it.
    """

    summary: ClassVar[str] = "leave out the smallest weights for a while, then train all again"
    source: ClassVar[str] = "Han et al. 2017, algorithm 1"
    hands: ClassVar[frozenset[str]] = frozenset({"weights"})
    name: Literal["dsd"] = "dsd"
    dense: int = Field(default=20, ge=1)
    sparse: int = Field(default=10, ge=1)
    cycles: int = Field(default=3, ge=1)
    sparsity: float = Field(default=0.3, gt=0, lt=1)
    final_lr: float = Field(default=0.1, gt=0, le=1)

    def check(self, epochs: int) -> None:
        """Refuse a schedule that does not end with a dense phase."""
        need = self.cycles * (self.dense + self.sparse)
        if epochs <= need:
            raise UserError(
                f"scheme: dense={self.dense}, sparse={self.sparse}, cycles={self.cycles} need {need} epochs and "
                f"at least one more for the weights that return, the recipe has {epochs}; raise epochs or lower cycles"
            )

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work on the weights of every convolution and fully connected layer."""
        weights = {
            f"{name}.weight": module.weight
            for name, module in setup.model.named_modules()
            if isinstance(module, Prunable) and isinstance(module.weight, nn.Parameter) and module.weight.requires_grad
        }
        if not any(quota(self.sparsity, weight.numel()) for weight in weights.values()):
            raise UserError(f"scheme.sparsity={self.sparsity}: is less than one weight in every layer; raise it")
        return DenseSparseDense(weights, self)
