"""FilterBank: the filters of a model, what would go, and the two moves everything is made of: drop and restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchreaper import criteria
from torchreaper.cost import Cost, network_cost
from torchreaper.errors import ReaperError
from torchreaper.filters import FilterLayer, Skip, apart, cuts, dropped_ids, filter_layers, picked, tensors
from torchreaper.flow import find_flow
from torchreaper.flow.channels import Flow
from torchreaper.flow.tracing import ExampleInputs, refuse_shards, refuse_wrappers
from torchreaper.reinit import Reinit, as_reinit
from torchreaper.restoring import bring_back, check_sources
from torchreaper.state import Optimizers, as_optimizers, check_eps
from torchreaper.subnetwork import Subnetwork
from torchreaper.subnetwork.modes import Mode, resolve
from torchreaper.subnetwork.plan import Plan, make_plan
from torchreaper.text import percent, shorten, shortened, table


def find_filters(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    skip: Skip = "first",
    include: Sequence[str] = (),
    scope: Skip = None,
    seed: int = 0,
) -> FilterBank:
    """Find the filters of a convnet; nothing in the model changes.

    Args:
        model: a plain ``nn.Module``; what ``torch.fx`` cannot trace is found by running it, and masked.
        example_inputs: a batch as in training: a tensor, a tuple (positional) or a dict (keywords). Only shapes count.
        skip: layers left out of the ranking: "first", "full-width" (what ends in a sum, say), names, shell patterns, a
            sequence of these, or ``None``.
        include: layers to rank although they would be left out (output and depthwise convolutions).
        scope: rank only convolutions inside these submodules.
        seed: of the bank's own random generator.

    Raises:
        ReaperError: the model does not run on the inputs, or nothing in it can be ranked.
    """
    refuse_wrappers(model)
    flow = find_flow(model, example_inputs, apart(include, model))
    layers = filter_layers(model, flow, skip=skip, include=include, scope=scope)
    if not any(layer.ranked for layer in layers):
        why = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers) or "it has no convolution that is called"
        raise ReaperError(f"model={type(model).__name__}: no convolution to rank ({why}); see skip, include and scope")
    return FilterBank(model, flow, layers, seed)


@dataclass(frozen=True)
class Preview:
    """What a drop would do; nothing has changed.

    Attributes:
        fraction: p, of the ranked filters.
        filters: layer -> indices of the filters that would go.
        scores: layer -> score of every filter, for ranked layers.
        full: cost of the whole network.
        sub: cost of the network without those filters.
        notes: where limits held filters back.
    """

    fraction: float
    filters: dict[str, tuple[int, ...]]
    scores: dict[str, Tensor]
    full: Cost
    sub: Cost
    notes: tuple[str, ...]

    def __str__(self) -> str:
        count, ranked = sum(map(len, self.filters.values())), sum(map(len, self.scores.values()))
        rows = [[name, f"{len(i)} of {len(self.scores[name])}", shorten(i)] for name, i in self.filters.items()]
        costs: list[tuple[str, int, int]] = [
            ("multiply-adds per sample", self.full.multiply_adds, self.sub.multiply_adds),
            ("parameters", self.full.parameters, self.sub.parameters),
            ("activations per sample", self.full.activations, self.sub.activations),
        ]
        return "\n".join(
            [
                f"fraction {self.fraction:g}: {count} of {ranked} ranked filters would be dropped",
                table(["layer", "dropped", "filters"], rows),
                "",
                table(
                    ["sub-network", "full", "without them", "share"],
                    [[n, a, b, percent(b, a)] for n, a, b in costs],
                ),
                *(f"note: {note}" for note in self.notes),
            ]
        )


class FilterBank:
    """The filters of one model, in order of execution. Made by :func:`find_filters`.

    Attributes:
        model: the model, the same object.
        layers: one :class:`FilterLayer` per convolution.
        flow: the channel flow behind them.
        generator: CPU generator of everything random that concerns this bank.
        dropped: layer -> indices of the filters that are left out now.
        mode: how they are left out: "masked" or "compact"; ``None`` in a full phase.
        history: what a scheme that ranks the filters has done with them; see :class:`RePr`.

    A bank copied or pickled together with its model and optimizer goes on working on those copies, in every phase;
    copied alone it takes copies of them along.
    """

    def __init__(self, model: nn.Module, flow: Flow, layers: Sequence[FilterLayer], seed: int = 0) -> None:
        self.model, self.flow, self.layers = model, flow, list(layers)
        self.generator = torch.Generator().manual_seed(seed)
        self.dropped: dict[str, tuple[int, ...]] = {}
        self._by_name = {layer.name: layer for layer in self.layers}
        self.mode: Mode | None = None
        self.history: Sequence[Any] = ()
        self._optimizers = as_optimizers(None)
        self._subnetwork: Subnetwork | None = None
        self._plan = Plan({}, {}, {}, {}, {})

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[FilterLayer]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> FilterLayer:
        if name not in self._by_name:
            raise ReaperError(f"layer={name!r}: no such layer; the layers are {', '.join(self._by_name)}")
        return self._by_name[name]

    @property
    def ranked(self) -> list[FilterLayer]:
        """The layers that take part in the ranking."""
        return [layer for layer in self.layers if layer.ranked]

    @property
    def stored_bytes(self) -> int:
        """Bytes kept for the filters that are dropped now, optimizer state and followers included, on each device."""
        return 0 if self._subnetwork is None else self._subnetwork.stored_bytes

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.filters,
                layer.dims,
                "yes" if layer.ranked else "no",
                layer.route,
                len(self.dropped.get(layer.name, ())),
                layer.reason,
            ]
            for layer in self.layers
        ]
        listed = table(["layer", "filters", "d", "ranked", "route", "dropped now", "why"], rows)
        notes = [
            f"torch.fx cannot trace {name or 'the model'} ({why}): its convolutions are masked, each at its own norm"
            for name, why in self.flow.untraced.items()
        ]
        return "\n".join([listed, *notes])

    def attach(self, optimizer: Optimizers = None, followers: Any = ()) -> None:
        """Install the hooks now, and name the optimizers whose state belongs to the filters.

        Dropping does it by itself; do it before ``torch.compile``, whose compiled calls ignore later hooks.

        Args:
            optimizer: one, a list or none.
            followers: copies of the model whose parameters are averages of its own over ``parameters()``, such as
                ``ema.module`` of an ``AveragedModel``. They lose and regain filters together with the model. A filter
                that is brought back re-initialised starts its average anew from the returned values; one that is put
                back untouched finds its average as it was. Averages over ``state_dict()`` are not named: what they
                write in a sub-network phase would be lost, and is refused then.
        """
        if self._subnetwork is not None:
            raise ReaperError("attach: this bank is attached already; call detach() before")
        optimizers = as_optimizers(optimizer)
        every = dropped_ids(self.layers, {layer.name: range(layer.filters) for layer in self.layers if layer.droppable})
        check_eps(optimizers, tensors(self.model, self.flow, every))
        self._subnetwork = Subnetwork(self.model, self.flow, optimizers, followers)
        self._optimizers = optimizers

    def detach(self) -> None:
        """Take every hook off; dropped filters must be back."""
        if self.dropped:
            raise ReaperError("detach: filters are dropped; call restore() before")
        if self._subnetwork is not None:
            self._subnetwork.remove()
            self._subnetwork = None

    def resolve(self, mode: str = "auto", *, drops: int = 1) -> tuple[Mode, str]:
        """Which way of leaving filters out ``mode`` comes to now, and why; nothing changes.

        Args:
            mode: "auto": compact where that is exact and some layer can be smaller, else masked.
            drops: how many drops are still to come; under ``torch.compile`` each needs graphs of its own.

        Returns:
            "compact" or "masked"; the reason why "auto" is masked, else "".

        Raises:
            ReaperError: "compact" where it would not be exact, with the reason; or an unknown mode.
        """
        graphs = 0 if self._subnetwork is None else self._subnetwork.graphs
        layers = [layer for layer in self.layers if layer.droppable]
        return resolve(mode, self.model, layers, self._optimizers, graphs * (1 + drops))

    def select(
        self,
        scores: Mapping[str, Any],
        fraction: float,
        *,
        min_filters: int = 1,
        max_per_layer: float = 1.0,
    ) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """The worst ``fraction`` of the ranked filters by ``scores``; see :func:`torchreaper.criteria.select`."""
        ranked = {}
        for layer in self.ranked:
            if layer.name not in scores:
                raise ReaperError(
                    f"scores: the criterion gave none for layer {layer.name!r}; it must score every ranked layer"
                )
            try:
                found = torch.as_tensor(scores[layer.name])
            except (TypeError, ValueError, RuntimeError) as error:
                raise ReaperError(
                    f"scores of layer {layer.name!r}: a {type(scores[layer.name]).__name__} that is no array of "
                    f"numbers; must be a tensor [{layer.filters}]"
                ) from error
            if tuple(found.shape) != (layer.filters,):
                raise ReaperError(
                    f"scores of layer {layer.name!r}: shape {list(found.shape)}; must be [{layer.filters}]"
                )
            ranked[layer.name] = found
        return criteria.select(ranked, fraction, min_filters=min_filters, max_per_layer=max_per_layer)

    def preview(
        self,
        fraction: float = 0.30,
        criterion: str | criteria.Criterion = "orthogonality",
        *,
        min_filters: int = 1,
        max_per_layer: float = 1.0,
    ) -> Preview:
        """What dropping ``fraction`` of the ranked filters would do; nothing changes, the random state included.

        Raises:
            ReaperError: filters are dropped now (their weights are not in place), or the settings drop none.
        """
        if self.dropped:
            raise ReaperError("preview: filters are dropped, their weights are not in place; restore them before")
        self.check_settings(fraction, min_filters, max_per_layer)
        before = self.generator.get_state()
        try:
            scores = criteria.make(criterion).scores(self)
        finally:
            self.generator.set_state(before)
        filters, notes = self.select(scores, fraction, min_filters=min_filters, max_per_layer=max_per_layer)
        mine = {layer.name: torch.as_tensor(scores[layer.name]) for layer in self.ranked}
        return Preview(fraction, filters, mine, self.cost({}), self.cost(filters), tuple(notes))

    def cost(self, filters: Mapping[str, Iterable[int]]) -> Cost:
        """What the network costs without ``filters`` (layer -> indices; empty: the whole network).

        Raises:
            ReaperError: they could not be dropped, see :meth:`drop`.
        """
        return network_cost(self.model, self.flow, dropped_ids(self.layers, self._picked(filters)))

    def check_settings(self, fraction: float, min_filters: int = 1, max_per_layer: float = 1.0) -> None:
        """Raise :class:`ReaperError` for values out of range, and for those that would never drop a filter."""
        check_fraction(fraction)
        if isinstance(max_per_layer, bool) or not isinstance(max_per_layer, (int, float)) or not 0 < max_per_layer <= 1:
            raise ReaperError(f"max_per_layer={max_per_layer!r}: must be in (0, 1]")
        ranked = sum(layer.filters for layer in self.ranked)
        if not criteria.quota(fraction, ranked):
            raise ReaperError(
                f"fraction={fraction}: of {ranked} ranked filters that is none; use at least {1 / ranked:.3g}"
            )
        if not any(criteria.capacity(layer.filters, min_filters, max_per_layer) for layer in self.ranked):
            widest = max(layer.filters for layer in self.ranked)
            raise ReaperError(
                f"min_filters={min_filters}, max_per_layer={max_per_layer}: no layer may lose a filter (the widest has "
                f"{widest}); lower min_filters or raise max_per_layer"
            )

    def drop(self, filters: Mapping[str, Iterable[int]], *, mode: str = "auto", exact_dropout: bool = False) -> None:
        """Leave ``filters`` out until :meth:`restore`.

        To train in between, :meth:`attach` the optimizer first: without it, its state of these filters is not kept.

        Args:
            filters: layer name -> indices.
            mode: "masked": zeros at full width. "compact": tensors are really smaller, where the layer's route allows.
                "auto": see :meth:`resolve`.
            exact_dropout: compact draws the random numbers of ``nn.Dropout`` and ``nn.RReLU`` modules at full width, as
                masked does. Functional dropout cannot be reached.

        Raises:
            ReaperError: filters are dropped already, an unknown layer or index, a layer that would lose all, or
                "compact" where it would not be exact.
        """
        refuse_shards(self.model)
        chosen, _ = self.resolve(mode)
        if self.dropped:
            raise ReaperError("drop: filters are dropped already; restore them before dropping others")
        wanted = self._picked(filters)
        if not wanted:
            return
        if self._subnetwork is None:
            self.attach()
        assert self._subnetwork is not None
        plan = make_plan(self.flow, self.layers, wanted, compact=chosen == "compact", exact_dropout=exact_dropout)
        with torch.inference_mode(False):  # a tensor made in it could never be trained again
            self._subnetwork.enter(plan)
        self.dropped, self.mode, self._plan = wanted, chosen, plan

    def restore(self, reinit: str | Reinit | None = None) -> list[str]:
        """Bring the dropped filters back.

        Args:
            reinit: how they start; ``None``: exactly as they were when dropped.

        Returns:
            One note per layer on how its filters came back, and one where the learning rate has fallen; empty without
            ``reinit``.

        Raises:
            ReaperError: it cannot be; the filters are still dropped.
        """
        how = None if reinit is None else as_reinit(reinit)
        if not self.dropped:
            return []
        assert self._subnetwork is not None
        lost = {self._by_name[name]: indices for name, indices in self.dropped.items()}
        ids = dropped_ids(self.layers, self.dropped)
        if how is not None:
            self._check_return(lost)
            check_sources(self.model, self.flow, ids, self._optimizers, how)
        with torch.inference_mode(False):
            before, random = (self.dropped, self.mode), self.generator.get_state()
            self._subnetwork.leave()
            self.dropped, self.mode = {}, None
            if how is None:
                return []
            try:
                notes = bring_back(self.model, lost, self.flow, ids, self._optimizers, how, self.generator)
            except BaseException:
                if how.candidates is not None:  # they need the whole network, and may fail
                    self._subnetwork.enter(self._plan)
                    self.dropped, self.mode = before
                    self.generator.set_state(random)
                raise
            self._subnetwork.share_returned(cuts(self.flow, ids))
            return notes

    @contextmanager
    def without(self, filters: Mapping[str, Iterable[int]], mode: str = "auto") -> Iterator[FilterBank]:
        """The model without ``filters`` inside the block, untouched afterwards, exceptions included."""
        attached_before = self._subnetwork is not None
        self.drop(filters, mode=mode)
        try:
            yield self
        finally:
            self.restore()
            if not attached_before:
                self.detach()

    def _check_return(self, lost: Mapping[FilterLayer, Sequence[int]]) -> None:
        """Before anything is touched: what a re-initialisation needs."""
        assert self._subnetwork is not None
        for layer in lost:
            if not layer.module.weight.requires_grad:
                raise ReaperError(f"restore: layer {layer.name!r} is frozen; restore it as it was, without reinit")
            if not all(values.isfinite().all() for values in (layer.rows, *self._subnetwork.stored(layer.name))):
                raise ReaperError(
                    f"restore: the weights of layer {layer.name!r} are not finite, training has diverged; lower the "
                    "learning rate or clip gradients, and go on from an earlier checkpoint"
                )

    def _picked(self, filters: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
        if not isinstance(filters, Mapping):
            raise ReaperError(f"filters={shortened(filters)}: must be a mapping of layer names to lists of indices")
        found = {name: picked(self[name], indices) for name, indices in filters.items()}
        return {name: indices for name, indices in found.items() if indices}


def check_fraction(fraction: float) -> None:
    """Raise :class:`ReaperError` unless 0 < fraction < 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ReaperError(f"fraction={fraction!r}: must be in (0, 1); the paper uses 0.30")
