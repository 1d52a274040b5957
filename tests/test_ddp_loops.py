"""Two real processes on loopback: what training loops do besides, under DDP, with masked and with compact phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import torchreaper as tr
from tests.nets import build, inputs
from tests.processes import in_two_ranks
from tests.test_ranks import SETTINGS, close

MODES = ("masked", "compact")
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
ADAMW = {"lr": 0.01, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, foreach=False, **SGD),
    "sgd foreach": lambda p: torch.optim.SGD(p, foreach=True, **SGD),
    "sgd fused": lambda p: torch.optim.SGD(p, fused=True, **SGD),
    "adamw": lambda p: torch.optim.AdamW(p, foreach=False, **ADAMW),
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True, **ADAMW),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True, **ADAMW),
}
WAITING = {  # (network, what DDP is told)
    "plain": ("plain", {}),
    "plain views": ("plain", {"gradient_as_bucket_view": True}),
    "plain unused": ("plain", {"find_unused_parameters": True}),
    "residual": ("residual", {}),
}
EPOCHS = 10


class Loop:
    """A network, its optimizer and its scheme, trained by one step an epoch.

    Args:
        rank: 0 or 1: under DDP, on its half of every batch; ``None``: alone, on all of it.
    """

    def __init__(
        self,
        rank: int | None,
        mode: str,
        net: str = "plain",
        *,
        optimizer: str = "sgd",
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        convert: Callable[[nn.Module], nn.Module] = lambda model: model,
        wrap: dict[str, Any] | None = None,
        backend: str | None = None,
    ) -> None:
        self.model = convert(build(net)[0]).to(device, dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.mode, self.device, self.dtype, self.backend = mode, device, dtype, backend
        self.part = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
        self.scheme = tr.RePr(self.model, self.optimizer, self.batch(0)[0], subnetwork=mode, **SETTINGS)
        self.ddp = None if rank is None else DistributedDataParallel(self.model, **(wrap or {}))

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = inputs(seed)
        return images[self.part].to(self.device, self.dtype), labels[self.part].to(self.device)

    def loss(self, seed: int) -> Tensor:
        images, labels = self.batch(seed)
        return nn.functional.cross_entropy(self.called(images), labels)

    @property
    def called(self) -> Any:
        called = self.ddp or self.model
        return called if self.backend is None else torch.compile(called, backend=self.backend)

    def unsynced(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.ddp is None else self.ddp.no_sync()

    def end_epoch(self) -> None:
        transition = self.scheme.step()
        if transition is not None and self.ddp is not None and self.mode == "compact":
            self.ddp = tr.rewrapped(self.ddp)
        assert self.scheme.bank.mode in (None, self.mode)

    def run(self, epoch: Callable[[Loop, int], None]) -> tuple[list[dict[str, Tensor]], list[Any]]:
        """The weights after every epoch, and what was dropped and restored."""
        seen = []
        for number in range(EPOCHS):
            epoch(self, number)
            seen.append({name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()})
        return seen, [transition.filters for transition in self.scheme.history]


def plain(loop: Loop, number: int) -> None:
    loop.optimizer.zero_grad()
    loop.loss(number).backward()
    loop.optimizer.step()
    loop.end_epoch()


def clipped(loop: Loop, number: int) -> None:
    loop.optimizer.zero_grad()
    loop.loss(number).backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.3)
    loop.optimizer.step()
    loop.end_epoch()


def waiting(loop: Loop, number: int) -> None:
    """The unit ends in the middle of a window: one gradient waits, each rank's own, the other is still to come."""
    with loop.unsynced():
        loop.loss(100 + number).backward()
    loop.end_epoch()
    loop.loss(number).backward()
    loop.optimizer.step()
    loop.optimizer.zero_grad()


def half(dtype: torch.dtype, scaler: torch.amp.GradScaler, skipped: list[int]) -> Callable[[Loop, int], None]:
    def epoch(loop: Loop, number: int) -> None:
        loop.optimizer.zero_grad()
        with torch.autocast(loop.device, dtype):
            loss = loop.loss(number)
        scaler.scale(loss).backward()
        scaler.unscale_(loop.optimizer)
        before = loop.model.get_parameter("0.weight").detach().clone()
        scaler.step(loop.optimizer)
        scaler.update()
        if torch.equal(before, loop.model.get_parameter("0.weight")):
            skipped.append(number)
        loop.end_epoch()

    return epoch


