"""The sub-network of a model: entered at every drop, left at every restore, masked or compact by the same plan.

During a phase what belongs to dropped filters is stored. Where it cannot be removed the tensors hold 0 there, so that
weight norms, losses that read weights and optimizers see the sub-network only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.errors import ReaperError
from torchreaper.filters import parents, tensor_of
from torchreaper.flow.channels import Flow
from torchreaper.state import Cut
from torchreaper.subnetwork.leaves import (
    LOST_WRITES,
    FullWidthDropout,
    GradientMask,
    Guard,
    Leaf,
    WholeStateDict,
    has_leaf,
    is_without,
    settings_of,
    unhook,
)
from torchreaper.subnetwork.moments import Moments
from torchreaper.subnetwork.plan import Output, Plan


class Hooked:
    """One model with its hooks: the one that trains, or a copy that follows it."""

    def __init__(self, model: nn.Module, flow: Flow, *, trains: bool = True) -> None:
        self.model = model
        self._trains = trains
        names = sorted(flow.sites.keys() | flow.shares.keys())
        self.leaves = {name: Leaf(flow.sites[name].dim if name in flow.sites else 0) for name in names}
        self._dropouts = {name: FullWidthDropout(site.dim) for name, site in flow.dropouts.items()}
        self._guard = Guard()
        self._own()
        self._handles: list[Any] = []
        self._gradients: list[Any] = []
        self._install(flow)

    def _install(self, flow: Flow) -> None:
        note = self._handles.append
        for name, leaf in self.leaves.items():
            module = self.model.get_submodule(name)
            if name in flow.sites:
                # First of the module's hooks, so that a user's own see what the next layer sees.
                note(module.register_forward_hook(leaf.complete, prepend=True))
            note(module.register_state_dict_post_hook(WholeStateDict(leaf)))  # type: ignore[no-untyped-call]
        for name, dropout in self._dropouts.items():
            module = self.model.get_submodule(name)
            note(module.register_forward_pre_hook(dropout.widen, with_kwargs=True))
            note(module.register_forward_hook(dropout.narrow, prepend=True))
        for name in sorted({"", *self.leaves, *(parent for leaf in self.leaves for parent in parents(leaf))}):
            module = self.model.get_submodule(name)
            note(module.register_load_state_dict_pre_hook(self._guard))  # type: ignore[no-untyped-call]

    def _own(self) -> None:
        """Tell the hooks whose they are; those of a copy with no scheme of its own do not know."""
        self._guard.watch(self.model)
        for leaf in self.leaves.values():
            leaf.given = None if self._trains else {}

    def _mask_gradients(self) -> None:
        """In a phase only: autograd calls such a hook in every step, and a compiled graph knows nothing of it."""
        self._gradients = [
            parameter.register_hook(GradientMask(leaf, tensor))  # type: ignore[no-untyped-call]
            for name, leaf in self.leaves.items()
            for tensor, part in leaf.parts.items()
            if (parameter := self.model.get_submodule(name)._parameters.get(tensor)) is not None
            and parameter.requires_grad
            and part.holds
        ]

    def enter(self, plan: Plan) -> None:
        """Become the sub-network of ``plan``."""
        self._guard.closed = True
        for name, leaf in self.leaves.items():
            module = self.model.get_submodule(name)
            settings = settings_of(module, name, plan)
            leaf.enter(module, plan.parts.get(name, {}), plan.outputs.get(name, Output()), settings)
        for name, dropout in self._dropouts.items():
            output = plan.dropouts.get(name, Output())
            dropout.kept, dropout.width = output.kept, output.width
        self._mask_gradients()

    def refuse_lost_writes(self) -> None:
        """Raise where an average over ``state_dict()`` was lost in this phase, while nothing is touched."""
        lost = [leaf.lost_writes() for leaf in self.leaves.values()]  # of all, so that a second try is not refused
        if any(lost):
            raise ReaperError(LOST_WRITES)

    def leave(self) -> None:
        """Become the whole network again, with everything as it was stored."""
        for handle in self._gradients:
            handle.remove()
        self._gradients = []
        for name, leaf in self.leaves.items():
            leaf.leave(self.model.get_submodule(name))
        for dropout in self._dropouts.values():
            dropout.kept = None
        self._guard.closed = False

    def remove(self) -> None:
        """Take every hook off the model, and off deep copies of it that are whole."""
        for handle in self._handles + self._gradients:
            handle.remove()
        for copied in list(self._guard.copies):
            if not any(is_without(module) for module in copied.modules()):
                unhook(copied)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gradients": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The modules' hooks travel with the model; those of its parameters do not.
        self.__dict__.update(state)
        self._own()
        self._mask_gradients()


class Subnetwork:
    """A model, its optimizers and its followers, of which some filters can be left out.

    Args:
        model: the model that trains.
        flow: its channel flow.
        optimizers: whose state is stored along with the weights.
        followers: copies of the model whose parameters are averages of its own.

    Raises:
        ReaperError: the model is managed already, or a follower is no copy of it.
    """

    def __init__(self, model: nn.Module, flow: Flow, optimizers: Sequence[Optimizer] = (), followers: Any = ()) -> None:
        names = sorted(flow.sites.keys() | flow.shares.keys())
        if any(has_leaf(model.get_submodule(name)) for name in names):
            raise ReaperError(
                f"model={type(model).__name__}: filters of this model are managed already; call remove() on the scheme "
                "before, or copy the model without it"
            )
        _check_followers(model, followers)
        self._whole = Hooked(model, flow)
        self._followers = [Hooked(follower, flow, trains=False) for follower in followers]
        self._moments = [Moments(optimizer) for optimizer in optimizers]

    @property
    def graphs(self) -> int:
        """How many compiled graphs of the model there are."""
        return min((leaf.graphs for leaf in self._whole.leaves.values() if leaf.graphs), default=0)

    def enter(self, plan: Plan) -> None:
        """Leave out what ``plan`` says."""
        parts = []
        for name, tensors in plan.parts.items():
            module = self._whole.model.get_submodule(name)
            parts += [(tensor, part) for key, part in tensors.items() if (tensor := tensor_of(module, key)) is not None]
        for moments in self._moments:
            moments.take(parts)
        for hooked in (self._whole, *self._followers):
            hooked.enter(plan)
        torch.clear_autocast_cache()

    def leave(self) -> None:
        """Put everything back where it was."""
        for follower in self._followers:
            follower.refuse_lost_writes()
        for moments in self._moments:
            moments.put()
        for hooked in (self._whole, *self._followers):
            hooked.leave()
        torch.clear_autocast_cache()

    def share_returned(self, belongings: Mapping[str, Mapping[str, Cut]]) -> None:
        """Give the followers what the model holds in all that belongs to filters that have just returned."""
        for follower in self._followers:
            for name, cuts in belongings.items():
                source, target = (one.model.get_submodule(name) for one in (self._whole, follower))
                for tensor, cut in cuts.items():
                    mine, theirs = tensor_of(source, tensor), tensor_of(target, tensor)
                    assert mine is not None
                    assert theirs is not None
                    cut.copy(mine, theirs)

    def stored(self, layer: str) -> tuple[Tensor, ...]:
        """What the weight of a dropped layer, or what it is computed from, held where it is left out."""
        mine = [leaf for name, leaf in self._whole.leaves.items() if name == layer or name.startswith(f"{layer}.")]
        return tuple(tensor for leaf in mine for stored in leaf.stored.values() for tensor in stored.tensors)

    @property
    def stored_bytes(self) -> int:
        """What is stored takes: weights, buffers and averages, and optimizer state."""
        leaves = [leaf for hooked in (self._whole, *self._followers) for leaf in hooked.leaves.values()]
        weights = sum(stored.bytes for leaf in leaves for stored in leaf.stored.values())
        return weights + sum(moments.stored_bytes for moments in self._moments)

    def remove(self) -> None:
        """Take every hook off the model, its followers and the optimizers."""
        for hooked in (self._whole, *self._followers):
            hooked.remove()
        for moments in self._moments:
            moments.remove()


def _check_followers(model: nn.Module, followers: Any) -> None:
    if not isinstance(followers, (list, tuple)):
        raise ReaperError(f"followers={type(followers).__name__}: must be a list of copies of the model: [ema.module]")
    shapes = _shapes(model)
    for number, follower in enumerate(followers):
        where = f"followers[{number}]={type(follower).__name__}"
        if not isinstance(follower, nn.Module) or follower is model:
            raise ReaperError(f"{where}: must be a copy of the model, such as ema.module of an AveragedModel")
        if any(follower is one for one in followers[:number]):
            raise ReaperError(f"{where}: is named twice; name each copy once")
        if _shapes(follower) != shapes:
            raise ReaperError(f"{where}: has other parameters than the model; pass ema.module, not the wrapper of it")
        if any(is_without(module) for module in follower.modules()):
            raise ReaperError(f"{where}: was copied in a sub-network phase; copy the model in a full phase")


def _shapes(model: nn.Module) -> dict[str, Any]:
    """Of all that a state dict holds; extra states of modules have none."""
    return {name: getattr(value, "shape", None) for name, value in model.state_dict(keep_vars=True).items()}
