from __future__ import annotations

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.families import FAMILIES
from tests.nets import Residual, inputs, plain
from torchreaper.flow import find_flow


def reasons(model: nn.Module, **settings) -> dict[str, str]:
    return {
        layer.name: "" if layer.ranked else layer.reason for layer in tr.find_filters(model, inputs()[0], **settings)
    }


def test_layers_of_a_residual_network():
    bank = tr.find_filters(Residual(), inputs()[0])
    facts = [(x.name, x.filters, x.dims, x.route, x.ranked, x.reason) for x in bank]
    assert facts == [
        ("stem", 4, 27, "masked", False, "skipped"),
        ("block1.conv1", 4, 36, "narrow", True, ""),
        ("block1.conv2", 4, 36, "masked", True, "full width at add"),
        ("block2.conv1", 6, 36, "narrow", True, ""),
        ("block2.conv2", 6, 54, "masked", True, "full width at add"),
        ("block2.shortcut.0", 6, 4, "masked", True, "full width at add"),
    ]
    assert bank["stem"].rows.shape == (4, 27)
    assert len(bank) == 6


@pytest.mark.parametrize(
    ("settings", "ranked"),
    [
        ({}, ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut.0"]),
        ({"skip": None, "scope": "block1"}, ["block1.conv1", "block1.conv2"]),
        ({"skip": ("first", "*conv2")}, ["block1.conv1", "block2.conv1", "block2.shortcut.0"]),
        ({"include": ["stem"], "scope": "stem"}, ["stem"]),
        ({"skip": "full-width"}, ["block1.conv1", "block2.conv1"]),
        ({"skip": ["first", "full-width"]}, ["block1.conv1", "block2.conv1"]),
        ({"skip": ["first", "full-width"], "include": ["stem"]}, ["stem", "block1.conv1", "block2.conv1"]),
        ({"skip": None, "scope": ["stem", "block2.shortcut"]}, ["stem", "block2.shortcut.0"]),
    ],
)
def test_what_is_ranked_can_be_chosen(settings, ranked):
    assert [layer.name for layer in tr.find_filters(Residual(), inputs()[0], **settings).ranked] == ranked


def test_complex_filters_are_not_ranked():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.real, self.complex = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, dtype=torch.complex64)
            self.last, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.complex(self.real(x).to(torch.complex64)).abs()
            return self.head(self.last(x).relu().mean((2, 3)))

    bank = tr.find_filters(Complex(), inputs()[0])
    assert [(layer.name, layer.ranked, layer.reason) for layer in bank][1:] == [
        ("complex", False, "complex weights"),
        ("last", True, ""),
    ]
    with pytest.raises(tr.ReaperError, match=r"filters of 'complex': cannot be dropped \(complex weights\)"):
        bank.drop({"complex": [0]})
    with bank.without({"last": [0, 2]}):
        assert bank.model(inputs()[0]).isfinite().all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_full_width_what_is_ranked_needs_it_nowhere(family):
    torch.manual_seed(0)
    model, images = FAMILIES[family](), inputs()[0]
    every = tr.find_filters(model, images, skip=None)
    wanted = [layer.name for layer in every.ranked if not every.flow.barriers.get(layer.name)]
    if not wanted:
        with pytest.raises(tr.ReaperError, match="no convolution to rank"):
            tr.find_filters(model, images, skip="full-width")
        return
    bank = tr.find_filters(model, images, skip="full-width")
    assert [layer.name for layer in bank.ranked] == wanted
    assert all("full width" not in layer.reason for layer in bank.ranked)


def test_frozen_depthwise_and_output_layers_are_not_ranked():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(6, 5, 1),
        nn.Conv2d(5, 3, 1),
        nn.ReLU(),
    )
    model[2].weight.requires_grad_(False)
    assert reasons(model) == {
        **{"0": "skipped", "1": "depthwise: follows 0", "2": "frozen (requires_grad is False)", "3": ""},
        "4": "reaches an output of the model",
    }
    assert reasons(model, include=["1", "4"])["4"] == ""
    with pytest.raises(tr.ReaperError, match=r"include='2': its filters cannot be dropped \(frozen"):
        tr.find_filters(model, inputs()[0], include=["2"])


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
            {},
            "model=Sequential: no convolution to rank (it has no convolution",
        ),
        (plain(widths=(4,)), {}, "model=Sequential: no convolution to rank (0: skipped); see skip, include and scope"),
        (plain(), {"skip": "*"}, "no convolution to rank (0: skipped; 3: skipped; 6: skipped)"),
        (plain(), {"skip": "conv9"}, "skip='conv9': no such layer; the layers are 0, 3, 6"),
        (plain(), {"include": ["9"]}, "include='9': no such layer; the layers are 0, 3, 6"),
        (plain(), {"scope": "backbone"}, "scope='backbone': no convolution inside; the layers are 0, 3, 6"),
        (plain(), {"skip": ["3"], "include": ["3"]}, "include=['3']: also named in skip=['3']; name each layer in one"),
    ],
)
def test_wrong_choices_are_named(model, settings, message):
    with pytest.raises(tr.ReaperError) as caught:
        tr.find_filters(model, inputs()[0], **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class CountsReads(nn.Module):
    """A computed weight that notices being read, as spectral_norm's power iteration does."""

    reads = 0

    def forward(self, weight):
        CountsReads.reads += 1
        return weight * 1.0


def test_computed_weights_are_not_read_and_cannot_be_dropped():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 2, 1), nn.Flatten(), nn.Linear(72, 2))
    nn.utils.parametrize.register_parametrization(model[1], "weight", CountsReads())
    find_flow(model, inputs()[0])
    CountsReads.reads = 0
    find_flow(model, inputs()[0])
    by_running = CountsReads.reads  # running the model reads it, and is put back
    bank = tr.find_filters(model, inputs()[0])
    bank.preview(0.5)
    str(bank)
    with bank.without({"0": [1]}):
        pass
    assert CountsReads.reads == 2 * by_running
    assert [(x.name, x.dims, x.droppable, x.reason) for x in bank][1] == (
        "1",
        36,
        False,
        "weight is computed by CountsReads, which has no right_inverse to set it",
    )
    with pytest.raises(tr.ReaperError, match=r"filters of '1': cannot be dropped \(weight is computed"):
        bank.drop({"1": [0]})


def test_a_spectral_norm_is_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 2, 1), nn.Flatten(), nn.Linear(72, 2))
    nn.utils.parametrizations.spectral_norm(model[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bank = tr.find_filters(model, inputs()[0])
    bank.preview(0.5)
    with bank.without({"0": [1]}):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_of_a_channels_last_weight():
    """They are no views of it."""
    model = plain().to(memory_format=torch.channels_last)
    bank = tr.find_filters(model, inputs()[0])
    bank.drop({"3": [1, 2], "6": [0]})
    old = model.state_dict()["3.weight"].clone()
    bank.restore("orthogonal")
    weight = model[3].weight.detach()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (weight[1] != old[1]).all()
    assert torch.equal(weight[[0, 3, 4, 5]], old[[0, 3, 4, 5]])
    assert abs(torch.cosine_similarity(weight[1].flatten(), old[1].flatten(), dim=0)) < 1e-6
