"""How an analysis looks at networks, and what is wrong with that before any is opened."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import torchreaper as tr
from torchreaper.lab.environment import DEVICES
from torchreaper.lab.errors import UserError

ORACLE = "oracle"
MOST = 4
"""Subjects, and layers, that one figure holds side by side."""
SPLITS = ("validation", "test", "train")


@dataclass(frozen=True)
class Settings:
    """How to look.

    Attributes:
        criteria: names; ``None``: all that are registered and apply to the network.
        images: how many images the oracle and the criteria read, as many of each class.
        split: of which: "validation", "test" or "train"; ``None``: validation if the data have it, else test. On the
            images it was trained on a network is often right without any one filter.
        layers: whose filters are correlated, ``None``: up to four of the network's.
        grid: cells a dimension of a feature map in the canonical correlations.
        skip: layers left out of everything but the overlap; ``None``: none.
        over_time: look at the snapshots of runs as well.
        seed: of the choice of images, and of random criteria.
        device: "auto", "cpu", "cuda" or "mps".
    """

    criteria: tuple[str, ...] | None = None
    images: int = 1000
    split: str | None = None
    layers: tuple[str, ...] | None = None
    grid: int = 4
    skip: str | tuple[str, ...] | None = None
    over_time: bool = True
    seed: int = 0
    device: str = "auto"


def check(settings: Settings) -> None:
    """Raise `UserError` for settings that are wrong whatever is looked at."""
    if isinstance(settings.images, bool) or settings.images < 1:
        raise UserError(f"images={settings.images}: must be a whole number of at least 1")
    known = tr.criteria.names()
    _listed_well("criteria", settings.criteria)
    _listed_well("layers", settings.layers)
    for name in settings.criteria or ():
        if name not in known:
            raise UserError(f"criteria={name!r}: unknown; choose from {', '.join(known)}")
        if name == ORACLE:
            raise UserError("criteria='oracle': has no effect, it is what the others are compared with; leave it out")
    if settings.layers is not None and len(settings.layers) > MOST:
        raise UserError(f"layers={','.join(settings.layers)}: must be 1 to {MOST} layers")
    if settings.split not in (None, *SPLITS):
        raise UserError(f"split={settings.split!r}: unknown; choose one of {', '.join(SPLITS)}")
    if settings.device not in DEVICES:
        raise UserError(f"device={settings.device!r}: unknown; choose one of {', '.join(DEVICES)}")


def _listed_well(argument: str, names: tuple[str, ...] | None) -> None:
    if names is None:
        return
    if not names:
        raise UserError(f"{argument}: none named; name at least one, or leave it out")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"{argument}: {twice[0]} is named twice; name each once")


def resolved(name: str) -> torch.device:
    """The device that a name stands for; `UserError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name!r}: cannot be used here; use auto or cpu") from error
    return torch.device(name)
