"""A process that stops dead at one step of its writing, without a process."""

from __future__ import annotations

import os

import pytest


class Died(BaseException):
    """Stands for SIGKILL at one place: nothing after it happens."""


def die_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let so many renames and syncs happen, and die at the next."""
    left = [steps]

    def dying(function):
        def call(*args):
            if left[0] == 0:
                raise Died
            left[0] -= 1
            return function(*args)

        return call

    for name in ("replace", "fsync"):
        patch.setattr(os, name, dying(getattr(os, name)))
