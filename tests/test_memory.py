"""What transitions take beyond the tensors that are there before and after: no more for a deeper network."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import torchreaper as tr
from tests.live import LiveBytes

torch.set_num_threads(1)

MODES = ("masked", "compact")
WIDTH = 32
ONE = WIDTH * WIDTH * 9 * 4
"""Bytes of one layer's weight."""


def test_live_bytes_counts_what_lives():
    kept = torch.zeros(100)
    with LiveBytes([kept]) as live:
        assert live.now == 400
        more = kept + 1
        more[:10]  # a view
        more.add_(1)
        assert live.now == 800
        (more * 2).sum()
        assert live.now == 800
        assert live.peak == 1204
        del more
        assert live.now == 400


def deep(layers: int) -> nn.Sequential:
    inner = [nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(nn.Conv2d(3, WIDTH, 1), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 3))


def wide(classes: int) -> nn.Sequential:
    """A Linear that reads a map, as VGG has it: far larger than all that is convolved."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, classes),
    )


def trained(model: nn.Module) -> tuple[torch.optim.Optimizer, Tensor]:
    """After one step of Adam: gradients and moments are there."""
    optimizer, images = torch.optim.Adam(model.parameters()), torch.randn(2, 3, 8, 8)
    model(images).square().sum().backward()
    optimizer.step()
    return optimizer, images


def scheme_on(model: nn.Module, mode: str, **settings) -> tr.RePr:
    optimizer, images = trained(model)
    return tr.RePr(model, optimizer, images, full=1, sub=1, max_per_layer=0.3, subnetwork=mode, **settings)


def beyond(scheme: tr.RePr, action) -> int:
    """Bytes at the peak of ``action`` beyond what is there before, or after, whichever is more."""
    gc.collect()
    gradients = [p.grad for p in scheme.model.parameters() if p.grad is not None]
    there = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    with LiveBytes([*there, *gradients]) as live:
        del there, gradients
        before = live.now
        action()
        return live.peak - max(before, live.now)


def around(scheme: tr.RePr) -> dict[str, int]:
    """The same for a drop and a restore."""
    return {name: beyond(scheme, scheme.step) for name in ("drop", "restore")}


@pytest.mark.parametrize("mode", MODES)
def test_a_deeper_network_needs_no_more_beside_it(mode):
    shallow, deeper = (around(scheme_on(deep(layers), mode)) for layers in (8, 24))
    for name, less in shallow.items():
        assert deeper[name] - less < ONE, (name, shallow, deeper)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reinit", [tr.Reinit(), tr.Reinit(optimizer_state="layer-mean"), tr.Reinit(consumers="zero")])
def test_a_large_reader_is_copied_once_at_a_time(mode, reinit):
    model = wide(2048)
    one = model[-1].weight.numel() * 4
    found = around(scheme_on(model, mode, reinit=reinit))
    assert all(bytes_ < 1.1 * one for bytes_ in found.values()), {k: v / one for k, v in found.items()}


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_in_a_phase_copies_nothing_twice(mode):
    scheme = scheme_on(wide(2048), mode)
    whole = scheme.model[-1].weight.numel()
    scheme.step()
    with LiveBytes() as live:
        states = scheme.model.state_dict()
    assert states["5.weight"].numel() == whole
    assert live.peak - live.now < 0.1 * whole * 4


@pytest.mark.parametrize("mode", MODES)
def test_what_is_stored_is_counted(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.ReLU(), nn.Conv2d(10, 3, 1))
    optimizer, images = trained(model)
    bank = tr.find_filters(model, images)
    bank.attach(optimizer)
    assert bank.stored_bytes == 0
    bank.drop({"2": (0, 7, 8)}, mode=mode)
    filters = 3 * (4 + 1 + 3)  # rows, biases, and columns of their reader
    assert bank.stored_bytes == filters * 4 * (1 + 2)  # with two moments
    bank.restore()
    assert bank.stored_bytes == 0
