"""Two real processes on loopback: invariant 7, masked under a live DDP, compact by wrapping anew."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchreaper as tr
from tests.nets import build, inputs
from tests.processes import in_two_ranks

SETTINGS = {"full": 2, "sub": 2, "cycles": 2, "fraction": 0.35, "max_per_layer": 0.6, "skip": None}


def attached(seed: int = 0, **settings):
    model, _ = build("plain", seed=seed)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return model, optimizer, tr.RePr(model, optimizer, inputs(dtype=torch.float64)[0], **{**SETTINGS, **settings})


def backward(called: nn.Module, epoch: int, part: slice) -> None:
    images, labels = inputs(epoch, dtype=torch.float64)
    nn.functional.cross_entropy(called(images[part]), labels[part]).backward()


def train(model, optimizer, scheme, called, part: slice, *, first=0, last=10, rewrap=False, no_sync=False):
    """Epochs of one step each; the weights after every one of them."""
    seen = []
    for epoch in range(first, last):
        optimizer.zero_grad()
        if no_sync:
            with called.no_sync():
                backward(called, 100 + epoch, part)
        backward(called, epoch, part)
        optimizer.step()
        transition = scheme.step()
        if transition is not None and rewrap:
            called = tr.rewrapped(called)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return seen, [transition.filters for transition in scheme.history]


def scenarios(rank: int) -> dict[str, object]:
    part = slice(3 * rank, 3 * rank + 3)
    found: dict[str, object] = {}

    def run(name: str, *, wrap: dict | None = None, rewrap=False, no_sync=False, **settings) -> None:
        model, optimizer, scheme = attached(**settings)
        called = DistributedDataParallel(model, **(wrap or {}))
        found[name] = train(model, optimizer, scheme, called, part, rewrap=rewrap, no_sync=no_sync)

    run("masked", subnetwork="masked")
    run("compact", subnetwork="compact", rewrap=True, wrap={"gradient_as_bucket_view": True})
    # Nothing but the ranks' own random numbers decides here, and they differ.
    run("random", subnetwork="masked", criterion="random", seed=rank)
    run("accumulated", subnetwork="masked", no_sync=True)
    # Each rank asks other images which directions it wants.
    wanted = tr.Candidates([inputs(50 + rank, dtype=torch.float64)], times=4)
    run("candidates", subnetwork="masked", reinit=tr.Reinit(candidates=wanted))

    model, optimizer, scheme = attached(subnetwork="compact")
    called = DistributedDataParallel(model)
    found["auto"] = scheme.bank.resolve("auto")
    train(model, optimizer, scheme, called, part, last=3, rewrap=True)  # in a sub-network phase
    held = [[model.state_dict(), optimizer.state_dict(), scheme.state_dict()] if rank == 0 else None]
    dist.broadcast_object_list(held, src=0)
    scheme.restore()
    model, optimizer, scheme = attached(seed=9, subnetwork="compact", criterion="orthogonality")
    for part_of, state in zip((model, optimizer, scheme), held[0]):
        part_of.load_state_dict(state)
    found["resumed"] = train(model, optimizer, scheme, DistributedDataParallel(model), part, first=3, rewrap=True)

    hooked = DistributedDataParallel(nn.Linear(2, 2))
    hooked.register_comm_hook(None, lambda state, bucket: torch.futures.Future())
    try:
        tr.rewrapped(hooked)
    except tr.ReaperError as error:
        found["hooked"] = str(error)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_two_ranks(scenarios, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone():
    model, optimizer, scheme = attached(subnetwork="masked")
    return train(model, optimizer, scheme, model, slice(0, 6))


@pytest.mark.parametrize("scenario", ["masked", "compact", "random", "accumulated", "candidates", "resumed"])
def test_all_ranks_hold_the_same_bits_after_every_step(ranks, scenario):
    (first, filters), (second, same) = (rank[scenario] for rank in ranks)
    assert filters == same
    assert len(filters) == 4
    assert all(filters)
    for mine, theirs in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def close(found, expected) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scenario", ["masked", "compact"])
def test_two_ranks_train_as_one_process_does(ranks, alone, scenario):
    assert ranks[0][scenario][1] == alone[1]
    close(ranks[0][scenario][0], alone[0])


def test_a_checkpoint_of_rank_0_goes_on_in_every_rank(ranks, alone):
    assert ranks[1]["resumed"][1] == alone[1]
    close(ranks[1]["resumed"][0], alone[0][3:])


def test_auto_is_masked_and_says_why(ranks):
    mode, why = ranks[0]["auto"]
    assert mode == "masked"
    assert "DDP would have to wrap the model anew after every transition" in why


def test_what_cannot_be_wrapped_anew_is_refused(ranks):
    assert ranks[0]["hooked"].startswith("ddp: has a communication hook")
    with pytest.raises(tr.ReaperError, match=r"ddp=Linear: must be a torch\.nn\.parallel\.Distributed"):
        tr.rewrapped(nn.Linear(2, 2))
