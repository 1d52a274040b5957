"""Small networks with one difficulty each of the architectures people use; input [n, 3, 8, 8], three classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Headed(nn.Module):
    """A stem of six filters, a body of the subclass, a mean over positions, a Linear layer."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.make()
        self.fc = nn.Linear(self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem_norm(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class PreActivation(Headed):
    """DenseNet: every later norm sees the filters of all layers before it, in its own slice of a concatenation."""

    width = 14

    def make(self) -> None:
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1, bias=False)])

    def body(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return F.relu(self.norms[2](x))


class Excitation(nn.Module):
    """Squeeze and excitation by 1x1 convolutions, with a functional sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class LinearExcitation(nn.Module):
    """The same by Linear layers, views and an expand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Linear(width, 3), nn.Linear(3, width), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)).view(x.size(0), -1)
        y = self.gate(self.up(F.relu(self.down(y)))).view(x.size(0), x.size(1), 1, 1)
        return x * y.expand_as(x)


class Mobile(Headed):
    """Inverted residuals: depthwise convolutions that follow the expansion, gates, a sum."""

    def make(self) -> None:
        self.expand, self.norm1 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.gate = Excitation(8)
        self.project, self.norm3 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)

    def body(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.expand(x)))
        y = self.gate(F.hardswish(self.norm2(self.depthwise(y))))
        return x + self.norm3(self.project(y))


class Followers(Headed):
    """A depthwise convolution with two outputs a channel, gates by Linear layers, slopes, a scale and a shift."""

    def make(self) -> None:
        self.conv = nn.Conv2d(6, 5, 3, padding=1)
        self.slope = nn.PReLU(5)
        self.gamma = nn.Parameter(torch.randn(5, 1, 1))
        self.twice = nn.Conv2d(5, 10, 3, padding=1, groups=5)
        self.gate = LinearExcitation(10)
        self.last = nn.Conv2d(10, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.slope(self.conv(x)) * self.gamma
        return F.relu(self.last(self.gate(self.twice(x))))


class Shifted(nn.Module):
    """Scale and shift by parameters of its own: what leaves it must be masked again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(width, 1, 1)), nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x + self.beta


class NormAct(nn.BatchNorm2d):
    """A norm and an activation as one module with a forward of its own, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        training = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        return F.silu(x)


class Offsets(Headed):
    """Activations with f(0) != 0, as modules and as functions, before readers."""

    def make(self) -> None:
        self.a, self.b, self.c = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.shift, self.norm, self.act = Shifted(5), NormAct(4), nn.Softplus()

    def body(self, x: Tensor) -> Tensor:
        x = self.act(self.shift(self.a(x)))
        return torch.sigmoid(self.c(self.norm(self.b(x))))


class Shuffle(Headed):
    """ShuffleNet: halves of the channels, a depthwise branch, a concatenation, a shuffle, a slice."""

    def make(self) -> None:
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.point, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(6, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.conv(x)).chunk(2, dim=1)
        x = torch.cat([left, self.point(self.norm(self.depthwise(right)))], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return F.relu(self.last(x[:, 1:7]))


class UNet(Headed):
    """A transposed convolution and a skip by concatenation."""

    def make(self) -> None:
        self.down, self.norm = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.BatchNorm2d(5)
        self.join = nn.Conv2d(11, 6, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.up_norm(self.up(F.relu(self.norm(self.down(x))))))
        return F.relu(self.join(torch.cat([x, y], 1)))


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight is computed in a forward of its own, row by row."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Pads by itself, branching on sizes, and convolves with its weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        missing = max((-x.shape[-1]) % 3, 0)
        if missing > 0:
            x = F.pad(x, (0, missing, 0, missing))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Computed(Headed):
    """Weights computed from parameters: weight_norm, weight standardisation, spectral_norm, a padding of its own."""

    def make(self) -> None:
        self.a = parametrizations.weight_norm(nn.Conv2d(6, 5, 3, padding=1))
        self.b, self.c = Standardised(5, 7, 3, padding=1), Same(7, 5, 3)
        self.d = parametrizations.spectral_norm(nn.Conv2d(5, 6, 1))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))))


class Undecided(nn.Module):
    """Goes one of two ways by what the tensor holds: nothing can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.back = nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e6:
            return x
        return self.back(F.relu(self.norm(self.conv(x))))


class Boxed(Headed):
    """A part that cannot be traced, between parts that can."""

    def make(self) -> None:
        self.before, self.box, self.after = nn.Conv2d(6, 6, 1), Undecided(), nn.Conv2d(6, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.box(F.relu(self.before(x))))


class Untraceable(Boxed):
    """Cannot be traced at all."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e6:
            return self.fc(x)
        return super().forward(x)


class Shared(Headed):
    """A convolution used twice, tied weights, a branch on the size, and a head that exists only in training."""

    def make(self) -> None:
        self.twice, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.tied, self.other = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.other.weight = self.tied.weight
        self.aux = nn.Conv2d(6, 4, 1)
        self.aux_fc = nn.Linear(4, 3)
        self.wide, self.read = nn.Conv2d(6, 7, 1), nn.Conv2d(7, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.twice(F.relu(self.twice(x)))))
        x = self.read(F.relu(self.wide(x)) if x.shape[-1] > 2 else x)
        return F.relu(self.other(F.relu(self.tied(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem_norm(self.stem(x))))
        y = self.fc(x.mean((2, 3)))
        return y + self.aux_fc(F.relu(self.aux(x)).mean((2, 3))) if self.training else y


class Wide(Headed):
    """Layers of 64 filters with a barrier behind them: what is put back to full width in a compact phase."""

    width = 64

    def make(self) -> None:
        self.conv1, self.norm1 = nn.Conv2d(6, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.norm2 = nn.Conv2d(64, 64, 1), NormAct(64)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(x))


class FrozenNorm(nn.Module):
    """BatchNorm whose entries are constants, written out as detectors have it."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width, generator=draw) + 0.5)

    def scale(self) -> Tensor:
        return self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()

    def mapped(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.mapped(x, self.scale())


class Straying(FrozenNorm):
    """The same, and what it has computed of its entries goes elsewhere too, at full width."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale()
        return self.mapped(x, scale) * scale.mean()


class Frozen(Headed):
    """Frozen norms: in a block, before a sum, and one whose entries something else reads."""

    width = 5

    def make(self) -> None:
        self.conv1, self.norm1 = nn.Conv2d(6, 7, 3, padding=1, bias=False), FrozenNorm(7, 1)
        self.conv2, self.norm2 = nn.Conv2d(7, 6, 3, padding=1, bias=False), FrozenNorm(6, 2)
        self.conv3, self.norm3 = nn.Conv2d(6, 5, 1, bias=False), Straying(5, 3)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return F.relu(self.norm3(self.conv3(x)))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    **{"pre-activation": PreActivation, "mobile": Mobile, "followers": Followers, "offsets": Offsets},
    **{"shuffle": Shuffle, "u-net": UNet, "computed": Computed, "boxed": Boxed, "untraceable": Untraceable},
    **{"shared": Shared, "wide": Wide, "frozen": Frozen},
}
