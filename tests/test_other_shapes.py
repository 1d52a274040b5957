"""U-Nets and sequence networks: what the method promises holds there, and two short programs show it."""

from __future__ import annotations

import torch
from hypothesis import Phase, example, given, settings

from tests import zoo
from tests.shapes import Shape, shapes

torch.set_num_threads(1)


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(shapes)
@example(Shape())
@example(Shape(dims=1, up="depthwise", padding="causal", dilated=True, head="max"))
@example(Shape(dims=3, depth=1, up="overlapping", down="stride"))
@example(Shape("sequence", dims=1, depth=3, padding="chomp", dilated=True, head="spread"))
def test_every_promise_holds_whatever_the_shape(shape: Shape):
    """Invariants 1, 2, 3 and 6, by the check of the published architectures; nothing gives up compact needlessly."""
    row = zoo.check(shape)
    assert row.result == "ok" or (row.result == "ok (masked only)" and not row.narrow)
    if shape.groups == 1 and (shape.skip != "sum" or shape.kind == "sequence"):
        assert (row.narrow, row.scatter, row.masked) == (row.ranked, 0, 0)
        assert row.result == "ok" if row.ranked else True
