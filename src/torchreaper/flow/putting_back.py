"""Putting back what a model's own code changes while it is looked at: attributes of modules, random states."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def attributes_put_back(model: nn.Module) -> Iterator[None]:
    """Whatever attributes the modules get or lose in the block are as before it."""
    before = [(module, dict(module.__dict__), _copies(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, containers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in containers.items():
                container = module.__dict__[name]
                container.clear()
                container.update(content)


def _copies(attributes: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """The module's own registries (parameters, buffers, children), which are changed in place."""
    return {name: dict(attributes[name]) for name in ("_parameters", "_buffers", "_modules")}


@contextmanager
def random_states_put_back() -> Iterator[None]:
    """Whatever is drawn in the block, of Python's, numpy's and torch's random numbers, will be drawn again."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)
