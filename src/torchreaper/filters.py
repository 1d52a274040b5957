"""The filters of a model: one :class:`FilterLayer` per convolution, and what belongs to each filter."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Literal, Union

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchreaper.errors import ReaperError
from torchreaper.flow.channels import Flow, Role, Share
from torchreaper.flow.operations import CONVOLUTIONS, TRANSPOSED
from torchreaper.flow.reading import is_depthwise
from torchreaper.flow.rows import rewritten
from torchreaper.state import Cut
from torchreaper.text import shortened

Route = Literal["narrow", "scatter", "masked"]
Skip = Union[None, str, Sequence[str]]
Filters = Mapping[str, Sequence[int]]
"""Layer name -> indices of some of its filters."""
ROLES: frozenset[Role] = frozenset({"filter", "norm", "follower", "consumer"})


SCATTER_FROM = 64
"""From so many filters on it pays to compute a convolution narrow and to put its output back to full width."""


@dataclass(frozen=True)
class FilterLayer:
    """One convolution and its filters.

    Attributes:
        name: module name in the model.
        module: the convolution; its weight is ``[filters, in / groups, *kernel]``, or ``[in, filters, *kernel]`` where
            it is transposed (``[in, filters / groups, *kernel]`` with groups).
        filters: J, how many output channels.
        dims: d, weights of one filter: kernel positions times input channels of its group.
        groups: orthogonality is taken inside a group of ``filters / groups`` rows.
        start: id of the first filter in the channel flow; the others follow.
        route: how its filters can be left out for real. "narrow": every reader is a dense layer, so filters, norm
            entries and kernel slices go. "scatter": some place needs the full width, so the convolution runs narrow and
            its output is put back to full width. "masked": full width throughout.
        ranked: whether the filters take part in the global ranking.
        droppable: whether they can be left out at all: not where they follow other channels, or where the weight is
            used in another place too, or couples the filters.
        reason: why not ranked, or what makes the route other than "narrow"; empty otherwise.
    """

    name: str
    module: Any
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
        """The filters as rows, without gradient; of a plain convolution a view of the weight."""
        weight: Tensor = self.module.weight.detach()
        if self._transposed:  # [in, filters / groups, *kernel]
            weight = torch.cat(weight.chunk(self.groups), dim=1).transpose(0, 1)
        return weight.flatten(1)

    def write(self, indices: Int[Tensor, " some"], rows: Float[Tensor, "some dims"]) -> None:
        """Set the weights of some filters."""
        for parameter, values in self._targets(indices, rows):
            target = parameter.detach()
            on = indices.to(target.device)
            # Into the tensor itself: its rows are a copy where the memory format is channels_last.
            (target.transpose(0, 1) if self._transposed else target)[on] = values.to(target)

    def _targets(self, indices: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        weight = self.module._parameters.get("weight")
        if weight is None:
            shape = self.module.weight.shape[1:]
            return rewritten(self.module, indices.to(self.module.weight.device), rows.view(-1, *shape))
        shape = weight.shape[:1] + weight.shape[2:] if self._transposed else weight.shape[1:]
        return [(weight, rows.view(-1, *shape))]

    @property
    def _transposed(self) -> bool:
        return isinstance(self.module, TRANSPOSED)


def filter_layers(
    model: nn.Module, flow: Flow, *, skip: Skip = "first", include: Sequence[str] = (), scope: Skip = None
) -> list[FilterLayer]:
    """The convolutions of ``model`` in order of execution, with what is ranked and why not.

    Args:
        flow: the channel flow of the same model.
        skip: layers left out of the ranking: "first", "full-width", names, shell patterns such as ``layer4.*``, several
            of them, or ``None``. The first layer's few dimensions make it look redundant by geometry alone. Full width
            is what a sum needs: filters that end in one, as half of a ResNet's, are read by more than later layers, so
            that they cannot return without a change to what is computed.
        include: layers to rank although they would be left out (output and depthwise convolutions, the first layer).
        scope: only convolutions inside these submodules are ranked (names or patterns); ``None``: all.

    Raises:
        ReaperError: a name that is no layer, or one that cannot be ranked.
    """
    names = list(flow.start)
    words = {"first": names[:1], "full-width": [name for name in names if flow.barriers.get(name)]}
    said = _as_patterns(skip, "skip")
    by_name = _matches([pattern for pattern in said if pattern not in words], names, "skip")
    skipped = by_name.union(*(words[word] for word in said if word in words))
    included = _matches(include, names, "include")
    inside = _inside(scope, names)
    if both := [name for name in names if name in included and name in by_name]:
        raise ReaperError(f"include={both}: also named in skip={skip!r}; name each layer in one of them")
    layers = []
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, CONVOLUTIONS)
        fixed = _never_dropped(name, module, flow)
        trains = any(p.requires_grad for p in weight_parameters(module))
        never = fixed or ("" if trains else "frozen (requires_grad is False)")
        reason = never or ("" if name in included else _left_out(name, module, flow, skipped, inside))
        if never and name in included:
            raise ReaperError(f"include={name!r}: its filters cannot be dropped ({never}); take it out of include")
        route, why = _route(name, module, flow, fixed)
        layers.append(
            FilterLayer(
                name=name,
                module=module,
                filters=module.out_channels,
                dims=module.in_channels // module.groups * prod(module.kernel_size),
                groups=module.groups,
                start=flow.start[name],
                route=route,
                ranked=not reason,
                droppable=not fixed,
                reason=reason or why,
            )
        )
    return layers


def _route(name: str, module: Any, flow: Flow, fixed: str) -> tuple[Route, str]:
    if name in flow.grouped or name in flow.gates:  # smaller where all that it follows is
        leads = flow.layers_of({**flow.gates, **flow.grouped}[name])
        narrow = leads and all(lead not in flow.outputs and not flow.barriers.get(lead) for lead in leads)
        return "narrow" if narrow else "masked", ""
    if fixed:
        return "masked", ""
    barriers = flow.barriers.get(name, []) + (["the model's output"] if name in flow.outputs else [])
    if module.groups > 1:
        return "masked", "its groups must keep their size"
    if name in flow.computed:
        return "masked", "its weight is computed"
    if not barriers:
        return "narrow", ""
    why = f"full width at {', '.join(barriers[:3])}{' and others' if len(barriers) > 3 else ''}"
    head = flow.heads.get(name, ())
    if not head or module.out_channels < SCATTER_FROM:
        return "masked", why
    return "scatter", why


def apart(include: Sequence[str], model: nn.Module) -> frozenset[str]:
    """The convolutions named in ``include``: depthwise ones and gates among them keep filters of their own."""
    names = [name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]
    patterns = _as_patterns(include, "include")
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def picked(layer: FilterLayer, indices: Iterable[int]) -> tuple[int, ...]:
    """These filters of ``layer``, each once and in order.

    Raises:
        ReaperError: they are no indices, not its own or all of them, or the layer cannot lose any.
    """
    what = f"filters of {layer.name!r}"
    try:
        found = sorted({_index(one) for one in indices})
    except TypeError:
        raise ReaperError(f"{what}={shortened(indices)}: must be a list of indices, whole numbers") from None
    if found and not layer.droppable:
        raise ReaperError(f"{what}: cannot be dropped ({layer.reason})")
    if wrong := [i for i in found if not 0 <= i < layer.filters]:
        raise ReaperError(f"{what}: {wrong[0]} is not in 0..{layer.filters - 1}")
    if len(found) == layer.filters:
        raise ReaperError(f"{what}: all {layer.filters}; a layer must keep at least one")
    return tuple(found)


def _index(value: Any) -> int:
    """An index; ``TypeError`` for anything else, as an entry of a mask, which would be taken for filter 0 or 1."""
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError
    return operator.index(value)


def dropped_ids(layers: Iterable[FilterLayer], dropped: Filters) -> Int[Tensor, " ids"]:
    """The flow's ids of the given filters."""
    start = {layer.name: layer.start for layer in layers}
    return torch.tensor(
        sorted(start[name] + i for name, indices in dropped.items() for i in indices), dtype=torch.int64, device="cpu"
    )


