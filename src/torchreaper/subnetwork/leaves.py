"""The hooks of a sub-network on the modules of a model, and what each module is without.

They are installed once, at the start, and return at once while nothing is dropped: a hook added after a compiled
model's first call would be ignored. All are objects of their own for every module, picklable, with plain attributes, so
that copies and pickles of a model carry no more than their share and still compute the same and save whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakSet, ref

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from torchreaper.errors import ReaperError
from torchreaper.filters import tensor_of
from torchreaper.flow.operations import INSTANCE_NORMS
from torchreaper.flow.tracing import OwnHook
from torchreaper.state import resize
from torchreaper.subnetwork.parts import Part, Stored
from torchreaper.subnetwork.plan import Output, Plan

IN_A_PHASE = (
    "the model is in a sub-network phase, its dropped filters are not in place; call scheme.restore() "
    "(or leave bank.without) before loading a checkpoint"
)


ATTACHED = (
    "a scheme is attached to the model, and what is exported would hold its hooks, and a sub-network's zeros; call "
    "scheme.remove() before (in a sub-network phase scheme.restore() before that)"
)
LOST_WRITES = (
    "state_dict: what was written into the one before is lost, as in a sub-network phase it holds copies; make an "
    "average over state_dict() before the scheme or in a full phase, and do not name it in followers"
)
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # new in torch 2.7


@dataclass(eq=False)
class Leaf(OwnHook):
    """What one module is without; its methods are the module's hooks.

    Attributes:
        dim: channel dimension of the module's output, counted from the end.
        mask: output channels held at 0, or ``None``.
        kept: where the channels of the output stand at full width, or ``None``: it is as wide as it should be.
        width: the full width.
        parts: tensor name -> the part of it that is left out.
        stored: tensor name -> what that part held.
        settings: attributes of the module that follow its width, as they were.
        graphs: how many compiled graphs hold the module's forward hook.
        given: tensor name -> what the last state dict of this phase got for it, and its version then; ``None`` for the
            model that trains, whose checkpoints need not stay in memory.
    """

    dim: int = 0
    mask: Bool[Tensor, " channels"] | None = None
    kept: Int[Tensor, " kept"] | None = None
    width: int = 0
    parts: dict[str, Part] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    graphs: int = 0
    given: dict[str, tuple[Tensor, int]] | None = field(default_factory=dict)

    def complete(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Forward hook: zeros where filters are missing."""
        if torch.compiler.is_compiling():
            if _is_exporting():
                raise ReaperError(f"export: {ATTACHED}")
            _count_graph(self)
        elif torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise ReaperError(f"torch.jit.trace: {ATTACHED}")
        if self.mask is not None:
            if self.mask.device != output.device:
                self.mask = self.mask.to(output.device)
            # Never a product: 0 * inf is NaN.
            return output.masked_fill(self.mask.view(-1, *[1] * (-1 - self.dim)), 0)
        if self.kept is not None:
            if self.kept.device != output.device:
                self.kept = self.kept.to(output.device)
            return widened(output, self.dim, self.kept, self.width)
        return None

    def enter(self, module: nn.Module, parts: Mapping[str, Part], output: Output, settings: Mapping[str, int]) -> None:
        """Take the parts out of the module's tensors, and out of their pending gradients."""
        for name, part in parts.items():
            tensor = tensor_of(module, name)
            assert tensor is not None
            self.parts[name] = part = part.to(tensor.device)
            gradient = None if tensor.grad is None else part.without(tensor.grad)
            if part.narrows:
                tensor.grad = None  # the whole gradient goes before the weight is copied
            rest, self.stored[name] = part.take(tensor)
            if part.narrows:
                resize(tensor, rest, gradient)
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
        self.mask, self.kept, self.width = _on(device, output.mask), _on(device, output.kept), output.width
        for name, value in settings.items():
            self.settings[name] = getattr(module, name)
            setattr(module, name, value)

    def leave(self, module: nn.Module) -> None:
        """Put everything back where it was. A filter that was not there has no gradient: zeros."""
        for name, part in list(self.parts.items()):
            tensor = tensor_of(module, name)
            assert tensor is not None
            whole = part.put(tensor, self.stored[name])
            # One by one, and only now: what fails before has lost nothing, and all of it twice would be much.
            del self.stored[name], self.parts[name]
            if part.narrows:
                gradient = tensor.grad
                resize(tensor, whole)
                tensor.grad = None if gradient is None else part.put(gradient, 0.0)
        for name, value in self.settings.items():
            setattr(module, name, value)
        self.settings = {}
        self.mask = self.kept = None

    def lost_writes(self) -> bool:
        """Whether an average took the last state dict of this phase for the weights themselves; told once."""
        given = self.given
        if not given:
            return False
        self.given = {}
        return any(tensor._version != version for tensor, version in given.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "given": {}}


