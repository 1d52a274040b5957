"""Random small networks of other shapes than classifiers of pictures: U-Nets and sequence networks, in 1, 2 and 3-d."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.zoo import CLASSES, with_every_shift

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# A large eps, as in tests/architectures.py: rounding errors stay small.
BATCH = {1: partial(nn.BatchNorm1d, eps=0.1), 2: partial(nn.BatchNorm2d, eps=0.1), 3: partial(nn.BatchNorm3d, eps=0.1)}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Shape:
    """One network; of :mod:`tests.zoo` the check takes it as it takes a published one.

    Attributes:
        kind: "u-net" or "sequence".
        dims: spatial dimensions.
        depth: levels of a U-Net, convolutions of a sequence network.
        width: filters of the finest level; one more each level.
        padding: "same"; "causal": on the left, before the convolution; "chomp": on both sides, the right cut off again.
        dilated: whether the dilation doubles at every level.
        groups: of the convolutions, 1, or 2 where the channels divide; 0: depthwise, with a pointwise one behind it.
        norm: "batch", "instance" or "none".
        bias: of the convolutions.
        down: "pool" or "stride".
        up: "transposed", "overlapping" (kernels of 3), "depthwise" (transposed), "nearest" or "linear".
        skip: "concat", "sum" or "none".
        head: "dense" (a score at every position), or over the positions "mean", "max", "spread" or "last".
        odd: sizes that do not divide; only where sampling up asks for a size.
        seed: of the weights.
    """

    kind: str = "u-net"
    dims: int = 2
    depth: int = 2
    width: int = 4
    padding: str = "same"
    dilated: bool = False
    groups: int = 1
    norm: str = "batch"
    bias: bool = False
    down: str = "pool"
    up: str = "transposed"
    skip: str = "concat"
    head: str = "dense"
    odd: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        return str(self)

    @property
    def size(self) -> int:
        """Positions along each dimension."""
        return {1: 16, 2: 8, 3: 4}[self.dims] + self.odd

    def build(self, seed: int = 0) -> Network:
        """In float64 and train mode, every shift on."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + seed)
            model = UNet(self) if self.kind == "u-net" else Sequence(self)
            with_every_shift(model)
        return model.double().train()

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = [self.size] * self.dims
        x = torch.randn(3, 3, *sizes, generator=generator, dtype=torch.float64)
        return x, torch.randint(CLASSES, (3, *(sizes if self.head == "dense" else ())), generator=generator)


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, shape: Shape, before: int, width: int, dilation: int = 1, stride: int = 1) -> None:
        super().__init__()
        groups = {0: before, 1: 1, 2: 2 - before % 2}[shape.groups]
        width += 0 if shape.groups == 0 else -width % groups
        reach, self.padding = 2 * dilation, shape.padding if stride == 1 else "same"
        self.before = [reach, 0] * shape.dims if self.padding == "causal" else None
        self.cut = reach if self.padding == "chomp" else None
        padding = {"same": dilation, "causal": 0, "chomp": reach}[self.padding]
        settings = {"padding": padding, "dilation": dilation, "groups": groups, "bias": shape.bias, "stride": stride}
        self.conv, self.out = CONV[shape.dims](before, before if shape.groups == 0 else width, 3, **settings), width
        self.point = CONV[shape.dims](before, width, 1, bias=shape.bias) if shape.groups == 0 else nn.Identity()
        self.norm = BATCH[shape.dims](width) if shape.norm == "batch" else nn.Identity()
        if shape.norm == "instance":
            self.norm = getattr(nn, f"InstanceNorm{shape.dims}d")(width, affine=True, eps=0.1)
        self.dims = shape.dims

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x if self.before is None else F.pad(x, self.before))
        if self.cut is not None:
            x = x[(..., *[slice(None, -self.cut)] * self.dims)]
        return F.leaky_relu(self.norm(self.point(x)), 0.2)


