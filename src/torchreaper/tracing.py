"""Tracing a model with ``torch.fx``, and leaving it exactly as it was found."""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Union

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from torchreaper.errors import ReaperError
from torchreaper.operations import is_known_module

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

    def _in_place(self, operation: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})


def seen_by_a_hook(value: Any) -> Any:
    """Stands in the graph where a user's hook sees, and may change, a value: nothing is known of it."""
    return value


class _Tracer(fx.Tracer):
    """Goes into everything but torch's own layers and the user's subclasses that compute the same."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known_module(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            name = self.path_of_module(m)
        except NameError:  # made on the way, such as a slice of an nn.Sequential
            return m.forward(*args, **kwargs)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        if not has_foreign_hooks(m):
            return m.forward(*args, **kwargs)
        # Past the hooks, which would meet proxies, but with a mark where they stand.
        args, kwargs = self._marked(args), self._marked(kwargs)
        return self._marked(m.forward(*args, **kwargs))

    def _marked(self, values: Any) -> Any:
        return tree_map(
            lambda v: self.create_proxy("call_function", seen_by_a_hook, (v,), {}) if isinstance(v, fx.Proxy) else v,
            values,
        )


def trace(model: nn.Module, arguments: dict[str, Any]) -> fx.GraphModule:
    """The graph of ``model.forward`` in its present mode, on the very modules of the model."""
    defaults = {name: value for name, value in arguments.items() if not holds_tensor(value)}
    try:
        graph = _Tracer().trace(model, concrete_args=defaults or None)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReaperError(
            f"model={type(model).__name__}: torch.fx cannot trace it ({reason}); "
            "move the data-dependent part into a submodule, or pass the convolutional part of the model"
        ) from error
    return fx.GraphModule(model, graph)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever the model's own code does in the block is undone: attributes, buffers, every global random state."""
    with _random_states_put_back():
        before = [(module, dict(module.__dict__), _copies(module.__dict__)) for module in model.modules()]
        buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
        try:
            yield
        finally:
            for module, attributes, containers in before:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for name, content in containers.items():
                    container = module.__dict__[name]
                    container.clear()
                    container.update(content)
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.detach().copy_(value)


def _copies(attributes: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """The module's own registries (parameters, buffers, children), which are changed in place."""
    return {name: dict(attributes[name]) for name in ("_parameters", "_buffers", "_modules")}


@contextmanager
def _random_states_put_back() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)


class OwnHook:
    """Marks what has methods that this package registers as forward hooks; all others are the user's."""


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


@contextmanager
def fake_buffers(model: nn.Module, fake: FakeTensorMode) -> Iterator[None]:
    """Counters such as ``num_batches_tracked`` are constants to a fake mode: it would really count them up."""
    before = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    for buffers, real in before:
        buffers.update({name: None if b is None else fake.from_tensor(b) for name, b in real.items()})
    try:
        yield
    finally:
        for buffers, real in before:
            buffers.update(real)


def holds_tensor(value: Any) -> bool:
    """Whether a value, or anything in a tuple or list, is a tensor."""
    if isinstance(value, (tuple, list)):
        return any(holds_tensor(part) for part in value)
    return isinstance(value, Tensor)
