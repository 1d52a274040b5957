"""Rules for what only moves, scales or joins channels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx

from torchreaper.flow.channels import Origin
from torchreaper.flow.following import Channels, agree, counts_channels, laid, nobody, reshaped, sliced
from torchreaper.flow.operations import DRAWING, Kind, argument, is_division, kind_of, spatial_dims
from torchreaper.flow.reading import owns_weight
from torchreaper.flow.tracing import leaving
from torchreaper.flow.walking import Found, Walking, place


class Moving(Walking):
    """Follows channels from tensor to tensor; ends them where it cannot."""

    def keep(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A per-channel map with f(0) = 0."""
        channels = self._one(node, entering)
        if channels is None or channels.origin.ndim != value.ndim:
            return self.barrier(node, entering)
        behind = value.ndim - spatial_dims(node, module, value.ndim)
        if any(d >= behind for d in channels.dims):
            return self.barrier(node, entering)
        if isinstance(module, DRAWING) and channels.line is not None:
            self.ledger.drops_out(str(node.target), channels)
        return self.through(node, channels)

    def offset(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A pointwise map with f(0) != 0: a mask must follow, or its input must hold the zeros."""
        channels = self._one(node, entering)
        return self.barrier(node, entering) if channels is None else self._shifted(node, channels)

    def _shifted(self, node: fx.Node, channels: Channels) -> Channels | None:
        key = self.key(node)
        if key in self.ledger.decided.opaque:
            return self.barrier(node, [channels])
        if key in self.ledger.decided.sited:
            self.ledger.use(str(node.target), Channels(channels.origin))
            return self.through(node, self.ledger.site(str(node.target), channels))
        since = key if channels.since is None or node.op == "call_module" else channels.since
        return self.through(node, Channels(channels.origin, since))

    def leave(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A module hands out its result: a hook on the module can put a mask there."""
        channels, name = self._one(node, entering), str(node.args[1])
        line = channels.line if channels else None
        if channels is None or channels.since is None or line is None:
            return self.through(node, channels)
        out = f"{name}, leaving"  # what enters it is another use
        self.ledger.use(out, Channels(line[0]))
        return self.through(node, channels if self.ledger.is_opaque(out) else self.ledger.site(name, channels))

    def reshape(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Row-major reshaping whose sizes follow from the input."""
        found = self._reshaped(node, value, entering)
        return self.through(node, found) if found else self.barrier(node, entering)

    def view(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Row-major reshaping to given sizes: they must leave the channels' own size open, or it needs them all."""
        found = self._reshaped(node, value, entering)
        if found is None:
            return self.barrier(node, entering)
        plain = node.op != "call_module" and node.target != "unflatten"
        fits = plain and self.adapts(node, _listed(node.args[1:] or node.kwargs.get("shape", ())), found.origin)
        return self.through(node, found) if fits else self.wide(node, found)

    def _reshaped(self, node: fx.Node, value: Tensor, entering: list[Channels]) -> Channels | None:
        channels = self._one(node, entering)
        if channels is None:
            return None
        return channels.at(reshaped(channels.origin, self.values[node.all_input_nodes[0]].shape, value.shape))

    def expand(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Repeats what has size 1."""
        channels, other = self.of(node.args[0]), self.of(node.args[1]) if len(node.args) > 1 else None
        if other is not None and not (channels and agree(channels, other)):
            self.wide(node, other)  # the result takes its width, and is nobody's
        if channels is None:
            return None
        channels = Channels(_aligned(channels.origin, value.ndim), channels.since)
        sizes = _listed(node.args[1:])
        fits = node.target == "expand_as" or self.adapts(node, sizes, channels.origin)
        return self.through(node, channels) if fits else self.wide(node, channels)

    def permute(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Another order of dimensions, or of the entries in one."""
        channels = self._one(node, entering)
        others = [*node.args[1:], *node.kwargs.values()]
        if channels is None or any(isinstance(part, fx.Node) for part in _listed(others)):
            return self.barrier(node, entering)
        name, kwargs = place(node), _own(node.kwargs)
        if name in ("permute", "flip"):
            moved = getattr(torch, name)(channels.origin, list(kwargs.get("dims", _listed(node.args[1:]))))
        else:
            moved = getattr(torch, name)(channels.origin, *node.args[1:], **kwargs)
        return self.through(node, channels.at(moved))

    def slice(self, node: fx.Node, module: Any, value: Any, entering: list[Channels]) -> Found:
        """A part of a tensor, or of a tuple of tensors."""
        of = node.args[0]
        index = 0 if argument(node, 1, "dim") == "values" else argument(node, 1, "dim")
        whole = self.channels.get(of) if isinstance(of, fx.Node) else None
        if isinstance(whole, tuple):
            return whole[index] if isinstance(index, int) else self.barrier(node, entering)
        channels = self._one(node, entering)
        if channels is None or not isinstance(value, Tensor):
            return self.barrier(node, entering)
        shape = self.values[node.all_input_nodes[0]].shape
        if "narrow" in place(node):
            dim, start, length = index, argument(node, 2, "start"), argument(node, 3, "length")
            if not all(isinstance(part, int) for part in (dim, start, length)):
                return self.barrier(node, entering)
            parts: list[object] = [slice(None)] * len(shape)
            parts[dim] = slice(start, start + length)
        else:
            parts = list(index) if isinstance(index, tuple) else [index]
        found = channels.at(sliced(channels.origin, shape, parts))
        if found is None:
            return self.barrier(node, entering)
        counted = counts_channels(channels.origin, shape, parts)
        if counted:
            self.wide(node, channels)
        return found if counted else self.through(node, found)

    def split(self, node: fx.Node, module: Any, value: Any, entering: list[Channels]) -> Found:
        """Several parts of a tensor; along the channels their sizes are counted, so it needs them all."""
        channels, dim = self._one(node, entering), argument(node, 2, "dim", 0)
        if channels is None or not isinstance(dim, int):
            return self.barrier(node, entering)
        if channels.origin.shape[dim] == 1:
            self.passed.add(node)
            return tuple(channels for _ in value)
        self.wide(node, channels)
        parts = torch.split(channels.origin, [part.shape[dim] for part in value], dim)
        return tuple(Channels(part, channels.since) for part in parts)

    def shuffle(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Channel shuffle, as one operation."""
        channels = self._one(node, entering)
        groups = module.groups if module is not None else argument(node, 1, "groups")
        line = channels.line if channels else None
        if channels is None or line is None or line[1] != 1 - value.ndim or not isinstance(groups, int):
            return self.barrier(node, entering)
        mixed = line[0].view(groups, -1).T.flatten()
        return self.wide(node, Channels(laid(mixed, line[1], value.ndim), channels.since))

    def reduce(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A mean, sum, spread or maximum over positions; over channels it needs them all."""
        channels, dims = self._one(node, entering), argument(node, 1, "dim")
        listed = list(dims) if isinstance(dims, (tuple, list)) else [dims]
        if channels is None or not listed or not all(type(d) is int for d in listed):
            return self.barrier(node, entering)
        keepdim = value.ndim == channels.origin.ndim  # its place among the arguments differs
        gone = {d % channels.origin.ndim for d in listed}
        if gone & set(channels.dims):
            return self.barrier(node, entering)
        left = [size for d, size in enumerate(channels.origin.shape) if keepdim or d not in gone]
        return self.through(node, channels.at(channels.origin.reshape(left)))

    def extremum(self, node: fx.Node, module: Any, value: Any, entering: list[Channels]) -> Found:
        """The largest or smallest over positions, where nobody asks at which; of two tensors it needs them all."""
        if isinstance(value, Tensor) or not all(_takes_values(user) for user in node.users):
            return self.barrier(node, entering)
        found = self.reduce(node, module, value[0], entering)
        return None if found is None else (found, None)

    def add(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A sum: of the same channels it is theirs; with a number or a parameter, an offset; else nobody's."""
        first, second = self._operands(node)
        tensors = [one for one in (first, second) if one in self.values]
        if len(tensors) == 1 and not any(one is not tensors[0] and one in self.values for one in node.all_input_nodes):
            return self.offset(node, module, value, entering)
        mine = [self._at(one, value.ndim) for one in tensors]
        if len(mine) == 2 and mine[0] and mine[1] and agree(mine[0], mine[1]):
            return self.through(node, Channels(mine[0].origin, mine[0].since or mine[1].since))
        if len(mine) == 2 and (tracked := mine[0] or mine[1]) and not (mine[0] and mine[1]):
            shift = tensors[0] if tracked is mine[1] else tensors[1]
            if self.key(node) not in self.ledger.decided.opaque and self._scale(node, shift, tracked):
                return self._shifted(node, tracked)
        return self.barrier(node, entering)

    def mul(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """A product is 0 where a factor is: by a number, a map, a gate, a parameter, or the same channels."""
        operands = self._operands(node)
        tensors = [one for one in operands if one in self.values]
        mine = [self._at(one, value.ndim) for one in tensors]
        if is_division(node) and self.of(operands[1]) is not None:
            return self.barrier(node, entering)
        if len(tensors) == 1:
            return self.through(node, mine[0])
        if len(tensors) != 2:
            return self.barrier(node, entering)
        first, second = mine
        if first and second and agree(first, second):
            return self.through(node, first if first.since is None else Channels(first.origin, second.since))
        if not is_division(node) and self._gated(node, tensors, mine, value):
            return None  # the next round follows the gate
        if first and second:
            return self.barrier(node, entering)
        tracked = first or second
        if tracked is None:
            return None
        other = tensors[1] if first else tensors[0]
        shape = [1] * (value.ndim - self.values[other].ndim) + list(self.values[other].shape)
        if all(shape[d] == 1 for d in tracked.dims) or self._scale(node, other, tracked):
            return self.through(node, tracked)
        return self.wide(node, tracked)

    def _scale(self, node: fx.Node, scale: Any, channels: Channels) -> bool:
        """A parameter or buffer with one entry a channel, or what is computed of some entry by entry.

        The entries are the channels' (a layer scale; the gain, shift and statistics of a frozen BatchNorm).
        """
        line = channels.line
        if line is None or not isinstance(scale, fx.Node) or not self._has_entries(scale, *line):
            return False
        uses = self._tensors_of(scale, node)
        if uses is None:
            return False
        for tensor, _ in uses:
            self.ledger.use(str(tensor.target), Channels(line[0]))
        if any(self.ledger.is_opaque(str(tensor.target)) for tensor, _ in uses):
            return False
        for tensor, user in uses:
            self.understood.add((tensor, user))
            owner, _, name = str(tensor.target).rpartition(".")
            dim = next(d for d, size in enumerate(self.values[tensor].shape) if size > 1)
            self.ledger.share(owner, self.model.get_submodule(owner), name, dim, line[0], "follower")
        return True

    def _has_entries(self, node: fx.Node, origin: Origin, dim: int | None = None) -> bool:
        """Whether a tensor has one entry a channel and nothing else, in dimension ``dim`` or any one."""
        shape = self.values[node].shape
        dims = [d for d, size in enumerate(shape) if size > 1]
        return len(dims) == 1 and dim in (None, dims[0] - len(shape)) and shape[dims[0]] == len(origin)

    def _tensors_of(self, node: fx.Node, user: fx.Node) -> list[tuple[fx.Node, fx.Node]] | None:
        """The parameters and buffers that ``node`` is computed of, entry by entry, each with what takes it."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            holder = self.model.get_submodule(owner)
            held = holder._parameters.get(name, holder._buffers.get(name))
            # Of a constant nothing can become smaller; of a tensor the first two dimensions can.
            return [(node, user)] if held is not None and any(size > 1 for size in held.shape[:2]) else None
        if not self._entrywise(node):
            return None
        parts = [self._tensors_of(one, node) for one in node.all_input_nodes]
        found = [use for part in parts if part for use in part]
        if not all(parts):
            return None
        self.between.add(node)
        self.understood.add((node, user))
        return found

    def _entrywise(self, node: fx.Node) -> bool:
        """Whether each entry of the result comes from the same entry of what enters, at any number of entries."""
        if node.op not in ("call_function", "call_method"):
            return False
        kind = kind_of(node, None)
        if kind is Kind.VIEW:
            return all(size in (1, -1) for size in _listed(node.args[1:]))
        known = kind in (Kind.KEEP, Kind.OFFSET, Kind.MUL, Kind.ADD, Kind.RESHAPE) or node.target in _ROOTS
        return known and not spatial_dims(node, None, self.values[node].ndim)

    def _gated(self, node: fx.Node, tensors: list[Any], mine: list[Channels | None], value: Tensor) -> bool:
        """Whether one factor holds one number a channel, made by rows that can follow the other's channels."""
        for k, factor in enumerate(tensors):
            gate = factor
            while isinstance(gate, fx.Node) and gate.target in ("expand", "expand_as") and len(gate.users) == 1:
                gate = gate.args[0]
            other, shape = tensors[1 - k], self.values[gate].shape
            whole = self.values[other].shape
            wide = [d for d in range(1, value.ndim) if len(shape) == value.ndim and shape[d] > 1]
            if len(whole) != value.ndim or len(wide) != 1 or whole[wide[0]] != shape[wide[0]]:
                continue
            if all(size == 1 for d, size in enumerate(whole[1:], 1) if d != wide[0]):
                continue  # both are one number a channel: which is the gate?
            name = self._maker(gate, shape[wide[0]])
            channels = mine[1 - k]
            line = channels.line if channels else (nobody(shape[wide[0]]), wide[0] - value.ndim)
            if name and line is not None and line[1] == wide[0] - value.ndim:
                known = self.ledger.decided.gates.get(name)
                return (known is None or not known.equal(line[0])) and self.ledger.gate(name, line[0])
        return False

    def _maker(self, node: fx.Node, width: int) -> str:
        """The dense layer whose rows make a gate, if all they do is make it."""
        while len(node.users) == 1:
            module: Any = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
            kind = kind_of(node, module)
            if kind in (Kind.CONVOLUTION, Kind.LINEAR):
                name = str(node.target)
                fits = module is not None and owns_weight(module) and getattr(module, "groups", 1) == 1
                rows = module.out_channels if hasattr(module, "out_channels") else getattr(module, "out_features", 0)
                once = sum(n.op == "call_module" and n.target == node.target for n in self.graph.nodes) == 1
                return name if fits and once and rows == width and name not in self.ledger.decided.apart else ""
            tensors = [n for n in node.all_input_nodes if n in self.values and n.op != "get_attr"]
            if len(tensors) != 1 or not (kind in _GATE_KINDS or node.target is leaving or _only_adds_dimensions(node)):
                return ""
            node = tensors[0]
        return ""

    def cat(self, node: fx.Node, module: Any, value: Tensor, entering: list[Channels]) -> Channels | None:
        """Joins tensors along the channels, or along positions where all hold the same channels."""
        parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
        if not isinstance(parts, (tuple, list)) or not isinstance(dim, int) or any(c.since for c in entering):
            return self.barrier(node, entering)
        held = [self.of(part) for part in parts]
        if all(c is None or c.dims == (dim % value.ndim,) for c in held):
            lines: list[Origin] = [
                nobody(self.values[part].shape[dim]) if c is None else c.origin.flatten()
                for part, c in zip(parts, held)
            ]
            return self.through(node, Channels(laid(torch.cat(lines), dim % value.ndim - value.ndim, value.ndim)))
        first = held[0]
        if first and dim % value.ndim not in first.dims and all(c and agree(first, c) for c in held):
            return self.through(node, first)
        return self.barrier(node, entering)

    def _one(self, node: fx.Node, entering: Sequence[Channels]) -> Channels | None:
        """The channels of the only tensor that enters."""
        tensors = [n for n in node.all_input_nodes if n in self.values]
        return entering[0] if len(entering) == 1 and len(tensors) == 1 else None

    def _operands(self, node: fx.Node) -> tuple[Any, Any]:
        return argument(node, 0, "input"), argument(node, 1, "other")

    def _at(self, node: Any, ndim: int) -> Channels | None:
        """The channels of an operand, as it is broadcast to ``ndim`` dimensions."""
        channels = self.of(node)
        return None if channels is None else Channels(_aligned(channels.origin, ndim), channels.since)


_ROOTS = ("sqrt", "rsqrt", torch.sqrt, torch.rsqrt)
_GATE_KINDS = (Kind.KEEP, Kind.OFFSET, Kind.RESHAPE, Kind.VIEW, Kind.EXPAND, Kind.NORM, Kind.MUL, Kind.ADD)


def _only_adds_dimensions(node: fx.Node) -> bool:
    """``x[:, :, None, None]``."""
    index = node.args[1] if node.target is operator.getitem else ()
    parts = index if isinstance(index, tuple) else (index,)
    return bool(parts) and all(part is None or part is Ellipsis or part == slice(None) for part in parts)


def _takes_values(user: fx.Node) -> bool:
    """Whether the user of an extremum takes the values, or takes where they stand and makes nothing of it."""
    part = argument(user, 1, "") if user.target in (operator.getitem, getattr) else None
    return part in (0, "values") or (part in (1, "indices") and not user.users)


def _aligned(origin: Int[Tensor, "..."], ndim: int) -> Int[Tensor, "..."]:
    return origin.reshape([1] * (ndim - origin.ndim) + list(origin.shape))


def _listed(arguments: Any) -> list[Any]:
    """Sizes or dimensions that were given one by one, or as one tuple."""
    flat = list(arguments)
    return list(flat[0]) if len(flat) == 1 and isinstance(flat[0], (tuple, list)) else flat


def _own(kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "input"}
