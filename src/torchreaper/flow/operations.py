"""What each operation does to the channels of a tensor, as one table.

The walk of :mod:`torchreaper.flow.walk` knows one handler per :class:`Kind`; this file says which operation is of which
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
    SLOPE = auto()
    """A per-channel map with f(0) = 0 and one parameter entry a channel (PReLU)."""
    KEEP = auto()
    """A per-channel map with f(0) = 0: the channels go on unchanged."""
    OFFSET = auto()
    """A pointwise map with f(0) != 0: what was absent is no longer 0."""
    RESHAPE = auto()
    """Row-major reshaping whose sizes follow from the input: flatten, squeeze, unsqueeze."""
    VIEW = auto()
    """Row-major reshaping to sizes that are given: view, reshape."""
    EXPAND = auto()
    PERMUTE = auto()
    """Another order of the dimensions."""
    SLICE = auto()
    """A part of the tensor: indexing, narrow."""
    SPLIT = auto()
    """Several parts of the tensor: chunk, split."""
    SHUFFLE = auto()
    """Channel shuffle."""
    REDUCE = auto()
    """A mean, sum, spread or maximum over given dimensions."""
    EXTREMUM = auto()
    """The largest or smallest along a dimension, and where it stands: two tensors."""
    MUL = auto()
    ADD = auto()
    CAT = auto()
    BARRIER = auto()
    """Anything else: the input must stand there at full width."""


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, *INSTANCE_NORMS)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
DRAWING = (*DROPOUTS, nn.RReLU)
"""Pointwise modules that draw random numbers in training, as many as there are channels."""

_NONLINEAR_MODULES = (
    "ReLU ReLU6 LeakyReLU RReLU ELU CELU SELU GELU SiLU Mish Tanh Hardswish Softsign Tanhshrink Softshrink Hardshrink"
)
_POINTWISE_MODULES = f"{_NONLINEAR_MODULES} Identity Dropout Dropout1d Dropout2d Dropout3d"
_OFFSET_MODULES = "Sigmoid Hardsigmoid Softplus LogSigmoid"
_SPATIAL_MODULES = (
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d ZeroPad1d ZeroPad2d ZeroPad3d ReflectionPad1d "
    "ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d "
    "CircularPad3d Upsample UpsamplingNearest2d UpsamplingBilinear2d"
)
_NONLINEAR_FUNCTIONS = (
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu selu gelu silu mish tanh hardswish softsign"
)
_POINTWISE_FUNCTIONS = f"{_NONLINEAR_FUNCTIONS} dropout dropout1d dropout2d dropout3d"
_OFFSET_FUNCTIONS = "sigmoid hardsigmoid softplus logsigmoid"
_SPATIAL_FUNCTIONS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate"
)
_POINTWISE_METHODS = (
    "relu relu_ tanh tanh_ abs abs_ neg neg_ square clone contiguous detach to type float half bfloat16 double cpu cuda"
)


def _named(home: Any, names: str) -> dict[Any, str]:
    return {getattr(home, name): name for name in names.split()}


_SPATIAL = {
    **_named(nn, _SPATIAL_MODULES),
    **_named(F, _SPATIAL_FUNCTIONS),
    **_named(torch, "max_pool1d max_pool2d max_pool3d avg_pool1d"),
}
_DIVISIONS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
_SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")

_MODULES: dict[type[nn.Module], Kind] = {
    **dict.fromkeys(CONVOLUTIONS, Kind.CONVOLUTION),
    **dict.fromkeys(NORMS, Kind.NORM),
    **dict.fromkeys(_named(nn, f"{_POINTWISE_MODULES} {_SPATIAL_MODULES}"), Kind.KEEP),
    **dict.fromkeys(_named(nn, _OFFSET_MODULES), Kind.OFFSET),
    nn.Linear: Kind.LINEAR,
    nn.Flatten: Kind.RESHAPE,
    nn.Unflatten: Kind.VIEW,
    nn.ChannelShuffle: Kind.SHUFFLE,
    nn.Hardtanh: Kind.KEEP,
    nn.PReLU: Kind.KEEP,
    **dict.fromkeys(_named(nn, "ConstantPad1d ConstantPad2d ConstantPad3d"), Kind.KEEP),
}
_FUNCTIONS: dict[Callable[..., Any], Kind] = {
    **dict.fromkeys(_named(F, f"{_POINTWISE_FUNCTIONS} {_SPATIAL_FUNCTIONS} hardtanh pad"), Kind.KEEP),
    **dict.fromkeys(_named(torch, "relu relu_ tanh clone abs neg square detach"), Kind.KEEP),
    **dict.fromkeys(_named(torch, "max_pool1d max_pool2d max_pool3d avg_pool1d"), Kind.KEEP),
    **dict.fromkeys((operator.neg, operator.abs), Kind.KEEP),
    **dict.fromkeys(_named(F, _OFFSET_FUNCTIONS), Kind.OFFSET),
    **dict.fromkeys(_named(torch, "sigmoid exp cos"), Kind.OFFSET),
    **dict.fromkeys(_named(torch, "clamp clip"), Kind.KEEP),
    **dict.fromkeys(
        _named(F, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"), Kind.CONVOLUTION
    ),
    **dict.fromkeys(_named(torch, "conv1d conv2d conv3d"), Kind.CONVOLUTION),
    F.linear: Kind.LINEAR,
    F.batch_norm: Kind.NORM,
    **dict.fromkeys(_named(torch, "flatten squeeze unsqueeze"), Kind.RESHAPE),
    torch.reshape: Kind.VIEW,
    **dict.fromkeys(_named(torch, "permute transpose swapaxes movedim flip"), Kind.PERMUTE),
    torch.channel_shuffle: Kind.SHUFFLE,
    **dict.fromkeys(_named(torch, "chunk split"), Kind.SPLIT),
    **dict.fromkeys((operator.getitem, torch.narrow), Kind.SLICE),
    **dict.fromkeys(_named(torch, "mean sum amax amin var std"), Kind.REDUCE),
    **dict.fromkeys(_named(torch, "max min"), Kind.EXTREMUM),
    **dict.fromkeys(_named(torch, "cat concat concatenate"), Kind.CAT),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, *_SUBTRACTIONS[:3]), Kind.ADD),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, *_DIVISIONS[:3]), Kind.MUL),
}
_METHODS: dict[str, Kind] = {
    **dict.fromkeys(_POINTWISE_METHODS.split(), Kind.KEEP),
    **dict.fromkeys(["clamp", "clamp_", "clip", "clip_"], Kind.KEEP),
    **dict.fromkeys(["sigmoid", "sigmoid_", "exp", "exp_", "cos"], Kind.OFFSET),
    **dict.fromkeys(["flatten", "squeeze", "unsqueeze"], Kind.RESHAPE),
    **dict.fromkeys(["view", "reshape", "unflatten"], Kind.VIEW),
    **dict.fromkeys(["expand", "expand_as"], Kind.EXPAND),
    **dict.fromkeys(["permute", "transpose", "swapaxes", "movedim", "flip"], Kind.PERMUTE),
    **dict.fromkeys(["chunk", "split"], Kind.SPLIT),
    "narrow": Kind.SLICE,
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std"], Kind.REDUCE),
    **dict.fromkeys(["max", "min"], Kind.EXTREMUM),
    **dict.fromkeys(["add", "add_", "sub", "sub_"], Kind.ADD),
    **dict.fromkeys(["mul", "mul_", "div", "div_"], Kind.MUL),
}


_NONLINEAR: set[Any] = {
    *_named(nn, f"{_NONLINEAR_MODULES} {_OFFSET_MODULES} Hardtanh PReLU"),
    *_named(F, f"{_NONLINEAR_FUNCTIONS} {_OFFSET_FUNCTIONS} hardtanh"),
    *_named(torch, "relu relu_ tanh sigmoid clamp clip"),
    *("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "clamp", "clamp_", "clip", "clip_"),
}


def is_nonlinear(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node is a pointwise nonlinearity, an activation function, of its first argument alone."""
    target = _base(module) if module is not None else node.target
    return target in _NONLINEAR and len(node.all_input_nodes) == 1


