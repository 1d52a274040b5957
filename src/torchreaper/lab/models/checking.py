"""One look at a network that is not the zoo's: does it classify these images, or find what is on them?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from torchreaper.lab.errors import UserError
from torchreaper.lab.objects import reason


def check_logits(
    model: nn.Module,
    named: str,
    *,
    in_channels: int,
    classes: int,
    image_size: tuple[int, int],
    words: int | None = None,
) -> None:
    """Send 2 images of noise through ``model``, as in evaluation and as in training, and put its state back.

    With ``words``, also 2 questions of so many. Draws from the global CPU generator. Lazy layers have their shapes
    afterwards.

    Raises:
        UserError: it has no parameters, fails, or gives anything but logits [2, classes]; ``named`` says which it is.
    """
    images, shape = _noise(model, named, in_channels, image_size)
    inputs = (images,) if words is None else (images, torch.ones(2, words, dtype=torch.int64))
    for training in (False, True):  # some give more than logits in training only
        try:
            with _as_before(model), torch.no_grad():
                outputs = model.train(training)(*inputs)
        except (Exception, SystemExit) as error:  # the user's own code
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


def check_detector(model: Any, named: str, *, in_channels: int, classes: int, image_size: tuple[int, int]) -> None:
    """Send 2 images of noise through ``model`` and ask for its loss and its detections, as `check_logits` does.

    Raises:
        UserError: it has no parameters, fails, has no ``loss`` or ``detections``, or these give anything but a number
            and rows (x1, y1, x2, y2, score, class).
    """
    for name in ("loss", "detections"):
        if not callable(getattr(model, name, None)):
            raise UserError(
                f"{named}: has no {name}; must be a module with loss(outputs, targets) and detections(outputs), as "
                "torchreaper.lab.models.Detector is"
            )
    images, shape = _noise(model, named, in_channels, image_size)
    height, width = image_size
    # A box on one image, none on the other.
    targets = torch.full((2, 1, 5), -1.0)
    targets[0, 0] = torch.tensor([width / 4, height / 4, 3 * width / 4, 3 * height / 4, 0])
    for training in (False, True):
        try:
            with _as_before(model), torch.no_grad():
                model.train(training)
                both = (images, targets) if getattr(model, "takes_targets", False) else (images,)
                loss = model.loss(model(*both), targets)
                found = model.detections(model(images))
        except (Exception, SystemExit) as error:  # the user's own code
            raise UserError(f"{named}: fails on 2 images of {shape} ({reason(error)})") from error
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            raise UserError(f"{named}: its loss is {_what(loss)}; must be one number, averaged over the images")
        check_detections(found, named, images=2, classes=classes)


def check_detections(found: Any, named: str, *, images: int, classes: int) -> None:
    """Raise `UserError` for detections that cannot be judged. Noise may have none, so those of real images may be."""
    wrong = "" if isinstance(found, list) and len(found) == images else _what(found)
    for one in () if wrong else found:
        if not isinstance(one, Tensor) or one.ndim != 2 or one.shape[1] != 6:
            wrong = _what(found)
        elif not bool(one.isfinite().all()):
            wrong = "not finite"
        elif others := set(one[:, 5].tolist()) - set(range(classes)):
            wrong = f"of class {min(others):g}"
    if wrong:
        raise UserError(
            f"{named}: its detections in {images} images are {wrong}; must be a list of {images} tensors [k, 6] of "
            f"rows (x1, y1, x2, y2, score, class), classes 0 to {classes - 1}"
        )


def _noise(model: nn.Module, named: str, in_channels: int, image_size: tuple[int, int]) -> tuple[Tensor, str]:
    """Two images in the model's precision, and their shape in words."""
    first = next(model.parameters(), None)
    if first is None:
        raise UserError(f"{named}: has no parameters, so there is nothing to train")
    images = torch.randn(2, in_channels, *image_size, dtype=first.dtype)
    return images, "x".join(map(str, images.shape[1:]))


def _what(value: Any) -> str:
    """A value from the user's code, in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    inside = f" of {', '.join(map(_what, value[:3]))}" if isinstance(value, list) and value else ""
    return f"a {type(value).__name__}{inside}"


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
