"""Small networks and training steps for the tests of the method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.shapes import Sequence, Shape, UNet


def plain(norm: bool = True, widths: tuple[int, ...] = (4, 6, 5)) -> nn.Sequential:
    """Convolutions with optional BatchNorm, a pool, and a Linear on the flattened map; input [n, 3, 8, 8]."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(before * 16, 3))


class Block(nn.Module):
    """The basic block of He 2016, projection shortcut where the shape changes."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and before == width
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """Stem, an identity block, a projection block, global mean, Linear; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block1 = Block(4, 4)
        self.block2 = Block(4, 6, 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


class Signal(nn.Module):
    """One-dimensional convolutions; input [n, 3, 8, 8], read as [n, 3, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 5, 5, padding=2)
        self.conv2 = nn.Conv1d(5, 6, 3)
        self.bn = nn.BatchNorm1d(6)
        self.conv3 = nn.Conv1d(6, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x.flatten(2)))
        x = F.gelu(self.conv3(F.max_pool1d(F.silu(self.bn(self.conv2(x))), 2)))
        return self.fc(F.adaptive_avg_pool1d(x, 1).flatten(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: plain(norm=False),
    "plain-norm": plain,
    "residual": Residual,
    "conv1d": Signal,
}

OTHER_SHAPES: dict[str, Callable[[], nn.Module]] = {
    "u-net": lambda: UNet(Shape(head="mean", bias=True)),
    "u-net sums": lambda: UNet(Shape(skip="sum", up="linear", down="stride", head="max")),
    "causal": lambda: nn.Sequential(nn.Flatten(2), Sequence(Shape("sequence", 1, 3, 4, "causal", True, head="last"))),
}

SPECIAL: dict[str, Callable[[], nn.Module]] = {
    **OTHER_SHAPES,
    "dropout": lambda: nn.Sequential(*plain()[:6], nn.Dropout(0.3), *plain()[6:]),
}

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def inputs(seed: int = 0, n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def build(net: str, optimizer: str = "momentum", seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network with weights of its own seed; norm entries are random too, so that every shift is on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = {**NETS, **SPECIAL}[net]()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, OPTIMIZERS[optimizer](list(model.parameters()))


LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, loop: str = "plain") -> float:
    """One optimizer step in one of the ways people train."""
    halves = [inputs(2 * seed), inputs(2 * seed + 1)] if loop == "accumulation" else [inputs(seed)]
    optimizer.zero_grad(set_to_none=loop != "clipping")
    total = 0.0
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=loop == "fp16")
    for images, labels in halves:
        with torch.autocast("cpu", LOW_PRECISION[loop]) if loop in LOW_PRECISION else nullcontext():
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        total += loss.item()
    if loop == "clipping":
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    return total


LOOPS = ("plain", "clipping", "accumulation", "bf16", "fp16", "compiled")


def looped(model: nn.Module, loop: str) -> nn.Module:
    """The model as the loop calls it."""
    return torch.compile(model, backend="eager") if loop == "compiled" else model
