"""One network trained twice, masked and compact, side by side in float64, and everything of it compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import torchreaper as tr

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def routed(bank: tr.FilterBank, routes: Mapping[str, str], heads: Mapping[str, tuple[str, ...]] = {}) -> None:
    """Choose routes by hand: for scatter, which needs wide layers before it pays."""
    bank.layers = [replace(layer, route=routes.get(layer.name, layer.route)) for layer in bank.layers]
    bank._by_name = {layer.name: layer for layer in bank.layers}
    bank.flow.heads.update(heads)


def full_gradients(bank: tr.FilterBank) -> dict[str, Tensor]:
    """Gradients at full shape, zeros where filters are missing."""
    found = {}
    for name, module in bank.model.named_modules():
        leaf = bank._subnetwork._whole.leaves.get(name)
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.grad is not None:
                part = leaf.parts.get(key) if leaf else None
                gradient = parameter.grad.clone()
                found[f"{name}.{key}"] = gradient if part is None else part.put(gradient, 0.0)
    return found


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of an optimizer's state dict, by name."""
    state = optimizer.state_dict()["state"]
    return {f"{n} {key}": v for n, entry in state.items() for key, v in entry.items() if isinstance(v, Tensor)}


def assert_all_close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], what: str, **tolerance: float) -> None:
    assert list(a) == list(b), what
    for name in a:
        assert a[name].shape == b[name].shape, f"{what} {name}"
        tolerances = {**CLOSE, **tolerance}
        torch.testing.assert_close(a[name], b[name], **tolerances, msg=lambda m, n=name: f"{what} {n}: {m}")


class Twins:
    """A masked and a compact network with the same weights, banks and optimizers."""

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        routes: Mapping[str, str] = {},
        heads: Mapping[str, tuple[str, ...]] = {},
        tolerance: Mapping[str, float] = {},
        prepare: Callable[[tr.FilterBank], Any] = lambda bank: None,
    ) -> None:
        self.models = {mode: copy.deepcopy(model) for mode in ("masked", "compact")}
        self.optimizers = {mode: optimizer(list(m.parameters())) for mode, m in self.models.items()}
        self.banks = {mode: tr.find_filters(m, example, skip=None) for mode, m in self.models.items()}
        self.tolerance = dict(tolerance)
        for mode, bank in self.banks.items():
            routed(bank, routes, heads)
            prepare(bank)
            bank.attach(self.optimizers[mode])

    def each(self, step: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> None:
        """Do the same with both, under the same global random state, and compare results and gradients."""
        results, state = {}, torch.get_rng_state()
        for mode in self.models:
            torch.set_rng_state(state)
            results[mode] = step(self.models[mode], self.optimizers[mode])
        self.same("after a step")
        if isinstance(results["masked"], Tensor):
            torch.testing.assert_close(results["masked"], results["compact"], **{**CLOSE, **self.tolerance})
        gradients = [full_gradients(bank) for bank in self.banks.values()]
        assert_all_close(*gradients, "gradient", **self.tolerance)

    def drop(self, gone: Mapping[str, Sequence[int]], **options: Any) -> None:
        for mode, bank in self.banks.items():
            bank.drop(gone, mode=mode, **options)
        self.same("after the drop")

    def restore(self, reinit: Any = None) -> None:
        for bank in self.banks.values():
            bank.restore(reinit)
        shapes = [{n: (t.shape, t.stride()) for n, t in m.state_dict().items()} for m in self.models.values()]
        assert shapes[0] == shapes[1], "shape or memory format changed"
        self.same("after the return")

    def same(self, when: str) -> None:
        """Weights, buffers and optimizer state, at full shape."""
        assert_all_close(*(m.state_dict() for m in self.models.values()), when, **self.tolerance)
        assert_all_close(*(flat_state(o) for o in self.optimizers.values()), when, **self.tolerance)

    @property
    def smaller(self) -> int:
        """How many weights fewer compact has than masked."""
        masked, compact = (sum(p.numel() for p in m.parameters()) for m in self.models.values())
        return masked - compact
