"""What criteria that read images share: batches, checked and moved to the model; the model, left as it was found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map

from torchreaper.errors import ReaperError
from torchreaper.flow.tracing import first_line, training_mode, undisturbed

Loss = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``: one number, averaged over the batch."""


@dataclass(frozen=True)
class Batch:
    """One batch, on the model's device.

    Attributes:
        number: from 0.
        args, kwargs: what the model is called with.
        targets: what the loss is given beside the outputs.
        size: how many samples it has.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    size: int


@dataclass(frozen=True, eq=False)
class FromData:
    """A criterion that reads images.

    Attributes:
        batches: gives ``(inputs, targets)`` whenever it is iterated over: a list, a ``DataLoader``. Inputs are a
            tensor, a tuple (positional) or a dict (keywords); targets what ``loss_fn`` takes. They are moved to the
            model's device, inputs of a floating type also to its precision.
        loss_fn: ``loss_fn(outputs, targets)``, averaged over the batch.
        max_batches: read no more than so many; ``None``: all.
    """

    batches: Any = field(repr=False)
    loss_fn: Any = field(default=cross_entropy, repr=False)
    max_batches: int | None = None

    def __post_init__(self) -> None:
        check_batches(self.batches)
        if not callable(self.loss_fn):
            raise ReaperError(f"loss_fn={self.loss_fn!r}: must be a function of (outputs, targets)")
        most = self.max_batches
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ReaperError(f"max_batches={most!r}: must be a whole number of at least 1, or None for all")

    def read(self, model: nn.Module) -> Iterator[Batch]:
        """The batches, one after the other; see :func:`read`."""
        return read(model, self.batches, self.max_batches)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of one batch; see :func:`loss_of`."""
        return loss_of(self.loss_fn, outputs, batch)


def check_batches(batches: Any) -> None:
    """Raise :class:`ReaperError` for what cannot be iterated over twice."""
    if isinstance(batches, (str, bytes, Tensor, Mapping)) or not isinstance(batches, Iterable):
        raise ReaperError(
            f"batches={type(batches).__name__}: must give (inputs, targets) when iterated over: a list, a DataLoader"
        )
    if isinstance(batches, Iterator):
        raise ReaperError(
            f"batches={type(batches).__name__}: can be read only once, and every ranking reads them; pass a list or a "
            "DataLoader"
        )


def read(model: nn.Module, batches: Iterable[Any], most: int | None = None) -> Iterator[Batch]:
    """The batches on the model's device, inputs in its precision.

    Raises:
        ReaperError: there are none, or one is no pair of inputs and targets.
    """
    device, dtype = _home(model)

    def there(value: Any, dtype: torch.dtype | None = None) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.clone() if value.is_inference() else value  # one made in inference mode has no gradients
        return value.to(device, dtype if value.is_floating_point() else None)

    number = -1
    for number, given in enumerate(islice(batches, most)):
        if not isinstance(given, Sequence) or isinstance(given, (str, Tensor)) or len(given) != 2:
            size = f" of {len(given)}" if isinstance(given, (Sequence, Mapping)) else ""
            raise ReaperError(
                f"batches: batch {number} is a {type(given).__name__}{size}; must be a pair (inputs, targets), "
                "targets None where nothing looks at them"
            )
        inputs, targets = given
        targets = tree_map(there, targets)
        args, kwargs = _arguments(tree_map(lambda value: there(value, dtype), inputs))
        sizes = [len(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        if not sizes or not sizes[0]:
            raise ReaperError(f"batches: batch {number} has no samples; pass inputs [n, ...] with n of at least 1")
        yield Batch(number, args, kwargs, targets, sizes[0])
    if number < 0:
        raise ReaperError("batches: there are none; pass at least one (inputs, targets)")


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    """What the model gives for a batch.

    Raises:
        ReaperError: it does not run on it.
    """
    try:
        return model(*batch.args, **batch.kwargs)
    except (ReaperError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        shapes = [list(x.shape) for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor)]
        raise ReaperError(
            f"batches: {type(model).__name__} does not run on batch {batch.number}, inputs "
            f"{', '.join(map(str, shapes))} ({first_line(error)}); pass batches as in training"
        ) from error


def loss_of(loss_fn: Loss, outputs: Any, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar.

    Raises:
        ReaperError: the function fails on it, or gives no scalar, or one that is not finite.
    """
    try:
        loss = loss_fn(outputs, batch.targets)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ReaperError(
            f"loss_fn: fails on batch {batch.number} ({first_line(error)}); it is called with what the model gives in "
            "evaluation mode, and the batch's targets"
        ) from error
    if not isinstance(loss, Tensor) or loss.ndim:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ReaperError(f"loss_fn: gives {what}; must give one number, a tensor without dimensions (a mean)")
    if not loss.isfinite():
        raise ReaperError(
            f"loss_fn: gives {loss.item()} on batch {batch.number}; look for weights or inputs that are not finite"
        )
    return loss


def check_differentiable(loss: Tensor) -> None:
    """Raise :class:`ReaperError` for a loss without a way back to the model."""
    if not loss.requires_grad:
        raise ReaperError(
            "loss_fn: gives a loss that cannot be differentiated; compute it from the outputs by torch's operations, "
            "and not under no_grad"
        )


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code would not call hooks that are newer than itself; if there is none, its compiler is not imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in the block; modes, gradients, buffers, attributes and random states are put back after it."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with undisturbed(model), training_mode(model, False), torch.inference_mode(False), _uncompiled():
        for parameter, _ in gradients:
            parameter.grad = None  # leaving filters out would take their part of it
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
