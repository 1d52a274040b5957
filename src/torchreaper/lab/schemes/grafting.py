"""Filter grafting (Meng et al. 2020): two networks train side by side, and each takes over from the other's filters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab.data import epoch_seed
from torchreaper.lab.schemes.base import Attached, Batch, Setup, Spec, drawing_aside

BINS = 10
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def entropy(weight: Float[Tensor, "..."]) -> float:
    """Of a layer's weights, in nats: counted in 10 bins of equal width between the smallest and the largest."""
    values = weight.detach().float().flatten()
    counts = torch.histc(values, BINS)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum())


def share_of_own(own: float, other: float, *, a: float, c: float) -> float:
    """What a layer keeps of itself, from both entropies: a / pi * arctan(c * (own - other)) + 1/2 (section 3.4)."""
    return a / math.pi * math.atan(c * (own - other)) + 0.5


@torch.no_grad()
def graft(model: nn.Module, partner: nn.Module, *, a: float, c: float) -> None:
    """Make both the same weighted mean of themselves: a share for each convolution, which what follows it shares.

    The shares of the two add up to 1, so that both hold the same numbers afterwards.
    """
    share = 0.5
    for module, other in zip(model.modules(), partner.modules(), strict=True):
        if isinstance(module, Convolution) and isinstance(other, Convolution):
            share = share_of_own(entropy(module.weight), entropy(other.weight), a=a, c=c)
        tensors = zip(_own(module), _own(other), strict=True)
        for value, theirs in tensors:
            if value.is_floating_point():
                value.lerp_(theirs, 1 - share)
                theirs.copy_(value)


def _own(module: nn.Module) -> list[Tensor]:
    """What is trained, and what is counted; not what the user has frozen, a norm with its statistics, say."""
    held = list(module.parameters(recurse=False))
    trained = [parameter for parameter in held if parameter.requires_grad]
    return [*trained, *module.buffers(recurse=False)] if trained or not held else []


class Grafting(Attached):
    """The partner trains on the same images in an order of its own, with the same learning rate."""

    def __init__(self, setup: Setup, spec: GraftingSpec) -> None:
        self._setup, self._spec = setup, spec
        self._partner, self._optimizer = setup.sibling(setup.seed)
        self._batches: Iterator[tuple[int, tuple[Tensor, Tensor]]] | None = None

    def stepped(self, batch: Batch) -> None:
        """A step of the partner."""
        if self._batches is None:
            self._batches = enumerate(self._setup.drawn(self._setup.seed, self.epoch + 1))
            self._partner.train()
        step, (images, targets) = next(self._batches)
        for group, ours in zip(self._optimizer.param_groups, self._setup.optimizer.param_groups, strict=True):
            group["lr"] = ours["lr"]
        self._optimizer.zero_grad()
        seed = epoch_seed(self._setup.seed, self.epoch, f"partner, step {step}")
        with drawing_aside(self._partner, seed), self._setup.autocast():
            loss = F.cross_entropy(self._partner(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._setup.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._partner.parameters(), self._setup.grad_clip)
        self._optimizer.step()

    def trained(self) -> None:
        """Both take over from each other."""
        if not all(value.isfinite().all() for value in self._partner.parameters()):
            raise tr.ReaperError("grafting: the partner's weights are not finite; lower optim.lr or set grad_clip")
        graft(self._setup.model, self._partner, a=self._spec.a, c=self._spec.c)

    def ended(self, epoch: int) -> tr.Transition | None:
        """The partner's next epoch has an order of its own."""
        self._batches = None
        return None

    def state_dict(self) -> dict[str, Any]:
        """The partner and its optimizer."""
        partner = {"model": self._partner.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**super().state_dict(), "partner": partner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the partner of `state`."""
        super().load_state_dict(state)
        self._partner.load_state_dict(state["partner"]["model"])
        self._optimizer.load_state_dict(state["partner"]["optimizer"])


class GraftingSpec(Spec):
    """The scheme `grafting`, with two networks; a step trains both, so that it takes twice the time.

    `a`, `c`: how far, and how steeply, the share of a network rises with the entropy of its layer; the authors' values.
    """

    summary: ClassVar[str] = "train two networks, and let each take over from the other's filters"
    source: ClassVar[str] = "Meng et al. 2020, section 3"
    hands: ClassVar[frozenset[str]] = frozenset({"weights"})
    tasks: ClassVar[frozenset[str] | None] = frozenset({"classification"})
    name: Literal["grafting"] = "grafting"
    a: float = Field(default=0.4, gt=0, le=1)
    c: float = Field(default=500.0, gt=0)

    def attach(self, setup: Setup) -> Attached:
        """Make the partner, from a seed of its own."""
        return Grafting(setup, self)
