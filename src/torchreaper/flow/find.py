"""Channel flow: which channels of which tensor come from which filter.

The model is traced with ``torch.fx``, in train and in eval mode, and each graph is walked on fake tensors: nothing is
computed, no buffer and no random number generator is touched. Every tensor on the way carries, for each position of its
channel dimension, the id of the filter it comes from. What the walk does not understand is a *barrier*: a place where
the tensor must keep its full width, with zeros where filters are missing. What cannot be traced is one opaque call, and
the convolutions in it are found by running it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from torchreaper.errors import ReaperError
from torchreaper.flow.channels import Flow, Share
from torchreaper.flow.following import Key
from torchreaper.flow.heads import feature_maps, heads
from torchreaper.flow.ledger import Decisions, Ledger
from torchreaper.flow.operations import CONVOLUTIONS, is_known_module
from torchreaper.flow.reading import owns_weight
from torchreaper.flow.recording import record, run_box
from torchreaper.flow.rows import own_rows
from torchreaper.flow.tracing import (
    ExampleInputs,
    bind_arguments,
    collected,
    fake_buffers,
    first_line,
    refuse_wrappers,
    trace,
    training_mode,
    undisturbed,
)
from torchreaper.flow.walk import Walk
from torchreaper.flow.walking import DoesNotRunError


def find_flow(model: nn.Module, example_inputs: ExampleInputs, apart: frozenset[str] = frozenset()) -> Flow:
    """Trace ``model`` in train and eval mode and unite what both graphs say.

    Args:
        model: a plain module; wrappers (DDP, ``torch.compile``) are refused.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``model.forward``; only
            shapes, dtypes and devices are used.
        apart: depthwise convolutions and gates that keep filters of their own, so that they can be ranked.

    Raises:
        ReaperError: the model does not run on ``example_inputs``.
    """
    refuse_wrappers(model)
    arguments = bind_arguments(model, example_inputs)
    with undisturbed(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the model's code warns of on stand-ins for its tensors
        return _united(model, arguments, set(apart))


def _united(model: nn.Module, arguments: dict[str, Any], apart: set[str]) -> Flow:
    traced = []
    for training in (False, True):
        with training_mode(model, training):
            traced.append(trace(model, arguments))
    untraced = {name: why for one in traced for name, why in one.untraced.items()}
    graphs = [one.graph for one in traced if one.graph is not None]
    if len(graphs) < 2:
        start = _ids(model, _convolutions(model))
        shared = _sharing(model)
        flow: Flow = _checked_run(lambda: record(model, arguments, *start, shared, untraced[""]), model, arguments)
    else:
        # A module that hands out a tensor in one mode and several in the other cannot carry a mask.
        several: set[Key] = {("module", f"{name}, leaving") for one in traced for name in one.several}
        flow = _walked(model, arguments, graphs, untraced, Decisions(opaque=several, apart=apart))
    _find_computed(model, flow)
    return flow


def _walked(
    model: nn.Module,
    arguments: dict[str, Any],
    graphs: Sequence[fx.GraphModule],
    untraced: dict[str, str],
    decisions: Decisions,
) -> Flow:
    """Walk both graphs until a round decides nothing new."""
    start, total = _ids(model, _called(model, graphs, untraced))
    while True:
        ledger = Ledger(Flow(dict(start), total, untraced=untraced), decisions)
        walks = []
        # Training first: its positions are those that count.
        for mode, graph in (("train", graphs[1]), ("eval", graphs[0])):
            training = mode == "train"
            box = run_box(model, ledger, count=training)
            walk = Walk(model, graph, ledger, mode, boxes=set(untraced), box=box)
            with training_mode(model, training), fake_buffers(model, walk.fake):
                _checked_run(lambda walk=walk: _run(walk, arguments), model, arguments)  # type: ignore[misc]
            walks.append(walk)
        _note_shared(model, walks, ledger)
        if decisions.state() == ledger.decided.state():
            ledger.flow.gates = {name: o for name, o in decisions.gates.items() if name not in decisions.apart}
            ledger.flow.heads = heads(walks, ledger.flow)
            ledger.flow.maps = feature_maps(walks[1], ledger.flow)
            return ledger.flow


def _run(walk: Walk, arguments: Mapping[str, Any]) -> None:
    fake, apart = walk.fake.from_tensor, collected(walk.model)
    given = tree_map(lambda x: fake(x.detach()) if isinstance(x, Tensor) else x, dict(arguments))
    walk.collected = {name: value for name, value in given.items() if name in apart}
    walk.run(*(value for name, value in given.items() if name not in apart))


def _checked_run(run: Callable[[], Any], model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    try:
        return run()
    except DoesNotRunError as error:
        shapes = tree_map(lambda x: list(x.shape) if isinstance(x, Tensor) else x, dict(arguments))
        raise ReaperError(
            f"example_inputs={shapes}: {type(model).__name__} does not run on them "
            f"({first_line(error)}); pass a batch as in training, on the model's device"
        ) from error


def _convolutions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]


def _called(model: nn.Module, graphs: Iterable[fx.GraphModule], untraced: Mapping[str, str]) -> list[str]:
    """The convolutions that are called, in order of execution.

    The evaluation graph comes first: in training a model may go its ways at random.
    """
    found: dict[str, None] = {}
    for graph in graphs:
        for node in graph.graph.nodes:
            name = str(node.target)
            if node.op == "call_module" and isinstance(model.get_submodule(name), CONVOLUTIONS):
                found[name] = None
            elif node.op == "call_module" and name in untraced:
                inside = model.get_submodule(name)
                found |= {f"{name}.{inner}": None for inner in _convolutions(inside) if inner}
            elif node.op == "get_attr" and name.endswith(".weight"):
                owner = name.removesuffix(".weight")
                if isinstance(module := model.get_submodule(owner), CONVOLUTIONS) and not is_known_module(module):
                    found[owner] = None
    return list(found)


def _ids(model: nn.Module, names: Iterable[str]) -> tuple[dict[str, int], int]:
    """The first filter id of every convolution, and how many ids there are."""
    start, total = {}, 0
    for name in names:
        start[name] = total
        total += _width(model, name)
    return start, total


def _width(model: nn.Module, name: str) -> int:
    module: Any = model.get_submodule(name)
    return int(module.out_channels)


def _sharing(model: nn.Module) -> set[str]:
    """Modules with a parameter that another module holds too."""
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)].append(name)
    return {name for names in holders.values() if len(names) > 1 for name in names}


def _note_shared(model: nn.Module, walks: Sequence[Walk], ledger: Ledger) -> None:
    """Modules with a parameter that another module holds too, or that a forward method takes by itself.

    What one use of it leaves out, the other would miss.
    """
    shared = _sharing(model)
    called = {str(node.target) for walk in walks for node in walk.graph.nodes if node.op == "call_module"}
    for walk in walks:
        for node in [node for node in walk.graph.nodes if node.op == "get_attr"]:
            # `weight.dtype` and the like take nothing of the weight.
            users = [user for user in node.users if user.target is not getattr]
            owner, _, tensor = str(node.target).rpartition(".")
            apart = _strays(node, users, walk)
            if users and (apart or owner in called):
                shared.add(owner)
                if tensor in ledger.flow.shares.get(owner, {}):
                    ledger.decisions.opaque.add(("module", str(node.target)))
    ledger.flow.shared |= shared
    ledger.decisions.opaque |= {("module", name) for name in shared if name in ledger.flow.shares}


def _strays(node: fx.Node, users: Iterable[fx.Node], walk: Walk) -> bool:
    """Whether a parameter, or what is computed of it alone, goes where nothing is known of its entries."""
    return any(
        (node, user) not in walk.understood or (user in walk.between and _strays(user, user.users, walk))
        for user in users
    )


def _find_computed(model: nn.Module, flow: Flow) -> None:
    """Convolutions that compute their weight: their filters' own rows, or why they cannot be left out."""
    for name, first in flow.start.items():
        module = model.get_submodule(name)
        if owns_weight(module) and is_known_module(module):
            continue
        if "weight" in flow.shares.get(name, {}):  # its forward is its own, but takes the weight as it is
            continue
        tensors, flow.computed[name] = own_rows(module)
        origin = torch.arange(first, first + _width(model, name), device="cpu")
        for part, tensor in tensors:
            owner = ".".join(filter(None, (name, part)))
            flow.share(owner, tensor, Share(0, origin, "filter"))
            flow.kept_values.add(owner)
