"""The state of a filter: its slices of parameters, buffers and optimizer state, taken out, put back, reset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.optim import Optimizer

from torchreaper.errors import ReaperError

Optimizers = Union[None, Optimizer, Sequence[Optimizer]]

ELEMENTWISE = (
    *(
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RAdam,
        torch.optim.NAdam,
        torch.optim.Adamax,
    ),
    *(torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adadelta),
)
"""torch's optimizers that treat every weight by itself, and leave one at 0 that has gradient and state 0 (eps > 0)."""

WRAPPERS = ("lightning_fabric", "lightning", "pytorch_lightning", "accelerate")
"""Libraries whose optimizers hand everything on to the one that they wrap."""

_REGISTERED: set[type[Optimizer]] = set()
_Class = TypeVar("_Class")


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; makes no copy, as ``isfinite`` does of whole tensors."""
    values = values.detach()
    if not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return True
    return bool(torch.linalg.vector_norm(values, float("inf")).isfinite())


def elementwise(optimizer: _Class) -> _Class:
    """Declare that an optimizer treats every weight by itself, so that a smaller network trains as the masked one.

    What it does to a weight must depend on that weight, its gradient, its own state and step counters alone: not on the
    norm, the shape or the other entries of its tensor. State with one value per weight must have the weight's shape.

    Args:
        optimizer: the class. Subclasses are not meant: each says so for itself.

    Returns:
        The class, so that this can be its decorator.

    Raises:
        ReaperError: it is no class of optimizers.
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        given = optimizer.__name__ if isinstance(optimizer, type) else f"a {type(optimizer).__name__}"
        raise ReaperError(f"optimizer={given}: must be a class of torch.optim.Optimizer; pass the class itself")
    _REGISTERED.add(optimizer)
    return optimizer


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether it is one of torch's elementwise optimizers, or was declared to be one."""
    return type(optimizer) in ELEMENTWISE or type(optimizer) in _REGISTERED


SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "step_size"})
"""State entries that scale the step, and so are never negative."""


