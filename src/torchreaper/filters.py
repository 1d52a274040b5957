"""The filters of a model: one :class:`FilterLayer` per convolution, and what belongs to each filter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal, Union

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchreaper.channels import Flow, Role, Share
from torchreaper.errors import ReaperError
from torchreaper.flow import owns_weight
from torchreaper.operations import CONVOLUTIONS
from torchreaper.state import Cut

Route = Literal["narrow", "scatter", "masked"]
Skip = Union[None, str, Sequence[str]]
Filters = Mapping[str, Sequence[int]]
"""Layer name -> indices of some of its filters."""
ROLES: frozenset[Role] = frozenset({"filter", "norm", "follower", "consumer"})


@dataclass(frozen=True)
class FilterLayer:
    """One convolution and its filters.

    Attributes:
        name: module name in the model.
        module: the convolution; its weight is ``[filters, in / groups, *kernel]``.
        filters: J, how many output channels.
        dims: d, weights of one filter: kernel positions times input channels of its group.
        groups: orthogonality is taken inside a group of ``filters / groups`` rows.
        start: id of the first filter in the channel flow; the others follow.
        route: "narrow" where every reader of the filters is a dense layer, so that they could be left out for real;
            "masked" where some place needs the full width.
        ranked: whether the filters take part in the global ranking.
        droppable: whether they can be left out at all: not where the weight is computed, or used in another place too.
        reason: why not ranked, or what makes the route "masked"; empty otherwise.
    """

    name: str
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d
    filters: int
    dims: int
    groups: int
    start: int
    route: Route
    ranked: bool
    droppable: bool
    reason: str

    @property
    def rows(self) -> Float[Tensor, "filters dims"]:
        """The filters as rows, without gradient; a view of the weight."""
        return self.module.weight.detach().flatten(1)


def filter_layers(
    model: nn.Module, flow: Flow, *, skip: Skip = "first", include: Sequence[str] = (), scope: Skip = None
) -> list[FilterLayer]:
    """The convolutions of ``model`` in order of execution, with what is ranked and why not.

    Args:
        flow: the channel flow of the same model.
        skip: layers left out of the ranking: "first", names, shell patterns such as ``layer4.*``, several of them, or
            ``None``. The first layer's few dimensions make it look redundant by geometry alone.
        include: layers to rank although they would be left out (output and depthwise convolutions, the first layer).
        scope: only convolutions inside these submodules are ranked (names or patterns); ``None``: all.

    Raises:
        ReaperError: a name that is no layer, or one that cannot be ranked.
    """
    names = list(flow.start)
    skipped = _matches(skip, names, "skip", first=True)
    included = _matches(include, names, "include")
    inside = _inside(scope, names)
    if both := [name for name in names if name in included and name in skipped and skip != "first"]:
        raise ReaperError(f"include={both}: also named in skip={skip!r}; name each layer in one of them")
    layers = []
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, CONVOLUTIONS)
        never = _never_ranked(name, module, flow)
        reason = never or ("" if name in included else _left_out(name, module, flow, skipped, inside))
        if never and name in included:
            raise ReaperError(f"include={name!r}: its filters cannot be dropped ({never}); take it out of include")
        barriers = flow.barriers.get(name, [])
        unread = name in flow.outputs
        layers.append(
            FilterLayer(
                name=name,
                module=module,
                filters=module.out_channels,
                dims=module.in_channels // module.groups * prod(module.kernel_size),
                groups=module.groups,
                start=flow.start[name],
                route="masked" if barriers or unread or never else "narrow",
                ranked=not reason,
                droppable=owns_weight(module) and name not in flow.shared,
                reason=reason or (f"full width at {', '.join(barriers[:3])}" if barriers else ""),
            )
        )
    return layers


def dropped_ids(layers: Iterable[FilterLayer], dropped: Filters) -> Int[Tensor, " ids"]:
    """The flow's ids of the given filters."""
    start = {layer.name: layer.start for layer in layers}
    return torch.tensor(
        sorted(start[name] + i for name, indices in dropped.items() for i in indices), dtype=torch.int64, device="cpu"
    )


