"""The ground on which the rules of the channel flow stand: one graph of a model, run on fake tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Union

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torchreaper.flow.following import Channels, Key, agree
from torchreaper.flow.ledger import Ledger
from torchreaper.flow.operations import Kind, argument, is_known_module

Found = Union[Channels, tuple[Union[Channels, None], ...], None]
"""The channels of a value: of one tensor, or of every part of a tuple."""


class DoesNotRunError(Exception):
    """The model itself fails on the inputs."""


class Walking(fx.Interpreter):
    """What every rule needs: the channels of all values so far, and where to write down what it finds.

    Attributes:
        model: the model itself; the graph's own module holds only what the graph calls.
        ledger: where everything is written down.
        mode: "train" or "eval".
        channels: of every value that holds any.
        values: fake tensors, for their shapes.
        passed: nodes that work at any width of the channels that pass them.
        starts: nodes at which a convolution starts channels of its own, and its name.
        understood: (parameter node, user) pairs whose use of the parameter is accounted for.
        between: nodes that compute a per-channel value of parameters; their own uses are among the pairs.
    """

    def __init__(self, model: nn.Module, graph: fx.GraphModule, ledger: Ledger, mode: str) -> None:
        super().__init__(graph)
        self.model = model
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.ledger, self.mode = ledger, mode
        self.channels: dict[fx.Node, Found] = {}
        self.values: dict[fx.Node, Tensor] = {}
        self.passed: set[fx.Node] = set()
        self.starts: dict[fx.Node, str] = {}
        self.understood: set[tuple[fx.Node, fx.Node]] = set()
        self.between: set[fx.Node] = set()
        self._sizes: dict[fx.Node, tuple[Channels, int | None]] = {}

    def key(self, node: fx.Node) -> Key:
        """The name by which decisions know an operation."""
        return ("module", str(node.target)) if node.op == "call_module" else ("node", self.mode, node.name)

    def entering(self, nodes: Sequence[fx.Node]) -> list[Channels]:
        """All channels that these nodes hold."""
        found: list[Channels] = []
        for node in nodes:
            channels = self.channels.get(node)
            parts = channels if isinstance(channels, tuple) else (channels,)
            found += [part for part in parts if part is not None]
        return found

    def of(self, node: Any) -> Channels | None:
        """The channels of one tensor."""
        channels = self.channels.get(node) if isinstance(node, fx.Node) else None
        return channels if isinstance(channels, Channels) else None

    def barrier(self, node: fx.Node, entering: Sequence[Channels]) -> Channels | None:
        """The node needs full width, and what it puts out is nobody's."""
        for channels in entering:
            self.ledger.barrier(place(node), channels)
        return None

    def wide(self, node: fx.Node, found: Channels | None) -> Channels | None:
        """The node needs full width, and the channels go on."""
        if found is not None:
            self.ledger.wide(place(node), found)
        return found

    def through(self, node: fx.Node, found: Channels | None) -> Channels | None:
        """The node works at any width."""
        self.passed.add(node)
        return found

    def masked(self, node: fx.Node, name: str, channels: Channels) -> Channels | None:
        """Channels behind an offset: clean again where a module can carry a mask, else to be settled."""
        if channels.since is not None and node.op == "call_module":
            channels = self.ledger.site(name, channels)
        elif self.key(node) in self.ledger.decided.opaque:
            return self.barrier(node, [Channels(channels.origin)])
        return self.through(node, channels)

    def owner(self, node: fx.Node) -> str:
        """The module that computes: the called one, or the one whose tensors a function takes.

        ``""`` where the function takes tensors of several modules, or computed ones, or one under another name than
        its own (a norm's ``gamma``).
        """
        if node.op == "call_module":
            return str(node.target)
        names = ("running_mean", "running_var", "weight", "bias") if "norm" in place(node) else ("weight", "bias")
        given = {name: one for k, name in enumerate(names, 1) if (one := argument(node, k, name)) is not None}
        if not given or not all(isinstance(one, fx.Node) and one.op == "get_attr" for one in given.values()):
            return ""
        paths = {name: str(one.target).rpartition(".") for name, one in given.items()}
        if any(path[2] != name for name, path in paths.items()):
            return ""  # the rules go by the names: another tensor would be taken for the one that is called so
        owners = {path[0] for path in paths.values()}
        if len(owners) > 1 or is_known_module(self.model.get_submodule(min(owners))):
            return ""  # a known module's tensors are used by the module itself: here they are used once more
        self.understood |= {(one, node) for one in given.values()}
        return owners.pop()

    # What a model reads from a shape it may compute with: then the width must stay as it is.

    def note_size(self, node: fx.Node) -> None:
        """The node asks for something about a tensor: its shape, one of its sizes, or what may depend on them."""
        channels = self.of(node.args[0]) if node.args else None
        dim = argument(node, 1, "dim") if node.target == "size" else None
        if channels is not None and (dim is None or channels.origin.shape[dim] > 1):
            self._sizes[node] = (channels, dim)

    def check_sizes(self, node: fx.Node, kind: Kind) -> None:
        """The node takes sizes of channels: right in a view of the same channels, unknown anywhere else."""
        for size in [n for n in node.all_input_nodes if n in self._sizes]:
            channels, dim = self._sizes[size]
            if node.target is operator.getitem and dim is None:
                index = node.args[1]
                if isinstance(index, int):
                    if channels.origin.shape[index] > 1:
                        self._sizes[node] = (channels, index)
                    continue
                if isinstance(index, slice) and all(width == 1 for width in channels.origin.shape[index]):
                    continue
            mine = self.of(node.args[0])
            if kind not in (Kind.VIEW, Kind.EXPAND) or mine is None or not _same_ids(mine.origin, channels.origin):
                self.ledger.wide(place(node), channels)

    def adapts(self, node: fx.Node, sizes: Sequence[Any], origin: Int[Tensor, "..."]) -> bool:
        """Whether the given sizes of a view leave the channel dimension to what it is at run time."""
        dims = Channels(origin).dims
        if len(dims) != 1:
            return not dims
        if len(sizes) == 1 and origin.ndim > 1:  # a whole shape
            return sizes[0] in self._sizes and agree(self._sizes[sizes[0]][0], Channels(origin))
        size = sizes[dims[0]] if dims[0] < len(sizes) else None
        measured = self._sizes.get(size) if isinstance(size, fx.Node) else None
        return size == -1 or (measured is not None and _same_ids(measured[0].origin, origin))


def place(node: fx.Node) -> str:
    """How an operation is named in a reason."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)


def _same_ids(first: Int[Tensor, "..."], second: Int[Tensor, "..."]) -> bool:
    return torch.equal(first.flatten(), second.flatten())
