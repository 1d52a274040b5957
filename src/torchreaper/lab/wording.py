"""What the numbers of a record or a comparison are called: those without a name are accuracies of test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metric_of(found: Mapping[str, Any]) -> str:
    """What is called accuracy there, such as "accuracy" or "mAP"."""
    return str(found.get("metric", "accuracy"))


def measure_of(found: Mapping[str, Any]) -> str:
    """The same with the images it is of, such as "test accuracy"."""
    return f"{found.get('judged', 'test')} {metric_of(found)}"