def _count_graph(leaf: Leaf) -> None:
    """Run by the compiler while it traces, once for every graph, and never by the graph itself."""
    leaf.graphs += 1


# What torch.compiler.assume_constant_result sets, without the second that importing the compiler takes.
_count_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(eq=False)
class FullWidthDropout(OwnHook):
    """Lets a module draw its random numbers at full width, as masked does, and hands on the channels there are.

    Attributes:
        dim, kept, width: as in :class:`Leaf`, of the module's input.
    """

    dim: int
    kept: Int[Tensor, " kept"] | None = None
    width: int = 0

    def widen(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook; the input may be given by name."""
        if self.kept is None or not module.training:
            return None
        (tensor,) = inputs or named.values()
        if self.kept.device != tensor.device:
            self.kept = self.kept.to(tensor.device)
        return (widened(tensor, self.dim, self.kept, self.width),), {}

    def narrow(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Forward hook."""
        if self.kept is None or not module.training:
            return None
        return output.index_select(self.dim, self.kept)


def widened(tensor: Tensor, dim: int, kept: Tensor, width: int) -> Tensor:
    """``tensor`` at full width along ``dim``, zeros where nothing is kept, in the same memory format."""
    if torch.compiler.is_compiling():  # a compiler sees by itself what the way back does not need
        return _copied_into_zeros(tensor, dim, kept, width)
    whole: Tensor = _Widen.apply(tensor, dim, kept, width)  # type: ignore[no-untyped-call]
    return whole


def _copied_into_zeros(tensor: Tensor, dim: int, kept: Tensor, width: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = width
    channels_last = tensor.ndim == 4 and not tensor.is_contiguous()
    channels_last = channels_last and tensor.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if channels_last else torch.contiguous_format
    whole = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=form).zero_()
    return whole.index_copy_(dim, kept, tensor)


class _Widen(torch.autograd.Function):
    """``index_copy_`` keeps its source for the way back, of which it needs the shape only; this does not."""

    @staticmethod
    def forward(tensor: Tensor, dim: int, kept: Tensor, width: int) -> Tensor:
        return _copied_into_zeros(tensor, dim, kept, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor, int], output: Tensor) -> None:
        _, ctx.dim, kept, ctx.width = inputs
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], tensor: Tensor, dim: int, kept: Tensor, width: int
    ) -> tuple[Tensor, int]:
        assert in_dims[0] is not None  # kept comes from a plan, and is never a batch
        dim += dim >= 0  # one that is counted from the end stays
        return widened(tensor.movedim(in_dims[0], 0), dim, kept, width), 0

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        shape = list(tangent.shape)
        shape[ctx.dim] = ctx.width
        (kept,) = ctx.saved_tensors
        return tangent.new_zeros(shape).index_copy(ctx.dim, kept, tangent)  # not in place: a vmap around it could not

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.index_select(ctx.dim, *ctx.saved_tensors), None, None, None


