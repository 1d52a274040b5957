"""What ``torch.fx`` cannot trace, found by running it: which convolutions are called, and which norms follow them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from torchreaper.flow.channels import Flow
from torchreaper.flow.following import Channels, laid, nobody
from torchreaper.flow.ledger import Decisions, Ledger
from torchreaper.flow.operations import CONVOLUTIONS, NORMS, is_known_module
from torchreaper.flow.putting_back import attributes_put_back
from torchreaper.flow.reading import NORM_TENSORS, owns_weight
from torchreaper.flow.tracing import called, first_line, held_buffers, training_mode, with_buffers
from torchreaper.flow.walk import Box
from torchreaper.flow.walking import DoesNotRunError


def run_box(model: nn.Module, ledger: Ledger, count: bool) -> Box:
    """What the walk calls for a module that is opaque to it: runs it, and notes the convolutions in it.

    On fake tensors where that works, else on ones of the same shapes, with the buffers that the model holds here and
    now; during the walk it holds fake ones.
    """
    buffers = held_buffers(model)

    def run(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        box = model.get_submodule(name)

        def recorded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # What it keeps for its next call may be a fake tensor.
            with attributes_put_back(box), _Recording(box, f"{name}.") as recording:
                result = box.forward(*args, **kwargs)
            recording.write(ledger, f"inside {name}, which cannot be traced", count)
            return result

        try:
            return recorded(args, kwargs)
        except Exception:
            fake = _mode_of(args, kwargs)
            real = tree_map(lambda x: _ones_like(x) if isinstance(x, Tensor) else x, (args, kwargs))
        with torch.utils._python_dispatch._disable_current_modes(), with_buffers(buffers):
            result = recorded(*real)
        return tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, result)

    return run


def record(
    model: nn.Module, arguments: Mapping[str, Any], start: dict[str, int], total: int, shared: set[str], why: str
) -> Flow:
    """The flow of a model that cannot be traced at all: every convolution is masked at its own norm.

    Args:
        model, arguments: what runs.
        start, total: the first filter id of every convolution, and how many there are.
        shared: modules with a parameter that another one holds too.
        why: it cannot be traced.
    """
    ledger = Ledger(Flow(start, total, untraced={"": why}, shared=shared), Decisions())
    ledger.decisions.opaque |= {("module", name) for name in shared}
    for training in (True, False):
        # With gradients, which tell what is read later on; no backward follows.
        with training_mode(model, training), torch.enable_grad():
            with _Recording(model, "") as recording:
                try:
                    outputs = called(model, arguments)
                except Exception as error:
                    raise DoesNotRunError(first_line(error)) from error
        recording.write(ledger, "the model cannot be traced", training)
        ledger.flow.outputs |= recording.outputs(outputs)
    for name in [name for name in start if name not in ledger.flow.positions]:
        del start[name]
    return ledger.flow


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a convolution, norm or Linear layer.

    Attributes:
        versions: how often its tensors had been written to by then.
        nodes: what had made them, for autograd.
    """

    name: str
    module: Any
    input: Tensor
    output: Tensor
    versions: tuple[int, int]
    nodes: tuple[Any, Any]


