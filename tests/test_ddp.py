"""Two real processes on loopback: wrapping DDP anew, and what happens when a rank forgets it, fails or differs."""

from __future__ import annotations

import pickle
import time
from inspect import signature

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchreaper as tr
from tests.nets import build, inputs
from tests.processes import SECONDS, in_two_ranks
from tests.test_ranks import SETTINGS, backward, close, train

FORWARD_SYNC = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
OWN_BUFFERS = {"forward_sync_buffers" if FORWARD_SYNC else "broadcast_buffers": False}
OPTIONS = {
    "static": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
    "views": {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.001},
    "own buffers": OWN_BUFFERS,
}


def attached(net: str = "residual", **settings):
    model, _ = build(net)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return model, optimizer, tr.RePr(model, optimizer, inputs(dtype=torch.float64)[0], **{**SETTINGS, **settings})


class NanOn:
    """Scores that are not a number on one rank."""

    def __init__(self, rank: int, bad: int) -> None:
        self.first = float("nan") if rank == bad else 1.0

    def scores(self, bank):
        return {layer.name: torch.arange(layer.filters) + self.first for layer in bank.ranked}


def refusal(call) -> str:
    with pytest.raises(tr.ReaperError) as caught:
        call()
    return str(caught.value)


def forgetful(part: slice, **options) -> str:
    """Goes on with the old wrapper after a compact drop; the other scenarios need the ranks in step, so stop there."""
    model, optimizer, scheme = attached("plain", subnetwork="compact")
    called = DistributedDataParallel(model, **options)
    train(model, optimizer, scheme, called, part, last=2)
    assert scheme.phase == "sub"
    with torch.no_grad():
        called(inputs(dtype=torch.float64)[0][part])  # nothing to reduce: an evaluation is let through
    return refusal(lambda: backward(called, 2, part))


def hoarding(rank: int, part: slice):
    """Rank 0 keeps every wrapper and loss alive, and calls each wrapper a last time without a backward."""
    model, optimizer, scheme = attached("plain", subnetwork="compact")
    called, kept, seen = DistributedDataParallel(model), [], []
    for epoch in range(10):
        optimizer.zero_grad()
        backward(called, epoch, part)
        optimizer.step()
        loss = called(inputs(epoch, dtype=torch.float64)[0][part]).sum()
        if rank == 0:
            kept.append((called, loss))
        if scheme.step() is not None:
            called = tr.rewrapped(called)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return seen, [transition.filters for transition in scheme.history]


def failing(rank: int, part: slice) -> float:
    """Rank 1 fails inside the block, in a sub-network phase, and must not wait for the other; how long it took."""
    model, optimizer, scheme = attached("plain", subnetwork="masked")
    train(model, optimizer, scheme, DistributedDataParallel(model), part, last=3)
    assert scheme.phase == "sub"
    start = time.monotonic()
    if rank == 1:
        with pytest.raises(KeyError), scheme:
            raise KeyError("failed")
        assert scheme.phase == "full"
    return time.monotonic() - start


def refused(model: nn.Module) -> dict[str, str]:
    built_in = DistributedDataParallel(model)
    built_in._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    buffers = DistributedDataParallel(model)
    buffers._register_buffer_comm_hook(None, lambda state, named: [])
    (name, parameter), (_, last) = list(model.named_parameters())[:2]
    delayed = DistributedDataParallel(
        model, delay_all_reduce_named_params=[(name, parameter)], param_to_hook_all_reduce=last
    )
    cast = DistributedDataParallel(model)
    cast.mixed_precision = "what it would be on a GPU"
    wrappers = {"built in": built_in, "buffers": buffers, "delayed": delayed, "cast": cast}
    return {name: refusal(lambda ddp=ddp: tr.rewrapped(ddp)) for name, ddp in wrappers.items()}


def settings_kept(model: nn.Module) -> None:
    names = ("bucket_bytes_cap", "bucket_bytes_cap_default", "static_graph", "find_unused_parameters")
    names += ("gradient_as_bucket_view", "broadcast_buffers", "process_group", "training")
    for options in ({}, *OPTIONS.values()):
        old = DistributedDataParallel(model, **options).eval()
        new = tr.rewrapped(old)
        assert new is not old
        assert new.module is model
        assert [getattr(new, name) for name in names] == [getattr(old, name) for name in names], options