@dataclass(frozen=True)
class Cut:
    """The part of one tensor that belongs to some filters: rows (dim 0) and columns (dim 1)."""

    rows: Int[Tensor, " rows"]
    columns: Int[Tensor, " columns"]

    def __bool__(self) -> bool:
        return bool(len(self.rows) or len(self.columns))

    def mask(self, tensor: Shaped[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Where the part lies in ``tensor``, on its device."""
        mask = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        return self.fill(mask, True)

    def fill(self, tensor: Tensor, value: Any) -> Tensor:
        """Set the part to ``value``, in place."""
        if len(self.rows):
            tensor.index_fill_(0, self.rows.to(tensor.device), value)
        if len(self.columns):
            tensor.index_fill_(1, self.columns.to(tensor.device), value)
        return tensor

    @torch.no_grad()
    def put(self, tensor: Tensor, values: Shaped[Tensor, " n"]) -> None:
        """Write ``values`` into the part, row-major."""
        tensor.detach().masked_scatter_(self.mask(tensor), values.to(tensor))

    def mean_outside(self, tensor: Tensor, power: int = 1) -> float | None:
        """Mean of what lies outside the part, or of its power, summed in float64; ``None``: nothing does."""
        total, count = torch.zeros((), dtype=torch.float64, device=tensor.device), 0
        rows = _others(self.rows, tensor.shape[0]).to(tensor.device)
        for first in range(0, len(rows), _BLOCK):
            block = tensor.detach().index_select(0, rows[first : first + _BLOCK])
            if len(self.columns):
                block = block.index_select(1, _others(self.columns, tensor.shape[1]).to(tensor.device))
            total, count = total + block.double().pow(power).sum(), count + block.numel()
        return float(total / count) if count else None

    @torch.no_grad()
    def copy(self, source: Tensor, target: Tensor) -> None:
        """Write what the part of ``source`` holds into that of ``target``, a tensor of the same shape."""
        for dim, positions in enumerate((self.rows, self.columns)):
            if len(positions):
                values = source.detach().index_select(dim, positions.to(source.device))
                target.detach().index_copy_(dim, positions.to(target.device), values.to(target))


_BLOCK = 256
"""Rows of a tensor of which there is a copy in float64 at a time: that of a whole one may be gigabytes."""


def _others(positions: Int[Tensor, " some"], size: int) -> Int[Tensor, " others"]:
    kept = torch.ones(size, dtype=torch.bool, device="cpu")
    kept[positions.cpu()] = False
    return kept.nonzero().flatten()


def as_optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """One optimizer, several or none as a tuple, without the wrappers of Fabric and Accelerate.

    Raises:
        ReaperError: something in it is no ``torch.optim.Optimizer``, or does not take its hooks.
    """
    given = () if optimizer is None else tuple(optimizer) if isinstance(optimizer, (list, tuple)) else (optimizer,)
    return tuple({id(inner): inner for inner in map(_unwrapped, given)}.values())


def _unwrapped(optimizer: Any) -> Optimizer:
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        if _keeps_state(optimizer, inner):
            raise ReaperError(
                f"optimizer={type(optimizer).__name__}: keeps state of its own beside that of its 'optimizer', which "
                "could not be cut; use the optimizer that it wraps"
            )
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise ReaperError(f"optimizer={optimizer!r}: must be a torch.optim.Optimizer or a list of them")
    try:
        optimizer.register_state_dict_post_hook(lambda *_: None).remove()
    except AttributeError as error:  # timm's Lookahead, which leaves torch's __init__ out
        text = "does not let torch's hooks see its state, which would be cut wrongly; use the optimizer that it wraps"
        raise ReaperError(f"optimizer={type(optimizer).__name__}: {text}") from error
    if within := [name for name, value in vars(optimizer).items() if isinstance(value, Optimizer)]:
        raise ReaperError(
            f"optimizer={type(optimizer).__name__}: works through another one, {within[0]!r}, whose state of dropped "
            f"filters could not be kept; pass `optimizer.{within[0]}`, if this one keeps nothing from step to step, or "
            "use a plain optimizer (under DDP every rank then holds its state)"
        )
    return optimizer


def _keeps_state(wrapper: Any, inner: Optimizer) -> bool:
    """Whether it is more than a wrapper, as Lookahead is; those of Fabric and Accelerate are known not to be."""
    own = getattr(wrapper, "state", None)
    return own is not None and own is not inner.state and type(wrapper).__module__.partition(".")[0] not in WRAPPERS


def parameter_ids(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ids of all parameters the optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def check_eps(optimizers: Iterable[Optimizer], held: Iterable[Tensor]) -> None:
    """Raise :class:`ReaperError` where an optimizer would divide 0 by 0 in ``held``, of which parts are held at 0."""
    mine = {id(tensor) for tensor in held}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        eps = group.get("eps")
        if isinstance(eps, (int, float)) and eps == 0 and any(id(p) in mine for p in group["params"]):
            raise ReaperError(
                "optimizer: eps=0: would make weights NaN that are held at 0, 0 / 0; set it above 0, such as 1e-8"
            )


def per_weight_state(
    optimizers: Iterable[Optimizer], tensor: Tensor
) -> Iterator[tuple[Optimizer, dict[str, Any], str]]:
    """Every state entry with one value per weight of ``tensor``: its optimizer, the entry's dict, its key.

    Momentum buffers and Adam moments have the parameter's shape; step counters have not.
    """
    for optimizer in optimizers:
        state = optimizer.state.get(tensor)
        for key in list(state or ()):
            value = state[key]  # type: ignore[index]
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                yield optimizer, state, key  # type: ignore[misc]


@torch.no_grad()
def reset(optimizers: Iterable[Optimizer], tensor: Tensor, cut: Cut, how: str) -> None:
    """Make the optimizer state of ``cut`` fresh.

    Args:
        tensor: a parameter; ``cut`` is the part of it that starts again.
        how: "zero": what a new optimizer would hold. "layer-mean": the same for momenta, but second moments start from
            the mean of the rest of the tensor: a second moment of 0 under a large step count makes Adam's
            first step about (1 - beta1) / sqrt(1 - beta2) times the learning rate, 3.2 with its defaults.
    """
    for optimizer, state, key in per_weight_state(optimizers, tensor):
        rest = cut.mean_outside(state[key]) if how == "layer-mean" and key in SECOND_MOMENTS else None
        cut.fill(state[key], fresh(optimizer, tensor, key) if rest is None else rest)


def fresh(optimizer: Optimizer, tensor: Tensor, key: str) -> float:
    """What a new optimizer holds in an entry of the state of ``tensor``."""
    group = next(g for g in optimizer.param_groups if any(p is tensor for p in g["params"]))
    if key == "step_size":  # Rprop's own steps start at the learning rate; from 0 they would never grow
        return float(group["lr"])
    if key == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0


@torch.no_grad()
def resize(tensor: Tensor, new: Tensor, gradient: Tensor | None = None) -> None:
    """Let a parameter or buffer hold other values of another shape, and remain the same object.

    Autograd keeps the gradient accumulator of a parameter, with the shape it had, for as long as something refers to
    it: the ``loss`` of the last step, its outputs, a DDP wrapper. The next backward would then fail ("invalid gradient
    at index 1 - got ... but expected shape compatible with ..."). Assigning a tensor of another dtype drops it. The
    parameter's own hooks stay.
    """
    tensor.grad = None
    other = torch.float32 if tensor.dtype == torch.float16 else torch.float16
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new
    tensor.grad = gradient
