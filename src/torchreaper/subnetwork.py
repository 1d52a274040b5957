"""Being without some filters. Masked: full-width tensors, with exact zeros where the dropped filters were.

Hooks sit on leaf modules from the start and return at once while nothing is dropped: a hook added after a compiled
model's first call would be ignored. During a sub-network phase the slices that belong to dropped filters are stored,
and the tensors hold 0 there, so that weight norms, losses that read weights and optimizers see the sub-network only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.channels import Flow
from torchreaper.errors import ReaperError
from torchreaper.filters import parents
from torchreaper.state import ELEMENTWISE, Cut, per_weight_state
from torchreaper.tracing import OwnHook

_IN_A_PHASE = (
    "the model is in a sub-network phase, its dropped filters are not in place; call scheme.restore() "
    "(or leave bank.without) before loading a checkpoint"
)


@dataclass(eq=False)
class Leaf(OwnHook):
    """What one module is without; its methods are the module's hooks.

    An object of its own for every module, so that copies and pickles of the model carry no more than their share.

    Attributes:
        dim: channel dimension of the module's output, counted from the end.
        mask: output channels held at 0, or ``None`` in a full phase.
        cuts: tensor name -> the part of it that is left out.
        values: tensor name -> the stored values of that part.
    """

    dim: int = 0
    mask: Bool[Tensor, " channels"] | None = None
    cuts: dict[str, Cut] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def zero_channels(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Forward hook. ``masked_fill``, never a product: 0 * inf is NaN."""
        if self.mask is None:
            return None
        if self.mask.device != output.device:
            self.mask = self.mask.to(output.device)
        return output.masked_fill(self.mask.view(-1, *[1] * (-1 - self.dim)), 0)

    def take(self, module: nn.Module, cuts: dict[str, Cut]) -> None:
        """Store the cut parts of the module's tensors; pending gradients there are dropped."""
        for name, cut in cuts.items():
            tensor = getattr(module, name)
            self.values[name] = cut.take(tensor)
            if tensor.grad is not None:
                cut.fill(tensor.grad, 0)
        self.cuts = cuts

    def put(self, module: nn.Module) -> None:
        """Write the stored parts back."""
        for name, cut in self.cuts.items():
            cut.put(getattr(module, name), self.values[name])
        self.cuts, self.values, self.mask = {}, {}, None


@dataclass(eq=False)
class WholeStateDict:
    """State-dict hook of one module: stored values in their places, so that a checkpoint is always whole.

    In a sub-network phase the entries are copies, with ``keep_vars=True`` too.
    """

    leaf: Leaf

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: D102
        for name, cut in self.leaf.cuts.items():
            if prefix + name in state_dict:
                whole = state_dict[prefix + name].detach().clone()
                cut.put(whole, self.leaf.values[name])
                state_dict[prefix + name] = whole


@dataclass(eq=False)
class Guard:
    """Pre-hook of ``load_state_dict``: what would be loaded into the holes would be lost.

    It stands on every module that has a leaf below it, so that nothing is loaded before it speaks.
    """

    closed: bool = False

    def __call__(self, *_: Any) -> None:  # noqa: D102
        if self.closed:
            raise ReaperError(f"load_state_dict: {_IN_A_PHASE}")


@dataclass(eq=False)
class GradientMask:
    """Tensor hook of one parameter: dropped slices get gradient 0, also where it overflowed."""

    leaf: Leaf
    name: str
    # Pickling a model would warn that tensor hooks stay behind; a fresh RePr puts them back.
    __torch_unserializable__ = True

    def __call__(self, gradient: Tensor) -> Tensor | None:  # noqa: D102
        cut = self.leaf.cuts.get(self.name)
        return None if cut is None else cut.fill(gradient.clone(), 0)


