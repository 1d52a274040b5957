"""Bringing filters back: new rows, biases, norm entries, consumer slices and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from math import sqrt
from typing import Union

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.candidates import Contest, no_choice, strongest
from torchreaper.errors import ReaperError
from torchreaper.filters import ROLES, FilterLayer, cuts, tensor_of, undoing
from torchreaper.flow.channels import Flow, Role
from torchreaper.flow.operations import NORMS
from torchreaper.ranks import decided_by_rank_zero
from torchreaper.reinit import Reinit, Return, candidate_rows, returning_rows, worst_cosine
from torchreaper.state import SECOND_MOMENTS, Cut, all_finite, per_weight_state, reset

Chosen = dict[tuple[str, int], Union[Return, str]]
"""Layer and first filter of a group -> the rows that were chosen for it, or why chance decides."""
Old = dict[FilterLayer, Tensor]
"""Rows of filters as they were when dropped, where slices of them have changed since: [returning, dims] each."""
_NORM_ENTRIES = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@torch.no_grad()
def bring_back(
    model: nn.Module,
    dropped: Mapping[FilterLayer, Sequence[int]],
    flow: Flow,
    ids: Int[Tensor, " ids"],
    optimizers: Sequence[Optimizer],
    reinit: Reinit,
    generator: torch.Generator,
) -> list[str]:
    """Re-initialise filters that stand in their old places with their old values.

    Args:
        dropped: layer -> indices of its returning filters.
        flow: says what else belongs to them.
        ids: theirs in the flow.

    Returns:
        One note per layer: how many, the room there was, the worst |cos|; and one where the learning rate has fallen.

    Raises:
        ReaperError: candidates cannot be measured; everything is as it was before.
    """
    undo = None if reinit.candidates is None else undoing(model, flow, ids)
    back = {layer: torch.tensor(indices, dtype=torch.int64, device="cpu") for layer, indices in dropped.items()}
    norms = _belongings(model, flow, ids, {"norm"}) if reinit.norms != "keep" else {}
    for name, entries in norms.items():
        for tensor, cut in entries.items():
            cut.fill(_tensor(model, name, tensor).detach(), _NORM_ENTRIES[tensor])
    if reinit.norms == "small":
        _hush(model, back, flow)
    readers = _Readers(model, _belongings(model, flow, ids, {"consumer"}), reinit.consumers, generator)
    for layer in back:
        bias = layer.module.bias
        if bias is not None and bias.requires_grad and reinit.bias == "zero":
            bias.detach()[back[layer].to(bias.device)] = 0
    chosen: Chosen = {}
    old: Old = {}
    if undo is not None:  # candidates are measured where all slices are set
        old = {layer: rows for layer, mine in back.items() if (rows := readers.set(layer, mine)) is not None}
        readers.set_rest()
        try:
            chosen = _choose(model, back, flow, ids, old, reinit, generator)
        except BaseException:
            undo()
            raise
    _count_anew(model, norms)  # nothing can fail any more: `undo` knows nothing of it
    notes = []
    for layer, mine in back.items():
        was = old.pop(layer) if layer in old else readers.set(layer, mine)
        notes.append(_return_layer(layer, mine, was, chosen, reinit, generator))
    readers.set_rest()
    if reinit.optimizer_state != "keep":
        for name, entries in _belongings(model, flow, ids, ROLES).items():
            for tensor, cut in entries.items():
                reset(optimizers, _tensor(model, name, tensor), cut, reinit.optimizer_state)
    return notes + _late_return(optimizers)


def check_sources(
    model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"], optimizers: Sequence[Optimizer], reinit: Reinit
) -> None:
    """Raise :class:`ReaperError` where returning filters would start from a mean of values that are not finite."""
    if reinit.consumers != "random" and reinit.optimizer_state != "layer-mean":
        return
    for name, entries in _belongings(model, flow, ids, ROLES).items():
        for key, cut in entries.items():
            tensor, sources = _tensor(model, name, key), {}
            if reinit.consumers == "random" and len(cut.columns):
                sources[""] = tensor
            if reinit.optimizer_state == "layer-mean":
                moments = ((k, state[k]) for _, state, k in per_weight_state(optimizers, tensor))
                sources |= {f"the optimizer's {k} of ": value for k, value in moments if k in SECOND_MOMENTS}
            for what, source in sources.items():
                if not all_finite(source):
                    raise ReaperError(
                        f"restore: {what}{f'{name}.{key}'!r} is not finite, training has diverged; lower the learning "
                        "rate or clip gradients, and go on from an earlier checkpoint"
                    )


def _belongings(model: nn.Module, flow: Flow, ids: Int[Tensor, " ids"], roles: Set[Role]) -> dict[str, dict[str, Cut]]:
    """What belongs to the filters in these roles, without what the user has frozen: that is not for us to change."""
    return {
        name: {t: cut for t, cut in entries.items() if not _frozen(model.get_submodule(name), _tensor(model, name, t))}
        for name, entries in cuts(flow, ids, roles).items()
    }


def _tensor(model: nn.Module, module: str, name: str) -> Tensor:
    tensor = tensor_of(model.get_submodule(module), name)
    assert tensor is not None
    return tensor


def _rows(layer: FilterLayer, some: Int[Tensor, " some"]) -> Float[Tensor, "some dims"]:
    rows = layer.rows
    return rows[some.to(rows.device)]


def _frozen(module: nn.Module, tensor: Tensor) -> bool:
    """A parameter without a gradient; a buffer, such as a norm's statistics, where none of the parameters has one."""
    own = [tensor] if isinstance(tensor, nn.Parameter) else list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


