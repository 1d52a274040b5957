"""Loops with Accelerate; started by torchrun, and alone to go on from what was saved.

    torchrun --nproc-per-node 2 -m tests.integrations.accelerated FOLDER
    python -m tests.integrations.accelerated FOLDER

Ends go to FOLDER/RANK.pt; a single process goes on from FOLDER/saved and writes FOLDER/again.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchreaper as tr
from tests.nets import Residual
from torchreaper.ranks import leave_together

SETTINGS = {"full": 2, "sub": 1, "cycles": 2, "fraction": 0.3, "skip": None}
EPOCHS = 7


def data() -> TensorDataset:
    """24 images of noise in three classes."""
    draw = torch.Generator().manual_seed(7)
    images = torch.randn(24, 3, 8, 8, generator=draw, dtype=torch.float64)
    return TensorDataset(images, torch.randint(3, (24,), generator=draw))


def network() -> nn.Module:
    """The same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Residual().double()


def train(
    mode: str, *, first: int = 0, start: Path | None = None, save: dict[int, Path] | None = None, after=False, **how
):
    """A loop of one's own; `after`: the scheme is built after `prepare`. The model's weights, and what was dropped."""
    accelerator = Accelerator(cpu=True, **how)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs = data()[0][0][None]
    if not after:
        scheme = tr.RePr(model, optimizer, inputs, subnetwork=mode, **SETTINGS)
    loader = DataLoader(data(), batch_size=6 // accelerator.num_processes)
    called, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if after:
        scheme = tr.RePr(accelerator.unwrap_model(called), optimizer, inputs, subnetwork=mode, **SETTINGS)
    accelerator.register_for_checkpointing(scheme)
    if start is not None:
        accelerator.load_state(str(start))
        if mode == "compact" and accelerator.num_processes > 1:
            called = tr.rewrapped(called)
    for epoch in range(first, EPOCHS):
        for images, labels in loader:
            with accelerator.accumulate(called):
                loss = nn.functional.cross_entropy(called(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        if scheme.step() is not None and mode == "compact" and accelerator.num_processes > 1:
            called = tr.rewrapped(called)
        if save and epoch in save:
            accelerator.save_state(str(save[epoch]))
    filters = [transition.filters for transition in scheme.history]
    return {name: value.clone() for name, value in model.state_dict().items()}, filters


def main(out: Path) -> None:
    """Two processes train; a single one goes on."""
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        ends = {epoch: train("compact", first=epoch + 1, start=out / f"saved-{epoch}")[0] for epoch in (1, 2, 3)}
        torch.save(ends, out / "again.pt")
        return
    ends = {mode: train(mode) for mode in ("masked", "compact")}
    torch.save(ends, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_together()
