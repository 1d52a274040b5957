"""Sharpness-aware minimisation (Foret et al. 2021): the gradient where the loss is worst nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.lab.schemes.base import Attached, Setup, Spec


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """A second pass over a batch must not count twice in the running statistics of norms."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    kept = [
        (norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


class SharpnessAware(Attached):
    """Each step takes the gradient at w + rho g / |g|, g being the gradient at w; two passes a step.

    Not a wrapper of the optimizer, as elsewhere: RePr has to know the optimizer's states.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, rho: float) -> None:
        self._model, self._optimizer, self._rho = model, optimizer, rho

    @torch.no_grad()
    def gradients(self, again: Callable[[], object]) -> None:
        """Climb, take the gradient there, and come back to the same weights, bit for bit."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        before = [p.clone() for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(gradient * (self._rho / (length + 1e-12)))
        with statistics_kept(self._model), torch.enable_grad():
            again()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


class SAMSpec(Spec):
    """The scheme `sam`. `rho`: how far it climbs, in units of the weights."""

    summary: ClassVar[str] = "step by the gradient of the worst point nearby; two passes a step"
    source: ClassVar[str] = "Foret et al. 2021, algorithm 1"
    hands: ClassVar[frozenset[str]] = frozenset({"the gradients"})
    name: Literal["sam"] = "sam"
    rho: float = Field(default=0.05, gt=0)

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        return SharpnessAware(setup.model, setup.optimizer, self.rho)
