"""Random small convnets for property tests: sequential, residual, concatenating, pooled, flattened, in 1-d and 2-d."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

SHAPE = {1: (3, 12), 2: (3, 6, 6)}


@dataclass(frozen=True)
class Stage:
    """One stage: how its convolutions are arranged, and what follows each."""

    kind: str  # "plain" | "residual" | "projected" | "concat" | "dense" | "sum"
    width: int
    kernel: int
    bias: bool
    norm: bool
    act: str
    pool: str


@dataclass(frozen=True)
class Architecture:
    """A network by its stages; the head flattens or averages."""

    dims: int
    stages: tuple[Stage, ...]
    head: str
    seed: int

    def build(self) -> Net:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net = Net(self)
            for module in net.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias)
        return net

    def inputs(self, seed: int, n: int = 4) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(n, *SHAPE[self.dims], generator=generator, dtype=torch.float64)
        return images, torch.randint(3, (n,), generator=generator)


ACTS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "none": nn.Identity,
    "sigmoid": nn.Sigmoid,
}
CONV = {1: nn.Conv1d, 2: nn.Conv2d}
# A large eps: a channel that hardly varies would make rounding errors 300 times as large at every norm.
NORM = {1: partial(nn.BatchNorm1d, eps=0.1), 2: partial(nn.BatchNorm2d, eps=0.1)}
POOLS = {
    1: {"none": nn.Identity, "max": lambda: nn.MaxPool1d(2, ceil_mode=True), "mean": lambda: nn.AvgPool1d(3, 1, 1)},
    2: {"none": nn.Identity, "max": lambda: nn.MaxPool2d(2, ceil_mode=True), "mean": lambda: nn.AvgPool2d(3, 1, 1)},
}


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, dims: int, before: int, stage: Stage, act: bool = True) -> None:
        super().__init__()
        self.conv = CONV[dims](before, stage.width, stage.kernel, padding=stage.kernel // 2, bias=stage.bias)
        self.norm = NORM[dims](stage.width) if stage.norm else nn.Identity()
        self.act = ACTS[stage.act]() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Arranged(nn.Module):
    """One stage."""

    def __init__(self, dims: int, before: int, stage: Stage) -> None:
        super().__init__()
        self.kind = stage.kind
        self.first = Unit(dims, before, stage)
        self.out = stage.width
        if stage.kind in ("residual", "projected", "sum"):
            self.second = Unit(dims, stage.width, stage, act=stage.kind != "residual")
        if stage.kind == "projected":
            self.short = CONV[dims](before, stage.width, 1)
        if stage.kind == "concat":
            self.second = Unit(dims, before, stage)
            self.out = 2 * stage.width
        if stage.kind == "dense":
            self.between = NORM[dims](before + stage.width)
            self.out = before + stage.width
        self.pool = POOLS[dims][stage.pool]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "residual":
            y = y + self.second(y)
        elif self.kind == "projected":
            y = self.second(y) + self.short(x)
        elif self.kind == "sum":
            y = self.second(y) + 1.5 * y
        elif self.kind == "concat":
            y = torch.cat([y, self.second(x)], 1)
        elif self.kind == "dense":
            y = self.between(torch.cat([x, y], 1))
        return self.pool(y)


class Net(nn.Module):
    """Stages and a head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dims, width = architecture.dims, 3
        stages = []
        for stage in architecture.stages:
            stages.append(Arranged(dims, width, stage))
            width = stages[-1].out
        self.stages = nn.Sequential(*stages)
        self.head, self.spatial = architecture.head, tuple(range(2, 2 + dims))
        with torch.no_grad():
            features = self._flat(self.stages.eval()(torch.zeros(2, *SHAPE[dims]))).shape[1]
        self.train()
        self.fc = nn.Linear(features, 3)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.head == "flatten" else x.mean(self.spatial)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self._flat(self.stages(x)))


stages = st.builds(
    Stage,
    kind=st.sampled_from(["plain", "plain", "residual", "projected", "concat", "dense", "sum"]),
    width=st.integers(3, 6),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    norm=st.booleans(),
    act=st.sampled_from(sorted(ACTS)),
    pool=st.sampled_from(["none", "max", "mean"]),
)

architectures = st.builds(
    Architecture,
    dims=st.sampled_from([1, 2]),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    head=st.sampled_from(["flatten", "mean"]),
    seed=st.integers(0, 99),
)
