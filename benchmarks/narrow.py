"""The same widths built by hand: a model without some filters, of plain modules, with no hook of ours in it.

What a drop takes out of each module is read off a masked copy, whose tensors hold 0 exactly there; so this shares no
code with compact mode, which is measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchreaper as tr

Filters = Mapping[str, tuple[int, ...]]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class HandBuilt:
    """The narrow model, and how much of the drop could be built.

    Attributes:
        model: gives the outputs of the model without the filters.
        narrowed: the part of the filters whose channels are really gone: those of layers of route "narrow". The other
            layers meet a place that needs the full width (a sum); their filters are zeros in it.
        layers: layers that lose filters.
    """

    model: nn.Module
    narrowed: dict[str, tuple[int, ...]]
    layers: int

    @property
    def share(self) -> str:
        """Layers that are narrow, of those that lose filters."""
        return f"{len(self.narrowed)}/{self.layers}"


def narrow(model: nn.Module, example: Any, filters: Filters) -> HandBuilt:
    """Build ``model`` without ``filters`` by hand; ``model`` itself is left as it is."""
    by_hand, zeroed, probe = deepcopy(model), deepcopy(model), deepcopy(model)
    tr.find_filters(zeroed, example).drop(filters, mode="masked")
    _copy(zeroed, by_hand)

    bank = tr.find_filters(probe, example)
    narrowed = {name: indices for name, indices in filters.items() if bank[name].route == "narrow"}
    _fill_with_ones(probe)
    bank.drop(narrowed, mode="masked")
    for name, module in list(by_hand.named_modules()):
        if isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear)):
            rows, columns = _present(probe.get_submodule(name))
            if not (rows.all() and columns.all()):
                by_hand.set_submodule(name, _smaller(module, rows, columns))
    return HandBuilt(by_hand, narrowed, len(filters))


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers as they are now; a state dict would hold the whole network's."""
    for name, parameter in target.named_parameters():
        parameter.copy_(source.get_parameter(name))
    for name, buffer in target.named_buffers():
        buffer.copy_(source.get_buffer(name))


@torch.no_grad()
def _fill_with_ones(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(1)


def _present(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Which output and which input channels a module of the probe still has."""
    there = _tensor(module).detach() != 0
    if there.ndim == 1:
        return there, torch.ones(1, dtype=torch.bool)
    return there.flatten(1).any(1), there.transpose(0, 1).flatten(1).any(1)


def _tensor(module: nn.Module) -> Any:
    """The weight; the running mean of a norm that has none."""
    return module.weight if module.weight is not None else module.running_mean


@torch.no_grad()
def _smaller(module: nn.Module, rows: Tensor, columns: Tensor) -> nn.Module:
    """A new module with the given channels of ``module``."""
    outputs, inputs = int(rows.sum()), int(columns.sum())
    new: nn.Module
    if isinstance(module, nn.Linear):
        new = nn.Linear(inputs, outputs, bias=module.bias is not None)
    elif isinstance(module, NORMS):
        new = type(module)(
            outputs,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )
    else:
        assert isinstance(module, CONVOLUTIONS)
        new = _smaller_convolution(module, inputs, outputs)
    new = new.to(_tensor(module))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        part = tensor if tensor.ndim == 0 else tensor[rows]
        getattr(new, name).copy_(part[:, columns] if tensor.ndim > 1 else part)
    return new.train(module.training)


def _smaller_convolution(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    groups = 1
    if module.groups > 1:  # depthwise: a channel goes with its filters
        if module.groups != module.in_channels:
            raise ValueError(f"{module}: grouped, but not depthwise; no channel of it can go")
        groups = inputs = outputs * module.in_channels // module.out_channels
    return type(module)(
        inputs,
        outputs,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=groups,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
