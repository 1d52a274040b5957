"""What an epoch draws at random: seeds of (seed, epoch), and crops of whole batches."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

Augmentation = Literal["none", "flip", "crop-flip", "resized-crop"]
_MARGIN = 4  # pixels, of the crop (He et al. 2016)


def epoch_seed(seed: int, epoch: int, use: str = "order") -> int:
    """A 63-bit seed for one use of randomness in one epoch of one run.

    The first 8 bytes of BLAKE2b("use:seed:epoch"), top bit cleared: the same on every machine, and unlike
    ``seed + epoch`` never shared by two runs. It depends on nothing that happened before, so that any epoch
    can be repeated alone.
    """
    digest = hashlib.blake2b(f"{use}:{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_generator(seed: int, epoch: int, use: str = "order") -> torch.Generator:
    """A fresh CPU generator from ``epoch_seed``."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch, use))


def augment(
    images: UInt8[Tensor, "n channels height width"],
    kind: Augmentation,
    generator: torch.Generator,
    part: slice = slice(None),
    of: int | None = None,
) -> UInt8[Tensor, "n channels height width"]:
    """Change each image at random, all at once, on the images' device.

    "flip": its mirror image with probability 1/2.
    "crop-flip": a crop of the image's own size out of the image with 4 black pixels added on each side, then
    its mirror image with probability 1/2. Others leave the images as they are, and nothing is drawn: "resized-crop"
    is made while images are read, see `torchreaper.lab.data.picture`.
    The numbers come from ``generator``, on its own device: a CPU generator gives the same crops everywhere.
    Where the images are only ``part`` of a batch ``of`` so many, their numbers are those they have in the whole one.
    Source: He et al. 2016, section 4.2.
    """
    if kind not in ("flip", "crop-flip"):
        return images
    _, channels, height, width = images.shape
    n, device = len(images) if of is None else of, images.device
    if kind == "flip":
        chances = torch.rand(n, generator=generator, device=generator.device)[part].to(device, non_blocking=True)
        return torch.where((chances < 0.5)[:, None, None, None], images.flip(3), images)
    # Not blocking: waiting for the copies would be waiting, in every step, for all that the device has still to do.
    corners = torch.randint(0, 2 * _MARGIN + 1, (2, n), generator=generator, device=generator.device)
    top, left = corners[:, part].to(device, non_blocking=True).unbind()
    chances = torch.rand(n, generator=generator, device=generator.device)
    mirrored = chances[part].to(device, non_blocking=True) < 0.5
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (_MARGIN,) * 4)
    # One index for a pixel of all channels: four times as quick on a CPU as an index for each dimension.
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
    return padded.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view_as(images)
