"""What is known of a model's channels: the words in which the channel flow is told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

NOBODY = -1
"""The origin of a channel that belongs to no filter."""

Origin = Int[Tensor, " channels"]
"""Filter id of every position of a channel dimension, or ``NOBODY``."""

Role = Literal["filter", "norm", "follower", "consumer"]


@dataclass(frozen=True)
class Site:
    """A module after which the channels of dropped filters are set to 0.

    Attributes:
        origin: filter id of every channel of the module's output, or ``NOBODY``.
        dim: the channel dimension, counted from the end (negative), so that it holds with and without a batch.
    """

    origin: Origin
    dim: int


@dataclass(frozen=True)
class Share:
    """Which filters the entries of one tensor belong to, along one of its dimensions.

    Attributes:
        dim: 0 or 1, the dimension of the parameter or buffer.
        origin: filter id of every entry along it, or ``NOBODY``.
        role: "filter": the filters' own rows. "norm": entries of a norm that the channel passes. "follower": entries of
            what else follows the channel (depthwise rows, gate rows, slopes, scales). "consumer": the slices of a
            later weight that read the channel.
    """

    dim: int
    origin: Origin
    role: Role


@dataclass(frozen=True)
class Activation:
    """A pointwise nonlinearity, as the model calls it.

    Attributes:
        target: a module's name, a function, or a method's name.
        op: "call_module", "call_function" or "call_method".
        args: further positional arguments. kwargs: further arguments by name.
    """

    target: Any
    op: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __call__(self, model: nn.Module, values: Tensor) -> Tensor:
        """What it makes of ``values``, which stay as they are where it works in place."""
        values, kwargs = values.clone(), dict(self.kwargs)
        if self.op == "call_module":
            made: Tensor = model.get_submodule(self.target).forward(values)
        elif self.op == "call_method":
            made = getattr(values, self.target)(*self.args, **kwargs)
        else:
            made = self.target(values, *self.args, **kwargs)
        return made


@dataclass(frozen=True)
class FeatureMap:
    """Where the feature map of a layer can be seen.

    Attributes:
        module: its output is the map, behind the layer's own norm.
        activation: the nonlinearity that follows at once; ``None``: there is none, or ``module`` has applied it.
    """

    module: str
    activation: Activation | None = None


def _no_shares() -> dict[str, list[Share]]:
    """A function with a name, so that a flow can be pickled."""
    return defaultdict(list)


@dataclass
class Flow:
    """Channel flow of one model, by module name.

    Attributes:
        start: first filter id of every convolution, in order of execution; its filters have consecutive ids.
        total: how many filter ids there are.
        sites: modules after which a dropped filter's channel is set to 0.
        shares: module -> tensor -> what of it belongs to filters.
        barriers: per convolution, the places that need its output at full width.
        heads: per convolution, the modules that its channels pass by themselves: the convolution, and norms and
            activations right behind it. They can run narrow even where a barrier follows; the last one is a site.
        maps: per convolution, where its feature map can be seen.
        grouped: depthwise convolutions that follow channels: the origin of their groups.
        gates: layers whose rows follow the channels that they are multiplied with: the origin of their rows.
        dropouts: dropout modules that channels pass.
        kept_values: modules whose tensors must not hold 0 for an absent filter: a weight computed from them would not
            be finite.
        computed: convolutions whose weight is computed from parameters; why their filters cannot be left out, or "".
        untraced: modules that ``torch.fx`` cannot trace ("" for the whole model), and why.
        outputs: convolutions with a channel that reaches an output of the model.
        shared: modules with a parameter that is used in more than one place.
        positions: output positions per sample of every convolution, norm and Linear, over all its calls.
        applications: how often per sample each applies its weight: at every output position, where it is transposed at
            every input position.
        widths: output channels of the same modules.
    """

    start: dict[str, int]
    total: int
    sites: dict[str, Site] = field(default_factory=dict)
    shares: dict[str, dict[str, list[Share]]] = field(default_factory=lambda: defaultdict(_no_shares))
    barriers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    heads: dict[str, tuple[str, ...]] = field(default_factory=dict)
    maps: dict[str, FeatureMap] = field(default_factory=dict)
    grouped: dict[str, Origin] = field(default_factory=dict)
    gates: dict[str, Origin] = field(default_factory=dict)
    dropouts: dict[str, Site] = field(default_factory=dict)
    kept_values: set[str] = field(default_factory=set)
    computed: dict[str, str] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    positions: dict[str, int] = field(default_factory=dict)
    applications: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    @property
    def readers(self) -> dict[str, Origin]:
        """Origins of the input features of every layer that reads filters."""
        return {
            module: share.origin
            for module, tensors in self.shares.items()
            for shares in tensors.values()
            for share in shares
            if share.role == "consumer"
        }

    @property
    def norms(self) -> set[str]:
        """The norms with entries that belong to filters."""
        return {
            module
            for module, tensors in self.shares.items()
            if any(share.role == "norm" for shares in tensors.values() for share in shares)
        }

    def marked(self, ids: Int[Tensor, " ids"]) -> Bool[Tensor, " all"]:
        """For every filter id, and at the end for ``NOBODY`` (-1), whether it is one of ``ids``: a table to index by
        origins."""
        table = torch.zeros(self.total + 1, dtype=torch.bool, device="cpu")
        table[ids] = True
        return table

    def share(self, module: str, tensor: str, share: Share) -> None:
        """Note once that a part of a tensor belongs to filters."""
        known = self.shares[module][tensor]
        if not any(one.dim == share.dim and one.role == share.role for one in known):
            known.append(share)

    def layers_of(self, origin: Int[Tensor, "..."]) -> list[str]:
        """The convolutions that own a channel of ``origin``, in order of execution."""
        names, starts = list(self.start), torch.tensor([*self.start.values()], device="cpu")
        owners = torch.searchsorted(starts, origin[origin != NOBODY], right=True) - 1
        return [names[k] for k in sorted(set(owners.tolist()))]