def leaves_values(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node hands on, in evaluation, values that enter it: a pool, a dropout, a copy."""
    if module is not None:
        base = _base(module)
        return base in _SPATIAL or base is nn.Identity or isinstance(module, DROPOUTS)
    return node.target in _SPATIAL or node.target in _COPIES or "dropout" in getattr(node.target, "__name__", "")


_COPIES: set[Any] = {
    "clone",
    "contiguous",
    "detach",
    "to",
    "type",
    "float",
    "half",
    "double",
    torch.clone,
    torch.detach,
}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _base(module: nn.Module) -> type[nn.Module] | None:
    """The listed class that ``module`` computes the same as: its own, or one whose methods it has not replaced."""
    for base in type(module).__mro__:
        if base in _MODULES:
            own, listed = type(module), base
            same = own.forward is listed.forward
            same &= getattr(own, "_conv_forward", None) is getattr(listed, "_conv_forward", None)
            return base if same else None
    return None


def _module_kind(module: nn.Module) -> Kind:
    base = _base(module)
    if base is None:
        return Kind.BARRIER
    if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
        return Kind.OFFSET
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return Kind.SLOPE
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)) and module.value != 0:
        return Kind.BARRIER
    return _MODULES[base]


def is_known_module(module: nn.Module) -> bool:
    """Whether the table treats ``module`` as one operation (also the user's subclass that computes the same)."""
    return _module_kind(module) is not Kind.BARRIER


def kind_of(node: fx.Node, module: nn.Module | None) -> Kind:
    """The kind of a graph node; ``module`` is the called module of a ``call_module`` node."""
    if module is not None:
        # A convolution with a forward of its own is one all the same; what it does to its input is not known.
        return Kind.CONVOLUTION if isinstance(module, CONVOLUTIONS) else _module_kind(module)
    if node.op == "call_method":
        kind = _METHODS.get(str(node.target), Kind.BARRIER)
        return _unless_clamped(node, "clamp" in str(node.target) or "clip" in str(node.target), kind)
    if node.op != "call_function" or not callable(node.target):
        return Kind.BARRIER
    if node.target is F.pad and argument(node, 2, "mode", "constant") == "constant" and argument(node, 3, "value"):
        return Kind.BARRIER
    if node.target is F.hardtanh:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return Kind.KEEP if low <= 0 <= high else Kind.OFFSET
    if node.target is getattr and argument(node, 1, "") == "values":  # of an extremum
        return Kind.SLICE
    if node.target is operator.pow:  # below 1 the slope at 0 is infinite
        exponent = argument(node, 1, "")
        return Kind.KEEP if isinstance(exponent, (int, float)) and exponent >= 1 else Kind.BARRIER
    return _unless_clamped(node, node.target in (torch.clamp, torch.clip), _FUNCTIONS.get(node.target, Kind.BARRIER))


def _unless_clamped(node: fx.Node, clamped: bool, kind: Kind) -> Kind:
    if not clamped:
        return kind
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (low, high)):
        return Kind.BARRIER
    return Kind.KEEP if (low is None or low <= 0) and (high is None or high >= 0) else Kind.OFFSET


_WITHOUT_WIDTH = {
    *("ndim", "dtype", "device", "is_cuda", "is_mps", "requires_grad", "layout", "is_sparse", "is_quantized"),
    *("is_leaf", "dim", "ndimension", "is_contiguous", "is_floating_point", "get_device", "element_size", "itemsize"),
}


def tells_no_width(node: fx.Node) -> bool:
    """Whether what a node says of a tensor, no tensor itself, cannot depend on how many channels there are."""
    asked = argument(node, 1, "") if node.target is getattr else node.target
    return asked in _WITHOUT_WIDTH


def is_division(node: fx.Node) -> bool:
    """Whether a MUL node divides: then only its first operand passes on."""
    return node.target in _DIVISIONS


def spatial_dims(node: fx.Node, module: nn.Module | None, ndim: int) -> int:
    """Over how many of the last dimensions a KEEP node mixes positions; the channels must lie before them.

    A pool in two dimensions takes [n, c, h, w] and [c, h, w] alike; on a tensor read otherwise it would mix channels.
    """
    if node.target is F.pad:
        return len(argument(node, 1, "pad")) // 2
    base = None if module is None else _base(module)
    if base is not None and base.__name__.startswith("ConstantPad"):
        return int(base.__name__[-2])
    name = _SPATIAL.get(base if module is not None else node.target, "")
    if not name:
        return 0
    return int(name[-2]) if name.endswith("d") else ndim - 2  # interpolate and Upsample take [n, c, ...] only
