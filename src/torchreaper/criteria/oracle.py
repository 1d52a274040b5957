"""The greedy oracle (section 5 of the paper): leave every filter out alone, and look what it costs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchreaper.criteria.base import Bank
from torchreaper.criteria.data import Batch, FromData, measuring, outputs_of
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer

log = logging.getLogger("torchreaper")

MEASURES = ("accuracy", "loss")


@dataclass(frozen=True, eq=False)
class Oracle(FromData):
    """Filters whose absence costs least go first: the truth that the other criteria try to guess.

    Score = minus what is lost without the filter: accuracy (a share of all samples), or loss. Each filter alone is
    absent exactly as in a sub-network phase: 0 wherever its channel is read.

    Attributes:
        measure: "accuracy", as in the paper (on 5,000 held-out training images), or "loss", which has fewer ties.
        at_once: so many filters of a layer are left out side by side, in copies of the batch: what comes before the
            layer is computed once for all of them. More take more memory. Where the model's own code does not allow
            it, they are left out one after the other.
        ignore_index: targets that "accuracy" leaves out, as cross entropy does.
        progress: called with how many filters are done, and of how many.

    Cost: for every filter a pass of all batches through what follows it. The batches are held on the device.
    """

    measure: str = "accuracy"
    at_once: int = 8
    ignore_index: int = -100
    progress: Callable[[int, int], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure not in MEASURES:
            raise ReaperError(f"measure={self.measure!r}: must be one of {', '.join(MEASURES)}")
        if isinstance(self.at_once, bool) or not isinstance(self.at_once, int) or self.at_once < 1:
            raise ReaperError(f"at_once={self.at_once!r}: must be a whole number of at least 1")

    def scores(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """Minus what is lost without each filter, by layer."""
        return {name: 0.0 - lost for name, lost in self.lost(bank).items()}

    def lost(self, bank: Bank) -> dict[str, Float[Tensor, " filters"]]:
        """What is lost without each filter, by layer: a share of all samples, or loss; negative where it is a gain."""
        return self.measured(bank)[1]

    def measured(self, bank: Bank) -> tuple[float, dict[str, Float[Tensor, " filters"]]]:
        """What the whole network has, accuracy or loss, and what is lost without each filter."""
        total, found, done = sum(layer.filters for layer in bank.ranked), {}, 0
        with measuring(bank.model), torch.no_grad():
            batches = list(self.read(bank.model))
            whole = 0.0
            for batch in batches:
                outputs = outputs_of(bank.model, batch)
                self._check(outputs, batch)
                whole += self._value(outputs, batch)
            count = sum(self._count(batch) for batch in batches)
            if not count:
                raise ReaperError(
                    f"ignore_index={self.ignore_index}: all targets are that; there is nothing to be right on"
                )
            for layer in bank.ranked:
                found[layer.name] = whole - self._without_each(bank, layer, batches)
                done += layer.filters
                log.info("oracle: %d of %d filters, %s done", done, total, layer.name)
                if self.progress is not None:
                    self.progress(done, total)
        sign = 1.0 if self.measure == "accuracy" else -1.0
        return sign * whole / count, {name: values / count for name, values in found.items()}

    def _without_each(self, bank: Bank, layer: FilterLayer, batches: Sequence[Batch]) -> Float[Tensor, " filters"]:
        at_once = min(self.at_once, layer.filters)
        while True:
            try:
                return self._side_by_side(bank, layer, batches, at_once)
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
                at_once = -(-at_once // 2)
            except _NotSideBySideError as error:
                log.info(
                    "oracle: %s: filters are left out one by one, which is slower (%s)", layer.name, error.__cause__
                )
                return self._one_by_one(bank, layer, batches)

    def _side_by_side(
        self, bank: Bank, layer: FilterLayer, batches: Sequence[Batch], at_once: int
    ) -> Float[Tensor, " filters"]:
        values = []
        for first in range(0, layer.filters, at_once):
            indices = range(first, min(first + at_once, layer.filters))
            sums = [0.0] * len(indices)
            for batch in batches:
                outputs = _without(bank, layer, indices, batch)
                for k in range(len(indices)):
                    sums[k] += self._value(_part(outputs, k), batch)
            values += sums
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    def _one_by_one(self, bank: Bank, layer: FilterLayer, batches: Sequence[Batch]) -> Float[Tensor, " filters"]:
        values = []
        for index in range(layer.filters):
            with _masked(bank, layer, _gone(layer, [index])[0]):
                values.append(sum(self._value(outputs_of(bank.model, batch), batch) for batch in batches))
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    def _count(self, batch: Batch) -> int:
        if self.measure == "loss":
            return batch.size
        return int((batch.targets != self.ignore_index).sum())

    def _check(self, outputs: Any, batch: Batch) -> None:
        """What can be right or wrong: asked of every batch once, of the whole network's outputs."""
        if self.measure == "loss":
            return
        targets = batch.targets
        fits = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim == targets.ndim + 1
        if not fits or outputs.shape[:1] + outputs.shape[2:] != targets.shape or targets.is_floating_point():
            raise ReaperError(
                'measure="accuracy": needs outputs [n, classes, ...] and the indices of the classes [n, ...] as '
                'targets; use measure="loss"'
            )
        strange = (targets != self.ignore_index) & ((targets < 0) | (targets >= outputs.shape[1]))
        if strange.any():
            raise ReaperError(
                f"batches: target {int(targets[strange][0])} on batch {batch.number} is none of {outputs.shape[1]} "
                "classes; must be their indices, or ignore_index"
            )

    def _value(self, outputs: Any, batch: Batch) -> float:
        """Right answers in a batch, or minus its summed loss."""
        if self.measure == "loss":
            return -batch.size * self.loss(outputs, batch).item()
        if not outputs.isfinite().all():
            raise ReaperError(
                f"batches: the model's outputs are not finite on batch {batch.number}; look for weights or inputs that "
                "are not"
            )
        right = (outputs.argmax(1) == batch.targets) & (batch.targets != self.ignore_index)
        return float(right.sum())