class StoredState:
    """The optimizer state of dropped filters, for one optimizer; its methods are the optimizer's hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.cuts: list[tuple[Tensor, Cut]] = []
        self.values: dict[tuple[int, str], Tensor] = {}
        self._optimizer = optimizer
        self.handles = [
            optimizer.register_state_dict_post_hook(self.fill_state_dict),
            optimizer.register_load_state_dict_pre_hook(self.refuse_loading),
        ]
        if type(optimizer) not in ELEMENTWISE:
            self.handles.append(optimizer.register_step_post_hook(self.clear))

    def take(self, cuts: Sequence[tuple[Tensor, Cut]]) -> None:
        """Store the cut parts of the state; it holds 0 there."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        self.cuts = [(tensor, cut) for tensor, cut in cuts if id(tensor) in held]
        for tensor, cut in self.cuts:
            for _, state, key in per_weight_state([self._optimizer], tensor):
                self.values[id(tensor), key] = cut.take(state[key])

    def put(self) -> None:
        """Write the stored state back. State that first arose in the phase stays as it is."""
        for tensor, cut in self.cuts:
            for _, state, key in per_weight_state([self._optimizer], tensor):
                if (id(tensor), key) in self.values:
                    cut.put(state[key], self.values[id(tensor), key])
        self.cuts, self.values = [], {}

    @torch.no_grad()
    def clear(self, *unused: Any) -> None:
        """After a step of an optimizer that may move a weight whose gradient is 0 (LARS, Muon): back to 0."""
        for tensor, cut in self.cuts:
            cut.fill(tensor, 0)
            for _, state, key in per_weight_state([self._optimizer], tensor):
                cut.fill(state[key], 0)

    def fill_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """State-dict hook: stored values in their places; the live state is not touched."""
        if not self.values:
            return
        numbers = {
            id(tensor): number
            for live, packed in zip(optimizer.param_groups, state_dict["param_groups"])
            for tensor, number in zip(live["params"], packed["params"])
        }
        state = dict(state_dict["state"])
        for weight, cut in self.cuts:
            number = numbers[id(weight)]
            for key in [key for key in state.get(number, ()) if (id(weight), key) in self.values]:
                whole = state[number][key].clone()
                cut.put(whole, self.values[id(weight), key])
                state[number] = {**state[number], key: whole}
        state_dict["state"] = state

    def refuse_loading(self, *_: Any) -> None:
        """Pre-hook of ``load_state_dict``."""
        if self.cuts:
            raise ReaperError(f"optimizer.load_state_dict: {_IN_A_PHASE}")


class Masked:
    """The masked sub-network of one model: installed once, entered and left at every drop and restore.

    Args:
        flow: the model's channel flow: it says where masks stand.
        optimizers: whose state is stored along with the weights.

    Raises:
        ReaperError: the model carries masks already.
    """

    def __init__(self, model: nn.Module, flow: Flow, optimizers: Sequence[Optimizer] = ()) -> None:
        self._model = model
        self._leaves: dict[str, Leaf] = {}
        self._handles: list[Any] = []
        names = sorted(flow.sites.keys() | flow.shares.keys())
        modules = {name: model.get_submodule(name) for name in names}
        if any(_has_leaf(module) for module in modules.values()):
            raise ReaperError(
                f"model={type(model).__name__}: filters of this model are managed already; call remove() on the scheme "
                "before, or copy the model without it"
            )
        for name, module in modules.items():
            leaf = self._leaves[name] = Leaf()
            if name in flow.sites:
                leaf.dim = flow.sites[name].dim
                # First of the module's hooks, so that a user's own see what the next layer sees.
                self._handles.append(module.register_forward_hook(leaf.zero_channels, prepend=True))
            self._handles.append(module.register_state_dict_post_hook(WholeStateDict(leaf)))  # type: ignore[no-untyped-call]
            for tensor, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    self._handles.append(parameter.register_hook(GradientMask(leaf, tensor)))  # type: ignore[no-untyped-call]
        self._guard = Guard()
        for parent in sorted({"", *names, *(parent for name in names for parent in parents(name))}):
            above = model.get_submodule(parent)
            self._handles.append(above.register_load_state_dict_pre_hook(self._guard))  # type: ignore[no-untyped-call]
        self._states = [StoredState(one) for one in optimizers]
        self._handles += [handle for state in self._states for handle in state.handles]

    def enter(self, masks: Mapping[str, Bool[Tensor, " channels"]], cuts: Mapping[str, dict[str, Cut]]) -> None:
        """Leave filters out: ``masks`` by site, ``cuts`` by module and tensor (:mod:`torchreaper.filters`)."""
        tensors = [
            (getattr(self._model.get_submodule(name), tensor), cut)
            for name, entries in cuts.items()
            for tensor, cut in entries.items()
        ]
        self._guard.closed = True
        for state in self._states:
            state.take(tensors)
        for name, leaf in self._leaves.items():
            module = self._model.get_submodule(name)
            if name in masks:
                # Everywhere, also where no channel is dropped: a compiled graph then holds for every cycle.
                leaf.mask = masks[name].to(_device(module))
            leaf.take(module, cuts.get(name, {}))

    def leave(self) -> None:
        """Put every stored slice back where it was."""
        for name, leaf in self._leaves.items():
            leaf.put(self._model.get_submodule(name))
        for state in self._states:
            state.put()
        self._guard.closed = False

    def stored(self, name: str) -> Tensor:
        """What the weight of a dropped layer held: the values left out of it, row-major."""
        return self._leaves[name].values["weight"]

    def remove(self) -> None:
        """Take every hook off the model and the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


def _has_leaf(module: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), Leaf) for hook in module._forward_hooks.values())