class Network(nn.Module):
    """A body of the subclass, and the head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.spatial = shape, list(range(2, 2 + shape.dims))
        width = self.make(shape)
        self.dense = shape.head == "dense"
        features = 2 * width if shape.head == "spread" else width
        self.last = CONV[shape.dims](width, CLASSES, 1) if self.dense else nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.last(x if self.dense else self._summary(x))

    def _summary(self, x: Tensor) -> Tensor:
        if self.shape.head == "max":
            return x.flatten(2).max(-1)[0]
        if self.shape.head == "spread":
            return torch.cat([x.mean(self.spatial), x.var(self.spatial)], 1)
        return x.flatten(2)[..., -1] if self.shape.head == "last" else x.mean(self.spatial)


class UNet(Network):
    """Down, up, and what the way up sees of the way down."""

    def make(self, shape: Shape) -> int:
        widths = [shape.width + k for k in range(shape.depth + 1)]
        self.enter, self.down, self.up, self.join = (nn.ModuleList() for _ in range(4))
        before, seen = 3, []
        for k in range(shape.depth):
            self.enter.append(Unit(shape, before, widths[k], 2**k if shape.dilated else 1))
            before = self.enter[-1].out
            seen.append(before)
            self.down.append(Unit(shape, before, before, stride=2) if shape.down == "stride" else nn.Identity())
            before = self.down[-1].out if shape.down == "stride" else before
        self.bottom = Unit(shape, before, widths[-1])
        before = self.bottom.out
        for skipped in reversed(seen):
            self.up.append(self._sampling_up(shape, before, skipped))
            joined = 2 * skipped if shape.skip == "concat" else skipped
            self.join.append(Unit(shape, joined, skipped))
            before = self.join[-1].out
        return before

    def _sampling_up(self, shape: Shape, before: int, width: int) -> nn.Module:
        conv, transposed = CONV[shape.dims], TRANSPOSED[shape.dims]
        if shape.up == "transposed":
            return transposed(before, width, 2, 2)
        if shape.up == "overlapping":
            return transposed(before, width, 3, 2, padding=1, output_padding=1)
        if shape.up == "depthwise":
            return nn.Sequential(transposed(before, 2 * before, 2, 2, groups=before), conv(2 * before, width, 1))
        return conv(before, width, 1)

    def body(self, x: Tensor) -> Tensor:
        seen = []
        for enter, down in zip(self.enter, self.down):
            x = enter(x)
            seen.append(x)
            x = down(x) if self.shape.down == "stride" else POOL[self.shape.dims](x, 2, ceil_mode=self.shape.odd)
        x = self.bottom(x)
        for up, join, skipped in zip(self.up, self.join, reversed(seen)):
            x = up(x)
            if self.shape.up in ("nearest", "linear"):
                mode = LINEAR[self.shape.dims] if self.shape.up == "linear" else "nearest"
                x = F.interpolate(x, size=skipped.shape[2:], mode=mode)
            if self.shape.skip != "none":
                x = torch.cat([skipped, x], 1) if self.shape.skip == "concat" else skipped + x
            x = join(x)
        return x


class Sequence(Network):
    """Convolutions one after the other, some with strides; with a dense head sampled up again by one transposed."""

    def make(self, shape: Shape) -> int:
        units, before = [], 3
        strided = shape.down == "stride" and shape.depth > 1
        for k in range(shape.depth):
            stride = 2 if strided and k == 1 else 1
            units.append(Unit(shape, before, shape.width + k, 2**k if shape.dilated else 1, stride))
            before = units[-1].out
        if strided and shape.head == "dense":
            units.append(TRANSPOSED[shape.dims](before, shape.width, 4, 2, padding=1))
            before = shape.width
        self.units = nn.Sequential(*units)
        return before

    def body(self, x: Tensor) -> Tensor:
        return self.units(x)


def _sensible(shape: Shape) -> bool:
    sampled = shape.up in ("nearest", "linear") and shape.kind == "u-net"
    if shape.norm == "instance" and shape.kind == "u-net" and shape.size >> shape.depth < 2:
        return False  # torch trains no instance norm on one position
    return (not shape.odd or sampled or (shape.kind == "sequence" and shape.down == "pool")) and (
        shape.depth > 1 if shape.kind == "sequence" else shape.dims < 3 or shape.depth == 1
    )


shapes = st.builds(
    Shape,
    kind=st.sampled_from(["u-net", "sequence"]),
    dims=st.sampled_from([1, 1, 2, 2, 3]),
    depth=st.integers(1, 3),
    width=st.integers(3, 6),
    padding=st.sampled_from(["same", "causal", "chomp"]),
    dilated=st.booleans(),
    groups=st.sampled_from([1, 1, 1, 2, 0]),
    norm=st.sampled_from(["batch", "batch", "instance", "none"]),
    bias=st.booleans(),
    down=st.sampled_from(["pool", "stride"]),
    up=st.sampled_from(["transposed", "overlapping", "depthwise", "nearest", "linear"]),
    skip=st.sampled_from(["concat", "concat", "sum", "none"]),
    head=st.sampled_from(["dense", "mean", "max", "spread", "last"]),
    odd=st.booleans(),
    seed=st.integers(0, 99),
).filter(_sensible)
