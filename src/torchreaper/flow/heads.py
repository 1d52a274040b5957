"""What a layer's channels pass by themselves: there a convolution can run narrow although a barrier follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from torchreaper.flow.channels import Activation, FeatureMap, Flow
from torchreaper.flow.following import Channels
from torchreaper.flow.operations import Kind, is_nonlinear, kind_of
from torchreaper.flow.tracing import leaving
from torchreaper.flow.walk import Walk


def heads(walks: Sequence[Walk], flow: Flow) -> dict[str, tuple[str, ...]]:
    """Layer -> the convolution, and the modules right behind it up to the last one after which a mask can stand.

    Norms and activations count as long as nothing else reads the channels on the way, in either graph.
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    calls: dict[tuple[str, str], int] = {}
    for walk in walks:
        for node in walk.graph.nodes:
            if node.op == "call_module":
                key = (walk.mode, str(node.target))
                calls[key] = calls.get(key, 0) + 1
            name = walk.starts.get(node)
            if name is not None and node in walk.passed and node in walk.channels:
                found.setdefault(name, []).append(_chain(walk, node, name, flow))
    return {
        name: chains[0]
        if all(chain == chains[0] for chain in chains)
        and all(calls.get((walk.mode, part), 0) <= 1 for walk in walks for part in chains[0])
        else (name,)
        for name, chains in found.items()
        if name in flow.sites
    }


def feature_maps(walk: Walk, flow: Flow) -> dict[str, FeatureMap]:
    """Layer -> where its feature map can be seen: behind the norm that reads nothing else, before the activation."""
    found: dict[str, FeatureMap] = {}
    for node, name in walk.starts.items():
        if name in flow.sites and name not in found:
            found[name] = _feature_map(walk, node, name, flow)
    return found


def _feature_map(walk: Walk, node: fx.Node, name: str, flow: Flow) -> FeatureMap:
    own, seen = walk.of(node), name
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        module = walk.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        channels = walk.of(before)
        if len(walk.entering(node.all_input_nodes)) != 1:
            break
        if is_nonlinear(node, module) and channels is not None and channels.since is None:
            return FeatureMap(seen, Activation(node.target, node.op, tuple(node.args[1:]), tuple(node.kwargs.items())))
        within = is_nonlinear(node, module) or node.target is leaving or isinstance(module, nn.Identity)
        if not (within or kind_of(node, module) is Kind.NORM) or not _same_line(own, walk.of(node)):
            break
        place = str(node.args[1]) if node.target is leaving else str(node.target)
        if place in flow.sites and node.op != "call_method":
            seen = place
    return FeatureMap(seen)


def _chain(walk: Walk, node: fx.Node, name: str, flow: Flow) -> tuple[str, ...]:
    own = walk.of(node)
    names, last = [name], 1
    while len(node.users) == 1:
        node = next(iter(node.users))
        channels = walk.of(node)
        if node not in walk.passed or not _same_line(own, channels) or len(walk.entering(node.all_input_nodes)) != 1:
            break
        module = str(node.target) if node.op == "call_module" else str(node.args[1]) if node.target is leaving else ""
        if module and module not in names:
            names.append(module)
        if module in flow.sites:
            last = len(names)
    return tuple(names[:last])


def _same_line(first: Channels | None, second: Channels | None) -> bool:
    if first is None or second is None or first.line is None or second.line is None:
        return False
    return torch.equal(first.line[0], second.line[0])