@dataclass(eq=False)
class WholeStateDict(OwnHook):
    """State-dict hook of one module: stored values in their places, so that a checkpoint is always whole.

    In a sub-network phase the entries are copies, with ``keep_vars=True`` too.
    """

    leaf: Leaf

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: D102
        if self.leaf.lost_writes():
            raise ReaperError(LOST_WRITES)
        for name, part in self.leaf.parts.items():
            if prefix + name in state_dict:
                whole = part.completed(state_dict[prefix + name], self.leaf.stored[name])
                state_dict[prefix + name] = whole
                if self.leaf.given is not None and not whole.is_inference():
                    self.leaf.given[name] = whole, whole._version


@dataclass(eq=False)
class Guard(OwnHook):
    """Pre-hook of ``load_state_dict``: what would be loaded into the holes would be lost.

    It stands on every module that has a leaf below it, so that nothing is loaded before it speaks. Being copied along
    with its model, it also knows the copies.

    Attributes:
        closed: whether loading is refused.
        model: whose guard it is.
        copies: deep copies of the model, and of those, that no scheme was copied along with.
    """

    closed: bool = False
    model: ReferenceType[nn.Module] | None = None
    copies: WeakSet[nn.Module] = field(default_factory=WeakSet)

    def __call__(self, *_: Any) -> None:  # noqa: D102
        if self.closed:
            raise ReaperError(f"load_state_dict: {IN_A_PHASE}")

    def watch(self, model: nn.Module) -> None:
        """Be the guard of ``model``, which has a scheme of its own."""
        self.copies.discard(model)
        self.model, self.copies = ref(model), WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        model = None if self.model is None else memo.get(id(self.model()))
        if not isinstance(model, nn.Module):
            return Guard(self.closed)
        self.copies.add(model)
        return Guard(self.closed, ref(model), self.copies)

    def __reduce__(self) -> tuple[type[Guard], tuple[bool]]:
        return Guard, (self.closed,)  # a pickle knows no copies


@dataclass(eq=False)
class GradientMask:
    """Tensor hook of one parameter: held entries get gradient 0, also where it overflowed."""

    leaf: Leaf
    name: str
    # Pickling a model would warn that tensor hooks stay behind; a fresh RePr puts them back.
    __torch_unserializable__ = True

    def __call__(self, gradient: Tensor) -> Tensor | None:  # noqa: D102
        part = self.leaf.parts.get(self.name)
        return None if part is None or not part.holds else part.hold(gradient.clone())


def settings_of(module: nn.Module, name: str, plan: Plan) -> dict[str, int]:
    """Attributes that a module computes with or checks, at the width it has in ``plan``."""
    settings = {"groups": plan.groups[name]} if name in plan.groups else {}
    if isinstance(module, INSTANCE_NORMS) and name in plan.features:
        settings["num_features"] = plan.features[name]
    return settings


def unhook(model: nn.Module) -> None:
    """Take all hooks of this package off a copy, of which there are no handles."""
    for module in model.modules():
        for name, hooks in vars(module).items():
            if not name.endswith("_hooks") or not isinstance(hooks, dict):
                continue
            for key, hook in list(hooks.items()):
                hook = getattr(hook, "hook", hook)  # torch wraps those of load_state_dict
                if isinstance(getattr(hook, "__self__", hook), OwnHook):
                    del hooks[key]


def has_leaf(module: nn.Module) -> bool:
    """Whether a bank, or one whose model this is a copy of, has hooks here."""
    return any(isinstance(hook, WholeStateDict) for hook in module._state_dict_hooks.values())


def is_without(module: nn.Module) -> bool:
    """Whether it is without some filters now."""
    hooks = module._state_dict_hooks.values()
    return any(isinstance(hook, WholeStateDict) and bool(hook.leaf.parts) for hook in hooks)


def _on(device: torch.device | None, tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or device is None else tensor.to(device)
