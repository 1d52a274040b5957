"""Tracing a model with ``torch.fx``, and leaving it exactly as it was found."""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import BoundArguments, Parameter, signature
from typing import Any, Union

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from torchreaper.errors import ReaperError
from torchreaper.flow.operations import CONVOLUTIONS, NORMS, Kind, argument, is_known_module, kind_of
from torchreaper.flow.putting_back import attributes_put_back, random_states_put_back

ExampleInputs = Union[Tensor, Sequence[Any], Mapping[str, Any]]


def refuse_wrappers(model: nn.Module) -> None:
    """Raise :class:`ReaperError` for what is no plain module."""
    if not isinstance(model, nn.Module):
        raise ReaperError(f"model={model!r}: must be a torch.nn.Module")
    if hasattr(model, "_orig_mod"):
        raise ReaperError(
            f"model={type(model).__name__}: already compiled; attach to the plain module first, then call torch.compile"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ReaperError(f"model={type(model).__name__}: a wrapper; pass model.module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ReaperError(f"model={type(model).__name__}: scripted; pass the module it was made from")
    refuse_shards(model)


def refuse_shards(model: nn.Module) -> None:
    """Raise :class:`ReaperError` where no rank holds whole filters (FSDP, tensor parallelism)."""
    tensors, fsdp = sys.modules.get("torch.distributed.tensor"), sys.modules.get("torch.distributed.fsdp")
    sharded = next((n for n, p in model.named_parameters() if tensors and isinstance(p, tensors.DTensor)), None)
    flat = next((n for n, m in model.named_modules() if fsdp and isinstance(m, fsdp.FullyShardedDataParallel)), None)
    if sharded is not None or flat is not None:
        what = f"{sharded} is a shard, a DTensor" if sharded is not None else f"{flat or 'it'} is wrapped by FSDP"
        raise ReaperError(
            f"model={type(model).__name__}: {what}, and filters are dropped whole; use DistributedDataParallel"
        )


def bind_arguments(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, Any]:
    """Every argument of ``model.forward`` with its value, defaults included, in order."""
    if isinstance(example_inputs, Mapping):
        args, kwargs = tuple[Any, ...](), dict(example_inputs)
    elif isinstance(example_inputs, Tensor):
        args, kwargs = (example_inputs,), {}
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise ReaperError(
            f"example_inputs={type(example_inputs).__name__}: must be a tensor, a tuple of arguments, or a dict of them"
        )
    try:
        bound = signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ReaperError(
            f"example_inputs: {type(model).__name__}.forward does not take them ({error}); "
            "pass what the model is called with"
        ) from error
    bound.apply_defaults()
    return dict(bound.arguments)


def collected(model: nn.Module) -> set[str]:
    """The names under which ``forward`` collects arguments: of ``*args`` and ``**kwargs``."""
    kinds = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return {name for name, one in signature(model.forward).parameters.items() if one.kind in kinds}


def called(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What ``model.forward`` gives for the arguments of :func:`bind_arguments`."""
    bound = BoundArguments(signature(model.forward), OrderedDict(arguments))
    return model.forward(*bound.args, **bound.kwargs)


class _InPlaceProxy(fx.Proxy):
    """Records ``x += y`` as the in-place operation it is; fx would fall back to ``x = x + y``."""

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def __int__(self) -> int:
        """A size as a plain number, as the example has it; the graph says that it was taken."""
        assert isinstance(self.tracer, _Tracer)
        number = self.tracer.number(self.node)
        if number is None:
            raise TypeError(f"int() of {self.node}, which the model computes, cannot be traced")
        self.tracer.create_proxy("call_function", taken_as_number, (self,), {})
        return number

    def _in_place(self, operation: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})


def seen_by_a_hook(value: Any) -> Any:
    """Stands in the graph where a user's hook sees, and may change, a value: nothing is known of it."""
    return value


def taken_as_number(size: Any) -> Any:
    """Stands in the graph where the model goes on with the number that a size is: it does not change with the size."""
    return size


def leaving(value: Any, module: str) -> Any:
    """Stands in the graph where ``module`` hands out its result: a hook on it can put a mask there."""
    return value


class _Example:
    """The values that the traced nodes have on the example inputs, as far as shapes decide them."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        self._model, self._arguments = model, arguments
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        # While fx traces, both of these are replaced by its own.
        self._plain = nn.Module.__getattr__, nn.Module.__call__

    def value(self, node: fx.Node) -> Any:
        """``None`` where the model's own code fails on fake tensors."""
        traced = nn.Module.__getattr__, nn.Module.__call__
        nn.Module.__getattr__, nn.Module.__call__ = self._plain  # type: ignore[method-assign]
        try:
            with self._fake, torch.no_grad(), fake_buffers(self._model, self._fake):
                for one in node.graph.nodes:
                    if one not in self._values:
                        self._values[one] = self._run(one)
                    if one is node:
                        break
            return self._values[node]
        except Exception:
            return None
        finally:
            nn.Module.__getattr__, nn.Module.__call__ = traced  # type: ignore[method-assign]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            given = self._arguments.get(str(node.target).lstrip("*"))
            return tree_map(lambda x: self._fake.from_tensor(x.detach()) if isinstance(x, Tensor) else x, given)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._model)
        args: Any = fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._values.__getitem__)
        if node.op == "call_module":
            module = self._model.get_submodule(str(node.target))
            if isinstance(module, NORMS):  # a shape is all that counts; one over all ranks would wait for them
                return torch.empty_like(args[0] if args else kwargs["input"])
            return module.forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _Tracer(fx.Tracer):
    """Goes into everything but torch's own layers and the user's subclasses that compute the same.

    A module inside of which nothing can be traced becomes one opaque call; ``untraced`` says which, and why.
    """

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.untraced: dict[str, str] = {}
        self.several: set[str] = set()
        self._arguments = arguments
        self._collected = collected(model)
        self._example = _Example(model, arguments)
        # Of a module that holds buffers alone, as a frozen BatchNorm does, they are values like parameters.
        self._values = {
            id(buffer)
            for module in model.modules()
            if not module._parameters and not module._modules
            for buffer in module._buffers.values()
            if isinstance(buffer, Tensor) and buffer.ndim == 1 and buffer.is_floating_point()
        }

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter, and some buffers, are nodes of the graph; all else is what it is."""
        self.proxy_buffer_attributes = id(attr_val) in self._values
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known_module(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A branch on sizes goes the way of the example; one on what a tensor holds cannot be traced."""
        answer = self._example.value(obj.node)
        return answer if isinstance(answer, bool) else super().to_bool(obj)

    def number(self, node: fx.Node) -> int | None:
        """The whole number that ``node`` is on the example, where it is one."""
        found = self._example.value(node)
        return found if type(found) is int else None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Decorated ones are called by the names of their arguments: fx reads them from the code of the decorator."""
        named = {name: v for name, v in self._arguments.items() if name not in self._collected}
        if not hasattr(root_fn, "__wrapped__") or any(holds_tensor(self._arguments[name]) for name in self._collected):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in named]

        def called(root: nn.Module, *given: Any) -> Any:
            values = {name: one if holds_tensor(named[name]) else named[name] for name, one in zip(named, given)}
            return root_fn(root, **values)

        return called, [self.root, *proxies]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            name = self.path_of_module(m)
        except NameError:  # made on the way, such as a slice of an nn.Sequential
            return m.forward(*args, **kwargs)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        # An attribute of a proxy gets its node when it is first asked for: not in here, where nodes may be taken back.
        tree_map(lambda v: v.node if isinstance(v, fx.Proxy) else v, (args, kwargs))
        before = set(self.graph.nodes)
        try:
            result = self._inside(m, name, args, kwargs)
            if not isinstance(m, CONVOLUTIONS) or self._uses_its_weight(name, before):
                return result
        except Exception as error:  # fx raises whatever the module's own code raises on a proxy
            self.untraced[name] = first_line(error)
        for node in reversed([node for node in self.graph.nodes if node not in before]):
            self.graph.erase_node(node)
        return self.create_proxy("call_module", name, args, kwargs)

    def _inside(self, m: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if has_foreign_hooks(m):
            # Past the hooks, which would meet proxies, but with a mark where they stand.
            args, kwargs = self._marked(args), self._marked(kwargs)
            return self._marked(m.forward(*args, **kwargs))
        result = m.forward(*args, **kwargs)
        if not isinstance(result, fx.Proxy):
            self.several.add(name)
            return result
        return self.create_proxy("call_function", leaving, (result, name), {})

    def _uses_its_weight(self, name: str, before: set[fx.Node]) -> bool:
        """Whether a convolution with a forward of its own convolves once, with its weight as it is."""
        new = [node for node in self.graph.nodes if node not in before and kind_of(node, None) is Kind.CONVOLUTION]
        weights = [argument(node, 1, "weight") for node in new]
        return [getattr(weight, "target", None) for weight in weights] == [f"{name}.weight"]

    def _marked(self, values: Any) -> Any:
        return tree_map(
            lambda v: self.create_proxy("call_function", seen_by_a_hook, (v,), {}) if isinstance(v, fx.Proxy) else v,
            values,
        )


@dataclass(frozen=True)
class Traced:
    """A model's graph in one mode.

    Attributes:
        graph: on the very modules of the model; ``None`` where nothing of it can be traced.
        untraced: modules that are one opaque call in it ("" for the model), and why.
        several: modules that hand out something else than one tensor.
    """

    graph: fx.GraphModule | None
    untraced: dict[str, str]
    several: set[str]


def trace(model: nn.Module, arguments: dict[str, Any]) -> Traced:
    """The graph of ``model.forward`` in its present mode."""
    defaults = {name: value for name, value in arguments.items() if not holds_tensor(value)}
    tracer = _Tracer(model, arguments)
    try:
        with attributes_put_back(model):  # a model may keep what it computes, here proxies of this very graph
            graph = fx.GraphModule(model, tracer.trace(model, concrete_args=defaults or None))
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        return Traced(None, {"": first_line(error)}, set())
    return Traced(graph, tracer.untraced, tracer.several)


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever the model's own code does in the block is undone: attributes, buffers, every global random state."""
    with random_states_put_back(), attributes_put_back(model):
        buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
        try:
            yield
        finally:
            for buffer, value in buffers:
                # By value: a batch norm writes its statistics without telling the version counter. And only where it
                # is needed, as what autograd has saved would no longer do.
                if not torch.equal(buffer, value):
                    buffer.detach().copy_(value)


class OwnHook:
    """Marks what this package registers as hooks of modules, itself or its methods; all others are the user's."""


def has_foreign_hooks(module: nn.Module) -> bool:
    """Whether the user's own forward hooks see, and may change, what enters or leaves ``module``."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(not isinstance(getattr(hook, "__self__", None), OwnHook) for hook in hooks)


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the flags one by one: a model's own ``train()`` may do more than that."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = training
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


Buffers = Mapping[nn.Module, Mapping[str, Union[Tensor, None]]]
"""The buffers of every module of a model."""


def held_buffers(model: nn.Module) -> Buffers:
    """The buffers that the modules hold now."""
    return {module: dict(module._buffers) for module in model.modules()}


def fake_buffers(model: nn.Module, fake: FakeTensorMode) -> AbstractContextManager[None]:
    """Counters such as ``num_batches_tracked`` are constants to a fake mode: it would really count them up."""
    return with_buffers(
        {
            module: {name: None if buffer is None else fake.from_tensor(buffer) for name, buffer in own.items()}
            for module, own in held_buffers(model).items()
        }
    )


@contextmanager
def with_buffers(buffers: Buffers) -> Iterator[None]:
    """Let the modules hold these in the block."""
    before = [(module._buffers, dict(module._buffers)) for module in buffers]
    for module, own in buffers.items():
        module._buffers.update(own)
    try:
        yield
    finally:
        for holder, own in before:
            holder.update(own)


def holds_tensor(value: Any) -> bool:
    """Whether a value, or anything in a tuple or list, is a tensor."""
    if isinstance(value, (tuple, list)):
        return any(holds_tensor(part) for part in value)
    return isinstance(value, Tensor)
