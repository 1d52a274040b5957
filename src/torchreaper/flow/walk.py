"""The walk over one graph of a model: every operation is run on fake tensors, and its rule applied to the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchreaper.flow.channels import NOBODY
from torchreaper.flow.following import Channels
from torchreaper.flow.ledger import Ledger
from torchreaper.flow.moving import Moving
from torchreaper.flow.operations import NORMS, Kind, kind_of, tells_no_width
from torchreaper.flow.reading import Reading
from torchreaper.flow.tracing import first_line, has_foreign_hooks, holds_tensor, leaving
from torchreaper.flow.walking import DoesNotRunError, Found

Box = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a module that could not be traced; what it holds is noted on the way."""


class Walk(Reading, Moving):
    """Carries :class:`Channels` beside every value of one graph.

    Args:
        model: the model itself.
        graph: the model's graph in one mode.
        ledger: where everything is written down.
        mode: "train" or "eval".
        boxes: modules of the graph that are one opaque call.
        box: runs one of them.

    Attributes:
        collected: what the model's forward gets as ``*args`` and ``**kwargs``, by their names.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.GraphModule,
        ledger: Ledger,
        mode: str,
        *,
        boxes: set[str],
        box: Box,
    ) -> None:
        super().__init__(model, graph, ledger, mode)
        self._boxes, self._box = boxes, box
        self.collected: dict[str, Any] = {}
        self.leads: dict[fx.Node, set[str]] = {}
        self._order = {node: k for k, node in enumerate(graph.graph.nodes)}
        self._rules: dict[Kind, Callable[[fx.Node, Any, Any, list[Channels]], Found]] = {
            **{Kind.CONVOLUTION: self.convolution, Kind.LINEAR: self.linear, Kind.NORM: self.norm},
            **{Kind.SLOPE: self.slope, Kind.KEEP: self.keep, Kind.OFFSET: self.offset, Kind.RESHAPE: self.reshape},
            **{Kind.VIEW: self.view, Kind.EXPAND: self.expand, Kind.PERMUTE: self.permute, Kind.SLICE: self.slice},
            **{Kind.SPLIT: self.split, Kind.SHUFFLE: self.shuffle, Kind.REDUCE: self.reduce, Kind.MUL: self.mul},
            **{Kind.ADD: self.add, Kind.CAT: self.cat, Kind.EXTREMUM: self.extremum},
        }

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An argument. What a forward collects, ``*args`` or ``**kwargs``, is one: fx would take all that are left."""
        if target.startswith("*"):
            return self.collected[target.lstrip("*")]
        return super().placeholder(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module past its hooks: they are the user's, and must not see fake tensors."""
        module = self.fetch_attr(target)
        if str(target) in self._boxes:
            return self._box(str(target), args, kwargs)
        if isinstance(module, NORMS):  # a shape is all that counts, also where a batch would be too small to normalise
            return torch.empty_like(args[0] if args else kwargs["input"])
        return module.forward(*args, **kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function; of a norm a shape is all that counts."""
        if target is torch.nn.functional.batch_norm:
            return torch.empty_like(args[0] if args else kwargs["input"])
        return super().call_function(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        """Run one node and follow the channels through it."""
        inputs = node.all_input_nodes
        versions = {n: self.values[n]._version for n in inputs if n in self.channels and n in self.values}
        with self.fake, torch.no_grad():
            try:
                value = super().run_node(node)
            except Exception as error:
                raise DoesNotRunError(first_line(error)) from error
        if isinstance(value, Tensor):
            self.values[node] = value
        if node.op == "output":
            self.ledger.flow.outputs.update(*(self.leads[n] for n in inputs))
            for channels in self.entering(inputs):
                self.ledger.settle(channels)
                self.ledger.flow.outputs.update(self.ledger.flow.layers_of(channels.origin))
            return value
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        kind = Kind.BARRIER if module is not None and node.target in self._boxes else kind_of(node, module)
        self.leads[node] = self._leads(node, kind)
        self.check_sizes(node, kind)
        if holds_tensor(value):
            found = self._follow(node, kind, module, value)
            if kind not in (Kind.KEEP, Kind.MUL):
                self._forget_changed(node, versions)
            if found is not None:
                self.channels[node] = found
        elif not tells_no_width(node):
            self.note_size(node)
        return value

    def _follow(self, node: fx.Node, kind: Kind, module: nn.Module | None, value: Any) -> Found:
        entering = self.entering(node.all_input_nodes)
        hooked = module is not None and has_foreign_hooks(module)
        if hooked and kind is Kind.CONVOLUTION:
            own = self.convolution(node, module, value, [])
            self.passed.discard(node)
            return self.barrier(node, entering + ([own] if own else []))
        rule = self.leave if node.target is leaving else self._rules.get(kind)
        if rule is None or hooked or not (isinstance(value, Tensor) or kind in _TUPLES):
            return self.barrier(node, entering)
        if not entering and kind not in _WITHOUT_CHANNELS_TOO:
            return None
        found = rule(node, module, value, entering)
        if not isinstance(found, Channels):
            return found
        if found.origin.ndim != value.ndim or any(value.shape[d] != found.origin.shape[d] for d in found.dims):
            return self.barrier(node, [found])
        return found if (found.origin != NOBODY).any() else None

    def _leads(self, node: fx.Node, kind: Kind) -> set[str]:
        """The convolutions whose channels, or a function of each of them, this node hands on: a softmax of classes too.

        What reads channels, or adds other channels to them, ends it.
        """
        if kind is Kind.CONVOLUTION:
            name = self.owner(node)
            return {name} if name in self.ledger.flow.start else set()
        tensors = [n for n in node.all_input_nodes if n in self.values]
        if kind is Kind.LINEAR or (kind is Kind.ADD and len(tensors) > 1):
            return set()
        return set().union(*(self.leads[n] for n in node.all_input_nodes if n in self.leads))

    def _forget_changed(self, node: fx.Node, versions: dict[fx.Node, int]) -> None:
        """What an in-place operation has written to is no longer the filter's, in any view that is used again."""
        now = self._order[node]
        for changed in [n for n, version in versions.items() if self.values[n]._version != version]:
            storage = self.values[changed].untyped_storage()
            for alias in [n for n in self.channels if n in self.values]:
                if alias is not node and self.values[alias].untyped_storage() == storage:
                    gone = self.channels.pop(alias)
                    again = any(self._order[user] > now for user in alias.users)
                    if again and isinstance(gone, Channels):
                        self.barrier(node, [gone])


_TUPLES = (Kind.SPLIT, Kind.SLICE, Kind.EXTREMUM)
"""What may hand out, or take a part of, several tensors."""
_WITHOUT_CHANNELS_TOO = (Kind.CONVOLUTION, Kind.LINEAR, Kind.NORM, Kind.SLOPE, Kind.MUL)
"""What counts, starts channels, or may find a gate also where none enter."""
