"""The plan of a sub-network: told by the flow, the routes and the filters alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs, plain
from tests.twins import routed
from torchreaper.subnetwork.plan import Plan, make_plan


def plan_of(model: nn.Module, gone, routes=None, compact: bool = True, heads=None) -> Plan:
    bank = tr.find_filters(model, inputs()[0], skip=None)
    routed(bank, routes or {}, heads or {})
    return make_plan(bank.flow, bank.layers, gone, compact=compact)


def told(plan: Plan, module: str, tensor: str) -> list[list[list[int]] | None]:
    """Per dimension: removed positions, and held ones among those that stay."""
    part = plan.parts[module][tensor]
    return [axis and [axis.removed.tolist(), axis.held.tolist()] for axis in (part.rows, part.columns)]


def test_a_narrow_layer_is_removed_wherever_it_stands():
    plan = plan_of(plain(), {"3": [1, 4]})
    assert set(plan.parts) == {"3", "4", "6"}
    assert told(plan, "3", "weight") == [[[1, 4], []], None]
    assert told(plan, "3", "bias") == told(plan, "4", "running_var") == [[[1, 4], []], None]
    assert told(plan, "6", "weight") == [None, [[1, 4], []]]
    assert plan.narrow == ("3",)
    assert all(output.mask is None and output.kept is None for output in plan.outputs.values())


def test_masked_everything_is_held():
    plan = plan_of(plain(), {"3": [1, 4]}, compact=False)
    assert told(plan, "3", "weight") == [[[], [1, 4]], None]
    assert told(plan, "6", "weight") == [None, [[], [1, 4]]]
    assert plan.outputs["4"].mask.tolist() == [False, True, False, False, True, False]
    assert plan.outputs["0"].mask.tolist() == [False] * 4, (
        "everywhere, so that one compiled graph holds for every cycle"
    )
    assert plan.narrow == plan.scatter == ()


def test_a_scatter_layer_is_removed_in_its_head_and_put_back_behind_it():
    plan = plan_of(build("residual")[0], {"stem": [2], "block1.conv1": [0]}, {"stem": "scatter"})
    assert told(plan, "stem", "weight") == [[[2], []], None]
    assert told(plan, "norm", "bias") == [[[2], []], None]
    assert plan.outputs["stem"].kept is None
    assert (plan.outputs["norm"].kept.tolist(), plan.outputs["norm"].width) == ([0, 1, 3], 4)
    # Its reader sees zeros at full width; that layer's own filter is gone for good.
    assert told(plan, "block1.conv1", "weight") == [[[0], []], [[], [2]]]
    assert (plan.narrow, plan.scatter) == (("block1.conv1",), ("stem",))


def test_a_scatter_layer_without_a_head_is_its_convolution_alone():
    plan = plan_of(build("residual")[0], {"stem": [2]}, {"stem": "scatter"}, heads={"stem": ("stem",)})
    assert told(plan, "stem", "weight") == [[[2], []], None]
    assert plan.outputs["stem"].kept.tolist() == [0, 1, 3]
    assert told(plan, "norm", "bias") == [[[], [2]], None]
    assert plan.outputs["norm"].mask.tolist() == [False, False, True, False]


class Joined(nn.Module):
    """A masked and a narrow layer, side by side in one tensor with one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.fc = nn.BatchNorm2d(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.fc(self.norm(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


def test_positions_are_counted_among_those_that_are_left():
    plan = plan_of(Joined(), {"a": [1, 3], "b": [2]}, {"b": "masked"})
    assert told(plan, "norm", "weight") == [[[1, 3], [4]], None]
    assert plan.outputs["norm"].mask.tolist() == [False, False, False, False, True]
    assert told(plan, "fc", "weight") == [None, [[1, 3], [4]]]
    assert plan.features["norm"] == 5


@pytest.mark.parametrize("gone", [{"0": [0, 1, 2]}, {"0": [0, 1, 3], "3": [0, 1, 2, 3, 4]}])
def test_no_dimension_is_narrowed_to_one(gone):
    plan = plan_of(plain(), gone)
    assert plan.narrow == ()
    assert told(plan, "0", "weight")[0][0] == []


def test_axes_are_shared():
    """The tensors of one module have one set of positions, not one each."""
    plan = plan_of(plain(), {"3": [1, 4]})
    for module, tensors in (("3", ("weight", "bias")), ("4", ("weight", "bias", "running_mean", "running_var"))):
        rows = [plan.parts[module][tensor].rows for tensor in tensors]
        assert all(axis is rows[0] for axis in rows)