def masks(flow: Flow, ids: Int[Tensor, " ids"]) -> dict[str, Bool[Tensor, " channels"]]:
    """Site -> which of its channels belong to the filters ``ids``."""
    return {name: torch.isin(site.origin, ids) for name, site in flow.sites.items()}


def cuts(flow: Flow, ids: Int[Tensor, " ids"], roles: Set[Role] = ROLES) -> dict[str, dict[str, Cut]]:
    """Module -> tensor name -> the part of it that belongs to the filters ``ids``.

    A filter owns its row of the convolution (and its bias), its entries of every norm it passes and of all that follows
    its channel, and its slice of every dense layer that reads it.
    """
    found: dict[str, dict[str, Cut]] = {}
    for name in sorted(flow.shares):
        entries = {tensor: _cut(shares, ids, roles) for tensor, shares in flow.shares[name].items()}
        if entries := {tensor: cut for tensor, cut in entries.items() if cut}:
            found[name] = entries
    return found


def _cut(shares: Sequence[Share], ids: Int[Tensor, " ids"], roles: Set[Role]) -> Cut:
    parts = [_NONE, _NONE]
    for share in shares:
        if share.role in roles:
            parts[share.dim] = torch.isin(share.origin, ids).nonzero().flatten()
    return Cut(*parts)


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer that the module holds itself; reading a computed one may run code of its own."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


_NONE = torch.empty(0, dtype=torch.int64, device="cpu")


def _never_ranked(name: str, module: nn.Module, flow: Flow) -> str:
    if not owns_weight(module):
        return "weight is computed from other parameters"
    if name in flow.shared:
        return "weight is used in another place too"
    if not module.weight.requires_grad:
        return "frozen (requires_grad is False)"
    return ""


def _left_out(name: str, module: nn.Module, flow: Flow, skipped: set[str], inside: set[str]) -> str:
    if name not in inside:
        return "outside scope"
    if name in skipped:
        return "skipped"
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels:
        return "depthwise"
    if name in flow.outputs:
        return "reaches an output of the model"
    return ""


def _as_patterns(value: Skip, argument: str) -> list[str]:
    if not (value is None or isinstance(value, (str, Sequence, Set))):
        raise ReaperError(f"{argument}={value!r}: must be a layer name or pattern, a list of them, or None")
    patterns = [value] if isinstance(value, str) else list(value or ())
    if wrong := [p for p in patterns if not isinstance(p, str)]:
        raise ReaperError(f"{argument}={wrong[0]!r}: must be a layer name or pattern")
    return patterns


def _matches(value: Skip, names: list[str], argument: str, first: bool = False) -> set[str]:
    found: set[str] = set()
    for pattern in _as_patterns(value, argument):
        hits = names[:1] if first and pattern == "first" else [n for n in names if fnmatchcase(n, pattern)]
        if names and not hits:
            raise ReaperError(f"{argument}={pattern!r}: no such layer; the layers are {', '.join(names)}")
        found.update(hits)
    return found


def _inside(scope: Skip, names: list[str]) -> set[str]:
    if scope is None:
        return set(names)
    found: set[str] = set()
    for pattern in _as_patterns(scope, "scope"):
        hits = [n for n in names if fnmatchcase(n, pattern) or any(fnmatchcase(p, pattern) for p in parents(n))]
        if not hits:
            raise ReaperError(f"scope={pattern!r}: no convolution inside; the layers are {', '.join(names)}")
        found.update(hits)
    return found


def parents(name: str) -> Iterator[str]:
    """The names of the modules that hold the module ``name``, from the outermost; the model itself ("") is left out."""
    parts = name.split(".")
    return (".".join(parts[:k]) for k in range(1, len(parts)))