class _Recording:
    """Watches the modules of a box while it runs; their own hooks are off."""

    def __init__(self, box: nn.Module, prefix: str) -> None:
        self._modules = {f"{prefix}{name}": m for name, m in box.named_modules() if name}
        self._calls: list[_Call] = []
        self._stack = ExitStack()

    def __enter__(self) -> _Recording:
        for name, module in self._modules.items():
            self._stack.enter_context(_without_hooks(module))
            if isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear)):
                module._forward_hooks[-1] = self._watcher(name)
                module._forward_hooks_with_kwargs[-1] = True
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watcher(self, name: str) -> Callable[..., None]:
        def saw(module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            given = inputs[0] if inputs else next(value for value in named.values() if isinstance(value, Tensor))
            versions, nodes = (given._version, output._version), (given.grad_fn, output.grad_fn)
            self._calls.append(_Call(name, module, given, output, versions, nodes))

        return saw

    def write(self, ledger: Ledger, why: str, count: bool) -> None:
        """What the run has shown: convolutions, each masked at its own output, and the norms that are theirs."""
        for k, call in enumerate(self._calls):
            if isinstance(call.module, NORMS):
                ledger.count_output(call.name, call.output, 1 - call.output.ndim, count)
                _write_norm(ledger, call, self._maker(k))
            elif isinstance(call.module, nn.Linear):
                ledger.count_output(call.name, call.output, -1, count)
            else:
                _write_convolution(ledger, call, why, count)

    def _maker(self, k: int) -> _Call | None:
        """The convolution whose very output the ``k``-th call takes, nothing added to it in place since."""
        taken, version = self._calls[k].input, self._calls[k].versions[0]
        for call in reversed(self._calls[:k]):
            if isinstance(call.module, CONVOLUTIONS) and call.output is taken and call.versions[1] == version:
                return call
        return None

    def outputs(self, returned: Any) -> set[str]:
        """Convolutions that make the model's output: it is theirs, or no other layer takes what comes of them.

        One whose output autograd does not follow may be read all the same.
        """
        readers = [call for call in self._calls if not isinstance(call.module, NORMS)]
        returned = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        made = [call for call in readers if any(call.output is tensor for tensor in returned)]
        read = _ancestors(call.nodes[0] for call in readers)
        made += [call for call in readers if call.nodes[1] is not None and call.nodes[1] not in read]
        return {call.name for call in [*made, *readers[-1:]] if isinstance(call.module, CONVOLUTIONS)}


def _ancestors(nodes: Iterable[Any]) -> set[Any]:
    """All that autograd comes by on its way back from these nodes, they themselves too."""
    found: set[Any] = set()
    left = [node for node in nodes if node is not None]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions if before is not None]
    return found


def _write_convolution(ledger: Ledger, call: _Call, why: str, count: bool) -> None:
    module, channels = call.module, _own_channels(ledger, call)
    applied_to = call.input if module.transposed else None
    ledger.count_output(call.name, call.output, -1 - len(module.kernel_size), count, applied_to)
    ledger.wide(why, ledger.site(call.name, channels))
    if owns_weight(module) and is_known_module(module):
        origin = channels.origin.flatten()
        ledger.share(call.name, module, "weight", 1 if module.transposed else 0, origin, "filter")
        ledger.share(call.name, module, "bias", 0, origin, "filter")


def _write_norm(ledger: Ledger, call: _Call, maker: _Call | None) -> None:
    """A norm belongs to the filters whose output it takes, if it takes nothing else."""
    channels = Channels(nobody(1)) if maker is None else _own_channels(ledger, maker)
    ledger.use(call.name, channels)
    line = channels.line
    if line is None or ("module", call.name) in ledger.decisions.opaque:
        ledger.flow.sites.pop(call.name, None)
        ledger.flow.shares.pop(call.name, None)
        return
    ledger.site(call.name, channels)
    for tensor in NORM_TENSORS:
        ledger.share(call.name, call.module, tensor, 0, line[0], "norm")


def _own_channels(ledger: Ledger, call: _Call) -> Channels:
    first, spatial = ledger.flow.start[call.name], len(call.module.kernel_size)
    ids = torch.arange(first, first + call.module.out_channels, device="cpu")
    return Channels(laid(ids, -1 - spatial, call.output.ndim))


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """The user's hooks must not see what is no real step of training."""
    kinds = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    before = {kind: module.__dict__[kind] for kind in kinds}
    module.__dict__.update({kind: OrderedDict() for kind in kinds})
    try:
        yield
    finally:
        module.__dict__.update(before)


def _mode_of(*values: Any) -> Any:
    return next(leaf.fake_mode for leaf in tree_leaves(values) if isinstance(leaf, FakeTensor))


def _ones_like(fake: Tensor) -> Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.ones(fake.shape, dtype=fake.dtype, device=fake.device)
