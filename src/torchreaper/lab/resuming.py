"""Is what a checkpoint holds what a run can go on from?

Asked before any of it is taken over; but which tensor of the optimizer is which parameter's is known only when it is
loaded, and looked at then (`amiss_in_optimizer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show

_NUMBER = (int, float)
_MAY_LACK = ("network", "seconds")  # of a scheme without an average; of older versions
MOST_THREADS = 4096  # of torch on the CPU: what a machine may have


def problem(state: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a run whose own state is `now` cannot go on from `state`, if so: one line; empty where it can.

    The model's tensors must be of the same shapes and types, the optimizer's those of its parameters; what both have
    beside them must be of one type. What it says about the epoch must agree. The scheme looks at its part itself.
    """
    return next(_problems(state, now), "")


def _problems(state: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if missing := [key for key in now if key not in state and key not in _MAY_LACK]:
        yield f"{missing[0]} is missing"
        return
    yield from _unlike(state["model"], now["model"], "model")
    if "network" in state:  # of the same tensors as the model
        yield from _unlike(state["network"], now["model"], "network")
    for key in ("schedule", "precision", "machine"):
        yield from _unlike(state[key], now[key], key, strict=False)
    yield from _of_optimizer(state["optimizer"], now["optimizer"], list(now["model"].values()))
    scheme = state["scheme"]
    if not isinstance(scheme, Mapping):
        yield f"scheme is {show(scheme)}"
    elif not _equal(scheme.get("epoch"), state["epoch"]):
        yield f"scheme.epoch is {show(scheme.get('epoch'))} in epoch {state['epoch']}"
    threads = state["machine"].get("threads") if isinstance(state["machine"], Mapping) else None
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        yield f"machine.threads is {show(threads)}"
    seconds = state.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, _NUMBER) or not 0 <= seconds <= 1e12
    ):
        yield f"seconds is {show(seconds)}"
    if (chosen := state["chosen"]) is not None and not _is_choice(chosen):
        yield f"chosen is {show(chosen)}"


def _is_choice(chosen: Any) -> bool:
    """Whether this says which epoch was chosen, and what was measured after it."""
    if not isinstance(chosen, Mapping) or not isinstance(parts := chosen.get("parts", {}), Mapping):
        return False
    numbers = {key: value for key, value in chosen.items() if key != "parts"}
    return {"epoch", "test_accuracy", "validation_accuracy", "train_accuracy"} <= numbers.keys() and all(
        isinstance(value, _NUMBER) for value in (*numbers.values(), *parts.values())
    )


def moved(there: Mapping[str, Any], here: Mapping[str, Any], *, threads: int, processes: int) -> Iterator[str]:
    """What may give other numbers where a run that began on machine `there` goes on `here`, a line each."""
    if there["threads"] != here["threads"]:
        yield (
            f"the run used {there['threads']} threads and this process {here['threads']}: going on with {threads}, "
            "because the number of threads changes the last bits"
        )
    for key in ("torch", "cpu", "device", "gpu"):
        if there.get(key) != here[key]:
            yield f"{key} was {there.get(key)} and is {here[key]}: the last bits may differ"
    if (before := there.get("processes", 1)) != processes:
        yield f"{before} processes began this run and {processes} go on with it: its numbers will be others"


def _unlike(there: Any, here: Any, where: str, *, strict: bool = True) -> Iterator[str]:
    """Where two values are of different kinds; ``strict``: mappings must have the same keys."""
    if isinstance(here, Tensor):
        if not isinstance(there, Tensor):
            yield f"{where} is {show(there)}, no tensor"
        elif (there.shape, there.dtype) != (here.shape, here.dtype):
            yield f"{where} is of {there.dtype} and shape {list(there.shape)}, not {here.dtype} and {list(here.shape)}"
    elif isinstance(here, Mapping):
        if not isinstance(there, Mapping):
            yield f"{where} is {show(there)}"
            return
        if strict and (missing := [key for key in here if key not in there]):
            yield f"{where} lacks {missing[0]}"
        if strict and (more := [key for key in there if key not in here]):
            yield f"{where} has {show(more[0])} beside its own"
        for key in (key for key in here if key in there):
            yield from _unlike(there[key], here[key], f"{where}.{key}", strict=strict)
    elif isinstance(here, (list, tuple)):
        if not isinstance(there, (list, tuple)) or len(there) != len(here):
            yield f"{where} is {show(there)}"
            return
        for number, (one, other) in enumerate(zip(there, here)):
            yield from _unlike(one, other, f"{where}.{number}", strict=strict)
    elif here is not None and there is not None:
        kind = type(here) if isinstance(here, bool) or not isinstance(here, _NUMBER) else _NUMBER
        if not isinstance(there, kind) or isinstance(there, bool) != isinstance(here, bool):
            yield f"{where} is {show(there)}"


def _of_optimizer(there: Any, here: Mapping[str, Any], tensors: list[Tensor]) -> Iterator[str]:
    if not isinstance(there, Mapping) or not {"state", "param_groups"} <= there.keys():
        yield f"optimizer is {show(there)}"
        return
    yield from _unlike(there["param_groups"], here["param_groups"], "optimizer.param_groups", strict=False)
    states = there["state"]
    if not isinstance(states, Mapping) or not all(isinstance(one, Mapping) for one in states.values()):
        yield f"optimizer.state is {show(states)}"
        return
    known = [number for group in here["param_groups"] for number in group["params"]]
    if odd := [number for number in states if number not in known]:
        yield f"optimizer.state has {show(odd[0])}, which is no parameter"
    if states and len({frozenset(one) for one in states.values()}) > 1:
        yield "optimizer.state has other keys for some parameters than for others"
    shapes = {tensor.shape for tensor in tensors}
    for number, one in states.items():
        for key, value in one.items():
            where = f"optimizer.state.{number}.{key}"
            if isinstance(value, Tensor):
                if value.numel() != 1 and value.shape not in shapes:
                    yield f"{where} is of shape {list(value.shape)}, which no parameter has"
            elif value is not None and not (key == "step" and isinstance(value, _NUMBER)):
                yield f"{where} is {show(value)}"


def amiss_in_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """What a loaded optimizer lacks, or which of its tensors do not belong to their parameters, if any: one line."""
    for group in optimizer.param_groups:
        if missing := [key for key in optimizer.defaults if key not in group]:
            return f"optimizer: {missing[0]} is missing"
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
                return f"optimizer: {key} of shape {list(value.shape)} for a parameter of {list(parameter.shape)}"
    return ""


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def not_ours(why: str) -> UserError:
    """The error of a checkpoint that cannot be gone on with."""
    return UserError(
        f"checkpoint: is of another model or version ({' '.join(why.split())[:200]}); "
        "run with the code that wrote it, or delete the run's folder"
    )
