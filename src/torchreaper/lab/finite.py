"""What must be finite for a run to go on: its losses, and the weights that are about to be saved."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from torchreaper.lab.runs import RunFailed
from torchreaper.state import all_finite

_FIRST = "no step was taken before it: look at the images, and at what the network makes of them"
_REMEDY = "lower optim.lr or set grad_clip; the last good checkpoint is kept"


def checked_losses(epoch: int, before: int, waiting: Tensor) -> list[float]:
    """The losses of the steps after number `before`, as numbers; `RunFailed` where one is not finite."""
    losses: list[float] = waiting.tolist()
    for step, loss in enumerate(losses, before + 1):
        if not math.isfinite(loss):
            remedy = _FIRST if epoch == step == 1 else _REMEDY
            raise RunFailed(f"epoch {epoch}, step {step}: the training loss is {loss}; {remedy}")
    return losses


def check_loss(loss: float, epoch: int, what: str) -> None:
    """Raise `RunFailed` for a loss on the images of a split that is not finite."""
    if not math.isfinite(loss):
        raise RunFailed(f"epoch {epoch}: the loss on the {what} images is {loss}; {_REMEDY}")


def check_weights(networks: Mapping[str, nn.Module], epoch: int) -> None:
    """Raise `RunFailed` for weights or statistics that are not finite.

    What judging cannot see (a head that only training has, an infinite mean before a ReLU) would be saved.

    Args:
        networks: By what is said of whose weights they are, "" or " in ...".
        epoch: That has ended.
    """
    for whose, network in networks.items():
        buffers = network.named_buffers()
        statistics = [(n, one) for n, one in buffers if n.endswith(("running_mean", "running_var"))]
        for name, value in (*network.named_parameters(), *statistics):
            if not all_finite(value):
                raise RunFailed(f"epoch {epoch}: the values of {name!r}{whose} are not finite; {_REMEDY}")
