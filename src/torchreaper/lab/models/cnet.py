"""C^n(X), the paper's plain convnet: n convolutions of X filters each, then one fully connected layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings

_STD = 0.04


class CNetOptions(Settings):
    """The options of ``cnet``; the defaults are the paper's C3(32).

    Attributes:
        depth: convolutions (n). width: filters in each (X). kernel: their size, odd.
        batch_norm: BatchNorm after each convolution, which then has no bias.
        pool: max-pool 3x3, stride 2, after each convolution; image sides halve, rounded up.
        init: "torch" (PyTorch's own) or "normal" (normal of deviation ``std``, cut at 2 std; biases 0).
        std: only with init="normal"; 0.04 is that of the paper's code release.
        dropout: probability, in front of the fully connected layer.
    """

    depth: int = Field(default=3, ge=1, le=1000)
    width: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    batch_norm: bool = False
    pool: bool = False
    init: Literal["torch", "normal"] = "torch"
    std: float = Field(default=_STD, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _together(self) -> CNetOptions:
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel}: must be odd, so that the output is as large as the input")
        if self.std != _STD and self.init != "normal":
            raise UserError(f"std={self.std}: has no effect with init='torch'; set init='normal'")
        return self


class CNet(nn.Sequential):
    """C^n(X): children conv1, norm1, relu1, pool1, conv2, ... flatten, dropout, fc (as the options ask).

    [n, in_channels, height, width] -> logits [n, classes]. Without pooling the fully connected layer reads
    every pixel of the last convolution (C3(32) on 32x32: 32,768 inputs a class), as in the paper's form.
    """

    def __init__(self, options: CNetOptions, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, (height, width) = in_channels, image_size
        for i in range(1, options.depth + 1):
            layers[f"conv{i}"] = nn.Conv2d(
                channels,
                options.width,
                options.kernel,
                padding=options.kernel // 2,
                bias=not options.batch_norm,
            )
            if options.batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(options.width)
            layers[f"relu{i}"] = nn.ReLU()
            if options.pool:
                layers[f"pool{i}"] = nn.MaxPool2d(3, stride=2, padding=1)
                height, width = (height + 1) // 2, (width + 1) // 2
            channels = options.width
        layers["flatten"] = nn.Flatten()
        if options.dropout:
            layers["dropout"] = nn.Dropout(options.dropout)
        layers["fc"] = nn.Linear(channels * height * width, classes)
        super().__init__(layers)
        if options.init == "normal":
            self._draw_normal(options.std)

    def _draw_normal(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def cnet(options: CNetOptions, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> CNet:
    """Make C^n(X) for images [n, in_channels, *image_size]; weights come from the global random state.

    Raises ``UserError`` where the images are too small: a pooling that would meet a single pixel.
    Source: the paper, section 6 (3x3, no pooling), and its code release (5x5, pooling, normal, std 0.04).
    """
    # ceil(log2(side)) halvings, rounded up, take a side to 1; one more would pool a single pixel.
    most = (min(image_size) - 1).bit_length()
    if options.pool and options.depth > most:
        size = "x".join(map(str, image_size))
        raise UserError(
            f"model.options.depth={options.depth}: too deep for images of {size} pixels with pool=True, "
            f"which halves them after each convolution; use depth <= {most} or pool=False"
        )
    return CNet(options, in_channels=in_channels, classes=classes, image_size=image_size)
