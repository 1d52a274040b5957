"""What each operation does to the channels of a tensor, as one table.

The walk of :mod:`torchreaper.flow` knows one handler per :class:`Kind`; this file says which operation is of which
kind. An operation that is not listed is a barrier, never a guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


class Kind(Enum):
    """The ways an operation treats the channels that enter it."""

    CONVOLUTION = auto()
    """Reads its input channels and starts channels of its own."""
    LINEAR = auto()
    """Reads its input channels; its outputs are nobody's filters."""
    NORM = auto()
    """A per-channel map with an offset and entries that belong to the channel."""
    KEEP = auto()
    """A per-channel map with f(0) = 0: the channels go on unchanged."""
    RESHAPE = auto()
    """Row-major reshaping: flatten, view, squeeze."""
    REDUCE = auto()
    """A mean, sum or maximum over given dimensions."""
    SCALE = auto()
    """Multiplication or division by a number."""
    ADD = auto()
    CAT = auto()
    BARRIER = auto()
    """Anything else: the input must stand there at full width."""


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_KEEP_MODULES = (
    *(
        nn.Identity,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.RReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
    ),
    *(nn.Tanh, nn.Hardswish, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d),
    *(nn.ReplicationPad2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
_MODULES: dict[type[nn.Module], Kind] = {
    **dict.fromkeys(CONVOLUTIONS, Kind.CONVOLUTION),
    **dict.fromkeys(NORMS, Kind.NORM),
    **dict.fromkeys(_KEEP_MODULES, Kind.KEEP),
    nn.Linear: Kind.LINEAR,
    nn.Flatten: Kind.RESHAPE,
}
_KEEP_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(
        F.relu,
        F.relu_,
        F.relu6,
        F.leaky_relu,
        F.elu,
        F.celu,
        F.selu,
        F.gelu,
        F.silu,
        F.mish,
        F.tanh,
        F.hardswish,
    ),
    *(torch.relu, torch.relu_, torch.tanh, torch.clone, torch.abs),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.interpolate),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
)
_FUNCTIONS: dict[Callable[..., Any], Kind] = {
    **dict.fromkeys(_KEEP_FUNCTIONS, Kind.KEEP),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), Kind.RESHAPE),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax), Kind.REDUCE),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub), Kind.ADD),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, operator.truediv, torch.div), Kind.SCALE),
    torch.cat: Kind.CAT,
    torch.concat: Kind.CAT,
}
_METHODS: dict[str, Kind] = {
    **dict.fromkeys(("relu", "relu_", "tanh", "abs", "clone", "contiguous", "to", "float", "half"), Kind.KEEP),
    **dict.fromkeys(("bfloat16", "double", "type", "cpu", "cuda"), Kind.KEEP),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), Kind.RESHAPE),
    **dict.fromkeys(("mean", "sum", "amax"), Kind.REDUCE),
    **dict.fromkeys(("add", "add_", "sub", "sub_"), Kind.ADD),
    **dict.fromkeys(("mul", "mul_", "div", "div_"), Kind.SCALE),
}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _module_kind(module: nn.Module) -> Kind:
    # A subclass counts as what it inherits from only while it computes the same thing.
    for base in type(module).__mro__:
        if base in _MODULES:
            return _MODULES[base] if type(module).forward is base.forward else Kind.BARRIER
    if isinstance(module, nn.Hardtanh):  # ReLU6 is listed; others only where 0 stays 0
        return Kind.KEEP if module.min_val <= 0 <= module.max_val else Kind.BARRIER
    if isinstance(module, nn.PReLU):
        return Kind.KEEP if module.num_parameters == 1 else Kind.BARRIER
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        return Kind.KEEP if module.value == 0 else Kind.BARRIER
    return Kind.BARRIER


def is_known_module(module: nn.Module) -> bool:
    """Whether the table treats ``module`` as one operation (also the user's subclass with the same ``forward``)."""
    return _module_kind(module) is not Kind.BARRIER


def kind_of(node: fx.Node, module: nn.Module | None) -> Kind:
    """The kind of a graph node; ``module`` is the called module of a ``call_module`` node."""
    if node.op == "call_module":
        assert module is not None
        return _module_kind(module)
    if node.op == "call_method":
        return _METHODS.get(str(node.target), Kind.BARRIER)
    if node.op != "call_function":
        return Kind.BARRIER
    if node.target is F.pad:
        mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
        return Kind.KEEP if mode != "constant" or not value else Kind.BARRIER
    if node.target is F.hardtanh:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return Kind.KEEP if low <= 0 <= high else Kind.BARRIER
    return _FUNCTIONS.get(node.target, Kind.BARRIER) if callable(node.target) else Kind.BARRIER
