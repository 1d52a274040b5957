"""Whether a model's filters, an optimizer and the choices of a return fit each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from torchreaper.bank import FilterBank
from torchreaper.candidates import no_choice
from torchreaper.errors import NoEffectWarning, ReaperError
from torchreaper.filters import cuts, dropped_ids, weight_parameters
from torchreaper.flow.operations import NORMS
from torchreaper.reinit import Reinit
from torchreaper.restoring import norm_before_sum
from torchreaper.state import parameter_ids


def check_optimizers(bank: FilterBank, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise :class:`ReaperError` where the weights of a ranked layer are in no optimizer."""
    if not optimizers:
        raise ReaperError("optimizer=None: must be the optimizer that trains the model, or a list of them")
    held = parameter_ids(optimizers)
    ranked = {layer.name: weight_parameters(layer.module) for layer in bank.ranked}
    if missing := [name for name, own in ranked.items() if any(id(p) not in held for p in own)]:
        raise ReaperError(
            f"optimizer: does not hold {', '.join(name + '.weight' for name in missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}; "
            "build it from this model's parameters(), or name the layers in skip"
        )


def warn_without_effect(bank: FilterBank, reinit: Reinit, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Choices of the return that nothing in this network or optimizer can feel; defaults are never warned of."""
    plain = Reinit(reinit.method)
    found = cuts(bank.flow, dropped_ids(bank.ranked, {x.name: range(x.filters) for x in bank.ranked}))
    normed = any(isinstance(bank.model.get_submodule(name), NORMS) for name in found)
    read = any("weight" in entries and len(entries["weight"].columns) for entries in found.values())
    biased = any(layer.module.bias is not None for layer in bank.ranked)
    wanted = any(not no_choice(bank.model, bank.flow, layer) for layer in bank.ranked)
    moments = any(not isinstance(optimizer, torch.optim.SGD) for optimizer in optimizers)
    useless = {
        "bias": "no ranked convolution has a bias" if not biased else "",
        "norms": _no_norm(bank, normed, reinit.norms),
        "consumers": "no layer reads a ranked filter directly" if not read else "",
        "candidates": "no ranked filter is read by later layers alone" if not wanted else "",
        "optimizer_state": "SGD keeps no second moments" if not moments and reinit.optimizer_state != "keep" else "",
    }
    for name, why in useless.items():
        if why and getattr(reinit, name) != getattr(plain, name):
            warnings.warn(
                f"reinit.{name}={getattr(reinit, name)!r}: has no effect ({why}); leave it out",
                NoEffectWarning,
                stacklevel=3,
            )


def _no_norm(bank: FilterBank, normed: bool, how: str) -> str:
    """Why a choice of norm entries has no effect, or ""."""
    if not normed:
        return "no BatchNorm follows a ranked convolution"
    if how == "small" and all(norm_before_sum(bank.model, bank.flow, layer) is None for layer in bank.ranked):
        return "no ranked filter's norm goes right into a sum"
    return ""


def warn_without_phase(reinit: Reinit, subnetwork: str, exact_dropout: bool) -> None:
    """What nothing can feel where filters return as soon as they are chosen."""
    useless = {
        f"subnetwork={subnetwork!r}": subnetwork != "auto",
        "exact_dropout=True": exact_dropout,
        "reinit='keep'": reinit == Reinit("keep"),
    }
    for what in (what for what, so in useless.items() if so):
        text = f"{what}: has no effect (with sub=0 there is no sub-network phase); "
        remedy = "use sub of at least 1" if "keep" in what else "leave it out"
        warnings.warn(text + remedy, NoEffectWarning, stacklevel=3)