class _Readers:
    """The slices that read returning filters, until they are set."""

    def __init__(
        self, model: nn.Module, parts: dict[str, dict[str, Cut]], how: str, generator: torch.Generator
    ) -> None:
        self._model, self._how, self._generator = model, how, generator
        self._parts = {} if how == "keep" else parts

    def set(self, layer: FilterLayer, back: Int[Tensor, " returning"]) -> Float[Tensor, "returning dims"] | None:
        """Set those in a layer that filters return to.

        Returns:
            What these filters held when they were dropped; ``None``: the layer reads none, and they still do. Of one
            layer at a time, so that a deep network needs no more memory.
        """
        inside = [name for name in self._parts if name == layer.name or name.startswith(f"{layer.name}.")]
        if not inside:
            return None
        old = _rows(layer, back)
        for name in inside:
            self._set(name)
        return old

    def set_rest(self) -> None:
        """Set those that are left."""
        for name in list(self._parts):
            self._set(name)

    def _set(self, name: str) -> None:
        for tensor, cut in self._parts.pop(name).items():
            _set_consumer(_tensor(self._model, name, tensor).detach(), cut, self._how, self._generator)


def _set_consumer(weight: Tensor, cut: Cut, how: str, generator: torch.Generator) -> None:
    if how == "zero":
        cut.fill(weight, 0)
    elif how == "random":
        scale, count = sqrt(cut.mean_outside(weight, 2) or 0.0), int(cut.mask(weight).sum())
        cut.put(weight, torch.randn(count, dtype=torch.float64, generator=generator, device="cpu").mul_(scale))


SMALL = 0.01
"""Gamma of what returns into a sum; not 0: where all else in the sum is 0, a ReLU behind it would pass no gradient."""


def _count_anew(model: nn.Module, norms: Mapping[str, Mapping[str, Cut]]) -> None:
    """A norm that averages over all batches alike would hold its new statistics at 0 and 1 by those of before."""
    for name, entries in norms.items():
        norm = model.get_submodule(name)
        count = getattr(norm, "num_batches_tracked", None)
        if "running_mean" in entries and isinstance(count, Tensor) and getattr(norm, "momentum", 0.0) is None:
            count.zero_()


def _hush(model: nn.Module, back: Mapping[FilterLayer, Int[Tensor, " returning"]], flow: Flow) -> None:
    """Let the norms before sums begin with a small gamma for what returns."""
    norms = {layer: norm for layer in back if (norm := norm_before_sum(model, flow, layer)) is not None}
    if not norms:
        return
    entries = _belongings(model, flow, torch.cat([layer.start + back[layer] for layer in norms]), {"norm"})
    for norm in set(norms.values()):
        if (cut := entries.get(norm, {}).get("weight")) is not None:
            cut.fill(_tensor(model, norm, "weight").detach(), SMALL)


def norm_before_sum(model: nn.Module, flow: Flow, layer: FilterLayer) -> str | None:
    """The norm behind which a layer's map enters a sum, or whatever else takes it at full width.

    ``None`` where a later layer reads the map by itself, or an activation comes first.
    """
    seen = flow.maps.get(layer.name)
    if seen is None or seen.activation is not None or type(model.get_submodule(seen.module)) not in NORMS:
        return None
    ids = torch.arange(layer.start, layer.start + layer.filters, device="cpu")
    return None if cuts(flow, ids, {"consumer"}) else seen.module