class _NotSideBySideError(Exception):
    """The model's own code does not run on copies of a batch."""


def _part(outputs: Any, k: int) -> Any:
    return tree_map(lambda x: x[k] if isinstance(x, Tensor) else x, outputs)


def _without(bank: Bank, layer: FilterLayer, indices: Sequence[int], batch: Batch) -> Any:
    """The model's outputs without each of the filters, stacked; vmap computes what they share once."""

    def without(gone: Bool[Tensor, " columns"]) -> Any:
        with _masked(bank, layer, gone):
            return bank.model(*batch.args, **batch.kwargs)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some operations are slow side by side; they are right all the same
            return torch.func.vmap(without)(_gone(layer, indices))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # vmap, and the model's code on what it sees there, fail in many ways
        raise _NotSideBySideError from error


def _gone(layer: FilterLayer, indices: Sequence[int]) -> Bool[Tensor, "filters columns"]:
    """For each of the filters, which channels go; the last column stands for all that are not of this layer."""
    gone = torch.zeros(len(indices), layer.filters + 1, dtype=torch.bool, device=layer.module.weight.device)
    gone[range(len(indices)), list(indices)] = True
    return gone


@contextmanager
def _masked(bank: Bank, layer: FilterLayer, gone: Bool[Tensor, " columns"]) -> Iterator[None]:
    """In the block, a filter is absent where ``gone`` says so: zeros at every place where a sub-network has a mask."""
    with ExitStack() as stack:
        for name, site in bank.flow.sites.items():
            column = site.origin - layer.start
            column[(column < 0) | (column >= layer.filters)] = layer.filters
            if (column < layer.filters).any():
                mask = gone[column.to(gone.device)].view(-1, *[1] * (-1 - site.dim))
                module = bank.model.get_submodule(name)
                stack.callback(module.register_forward_hook(_Zeros(mask), prepend=True).remove)
        yield


class _Zeros:
    """Forward hook: zeros where ``mask`` says so."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.where(self.mask, output.new_zeros(()), output)
