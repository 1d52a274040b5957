"""Directions that the loss asks for: candidates in the places of returning filters, and the slope of their readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchreaper.criteria.data import FromData, check_differentiable, measuring, outputs_of
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer, cuts, undoing
from torchreaper.flow.channels import Flow
from torchreaper.flow.tracing import first_line


@dataclass(frozen=True, eq=False)
class Candidates(FromData):
    """More directions than filters return, of which those are taken that the loss wants most.

    A filter whose outgoing weights are 0 changes no output, and the gradient of the mean loss with respect to these
    weights tells how fast training them would lower it (GradMax, Evci et al. 2022). Each candidate is measured so, in
    evaluation mode, as if it alone were added to the kept filters; those with the longest gradient return. Outgoing
    weights, norms and biases are then what :class:`Reinit` says, as without candidates.

    In evaluation mode a fresh norm passes on what it gets, so that directions are favoured along which the layer's
    input is large. Where norms or biases are kept, or more follows the channel (a gate, a depthwise convolution), a
    candidate may return in another place of its layer than the one it was measured in.

    Under ``torch.distributed`` rank 0's batches decide, and bringing filters back is collective.

    Attributes:
        times: so many candidates for every filter that returns, as far as its layer has room for them.

    Cost: of every restore, ``times`` forward and backward passes over the batches; memory for as many gradients, in
    float64, of the weights that read the filters.
    """

    times: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        times = self.times
        if isinstance(times, bool) or not isinstance(times, int) or times < 2:
            raise ReaperError(f"times={times!r}: must be a whole number of at least 2")

    def describe(self) -> dict[str, Any]:
        """Every choice by name but the images, for a fingerprint."""
        return {"times": self.times, "max_batches": self.max_batches}


@dataclass(frozen=True, eq=False)
class Contest:
    """The candidates for some places of one layer, or of one group of it.

    Attributes:
        layer: the layer.
        places: indices of its returning filters.
        rows: float64 ``[candidates, dims]`` on the CPU, at the length they would return with; more than places.
    """

    layer: FilterLayer
    places: Int[Tensor, " places"]
    rows: Float[Tensor, "candidates dims"]

    @property
    def rounds(self) -> int:
        """How often the places must be filled to try every candidate."""
        return -(-len(self.rows) // len(self.places))

    def fill(self, number: int) -> None:
        """Put the candidates of one round in the places, as many as there are."""
        rows = self.rows[number * len(self.places) :][: len(self.places)]
        self.layer.write(self.places[: len(rows)], rows)

    def of_candidates(self, rounds: Float[Tensor, "rounds all"]) -> Float[Tensor, " candidates"]:
        """From a value for every round and filter id, those of the candidates."""
        return rounds[: self.rounds, self.layer.start + self.places].flatten()[: len(self.rows)]


def no_choice(model: nn.Module, flow: Flow, layer: FilterLayer) -> str:
    """Why nothing tells which directions the loss wants for the filters of a layer; "" where something does."""
    if places := flow.barriers.get(layer.name):
        return f"full width at {places[0]}"
    if layer.name in flow.outputs:
        return "reaches an output of the model"
    ids = torch.arange(layer.start, layer.start + layer.filters, device="cpu")
    return "" if _slices(model, flow, ids) else "no layer that trains reads it"


@torch.no_grad()
def strongest(
    model: nn.Module, flow: Flow, contests: Sequence[Contest], ids: Int[Tensor, " ids"], data: Candidates
) -> list[list[int]]:
    """For each contest, the candidates that the loss wants most, by number and ascending; one for every place.

    Args:
        contests: of layers of which :func:`no_choice` has nothing to say.
        ids: all filters that return, in the flow; those in no contest are absent meanwhile.

    Raises:
        ReaperError: a gradient is not finite, or the batches cannot be read. The model is left as it was.
    """
    if not contests:
        return []
    try:
        lengths = _lengths(model, flow, contests, ids, data)
    except (ReaperError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a loader raises anything, and the other ranks must hear of it
        raise ReaperError(
            f"reinit.candidates: cannot be measured ({type(error).__name__}: {first_line(error)}); the filters are "
            "still dropped, and the step can be tried again"
        ) from error
    chosen = []
    for contest in contests:
        mine = contest.of_candidates(lengths)
        if not mine.isfinite().all():
            raise ReaperError(
                f"layer {contest.layer.name!r}: the gradient of what reads its candidates is not finite; look for "
                "weights or inputs that are not finite, or for an overflow of half precision"
            )
        chosen.append(sorted(mine.argsort(descending=True, stable=True)[: len(contest.places)].tolist()))
    return chosen


def _lengths(
    model: nn.Module, flow: Flow, contests: Sequence[Contest], ids: Int[Tensor, " ids"], data: Candidates
) -> Float[Tensor, "rounds all"]:
    """The squared length of the gradient of what reads each filter, for every filling of the places.

    All contests go on side by side, and no candidate sees another: what reads them is 0, in their own rows too.
    """
    inside = torch.cat([contest.layer.start + contest.places for contest in contests])
    slices = _slices(model, flow, inside)
    readers = [
        (model.get_parameter(f"{name}.{tensor}"), cut)
        for name, entries in cuts(flow, inside, {"consumer"}).items()
        for tensor, cut in entries.items()
    ]
    rounds = range(max(contest.rounds for contest in contests))
    sums: list[list[Any]] = [[0.0] * len(slices) for _ in rounds]
    samples = 0
    with ExitStack() as stack:  # undone from the last to the first
        stack.callback(torch.clear_autocast_cache)
        stack.callback(undoing(model, flow, inside, {"filter", "consumer"}))
        stack.enter_context(measuring(model))
        stack.enter_context(_absent(model, flow, ids[~torch.isin(ids, inside)]))
        for batch in data.read(model):  # outside of the rounds: all candidates see the same images
            for number in rounds:
                for contest in contests:
                    contest.fill(number)
                for weight, cut in readers:
                    cut.fill(weight.detach(), 0)
                torch.clear_autocast_cache()  # it holds the weights of the round before
                with torch.enable_grad():
                    loss = data.loss(outputs_of(model, batch), batch)
                    check_differentiable(loss)
                    found = torch.autograd.grad(loss, [some.weight for some in slices], allow_unused=True)
                for k, gradient in enumerate(found):
                    if gradient is not None:
                        sums[number][k] += batch.size * slices[k].of(gradient).double()
            samples += batch.size
    lengths = torch.zeros(len(rounds), flow.total, dtype=torch.float64, device="cpu")
    for number in rounds:
        for some, total in zip(slices, sums[number]):
            if isinstance(total, Tensor):
                lengths[number].index_add_(0, some.ids, (total / samples).square().sum(1).cpu())
    return lengths


@dataclass(frozen=True, eq=False)
class _Slices:
    """Slices of a weight that read filters.

    Attributes:
        weight: the parameter.
        dim: along which they lie.
        positions: theirs, on the weight's device.
        ids: the filter that each one reads.
    """

    weight: nn.Parameter
    dim: int
    positions: Int[Tensor, " slices"]
    ids: Int[Tensor, " slices"]

    def of(self, gradient: Tensor) -> Float[Tensor, "slices entries"]:
        """Their part of the weight's gradient."""
        return gradient.index_select(self.dim, self.positions).movedim(self.dim, 0).flatten(1)


def _slices(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"]) -> list[_Slices]:
    """All slices that read these filters and are trained."""
    mine, found = flow.marked(ids), []
    for name in sorted(flow.shares):
        for tensor, shares in flow.shares[name].items():
            weight = model.get_submodule(name)._parameters.get(tensor)
            if weight is None or not weight.requires_grad:
                continue
            for share in shares:
                positions = mine[share.origin].nonzero().flatten()
                if share.role == "consumer" and len(positions):
                    found.append(_Slices(weight, share.dim, positions.to(weight.device), share.origin[positions]))
    return found


@contextmanager
def _absent(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"]) -> Iterator[None]:
    """In the block these filters are absent, as in a sub-network phase."""
    gone = flow.marked(ids)
    with ExitStack() as stack:
        for name, site in flow.sites.items():
            if (mask := gone[site.origin]).any():
                hook = _Zeros(mask.view(-1, *[1] * (-1 - site.dim)))
                stack.callback(model.get_submodule(name).register_forward_hook(hook, prepend=True).remove)
        yield


class _Zeros:
    """Forward hook: zeros where ``mask`` says so."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.masked_fill(self.mask.to(output.device), 0)