def _choose(
    model: nn.Module,
    back: Mapping[FilterLayer, Int[Tensor, " returning"]],
    flow: Flow,
    ids: Int[Tensor, " ids"],
    old: Old,
    reinit: Reinit,
    generator: torch.Generator,
) -> Chosen:
    chosen: Chosen = {}
    contests: dict[tuple[str, int], tuple[Contest, str]] = {}
    for layer, mine in back.items():
        why = no_choice(model, flow, layer)
        reference = None if why else _reference(layer, mine, old.get(layer))
        for group, places in _groups(layer, mine):
            made = None
            if reference is not None:
                made = candidate_rows(reference[group], places - group.start, reinit, generator)
            if made is None:
                chosen[layer.name, group.start] = f"left to chance ({why or 'no room for more'})"
            else:
                contests[layer.name, group.start] = Contest(layer, places, made.rows), made.case
    in_order = [contest for contest, _ in contests.values()]
    numbers = decided_by_rank_zero(lambda: strongest(model, flow, in_order, ids, reinit.candidates))
    for (key, (contest, case)), best in zip(contests.items(), numbers):
        case += f", chosen of {len(contest.rows)} by gradient"
        chosen[key] = Return(contest.rows[best], case)
    return chosen


def _groups(layer: FilterLayer, back: Int[Tensor, " returning"]) -> Iterator[tuple[slice, Int[Tensor, " mine"]]]:
    """The groups of a layer that filters return to: where their rows stand, and those filters."""
    per_group = layer.filters // layer.groups
    for group in sorted(set((back // per_group).tolist())):
        yield slice(group * per_group, (group + 1) * per_group), back[back // per_group == group]


def _reference(
    layer: FilterLayer, back: Int[Tensor, " returning"], old: Float[Tensor, "returning dims"] | None
) -> Float[Tensor, "filters dims"]:
    """Rows to be orthogonal to. ``old``: those of returning filters when dropped; ``None``: they are in place."""
    reference = layer.rows.to("cpu", torch.float64, copy=True)
    if old is not None:
        reference[back] = old.to(reference)
    return reference


def _return_layer(
    layer: FilterLayer,
    back: Int[Tensor, " returning"],
    old: Float[Tensor, "returning dims"] | None,
    chosen: Chosen,
    reinit: Reinit,
    generator: torch.Generator,
) -> str:
    reference = _reference(layer, back, old)
    cases: dict[str, None] = {}
    worst = 0.0
    for group, mine in _groups(layer, back):
        returned = chosen.get((layer.name, group.start), "")
        if isinstance(returned, str):
            why, returned = returned, returning_rows(reference[group], mine - group.start, reinit, generator)
            returned = replace(returned, case=f"{returned.case}, {why}") if why else returned
        # Writing a computed weight changes what it is computed from, even by what it holds.
        if reinit.method != "keep" or not torch.equal(returned.rows, _rows(layer, mine).double().cpu()):
            layer.write(mine, returned.rows)
        cases[returned.case] = None
        # Of what was written, in the weight's own precision.
        written = _rows(layer, mine).cpu()
        written = written.float() if written.element_size() < 4 else written
        worst = max(worst, worst_cosine(written, reference[group]))
    how = "" if reinit.method == "keep" else f", worst |cos| {worst:.1e}"  # with itself it is 1
    return f"{layer.name}: {len(back)} back, {'; '.join(cases)}{how}"


LATE = 0.5
"""Filters that return at less than this share of the first learning rate come late (docs/replication.md, step 1)."""


def _late_return(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """A note where a schedule has brought the learning rate down before filters return: they will learn little.

    torch's schedulers leave the rate that they began with in each parameter group; where there is none, nothing is
    known.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if group.get("initial_lr")]
    shares = [(float(group["lr"]) / float(group["initial_lr"]), float(group["lr"])) for group in groups]
    share, rate = max(shares, default=(1.0, 0.0))
    if share >= LATE:
        return []
    return [
        f"the learning rate is down to {rate:.2g}, {100 * share:.2g} % of the first: what returns now learns little; "
        "let the last filters return before the rate falls"
    ]
