"""Channel flow: which channels of which tensor come from which filter.

The model is traced with ``torch.fx``, in train and in eval mode, and its graph is walked once on fake tensors:
nothing is computed, no buffer and no random number generator is touched. Every tensor on the way carries, for each
position of its channel dimension, the id of the filter it comes from. What the walk does not understand is a
*barrier*: a place where the tensor must keep its full width, with zeros where filters are missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from torchreaper.channels import NOBODY, Flow, Share, Site
from torchreaper.errors import ReaperError
from torchreaper.operations import CONVOLUTIONS, NORMS, Kind, argument, is_division, kind_of, spatial_dims
from torchreaper.tracing import (
    ExampleInputs,
    bind_arguments,
    fake_buffers,
    has_foreign_hooks,
    holds_tensor,
    refuse_wrappers,
    trace,
    training_mode,
    undisturbed,
)


@dataclass(frozen=True)
class Channels:
    """Where the channels of one tensor come from.

    Attributes:
        origin: filter id of every position of the channel dimension, or ``NOBODY``.
        dim: the channel dimension, counted from the end (negative), so that it holds with and without a batch.
    """

    origin: Int[Tensor, " channels"]
    dim: int


def find_flow(model: nn.Module, example_inputs: ExampleInputs) -> Flow:
    """Trace ``model`` in train and eval mode and unite what both graphs say.

    Args:
        model: a plain module; wrappers (DDP, ``torch.compile``) are refused.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``model.forward``; only
            shapes, dtypes and devices are used.

    Raises:
        ReaperError: the model cannot be traced or run on ``example_inputs``.
    """
    refuse_wrappers(model)
    arguments = bind_arguments(model, example_inputs)
    with undisturbed(model):
        return _united(model, arguments)


def _united(model: nn.Module, arguments: dict[str, Any]) -> Flow:
    graphs = {}
    for training in (False, True):
        with training_mode(model, training):
            graphs[training] = trace(model, arguments)
    start = _numbered(model, graphs.values())
    # Two uses of one module that disagree about its channels make it a barrier; that can change what lies behind
    # it, so the walk starts again until nothing new is found.
    shared = _sharing(model, graphs.values())
    opaque = set(shared)
    while True:
        flow = Flow(dict(start), shared=shared)
        uses: dict[str, list[Channels]] = defaultdict(list)
        for training in (True, False):
            walk = _Walk(graphs[training], flow, uses, opaque, count=training)
            with training_mode(model, training), fake_buffers(model, walk.fake):
                _run(walk, model, arguments)
        disagreeing = {name for name, seen in uses.items() if not _agree(seen)} - opaque
        if not disagreeing:
            return flow
        opaque |= disagreeing


def _numbered(model: nn.Module, graphs: Iterable[fx.GraphModule]) -> dict[str, int]:
    """First filter id of every convolution, in order of execution.

    The evaluation graph comes first: in training a model may go its ways at random.
    """
    start, total = {}, 0
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op == "call_module" and node.target not in start:
                module = model.get_submodule(node.target)
                if isinstance(module, CONVOLUTIONS):
                    start[node.target] = total
                    total += module.out_channels
    return start


class _Walk(fx.Interpreter):
    """Runs the graph on fake tensors and carries :class:`Channels` beside every value."""

    def __init__(
        self,
        graph: fx.GraphModule,
        flow: Flow,
        uses: dict[str, list[Channels]],
        opaque: set[str],
        count: bool,
    ) -> None:
        super().__init__(graph)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.flow, self.uses, self.opaque, self.count = flow, uses, opaque, count
        self.channels: dict[fx.Node, Channels] = {}
        self.values: dict[fx.Node, Tensor] = {}
        self.leads: dict[fx.Node, set[str]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, NORMS):  # a shape is all that counts, also where a batch would be too small to normalise
            return torch.empty_like(args[0] if args else kwargs["input"])
        # Past the module's hooks: they are the user's, and must not see fake tensors.
        return module.forward(*args, **kwargs)

    def run_node(self, node: fx.Node) -> Any:
        inputs = node.all_input_nodes
        versions = {n: self.values[n]._version for n in inputs if n in self.channels}
        with self.fake, torch.no_grad():
            value = super().run_node(node)
        if isinstance(value, Tensor):
            self.values[node] = value
        if node.op == "output":
            self.flow.outputs.update(*(self.leads[n] for n in inputs))
            return value
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        kind = kind_of(node, module)
        self.leads[node] = self._leads(node, kind)
        if holds_tensor(value):
            entering = [self.channels[n] for n in inputs if n in self.channels]
            leaving = self._follow(node, kind, module, value, entering)
            if leaving is not None and value.shape[leaving.dim] != len(leaving.origin):
                leaving = self._barrier(node, [leaving])
            if kind not in (Kind.KEEP, Kind.SCALE):
                self._forget_changed(node, versions)
            if leaving is not None and (leaving.origin != NOBODY).any():
                self.channels[node] = leaving
        return value

    def _leads(self, node: fx.Node, kind: Kind) -> set[str]:
        """The convolutions whose channels, or a function of each of them, this node hands on: a softmax of classes too.

        What reads channels, or adds other channels to them, ends it.
        """
        if kind is Kind.CONVOLUTION:
            return {str(node.target)}
        tensors = [n for n in node.all_input_nodes if n in self.values]
        if kind is Kind.LINEAR or (kind is Kind.ADD and len(tensors) > 1):
            return set()
        return set().union(*(self.leads[n] for n in tensors))

    def _forget_changed(self, node: fx.Node, versions: dict[fx.Node, int]) -> None:
        """What an in-place operation has written to is no longer the filter's, in any of its views."""
        for changed in [n for n, version in versions.items() if self.values[n]._version != version]:
            storage = self.values[changed].untyped_storage()
            for alias in [n for n in self.channels if self.values[n].untyped_storage() == storage]:
                self._barrier(node, [self.channels.pop(alias)])

    def _follow(
        self, node: fx.Node, kind: Kind, module: nn.Module | None, value: Any, entering: list[Channels]
    ) -> Channels | None:
        if module is not None and has_foreign_hooks(module):
            own = [self._convolution(str(node.target), module, value, [])] if kind is Kind.CONVOLUTION else []
            return self._barrier(node, entering + own)
        if kind is Kind.CONVOLUTION:
            return self._convolution(str(node.target), module, value, entering)
        if kind is Kind.LINEAR:
            self._linear(str(node.target), module, value, entering)
            return None
        if kind is Kind.NORM:
            self._count(str(node.target), value, 1 - value.ndim)
            self._use(str(node.target), entering, value.shape[1], 1 - value.ndim)
        if not entering:
            return None
        if kind is Kind.CAT:
            return self._cat(node, value, entering)
        if kind is Kind.ADD:
            return self._add(node, entering)
        if kind is Kind.BARRIER or len(entering) > 1 or not isinstance(value, Tensor):
            return self._barrier(node, entering)
        channels, before = entering[0], self.values[node.all_input_nodes[0]].shape
        if kind is Kind.NORM and node.target not in self.opaque and channels.dim == 1 - value.ndim:
            self.flow.sites[str(node.target)] = Site(channels.origin, channels.dim)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                self._share(str(node.target), module, tensor, Share(0, channels.origin, "norm"))
            return channels
        if kind is Kind.KEEP and value.ndim == len(before):
            behind = -1 - channels.dim
            return channels if spatial_dims(node, module, value.ndim) <= behind else self._barrier(node, entering)
        if kind is Kind.SCALE and len(node.all_input_nodes) == 1:
            divisor = is_division(node) and argument(node, 0, "input") not in self.channels
            return self._barrier(node, entering) if divisor else channels
        if kind is Kind.RESHAPE:
            return reshaped(channels, before, value.shape) or self._barrier(node, entering)
        if kind is Kind.REDUCE:
            return self._reduce(node, channels, before) or self._barrier(node, entering)
        return self._barrier(node, entering)

    def _barrier(self, node: fx.Node, entering: list[Channels]) -> Channels | None:
        target = node.target
        self._barrier_at(target if isinstance(target, str) else getattr(target, "__name__", node.name), entering)
        return None

    def _barrier_at(self, place: str, entering: list[Channels]) -> None:
        for channels in entering:
            for layer in self.flow.layers_of(channels.origin):
                if place not in self.flow.barriers[layer]:
                    self.flow.barriers[layer].append(place)

    def _read(self, name: str, module: nn.Module, entering: list[Channels], dim: int) -> None:
        """A dense layer reads its input: note which filter each of its input features comes from."""
        if owns_weight(module):
            self._use(name, entering, module._parameters["weight"].shape[1], dim)  # type: ignore[union-attr]
        for channels in entering:
            if name in self.opaque or channels.dim != dim or not owns_weight(module):
                self._barrier_at(name, [channels])
            else:
                self._share(name, module, "weight", Share(1, channels.origin, "consumer"))

    def _use(self, name: str, entering: list[Channels], width: int, dim: int) -> None:
        """Note what a module is used on; on nobody's channels too, for another use may be on a filter's."""
        self.uses[name] += entering or [Channels(nobody(width), dim)]

    def _convolution(self, name: str, module: Any, value: Tensor, entering: list[Channels]) -> Channels:
        dim = -1 - len(module.kernel_size)
        if module.groups == 1:
            self._read(name, module, entering, dim)
        else:
            self._barrier_at(name, entering)
        self._count(name, value, dim)
        first = self.flow.start[name]
        channels = Channels(torch.arange(first, first + module.out_channels, device="cpu"), dim)
        self.flow.sites[name] = Site(channels.origin, channels.dim)
        for tensor in ("weight", "bias"):
            self._share(name, module, tensor, Share(0, channels.origin, "filter"))
        return channels

    def _share(self, name: str, module: Any, tensor: str, share: Share) -> None:
        if module._parameters.get(tensor) is not None or module._buffers.get(tensor) is not None:
            self.flow.share(name, tensor, share)

    def _linear(self, name: str, module: Any, value: Tensor, entering: list[Channels]) -> None:
        self._read(name, module, entering, dim=-1)
        self._count(name, value, -1)

    def _count(self, name: str, value: Tensor, dim: int) -> None:
        per_sample = prod(value.shape[1:]) if value.ndim > -dim else value.numel()
        self.flow.widths[name] = value.shape[dim]
        positions = per_sample // value.shape[dim]
        if self.count:
            self.flow.positions[name] = self.flow.positions.get(name, 0) + positions
        else:  # the second graph: only what the first one does not hold
            self.flow.positions.setdefault(name, positions)

    def _add(self, node: fx.Node, entering: list[Channels]) -> Channels | None:
        # Not `all_input_nodes`, which names a tensor once even where it is added to itself.
        operands = [n for n in node.args[:2] if isinstance(n, fx.Node) and n in self.channels]
        if len(operands) == 2 and self.values[operands[0]].shape == self.values[operands[1]].shape:
            first, second = (self.channels[n] for n in operands)
            if _agree([first, second]):
                return first
        return self._barrier(node, entering)

    def _cat(self, node: fx.Node, value: Tensor, entering: list[Channels]) -> Channels | None:
        parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
        first = entering[0]
        if not isinstance(parts, (tuple, list)) or not isinstance(dim, int):
            return self._barrier(node, entering)
        at_channels = (dim if dim < 0 else dim - value.ndim) == first.dim
        if not at_channels or any(channels.dim != first.dim for channels in entering):
            return self._barrier(node, entering)
        origins = [
            self.channels[n].origin if n in self.channels else nobody(self.values[n].shape[first.dim]) for n in parts
        ]
        return Channels(torch.cat(origins), first.dim)

    def _reduce(self, node: fx.Node, channels: Channels, before: torch.Size) -> Channels | None:
        dims, keepdim = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
        listed = [dims] if isinstance(dims, int) else list(dims or ())
        reduced = {d if d < 0 else d - len(before) for d in listed}
        if not reduced or not all(d > channels.dim for d in reduced):
            return None
        return Channels(channels.origin, channels.dim + (0 if keepdim else len(reduced)))