def scenarios(rank: int) -> dict[str, object]:
    part = slice(3 * rank, 3 * rank + 3)
    found: dict[str, object] = {"forgot": forgetful(part), "forgot, unused": forgetful(part, **OPTIONS["unused"])}
    for mode in ("masked", "compact"):
        for name, options in OPTIONS.items():
            model, optimizer, scheme = attached(subnetwork=mode)
            called = DistributedDataParallel(model, **options)
            found[f"{name} {mode}"] = train(model, optimizer, scheme, called, part, rewrap=mode == "compact")
        model, optimizer, scheme = attached("plain", subnetwork=mode)
        called = DistributedDataParallel(model)
        rewrap = mode == "compact"
        found[f"accumulated {mode}"] = train(model, optimizer, scheme, called, part, rewrap=rewrap, no_sync=True)
    found["hoarding"] = hoarding(rank, part)

    model, optimizer, scheme = attached("plain", criterion="random", seed=rank)
    found["auto"] = train(model, optimizer, scheme, DistributedDataParallel(model), part)
    found["state"], found["printed"] = scheme.state_dict(), scheme.history[0].notes

    for bad in (0, 1):
        model, optimizer, scheme = attached("plain", criterion=NanOn(rank, bad), full=1, subnetwork="masked")
        found[f"nan on {bad}"] = refusal(scheme.step) if bad == 0 else scheme.step().filters
        found[f"steps, nan on {bad}"] = scheme.steps
    settings_kept(model)
    found["refused"] = refused(model)
    found["failed"] = failing(rank, part)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_two_ranks(scenarios, tmp_path_factory.mktemp("ddp"))


def same_weights(ranks, scenario: str) -> None:
    (first, filters), (second, same) = (rank[scenario] for rank in ranks)
    assert filters == same
    assert len(filters) == 4
    for mine, theirs in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine if "running" not in name)


@pytest.mark.parametrize("scenario", [*OPTIONS, "accumulated"])
def test_compact_wrapped_anew_equals_masked_on_every_rank(ranks, scenario):
    """Running statistics included, which each rank takes of its own half of the batch."""
    for rank in ranks:
        (compact, filters), (masked, same) = rank[f"{scenario} compact"], rank[f"{scenario} masked"]
        assert filters == same
        close(compact, masked)
    for mode in ("masked", "compact"):
        same_weights(ranks, f"{scenario} {mode}")


def test_statistics_that_a_rank_keeps_for_itself_stay_its_own(ranks):
    mine, theirs = (rank["own buffers compact"][0] for rank in ranks)
    for before, after in zip(mine, theirs, strict=True):
        assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"])


@pytest.mark.parametrize("scenario", ["forgot", "forgot, unused"])
def test_a_wrapper_of_the_old_shapes_is_stopped_before_the_ranks_drift_apart(ranks, scenario):
    for rank in ranks:
        assert rank[scenario].startswith("model: this DistributedDataParallel was made for the shapes before the last")
        assert "model = tr.rewrapped(model)" in rank[scenario]


def test_old_wrappers_and_losses_may_stay_alive_on_one_rank(ranks):
    same_weights(ranks, "hoarding")


def test_auto_is_masked_and_every_rank_records_what_rank_0_decided(ranks):
    same_weights(ranks, "auto")
    assert any("masked: torch.distributed is initialised" in note for note in ranks[0]["printed"])
    mine, theirs = (rank["state"] for rank in ranks)
    assert torch.equal(mine["generator"], theirs["generator"])
    for one, other in zip(mine["history"], theirs["history"], strict=True):
        assert one["notes"] == other["notes"]
        assert all(torch.equal(one["scores"][name], other["scores"][name]) for name in one["scores"])


def test_what_rank_0_refuses_every_rank_refuses_and_nothing_else(ranks):
    for rank in ranks:
        assert "NaN" in rank["nan on 0"]
        assert rank["steps, nan on 0"] == 0
        assert rank["nan on 1"] == ranks[0]["nan on 1"]
        assert rank["steps, nan on 1"] == 1


def test_a_rank_that_fails_leaves_the_block_without_waiting_for_the_others(ranks):
    assert ranks[1]["failed"] < SECONDS / 2


def test_what_cannot_go_along_is_refused_by_name(ranks):
    texts = ranks[0]["refused"]
    assert texts["built in"].startswith("ddp: has a communication hook")
    assert texts["buffers"].startswith("ddp: has a communication hook")
    assert texts["delayed"].startswith("ddp: has delay_all_reduce_named_params")
    assert texts["cast"].startswith("ddp: has mixed_precision")
    assert all("wrap the module anew yourself" in text for text in texts.values())


def test_the_watch_on_wrappers_travels_with_copies_and_goes_with_the_scheme():
    model, optimizer, scheme = attached(subnetwork="compact")
    copied, _, scheme_of_it = pickle.loads(pickle.dumps((model, optimizer, scheme)))
    assert len(copied._forward_pre_hooks) == len(model._forward_pre_hooks) == 1
    for one, of_it in ((model, scheme), (copied, scheme_of_it)):
        of_it.remove()
        assert not one._forward_pre_hooks
    assert not attached(subnetwork="masked")[0]._forward_pre_hooks