def cuts(flow: Flow, ids: Int[Tensor, " ids"], roles: Set[Role] = ROLES) -> dict[str, dict[str, Cut]]:
    """Module -> tensor name -> the part of it that belongs to the filters ``ids``.

    A filter owns its row of the convolution (and its bias), its entries of every norm it passes and of all that follows
    its channel, and its slice of every dense layer that reads it.
    """
    mine = flow.marked(ids)
    found: dict[str, dict[str, Cut]] = {}
    for name in sorted(flow.shares):
        entries = {tensor: _cut(shares, mine, roles) for tensor, shares in flow.shares[name].items()}
        if entries := {tensor: cut for tensor, cut in entries.items() if cut}:
            found[name] = entries
    return found


def _cut(shares: Sequence[Share], mine: Bool[Tensor, " all"], roles: Set[Role]) -> Cut:
    parts = [_NONE, _NONE]
    for share in shares:
        if share.role in roles:
            parts[share.dim] = mine[share.origin].nonzero().flatten()
    return Cut(*parts)


def undoing(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"], roles: Set[Role] = ROLES) -> Callable[[], None]:
    """Calling the result puts what belongs to the filters ``ids`` back as it is now, bit for bit."""
    parts = [
        (tensor, cut, tensor.detach()[cut.mask(tensor)])
        for name, entries in cuts(flow, ids, roles).items()
        for key, cut in entries.items()
        if (tensor := tensor_of(model.get_submodule(name), key)) is not None
    ]

    def undo() -> None:
        for tensor, cut, values in parts:
            cut.put(tensor, values)

    return undo


def tensors(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"]) -> list[Tensor]:
    """Every parameter and buffer that holds something of the filters ``ids``."""
    found = (tensor_of(model.get_submodule(name), key) for name, entries in cuts(flow, ids).items() for key in entries)
    return [tensor for tensor in found if tensor is not None]


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer that the module holds itself; reading a computed one may run code of its own."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


def weight_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The weight, or what it is computed from; a computed one is not read, for that may run code of its own."""
    weight = module._parameters.get("weight")
    return [weight] if weight is not None else [p for name, p in module.named_parameters() if "weight" in name]


_NONE = torch.empty(0, dtype=torch.int64, device="cpu")


def _never_dropped(name: str, module: nn.Module, flow: Flow) -> str:
    if name in flow.grouped:
        return f"depthwise: follows {_owners(flow, flow.grouped[name])}"
    if name in flow.gates:
        return f"gate: follows {_owners(flow, flow.gates[name])}"
    if flow.computed.get(name):
        return flow.computed[name]
    if name in flow.shared:
        return "weight is used in another place too"
    if any(parameter.is_complex() for parameter in weight_parameters(module)):
        return "complex weights"
    if isinstance(module, CONVOLUTIONS) and module.out_channels == 1:
        return "has one filter only"
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return "transposed with groups"
    return "" if name in flow.sites else "no place for a mask"


def _owners(flow: Flow, origin: Int[Tensor, " channels"]) -> str:
    names = flow.layers_of(origin)
    return ", ".join(names[:2]) + (" and others" if len(names) > 2 else "") if names else "what it multiplies"


def _left_out(name: str, module: nn.Module, flow: Flow, skipped: set[str], inside: set[str]) -> str:
    if name not in inside:
        return "outside scope"
    if name in skipped:
        return "skipped"
    if is_depthwise(module):
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


def _matches(value: Skip, names: list[str], argument: str) -> set[str]:
    found: set[str] = set()
    for pattern in _as_patterns(value, argument):
        hits = [name for name in names if fnmatchcase(name, pattern)]
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
