"""Bringing filters back: new rows, biases, norm entries, consumer slices and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreaper.filters import FilterLayer
from torchreaper.operations import NORMS
from torchreaper.reinit import Reinit, returning_rows, worst_cosine
from torchreaper.state import Cut, reset

_NORM_ENTRIES = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@torch.no_grad()
def bring_back(
    model: nn.Module,
    dropped: Mapping[FilterLayer, Sequence[int]],
    belongings: Mapping[str, Mapping[str, Cut]],
    optimizers: Sequence[Optimizer],
    reinit: Reinit,
    generator: torch.Generator,
) -> list[str]:
    """Re-initialise filters that stand in their old places with their old values.

    Args:
        dropped: layer -> indices of its returning filters.
        belongings: module -> tensor -> the part that belongs to them.

    Returns:
        One note per layer: how many, the room there was, the worst |cos|.
    """
    # The old values must be read before any layer changes another one's slices.
    old = {layer: layer.rows.clone() for layer in dropped}
    belongings = {name: _not_frozen(model.get_submodule(name), entries) for name, entries in belongings.items()}
    for name, entries in belongings.items():
        module = model.get_submodule(name)
        if isinstance(module, NORMS):
            if reinit.norms == "reset":
                for tensor, cut in entries.items():
                    cut.fill(getattr(module, tensor).detach(), _NORM_ENTRIES[tensor])
        elif "weight" in entries and len(entries["weight"].columns):
            weight: Tensor = module.weight  # type: ignore[assignment]
            _set_consumer(weight.detach(), entries["weight"], reinit.consumers, generator)
    notes = [_return_layer(layer, old[layer], indices, reinit, generator) for layer, indices in dropped.items()]
    if reinit.optimizer_state != "keep":
        for name, entries in belongings.items():
            for tensor, cut in entries.items():
                reset(optimizers, getattr(model.get_submodule(name), tensor), cut, reinit.optimizer_state)
    return notes


def _not_frozen(module: nn.Module, entries: Mapping[str, Cut]) -> dict[str, Cut]:
    """What the user has frozen is not for us to change."""
    frozen = {name for name, p in module._parameters.items() if p is not None and not p.requires_grad}
    return {name: cut for name, cut in entries.items() if name not in frozen}


def _set_consumer(weight: Tensor, cut: Cut, how: str, generator: torch.Generator) -> None:
    columns = Cut(cut.rows[:0], cut.columns)
    if how == "zero":
        columns.fill(weight, 0)
    elif how == "random":
        mask = columns.mask(weight)
        rest = weight[~mask].double()
        scale = float((rest * rest).mean().sqrt()) if len(rest) else 0.0
        columns.put(
            weight, scale * torch.randn(int(mask.sum()), dtype=torch.float64, generator=generator, device="cpu")
        )


def _return_layer(
    layer: FilterLayer,
    old: Float[Tensor, "filters dims"],
    indices: Sequence[int],
    reinit: Reinit,
    generator: torch.Generator,
) -> str:
    weight = layer.module.weight.detach()
    back = torch.tensor(indices, dtype=torch.int64, device="cpu")
    reference = layer.rows.double().cpu()
    reference[back] = old.double().cpu()[back]
    per_group = layer.filters // layer.groups
    cases: dict[str, None] = {}
    worst = 0.0
    for group in sorted(set((back // per_group).tolist())):
        first = group * per_group
        mine = back[back // per_group == group]
        returned = returning_rows(reference[first : first + per_group], mine - first, reinit, generator)
        # Into the weight itself: its rows are a copy where the memory format is channels_last.
        weight[mine.to(weight.device)] = returned.rows.to(weight).view(-1, *weight.shape[1:])
        cases[returned.case] = None
        # Of what was written, in the weight's own precision.
        written = weight[mine.to(weight.device)].flatten(1).double().cpu()
        worst = max(worst, worst_cosine(written, reference[first : first + per_group]))
    bias = layer.module.bias
    if bias is not None and bias.requires_grad and reinit.bias == "zero":
        bias.detach()[back.to(weight.device)] = 0
    return f"{layer.name}: {len(back)} back, {'; '.join(cases)}, worst |cos| {worst:.1e}"
