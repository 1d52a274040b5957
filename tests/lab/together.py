"""Runs of two processes that train together; started by torchrun from test_processes.py.

    torchrun --nproc-per-node 2 -m tests.lab.together OUT

Each process writes to OUT/<rank>.json how every scenario ended.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from tests.lab.schemes.test_resume import SETTINGS
from tests.lab.tiny import recipe

from torchreaper.lab import processes
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train
from torchreaper.lab.runs import RunFailed, folder_of, read_metrics
from torchreaper.lab.training import Run
from torchreaper.ranks import leave_together

#: Nothing here depends on which images share a batch: two processes must come to what one comes to.
ALIKE: dict[str, Any] = {
    "batch": 24,
    "precision": "64-true",
    "model__options": {"depth": 2, "width": 6},
    "augment": "crop-flip",
}
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", ALIKE),
    "masked": ("repr", {**ALIKE, "scheme__subnetwork": "masked"}),
    "compact": ("repr", {**ALIKE, "scheme__subnetwork": "compact"}),
    "images": ("repr", {**ALIKE, "scheme__subnetwork": "masked", "scheme__criterion": "taylor"}),
}
#: With running statistics and Dropout, stopped in the middle and taken up.
STOPPED = ("repr", *(key for key in SETTINGS), "grafting", "sam", "dropout", "mixup", "cutmix", "repr+kd+ema+sam+mixup")
STOP = 3
TINY: dict[str, Any] = {"batch": 24, "schemes": SETTINGS, "scheme__subnetwork": "compact"}


def known(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run came to; times are left out."""
    lines = read_metrics(folder)
    shown = (
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "validation_accuracy",
        "dropped",
        "overlap_total",
    )
    return {
        "fingerprint": result["fingerprint"],
        "test_accuracy": result["test_accuracy"],
        "epochs": [{name: line[name] for name in shown} for line in lines],
    }


def refusal(what: Recipe, out: Path, fabric: Fabric, scheme: str = "standard") -> str:
    """The text of the error that every process gets."""
    try:
        train(what, scheme=scheme, seed=0, out=out, fabric=fabric)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@contextmanager
def stopped_before(epoch: int) -> Iterator[None]:
    """Every process ends its run before that epoch."""
    whole = Run.epoch

    def until(run: Run, number: int, progress: Any) -> Any:
        if number == epoch:
            raise RunFailed("stopped")
        return whole(run, number, progress)

    Run.epoch = until  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run.epoch = whole  # type: ignore[method-assign]


def main(out: Path) -> None:
    """All scenarios, one after the other."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    found: dict[str, Any] = {}
    fabric = processes.begin("cpu", "64-true", None, None)
    assert fabric is not None
    for name, (scheme, changes) in SCENARIOS.items():
        what = recipe(**changes)
        result = train(what, scheme=scheme, seed=0, out=out / name, fabric=fabric)
        found[name] = known(result, folder_of(out / name, what.name, scheme, 0))

    single = processes.make_fabric("cpu", "32-true", devices=2)
    single.launch()
    what = recipe(**TINY)
    for scheme in STOPPED:
        whole = train(what, scheme=scheme, seed=0, out=out / "whole", fabric=single)
        with stopped_before(STOP):
            refused = refusal(what, out / "stopped", single, scheme)
        again = train(what, scheme=scheme, seed=0, out=out / "stopped", fabric=single)
        found[f"{scheme}, stopped"] = [refused, whole["fingerprint"], again["fingerprint"]]

    found["uneven"] = refusal(recipe(), out / "uneven", single)
    found["another"] = refusal(recipe(batch=24, epochs=4, scheme__sub=1), out / "standard", single)
    found["diverged"] = refusal(recipe(batch=24, optim__lr=1e30), out / "diverged", single)
    (out / f"{fabric.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_together()
