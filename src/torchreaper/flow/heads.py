"""What a layer's channels pass by themselves: there a convolution can run narrow although a barrier follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from torchreaper.flow.channels import Activation, FeatureMap, Flow
from torchreaper.flow.following import Channels
from torchreaper.flow.operations import Kind, is_nonlinear, kind_of, leaves_values
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
    """Layer -> where its feature map can be seen: behind the norm that reads nothing else, before the activation.

    A layer that is called several times, with different things behind it, shows itself only where it stands.
    """
    found: dict[str, list[FeatureMap]] = {}
    for node, name in walk.starts.items():
        if name in flow.sites:
            found.setdefault(name, []).append(_feature_map(walk, node, name, flow))
    return {name: maps[0] if all(one == maps[0] for one in maps) else FeatureMap(name) for name, maps in found.items()}


def _feature_map(walk: Walk, node: fx.Node, name: str, flow: Flow) -> FeatureMap:
    own, seen, moved = walk.of(node), name, False
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        module = walk.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        channels, nonlinear = walk.of(before), is_nonlinear(node, module)
        if len(walk.entering(node.all_input_nodes)) != 1:
            break
        if nonlinear and channels is not None and channels.since is None:
            return FeatureMap(seen, _activation(node, before))
        # What only pools or drops out is passed, and no map is looked for behind it.
        moved = moved or leaves_values(node, module)
        within = nonlinear or moved or node.target is leaving or kind_of(node, module) is Kind.NORM
        if not within or not _same_line(own, walk.of(node)):
            break
        place = str(node.args[1]) if node.target is leaving else str(node.target)
        if place in flow.sites and node.op != "call_method" and not moved:
            seen = place
    return FeatureMap(seen)


def _activation(node: fx.Node, of: fx.Node) -> Activation | None:
    """``None`` where something else that is computed goes into it."""
    kwargs = {name: value for name, value in node.kwargs.items() if value is not of}
    given = [*node.args, *node.kwargs.values()]
    if given.count(of) != 1 or any(isinstance(value, fx.Node) and value is not of for value in given):
        return None
    return Activation(node.target, node.op, tuple(a for a in node.args if a is not of), tuple(kwargs.items()))


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
