"""Convolutions that compute their weight: which of their parameters belong to one filter alone, asked by derivative."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torchreaper.flow.operations import TRANSPOSED

COUPLING = ("spectral", "orthogonal")
"""Parts of the names of what makes every filter depend on all of them."""


def own_rows(module: Any) -> tuple[list[tuple[str, str]], str]:
    """The tensors of a convolution whose rows are its filters' own, where the weight is computed from them.

    A filter can be left out only if no other filter's output depends on its row. That is asked of the module itself:
    the derivative of every output channel by the rows of other filters must be exactly 0, on a random input.

    Returns:
        Pairs of submodule name ("" for the module) and tensor name; and why there are none, in words.
    """
    names = [type(one).__name__.strip("_") for one in _parts(module)]
    if isinstance(module, TRANSPOSED):
        return [], f"weight is computed by {', '.join(names) or 'its own forward'}"
    if coupled := [name for name in names if any(word in name.lower() for word in COUPLING)]:
        return [], f"coupled by {coupled[0]}"
    if "parametrizations" in dict(module.named_children()) and not all(
        hasattr(p, "right_inverse") for p in _parts(module)
    ):
        return [], f"weight is computed by {', '.join(names)}, which has no right_inverse to set it"
    try:
        apart = _rows_apart(module)
    except Exception as error:
        return [], f"weight is computed by {', '.join(names) or 'its own forward'} ({type(error).__name__})"
    if not apart:
        return [], f"coupled by {', '.join(names) or 'its own forward'}"
    return [_split(name) for name, p in module.named_parameters() if p.shape[:1] == (module.out_channels,)], ""


def _parts(module: nn.Module) -> list[Any]:
    """What computes the weight: parametrizations, or hooks of the older kind."""
    listed = getattr(module, "parametrizations", None)
    found: list[Any] = [] if listed is None or "weight" not in listed else list(listed["weight"])
    return found + [hook for hook in module._forward_pre_hooks.values() if hasattr(hook, "name")]


def _split(name: str) -> tuple[str, str]:
    owner, _, tensor = name.rpartition(".")
    return owner, tensor


def _rows_apart(module: Any) -> bool:
    """Split the filters in two by every bit of their index: every pair is apart in one of the splits."""
    own = copy.deepcopy(module).cpu().double().train()
    generator = torch.Generator().manual_seed(0)
    sides = [2 * k * d + 2 for k, d in zip(own.kernel_size, own.dilation)]
    x = torch.randn(2, own.in_channels, *sides, dtype=torch.float64, generator=generator, device="cpu")
    with torch.enable_grad():
        parameters = [p.requires_grad_() for p in own.parameters() if p.shape[:1] == (own.out_channels,)]
        output = own.forward(x)
        if not parameters or output.shape[1] != own.out_channels:
            return False
        index = torch.arange(own.out_channels, device="cpu")
        for bit in range((own.out_channels - 1).bit_length()):
            for side in (0, 1):
                mine = (index >> bit) % 2 == side
                seen = (output[:, mine] * torch.randn(output[:, mine].shape, generator=generator, device="cpu")).sum()
                grads = torch.autograd.grad(seen, parameters, retain_graph=True, allow_unused=True)
                if any(g is not None and bool(g[~mine].any()) for g in grads):
                    return False
    return True


def rewritten(module: Any, indices: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Give filters ``indices`` of a parametrized convolution the weights ``rows``.

    Returns:
        Every parameter with the values its rows must take.
    """
    listed = module.parametrizations["weight"]
    weight = module.weight.detach().clone()
    weight[indices] = rows.to(weight)
    value: Any = weight
    for one in reversed(listed):
        value = one.right_inverse(value)
    values = [value] if isinstance(value, Tensor) else list(value)
    names = (
        ["original"]
        if len(values) == 1 and hasattr(listed, "original")
        else [f"original{k}" for k in range(len(values))]
    )
    return [(getattr(listed, name), v[indices]) for name, v in zip(names, values)]
