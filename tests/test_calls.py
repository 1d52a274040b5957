"""However a model's forward takes its batch, its filters are found, and finding them moves nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import torchreaper as tr


class Called(nn.Module):
    """A subclass says how its forward takes the batch, and whether it can be traced."""

    traceable = True

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.norm, self.c2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(5, 4)

    def run(self, x: Tensor) -> Tensor:
        if self.traceable or x.sum() > -1e9:
            x = self.norm(self.c1(input=x)).relu()
        return self.fc(self.c2(x).relu().mean((2, 3)))


class Positional(Called):
    def forward(self, x, /):
        return self.run(x)


class Several(Called):
    def forward(self, *batch):
        return self.run(batch[0]) + self.run(batch[-1])


class ByName(Called):
    def forward(self, scale, **batch):
        return self.run(batch["x"]) * scale


class Defaults(Called):
    def forward(self, x, size=(8, 8), **more):
        return self.run(x[..., : size[0], : size[1]])


class AfterAll(Called):
    def forward(self, *batch, scale=1.0):
        return self.run(batch[0]) * scale


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        *((Positional, "x"), (Several, "x"), (Several, "xx"), (ByName, {"scale": 2.0, "x": "x"}), (Defaults, "x")),
        (AfterAll, "x"),
    ],
)
def test_however_a_forward_takes_its_batch(kind, batch, traceable):
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(2, 3, 8, 8).double()
    model.traceable = traceable
    given = {**batch, "x": x} if isinstance(batch, dict) else (x,) * len(batch)
    outputs, before = {}, copy.deepcopy(model.state_dict())
    for mode in ("masked", "auto"):
        bank = tr.find_filters(model, given, skip=None)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "statistics moved"
        assert [layer.name for layer in bank.ranked] == ["c1", "c2"]
        # For a tuple as a default beside **more fx itself writes code that is none.
        assert bool(bank.flow.untraced) == (not traceable or kind is Defaults)
        with bank.without({"c1": [1, 2], "c2": [4]}, mode=mode):
            outputs[mode] = model(**given) if isinstance(given, dict) else model(*given)
    torch.testing.assert_close(outputs["auto"], outputs["masked"], rtol=1e-10, atol=1e-10)
