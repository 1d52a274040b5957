"""The Hessian's diagonal (LeCun 1989, "optimal brain damage")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import FromData, check_differentiable, measuring, outputs_of
from torchreaper.criteria.weights import own_weights, per_filter
from torchreaper.errors import ReaperError


@dataclass(frozen=True, eq=False)
class Hessian(FromData):
    """Filters without whose weights the loss would change least, to second order, go first.

    Score = minus sum_i h_ii w_i^2 / 2 over the filter's weights w_i, h_ii the second derivative of the mean loss:
    LeCun's saliency, which takes the loss to be at a minimum and the Hessian to be diagonal. It is estimated after
    Hutchinson: z * (H z) has the mean h_ii for z of random signs.

    Attributes:
        samples: draws of z for every batch, from the bank's own generator. ``None``: exact, by one product with the
            Hessian for every single weight; for small networks only.

    Cost: for every batch a forward pass, a backward pass that is itself differentiated, and ``samples`` backward passes
    through both.
    """

    samples: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and (isinstance(self.samples, bool) or self.samples < 1):
            raise ReaperError(f"samples={self.samples!r}: must be a whole number of at least 1, or None for exact")

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus the saliency of every filter, by layer."""
        weights = {layer.name: own_weights(bank, layer) for layer in bank.ranked}
        flat = [weight for own in weights.values() for weight in own]
        parameters: list[Tensor] = [weight.parameter for weight in flat]
        diagonal = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        seen = 0
        with measuring(bank.model), torch.enable_grad():
            for batch in self.read(bank.model):
                loss = self.loss(outputs_of(bank.model, batch), batch)
                check_differentiable(loss)
                for total, one in zip(diagonal, self._diagonal(loss, parameters, bank.generator)):
                    total += batch.size * one
                seen += batch.size
        saliency = {w: p.detach().double().square() * h / (2 * seen) for w, p, h in zip(flat, parameters, diagonal)}
        found = {
            layer.name: per_filter(layer, [(w, saliency[w]) for w in weights[layer.name]]) for layer in bank.ranked
        }
        for name, values in found.items():
            if not values.isfinite().all():
                raise ReaperError(
                    f"layer {name!r}: its second derivatives are not finite; use single precision or more"
                )
        return {name: -values for name, values in found.items()}

    def _diagonal(self, loss: Tensor, parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        # A gradient that does not depend on the weights has no second derivatives.
        used = [k for k, g in enumerate(gradients) if g is not None and g.requires_grad]
        diagonal = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        if not used:
            return diagonal
        some, slopes = [parameters[k] for k in used], [gradients[k] for k in used]
        probes, count = (
            (_units(some), 1) if self.samples is None else (_signs(some, self.samples, generator), self.samples)
        )
        for probe in probes:
            products = torch.autograd.grad(slopes, some, probe, retain_graph=True, allow_unused=True)
            for k, z, product in zip(used, probe, products):
                if product is not None:
                    diagonal[k] += z.double() * product.double() / count
        return diagonal


def _signs(like: Sequence[Tensor], samples: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Random signs, drawn on the CPU so that they are the same on every device."""
    for _ in range(samples):
        yield [(2.0 * torch.randint(2, p.shape, generator=generator, device="cpu") - 1).to(p) for p in like]


def _units(like: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Every weight by itself."""
    for k, parameter in enumerate(like):
        for position in range(parameter.numel()):
            probe = [torch.zeros_like(p) for p in like]
            probe[k].view(-1)[position] = 1.0
            yield probe