def reshaped(channels: Channels, before: torch.Size, after: torch.Size) -> Channels | None:
    """The channels of a row-major reshape, or ``None`` where it mixes channels with other dimensions.

    Either the channel dimension stays as it is and only what lies behind it changes, or it is flattened together
    with all that lies behind it: then each channel repeats once for every position.
    """
    lead = len(before) + channels.dim
    width, behind = before[lead], before[lead + 1 :]
    if after[:lead] != before[:lead] or len(after) <= lead:
        return None
    if after[lead] == width:
        return Channels(channels.origin, lead - len(after))
    if len(after) == lead + 1:
        return Channels(channels.origin.repeat_interleave(prod(behind)), -1)
    return None


def nobody(width: int) -> Int[Tensor, " width"]:
    """The origin of a tensor that no filter has a part in."""
    return torch.full((width,), NOBODY, device="cpu")


def owns_weight(module: nn.Module) -> bool:
    """Whether ``module.weight`` is a parameter of its own, not one computed from others (weight_norm and the like)."""
    return module._parameters.get("weight") is not None


def _sharing(model: nn.Module, graphs: Iterable[fx.GraphModule]) -> set[str]:
    """Modules with a parameter that another module holds too, or that a forward method takes by itself.

    What one use of it leaves out, the other would miss.
    """
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)].append(name)
    shared = {name for names in holders.values() if len(names) > 1 for name in names}
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "get_attr"]
    # `weight.dtype` and the like take nothing of the weight.
    taken = {str(node.target) for node in nodes if any(user.target is not getattr for user in node.users)}
    return shared | {name.rpartition(".")[0] for name in taken}


def _agree(seen: list[Channels]) -> bool:
    return all(c.dim == seen[0].dim and torch.equal(c.origin, seen[0].origin) for c in seen)


def _run(walk: _Walk, model: nn.Module, arguments: dict[str, Any]) -> None:
    fake = walk.fake.from_tensor
    inputs = tree_map(lambda x: fake(x.detach()) if isinstance(x, Tensor) else x, list(arguments.values()))
    try:
        walk.run(*inputs)
    except Exception as error:
        shapes = {k: list(v.shape) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        raise ReaperError(
            f"example_inputs={shapes}: {type(model).__name__} does not run on them "
            f"({str(error).splitlines()[0]}); pass a batch as in training, on the model's device"
        ) from error
