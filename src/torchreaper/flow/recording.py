"""What ``torch.fx`` cannot trace, found by running it: which convolutions are called, and which norms follow them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from torchreaper.flow.channels import Flow
from torchreaper.flow.following import Channels, laid, nobody
from torchreaper.flow.ledger import Decisions, Ledger
from torchreaper.flow.operations import CONVOLUTIONS, NORMS, is_known_module
from torchreaper.flow.reading import NORM_TENSORS, owns_weight
from torchreaper.flow.tracing import first_line, training_mode
from torchreaper.flow.walking import DoesNotRunError

Box = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]


def run_box(model: nn.Module, ledger: Ledger, count: bool) -> Box:
    """What the walk calls for a module that is opaque to it: runs it, and notes the convolutions in it.

    On fake tensors where that works, else on ones of the same shapes.
    """

    def run(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        box = model.get_submodule(name)
        with _Recording(box, f"{name}.", ledger, f"inside {name}, which cannot be traced", count):
            try:
                return box.forward(*args, **kwargs)
            except Exception:
                fake = _mode_of(args, kwargs)
                real = tree_map(lambda x: _ones_like(x) if isinstance(x, Tensor) else x, (args, kwargs))
        with torch.utils._python_dispatch._disable_current_modes():
            with _Recording(box, f"{name}.", ledger, f"inside {name}, which cannot be traced", count):
                result = box.forward(*real[0], **real[1])
        return tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, result)

    return run


def record(model: nn.Module, arguments: Mapping[str, Any], start: dict[str, int], why: str) -> Flow:
    """The flow of a model that cannot be traced at all: every convolution is masked at its own norm."""
    ledger = Ledger(Flow(start, untraced={"": why}), Decisions())
    for training in (True, False):
        with training_mode(model, training), torch.no_grad():
            with _Recording(model, "", ledger, "the model cannot be traced", training) as recording:
                try:
                    outputs = model.forward(**arguments)
                except Exception as error:
                    raise DoesNotRunError(first_line(error)) from error
        recording.find_outputs(outputs)
    for name in [name for name in start if name not in ledger.flow.positions]:
        del start[name]
    return ledger.flow


class _Recording:
    """Watches the modules of a box while it runs; their own hooks are off."""

    def __init__(self, box: nn.Module, prefix: str, ledger: Ledger, why: str, count: bool) -> None:
        self._prefix, self._ledger, self._why, self._count = prefix, ledger, why, count
        self._modules = {f"{prefix}{name}": m for name, m in box.named_modules() if name}
        self._made: list[tuple[Tensor, str, int]] = []
        self._readers: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> _Recording:
        for name, module in self._modules.items():
            self._stack.enter_context(_without_hooks(module))
            if isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear)):
                module._forward_hooks[-1] = _named(self._saw, name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _saw(self, name: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ledger = self._ledger
        if isinstance(module, NORMS):
            # The very output of a convolution, and nothing added to it in place since.
            made = (name for tensor, name, v in reversed(self._made) if tensor is inputs[0] and tensor._version == v)
            maker = next(made, "")
            ledger.count_output(name, output, 1 - output.ndim, self._count)
            self._norm(name, module, maker, output)
            return
        if isinstance(module, nn.Linear):
            self._readers.append(name)
            ledger.count_output(name, output, -1, self._count)
            return
        dim = -1 - len(module.kernel_size)
        self._readers.append(name)
        self._made.append((output, name, output._version))
        ledger.count_output(name, output, dim, self._count)
        channels = self._ids(name, dim, output.ndim)
        ledger.wide(self._why, ledger.site(name, channels))
        if owns_weight(module) and is_known_module(module):
            rows = 1 if module.transposed else 0
            ledger.share(name, module, "weight", rows, channels.origin.flatten(), "filter")
            ledger.share(name, module, "bias", 0, channels.origin.flatten(), "filter")

    def _norm(self, name: str, module: nn.Module, maker: str, output: Tensor) -> None:
        """A norm belongs to the filters whose output it takes, if it takes nothing else."""
        dim = 1 - output.ndim
        first = self._ledger.flow.start.get(maker)
        channels = Channels(nobody(1)) if first is None else self._ids(maker, dim, output.ndim)
        self._ledger.use(name, channels)
        line = channels.line
        if line is None or self._ledger.is_opaque(name):
            self._ledger.flow.sites.pop(name, None)
            self._ledger.flow.shares.pop(name, None)
            return
        self._ledger.site(name, channels)
        for tensor in NORM_TENSORS:
            self._ledger.share(name, module, tensor, 0, line[0], "norm")

    def _ids(self, name: str, dim: int, ndim: int) -> Channels:
        first = self._ledger.flow.start[name]
        count = self._modules[name].out_channels
        return Channels(laid(torch.arange(first, first + count, device="cpu"), dim, ndim))

    def find_outputs(self, outputs: Any) -> None:
        """A convolution that no other layer follows makes the model's output."""
        if self._readers and isinstance(self._modules[self._readers[-1]], CONVOLUTIONS):
            self._ledger.flow.outputs.add(self._readers[-1])
        for tensor, name, _ in self._made:
            if any(isinstance(out, Tensor) and out is tensor for out in tree_leaves(outputs)):
                self._ledger.flow.outputs.add(name)


def _named(saw: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda module, inputs, output: saw(name, module, inputs, output)


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """The user's hooks must not see what is no real step of training."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    before = {kind: module.__dict__[kind] for kind in kinds}
    module.__dict__.update({kind: OrderedDict() for kind in kinds})
    try:
        yield
    finally:
        module.__dict__.update(before)


def _mode_of(*values: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    return next(leaf.fake_mode for leaf in tree_leaves(values) if isinstance(leaf, FakeTensor))


def _ones_like(fake: Tensor) -> Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.ones(fake.shape, dtype=fake.dtype, device=fake.device)
