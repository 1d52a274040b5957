"""Rules for what has weights: convolutions, Linear layers, norms and slopes, as modules and as functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from torchreaper.flow.channels import Origin, Role
from torchreaper.flow.following import Channels, laid, nobody
from torchreaper.flow.operations import CONVOLUTIONS, TRANSPOSED, argument, is_known_module
from torchreaper.flow.walking import Walking

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


class Reading(Walking):
    """Reads channels, starts channels, and notes which entries of which tensor belong to them."""

    def convolution(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Reads its input and starts channels of its own; a depthwise one hands its input's channels on."""
        name = self.owner(node)
        module = module if module is not None or not name else self.model.get_submodule(name)
        if not isinstance(module, CONVOLUTIONS) or name not in self.ledger.flow.start:
            return self.barrier(node, entering)
        spatial = len(module.kernel_size)
        taken = self.values.get(argument(node, 0, "input")) if isinstance(module, TRANSPOSED) else None
        self._count_output(name, value, -1 - spatial, taken)
        plain = owns_weight(module) and (node.op != "call_module" or is_known_module(module))
        if plain and is_depthwise(module) and name not in self.ledger.decided.apart:
            if entering:
                return self._depthwise(node, name, module, value, entering)
            self.ledger.use(name, Channels(nobody(module.in_channels)))
        if module.groups == 1 and plain:
            self._read(node, name, module, entering, width=module.in_channels, dim=-1 - spatial)
        else:
            self.barrier(node, entering)
        return self._start(node, name, module, value, plain)

    def _start(self, node: fx.Node, name: str, module: Any, value: Tensor, plain: bool) -> Channels | None:
        """The channels that a convolution starts: its own, or as a gate those that it follows."""
        first = self.ledger.flow.start[name]
        origin: Origin = torch.arange(first, first + module.out_channels, device="cpu")
        role: Role = "filter"
        if name in self.ledger.decided.gates:
            origin, role = self.ledger.decided.gates[name], "follower"
        if plain:
            self._share(name, module, ("weight",), origin, role, dim=1 if isinstance(module, TRANSPOSED) else 0)
            self._share(name, module, ("bias",), origin, role)
        found = self.masked(
            node, name, Channels(laid(origin, -1 - len(module.kernel_size), value.ndim), self.key(node))
        )
        if found is None:  # a function whose output no mask can follow
            self.ledger.flow.shared.add(name)
        if found is None or not found.dims:  # a layer's only filter is never left out
            return None
        if role == "filter":
            self.starts[node] = name
        return found

    def _depthwise(
        self, node: fx.Node, name: str, module: Any, value: Tensor, entering: list[Channels]
    ) -> Channels | None:
        dim = -1 - len(module.kernel_size)
        origin = self._line(name, entering, module.in_channels, dim)
        if origin is None:
            return self.barrier(node, entering)
        self.ledger.settle(entering[0])
        rows = origin.repeat_interleave(module.out_channels // module.groups)
        # A transposed one holds a weight [in, out / groups, *kernel].
        self._share(name, module, ("weight",), origin if isinstance(module, TRANSPOSED) else rows, "follower")
        self._share(name, module, ("bias",), rows, "follower")
        if node.op == "call_module":
            self.ledger.flow.grouped[name] = origin
        else:  # whether the function takes the number of groups from the module cannot be seen
            self.wide(node, entering[0])
        since = self.key(node) if module.bias is not None else None
        return self.masked(node, name, Channels(laid(rows, dim, value.ndim), since))

    def linear(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Reads its last dimension; its outputs are nobody's filters, unless as a gate they follow others."""
        name = self.owner(node)
        module = module if module is not None or not name else self.model.get_submodule(name)
        if module is None or not owns_weight(module):
            return self.barrier(node, entering)
        self._read(node, name, module, entering, width=module._parameters["weight"].shape[1], dim=-1)
        self._count_output(name, value, -1)
        origin = self.ledger.decided.gates.get(name)
        if origin is None or node.op != "call_module":
            return None
        self._share(name, module, ("weight", "bias"), origin, "follower")
        return self.masked(node, name, Channels(laid(origin, -1, value.ndim), self.key(node)))

    def norm(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A per-channel map with an offset; its entries belong to the channels."""
        name, dim = self.owner(node), 1 - value.ndim
        module = module if module is not None or not name else self.model.get_submodule(name)
        if module is None or computes_tensors(module):
            return self.barrier(node, entering)
        self._count_output(name, value, dim)
        origin = self._line(name, entering, value.shape[1], dim)
        if origin is None:
            return self.barrier(node, entering)
        self._share(name, module, NORM_TENSORS, origin, "norm")
        return self.masked(node, name, Channels(entering[0].origin, self.key(node)))

    def slope(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A PReLU with one slope a channel, which is the channel's; 0 stays 0."""
        name = str(node.target)
        origin = self._line(name, entering, module.num_parameters, 1 - value.ndim)
        if origin is None or computes_tensors(module):
            return self.barrier(node, entering)
        self._share(name, module, ("weight",), origin, "follower")
        return self.through(node, entering[0])

    def _read(
        self, node: fx.Node, name: str, module: nn.Module, entering: list[Channels], *, width: int, dim: int
    ) -> None:
        """A dense layer reads its input: note which filter each of its input features comes from."""
        origin = self._line(name, entering, width, dim)
        if origin is None:
            self.barrier(node, entering)
            return
        self.ledger.settle(entering[0])
        self._share(name, module, ("weight",), origin, "consumer", dim=0 if isinstance(module, TRANSPOSED) else 1)

    def _line(self, name: str, entering: list[Channels], width: int, dim: int) -> Origin | None:
        """The ids that enter a module along ``dim``, where they are known and every use agrees."""
        line = entering[0].line if len(entering) == 1 else None
        origin = line[0] if line is not None and line[1] == dim and len(line[0]) == width else None
        self.ledger.use(name, Channels(nobody(width) if origin is None else origin))
        return None if self.ledger.is_opaque(name) else origin

    def _count_output(self, name: str, value: Tensor, dim: int, applied_to: Tensor | None = None) -> None:
        """Positions are those of training; evaluation adds what training does not have."""
        self.ledger.count_output(name, value, dim, self.mode == "train", applied_to)

    def _share(
        self, name: str, module: nn.Module, tensors: tuple[str, ...], origin: Origin, role: Role, dim: int = 0
    ) -> None:
        for tensor in tensors:
            self.ledger.share(name, module, tensor, dim, origin, role)


def owns_weight(module: nn.Module) -> bool:
    """Whether ``module.weight`` is a parameter of its own, and nothing is computed from others (weight_norm)."""
    return module._parameters.get("weight") is not None and not computes_tensors(module)


def computes_tensors(module: nn.Module) -> bool:
    """Whether the module has a parametrization: of its weight, its bias or anything else."""
    return "parametrizations" in module._modules


def is_depthwise(module: nn.Module) -> bool:
    """Whether every input channel is convolved by itself."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels
