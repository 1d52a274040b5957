"""Where a scheme stands, to the last bit: what a transition that was refused must leave as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torchreaper as tr


def bits(value: Any) -> Any:
    """A tensor as what it holds, NaN equal to itself; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    plain = value.detach().cpu().contiguous()
    return str(plain.dtype), tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def standing(scheme: tr.RePr, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything that training depends on: what is in place now, gradients too, and what is stored."""
    model, found = scheme.model, {}
    for name, parameter in model.named_parameters():
        found |= {f"now {name}": parameter, f"gradient {name}": parameter.grad}
        found |= {f"state {name} {key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    found |= {f"now {name}": buffer for name, buffer in model.named_buffers()}
    found |= {f"whole {name}": value for name, value in model.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        found |= {f"whole state {number} {key}": value for key, value in entries.items()}
    generator, mode = scheme.bank.generator.get_state(), scheme.bank.mode
    found |= {"generator": generator, "mode": mode, "dropped": scheme.dropped, "steps": scheme.steps}
    found |= {"cycle": scheme._cycle, "history": len(scheme.history)}
    return {name: bits(value) for name, value in found.items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was."""
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