def in_half(rank: int | None, mode: str, dtype: torch.dtype) -> dict[str, Any]:
    """In float16 the scale is so large at first that gradients overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, enabled=dtype == torch.float16)
    skipped: list[int] = []
    ran = Loop(rank, mode, dtype=torch.float32).run(half(dtype, scaler, skipped))
    return {"ran": ran, "skipped": skipped, "scale": scaler.get_scale()}


def scenarios(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in MODES:
        for name, (net, wrap) in WAITING.items():
            found[f"waiting {name} {mode}"] = Loop(rank, mode, net, wrap=wrap).run(waiting)
        found[f"clipped {mode}"] = Loop(rank, mode).run(clipped)
        for name in OPTIMIZERS:
            found[f"{name} {mode}"] = Loop(rank, mode, optimizer=name).run(plain)
        for dtype in (torch.bfloat16, torch.float16):
            found[f"{dtype} {mode}"] = in_half(rank, mode, dtype)

        found[f"eager {mode}"] = Loop(rank, mode, "residual").run(plain)
        loop = Loop(rank, mode, "residual", backend="aot_eager")
        found[f"compiled {mode}"] = loop.run(plain)
        found[f"graphs {mode}"] = loop.scheme.bank._subnetwork.graphs
        torch.compiler.reset()

    hooked = Loop(rank, "masked", "residual")
    hooked.ddp.register_comm_hook(None, allreduce_hook)
    found["hooked"] = hooked.run(plain)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return in_two_ranks(scenarios, tmp_path_factory.mktemp("loops"))


def same_weights(runs: Iterator[Any]) -> None:
    (first, filters), (second, same) = runs
    assert filters == same
    assert len(filters) == 4
    assert all(filters)
    for mine, theirs in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine if "running" not in name)


@pytest.mark.parametrize("name", WAITING)
def test_gradients_that_wait_go_along_into_and_out_of_a_phase(ranks, name):
    """A transition between two backwards of one window: masked as compact, and both ranks to the bit."""
    for mode in MODES:
        same_weights(rank[f"waiting {name} {mode}"] for rank in ranks)
    for rank in ranks:
        close(rank[f"waiting {name} compact"][0], rank[f"waiting {name} masked"][0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["plain", "plain views", "plain unused"])
def test_gradients_that_wait_are_those_of_one_process(ranks, name, mode):
    seen, filters = Loop(None, mode).run(waiting)
    assert ranks[0][f"waiting {name} {mode}"][1] == filters
    close(ranks[0][f"waiting {name} {mode}"][0], seen)


def test_waiting_gradients_are_felt():
    """Thrown away at the transition, they would lead elsewhere: the tests above can fail."""

    def forgetful(loop: Loop, number: int) -> None:
        loop.loss(100 + number).backward()
        before = len(loop.scheme.history)
        loop.end_epoch()
        if len(loop.scheme.history) > before:
            loop.optimizer.zero_grad()
        loop.loss(number).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()

    kept, lost = Loop(None, "masked").run(waiting)[0], Loop(None, "masked").run(forgetful)[0]
    assert not torch.allclose(kept[-1]["0.weight"], lost[-1]["0.weight"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_clipped_gradients_are_those_of_one_process(ranks, mode):
    """Their norm is over all parameters, without those of dropped filters."""
    same_weights(rank[f"clipped {mode}"] for rank in ranks)
    seen, filters = Loop(None, mode).run(clipped)
    assert ranks[0][f"clipped {mode}"][1] == filters
    close(ranks[0][f"clipped {mode}"][0], seen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_foreach_and_fused_optimizers_are_the_plain_ones_and_those_of_one_process(ranks, name, mode):
    same_weights(rank[f"{name} {mode}"] for rank in ranks)
    one = name.split()[0]
    close(ranks[0][f"{name} {mode}"][0], ranks[0][f"{one} masked"][0])
    close(ranks[0][f"{name} {mode}"][0], Loop(None, mode, optimizer=one).run(plain)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_a_scaler_keeps_the_ranks_together(ranks, dtype, mode):
    """A step that overflows on one rank is left out by both. bfloat16 stays near float32, compact near masked."""
    mine, theirs = (rank[f"{dtype} {mode}"] for rank in ranks)
    same_weights(iter((mine["ran"], theirs["ran"])))
    assert mine["skipped"] == theirs["skipped"]
    assert mine["scale"] == theirs["scale"]
    skipped = mine["skipped"]
    assert skipped == ranks[0][f"{dtype} masked"]["skipped"]
    assert bool(skipped) == (dtype == torch.float16)
    whole = ranks[0]["torch.float16 masked"]["ran"] if skipped else Loop(None, mode, dtype=torch.float32).run(plain)
    assert mine["ran"][1] == whole[1]
    for ours, its in zip(mine["ran"][0], whole[0], strict=True):
        for name, value in its.items():
            torch.testing.assert_close(ours[name], value, rtol=0.005, atol=0.005)


@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_wrapper_trains_as_it_does_uncompiled(ranks, mode):
    """Where the phases are compact, the new wrapper is compiled after each transition."""
    for rank in ranks:
        assert rank[f"graphs {mode}"] > 0
        assert rank[f"compiled {mode}"][1] == rank[f"eager {mode}"][1]
        close(rank[f"compiled {mode}"][0], rank[f"eager {mode}"][0])
    same_weights(rank[f"compiled {mode}"] for rank in ranks)


def test_a_communication_hook_goes_on_through_masked_phases(ranks):
    for rank in ranks:
        assert rank["hooked"][1] == rank["eager masked"][1]
        close(rank["hooked"][0], rank["eager masked"][0])
    same_weights(rank["hooked"] for rank in ranks)
