"""How a network's weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn

from torchreaper.lab.errors import UserError


def in_channels_last(net: nn.Module) -> nn.Module:
    """The same network, the weights of its convolutions channels last in memory; inputs follow by themselves.

    Raises ``UserError`` where there is no convolution that this concerns.
    """
    laid = False
    for weight in net.parameters():
        if weight.ndim in (4, 5):
            form = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=form)
            laid = True
    if not laid:
        why = "the network has no convolution in 2 or 3 dimensions"
        raise UserError(f"channels_last=True: has no effect, {why}; leave it out")
    return net
