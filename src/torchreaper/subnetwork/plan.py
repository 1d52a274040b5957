"""What a sub-network is made of: which entries of which tensor go, which hold 0, and where outputs are completed.

A pure function of the channel flow, the layers' routes and the filters to drop; nothing here touches a model. Masked,
every entry of a dropped filter is held. Compact, the entries of a layer that can be *narrow* are removed wherever they
stand; those of a *scatter* layer in its head only (the convolution, and the norm behind it), whose output is put back
to full width; everything else is held, as in masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from torchreaper.filters import FilterLayer, Filters, dropped_ids
from torchreaper.flow.channels import Flow, Origin, Site
from torchreaper.subnetwork.parts import Axis, Part

Ids = Bool[Tensor, " ids"]
"""For every filter id, and at the end for ``NOBODY`` (-1), whether something holds."""


@dataclass(frozen=True, eq=False)
class Output:
    """What happens to the output of one module.

    Attributes:
        mask: channels set to 0, among those that are there; ``None``: none.
        kept: where the channels that are there stand at full width; ``None``: the output stays as it is.
        width: the full width.
    """

    mask: Bool[Tensor, " channels"] | None = None
    kept: Int[Tensor, " kept"] | None = None
    width: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """A sub-network, by module name.

    Attributes:
        parts: module -> tensor -> the part it is without.
        outputs: module -> what happens to its output.
        groups: module -> how many groups are left; only where some went.
        features: module -> how many channels are left; only where some went.
        dropouts: module -> where the channels that are there stand at full width.
        narrow: layers whose dropped filters are removed everywhere.
        scatter: layers whose dropped filters are removed in their head.
    """

    parts: dict[str, dict[str, Part]]
    outputs: dict[str, Output]
    groups: dict[str, int]
    features: dict[str, int]
    dropouts: dict[str, Output]
    narrow: tuple[str, ...] = ()
    scatter: tuple[str, ...] = ()


def make_plan(
    flow: Flow, layers: Sequence[FilterLayer], dropped: Filters, *, compact: bool, exact_dropout: bool = False
) -> Plan:
    """The sub-network without ``dropped``.

    Args:
        flow: the model's channel flow.
        layers: its convolutions, with their routes.
        dropped: layer -> indices.
        compact: remove what can be removed.
        exact_dropout: let Dropout and RReLU modules on narrow paths draw their random numbers at full width.
    """
    gone = flow.marked(dropped_ids(layers, dropped))
    removal = _removal(flow, layers, gone) if compact else _Removal(gone.new_zeros(len(gone)), {}, {}, {})
    features = {name: _left(site.origin, removal.at(name)) for name, site in flow.sites.items()}
    groups = {name: _left(origin, removal.at(name)) for name, origin in flow.grouped.items()}
    dropouts = {name: _widening(site, removal.at(name)) for name, site in flow.dropouts.items()}
    return Plan(
        parts=_parts(flow, gone, removal),
        outputs={name: _output(site, gone, removal, name, compact) for name, site in flow.sites.items()},
        groups={name: left for name, left in groups.items() if left < len(flow.grouped[name])},
        features={name: left for name, left in features.items() if left < len(flow.sites[name].origin)},
        dropouts={name: one for name, one in dropouts.items() if exact_dropout and one.kept is not None},
        narrow=tuple(removal.narrow_layers),
        scatter=tuple(removal.scatter_layers),
    )


@dataclass(frozen=True, eq=False)
class _Removal:
    """What is removed, and where.

    Attributes:
        narrow: ids removed everywhere.
        heads: module of a head -> ids removed in it.
        narrow_layers, scatter_layers: the layers these ids belong to; for a scatter layer, the head's last module.
    """

    narrow: Ids
    heads: Mapping[str, Ids]
    narrow_layers: Mapping[str, Ids]
    scatter_layers: Mapping[str, str]

    def at(self, module: str) -> Ids:
        """The ids removed from tensors of ``module`` that belong to channels passing it."""
        return self.heads.get(module, self.narrow)


def _removal(flow: Flow, layers: Sequence[FilterLayer], gone: Ids) -> _Removal:
    """All that routes allow, less what would leave a dimension with one entry: a stale reader would broadcast it."""
    everything = {layer.name: torch.arange(layer.start, layer.start + layer.filters, device="cpu") for layer in layers}
    mine = {name: flow.marked(ids) & gone for name, ids in everything.items()}
    routes = {layer.name: layer.route for layer in layers if mine[layer.name].any()}
    while True:
        narrow = {name: mine[name] for name, route in routes.items() if route == "narrow"}
        heads = {name: flow.heads.get(name, (name,)) for name, route in routes.items() if route == "scatter"}
        everywhere = _any(narrow.values(), gone)
        in_heads = {module: everywhere | mine[name] for name, head in heads.items() for module in head}
        removal = _Removal(everywhere, in_heads, narrow, {name: head[-1] for name, head in heads.items()})
        thin = {
            layer
            for origin, removed in _dimensions(flow, removal)
            if _left(origin, removed) <= 1
            for layer in flow.layers_of(origin[removed[origin]])
        }
        if not thin & routes.keys():
            return removal
        routes = {name: route for name, route in routes.items() if name not in thin}


def _dimensions(flow: Flow, removal: _Removal) -> list[tuple[Origin, Ids]]:
    """Every dimension that becomes smaller, once: whose its entries are, and the ids removed there."""
    found: dict[tuple[int, int], tuple[Origin, Ids]] = {}

    def note(origin: Origin, removed: Ids) -> None:
        found[id(origin), id(removed)] = origin, removed

    for name, tensors in flow.shares.items():
        for shares in tensors.values():
            for share in shares:
                note(share.origin, removal.narrow if share.role == "consumer" else removal.at(name))
    for name, site in flow.sites.items():
        note(site.origin, removal.at(name))
    for name, origin in flow.grouped.items():
        note(origin, removal.at(name))
    return [(origin, removed) for origin, removed in found.values() if removed[origin].any()]


def _parts(flow: Flow, gone: Ids, removal: _Removal) -> dict[str, dict[str, Part]]:
    split = _Splitter(gone)
    found: dict[str, dict[str, Part]] = {}
    for name, tensors in flow.shares.items():
        for tensor, shares in tensors.items():
            axes = []
            for dim in (0, 1):
                mine = [share for share in shares if share.dim == dim]
                reads = any(share.role == "consumer" for share in mine)
                # What a head hands on is at full width again: its readers do without the narrow layers' filters only.
                removed = removal.narrow if reads else removal.at(name)
                axes.append(split.axis([share.origin for share in mine], removed) or None)
            if any(axes):
                found.setdefault(name, {})[tensor] = Part(axes[0], axes[1], name in flow.kept_values)
    return found


class _Splitter:
    """Makes an :class:`Axis` once for every origin: the tensors of one module share theirs."""

    def __init__(self, gone: Ids) -> None:
        self._gone = gone
        self._known: dict[tuple[int, ...], Axis] = {}

    def axis(self, origins: Sequence[Origin], removed: Ids) -> Axis | None:
        """One dimension with the given origins, of which several may say something about one entry."""
        if not origins:
            return None
        key = (id(removed), *map(id, origins))
        if key not in self._known:
            leaving = _any([removed[origin] for origin in origins], origins[0])
            held = _any([self._gone[origin] for origin in origins], origins[0])[~leaving]
            self._known[key] = Axis(*(mask.nonzero().flatten() for mask in (leaving, ~leaving, held)))
        return self._known[key]


def _output(site: Site, gone: Ids, removal: _Removal, name: str, compact: bool) -> Output:
    if name in removal.heads:
        # Between the modules of a head nothing is to be done; behind the last one, zeros fill the gaps.
        return _widening(site, removal.at(name)) if name in removal.scatter_layers.values() else Output()
    mask = gone[site.origin[~removal.narrow[site.origin]]]
    # Masked, everywhere, also where no channel is dropped: a compiled graph then holds for every cycle.
    return Output(mask=mask if mask.any() or not compact else None)


def _widening(site: Site, removed: Ids) -> Output:
    kept = ~removed[site.origin]
    return Output() if kept.all() else Output(kept=kept.nonzero().flatten(), width=len(kept))


def _left(origin: Origin, removed: Ids) -> int:
    return int((~removed[origin]).sum())


def _any(masks: Iterable[Bool[Tensor, " n"]], like: Int[Tensor, " n"] | Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    found = torch.zeros(len(like), dtype=torch.bool, device="cpu")
    for mask in masks:
        found = found | mask
    return found
