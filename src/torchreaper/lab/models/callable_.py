"""Networks of the user's own: what ``package.module:callable`` makes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchreaper.lab.errors import UserError


def is_callable(name: str) -> bool:
    """Whether a model's name is ``package.module:callable`` and not one of the zoo's."""
    return ":" in name


def build_callable(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What ``callable(**options)`` of ``package.module`` makes; modules of the current folder are found too.

    This runs the user's own code, which may do anything.

    Raises:
        UserError: no such module or name, it fails, or it makes no ``nn.Module``.
    """
    where, _, what = name.partition(":")
    if not where or not what or not all(part.isidentifier() for part in [*where.split("."), *what.split(".")]):
        raise UserError(f"model={name!r}: must be package.module:callable, such as mynets.small:make")
    with _current_folder(), torch.random.fork_rng(devices=[]):
        try:
            found: Any = importlib.import_module(where)
        except (Exception, SystemExit) as error:  # whatever importing it runs into
            raise UserError(f"model={name!r}: {where} cannot be imported ({_reason(error)})") from error
        for part in what.split("."):
            if not hasattr(found, part):
                raise UserError(f"model={name!r}: {where} has no {what}")
            found = getattr(found, part)
        if not callable(found):
            raise UserError(
                f"model={name!r}: {what} is a {type(found).__name__}; must be a callable that makes a model"
            )
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        try:
            model = found(**options)
        except (Exception, SystemExit) as error:  # the user's own code
            raise UserError(f"model={name!r}: {what}({given}) fails ({_reason(error)})") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model={name!r}: {what}({given}) makes a {type(model).__name__}; must be a torch.nn.Module")
    return model


@contextmanager
def _current_folder() -> Iterator[None]:
    before, here = list(sys.path), str(Path.cwd())
    if here not in before:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path[:] = before


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
