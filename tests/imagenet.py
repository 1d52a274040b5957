"""Starts examples/imagenet.py as a script, and, once, kills the process in the middle of an epoch.

    KILL=RANK:STEP:FILE python -m tests.imagenet ARGUMENTS

The process of that rank (0 where there is one alone) ends itself by SIGKILL in its training step of that number, from
1, between the gradients and the optimizer, and leaves FILE behind; where FILE is there already, nothing happens.
"""

from __future__ import annotations

import os
import runpy
import signal
from pathlib import Path
from typing import Any

import torch

from tests.zoo import torchvision_importable

EXAMPLE = Path(__file__).parents[1] / "examples" / "imagenet.py"


def die_before(step: int, mark: Path) -> None:
    """Let the training step of that number end the process."""
    whole, left = torch.amp.GradScaler.step, [step]

    def trapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    torch.amp.GradScaler.step = trapped  # type: ignore[method-assign]


if __name__ == "__main__":
    torchvision_importable()
    if "KILL" in os.environ:
        rank, step, mark = os.environ["KILL"].split(":")
        if os.environ.get("RANK", "0") == rank and not Path(mark).exists():
            die_before(int(step), Path(mark))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
