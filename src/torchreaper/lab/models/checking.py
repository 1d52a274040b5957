"""One look at a network that is not the zoo's: does it classify these images?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import reason


def check_logits(model: nn.Module, named: str, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> None:
    """Send 2 images of noise through ``model``, as in evaluation and as in training, and put its state back.

    Draws from the global CPU generator. Lazy layers have their shapes afterwards.

    Raises:
        UserError: it has no parameters, fails, or gives anything but logits [2, classes]; ``named`` says which it is.
    """
    first = next(model.parameters(), None)
    if first is None:
        raise UserError(f"{named}: has no parameters, so there is nothing to train")
    images = torch.randn(2, in_channels, *image_size, dtype=first.dtype)
    shape = "x".join(map(str, images.shape[1:]))
    for training in (False, True):  # some give more than logits in training only
        try:
            with _as_before(model), torch.no_grad():
                outputs = model.train(training)(images)
        except Exception as error:  # the user's own code
            raise UserError(f"{named}: fails on 2 images of {shape} ({reason(error)})") from error
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"{named}: gives a {type(outputs).__name__}{' in training' if training else ''}; must give one tensor, "
                "the logits: switch other outputs off (options: {aux_logits: false} of googlenet and inception_v3), or "
                "wrap it in a module of your own that returns them"
            )
        if outputs.shape != (2, classes) or not outputs.is_floating_point():
            raise UserError(
                f"{named}: gives {outputs.dtype} of shape {list(outputs.shape)} for 2 images; must give logits "
                f"[2, {classes}], one for each class of the data"
            )


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    values = {buffer: buffer.clone() for buffer in model.buffers() if not isinstance(buffer, UninitializedBuffer)}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
