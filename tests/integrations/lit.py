"""A LightningModule, its data and its Trainer; run as a script it goes on from checkpoints.

    python -m tests.integrations.lit FOLDER
    torchrun --nproc-per-node 2 -m tests.integrations.lit FOLDER

FOLDER holds a folder MODE-WHEN for each run; its end from each checkpoint goes to `ends.pt` beside them. Two processes
train together instead, and write their ends to FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.nets import Residual
from tests.zoo import torchvision_importable

torchvision_importable()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages it imports
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import (
        EMAWeightAveraging,
        ModelCheckpoint,
        OnExceptionCheckpoint,
        StochasticWeightAveraging,
    )
    from lightning.pytorch.loggers import CSVLogger

from torchreaper.integrations.lightning import RePrCallback  # noqa: E402  (it needs the first line of these)
from torchreaper.ranks import leave_together  # noqa: E402

SETTINGS = {"full": 2, "sub": 1, "cycles": 2, "fraction": 0.3, "skip": None}
EPOCHS = 7
#: Those that a fresh process goes on from: in a full phase, after a drop, after a return, in the middle of an epoch.
CHECKPOINTS = {
    "epoch": ("epoch=0", "epoch=1", "epoch=2"),
    "validation": ("epoch=1", "epoch=2", "epoch=6"),
    "steps": ("step=9", "step=15"),
    "ema": ("epoch=1", "epoch=4"),
}


def data() -> TensorDataset:
    """24 images of noise in three classes."""
    draw = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(24, 3, 8, 8, generator=draw), torch.randint(3, (24,), generator=draw))


class Loader(DataLoader):
    """Batches of six in their order, which go on in the middle of an epoch where they were saved."""

    def __init__(self) -> None:
        super().__init__(data(), batch_size=6)
        self.given = self.skip = 0

    def __iter__(self):
        skip, self.skip = self.skip, 0
        self.given = skip
        for batch in list(super().__iter__())[skip:]:
            self.given += 1
            yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.skip = state["given"] % len(self)


class Lit(pl.LightningModule):
    """A residual network; `manual`: with two optimizers that it steps itself; `stop`: fails in that step."""

    stopped: type[Exception] = RuntimeError

    def __init__(self, manual: bool = False, stop: int = -1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = Residual()
        self.automatic_optimization, self.stop = not manual, stop

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, index):
        if self.global_step == self.stop:
            raise self.stopped
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        if self.automatic_optimization:
            return loss
        both = self.optimizers()
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            optimizer.step()
        return None

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("loss", nn.functional.cross_entropy(self(images), labels))

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        if not self.automatic_optimization:
            convolutions = [p for p in self.parameters() if p.ndim == 4]
            others = [p for p in self.parameters() if p.ndim != 4]
            return torch.optim.SGD(convolutions, lr=0.05, momentum=0.9), torch.optim.AdamW(others, lr=0.01)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)]


def trainer(folder: Path, callback: RePrCallback | None, *, when: str = "", epochs: int = EPOCHS, **more) -> pl.Trainer:
    """A quiet Trainer with `callback`, and one that writes checkpoints: `when` is which."""
    keep = {"dirpath": folder, "save_top_k": -1}
    checkpoints = {
        "epoch": [ModelCheckpoint(filename="{epoch}", save_on_train_epoch_end=True, **keep)],
        "ema": [
            EMAWeightAveraging(decay=0.9),
            ModelCheckpoint(filename="{epoch}", save_on_train_epoch_end=True, **keep),
        ],
        "swa": [StochasticWeightAveraging(0.05, swa_epoch_start=1)],
        "validation": [ModelCheckpoint(filename="{epoch}", monitor="loss", save_on_train_epoch_end=False, **keep)],
        "steps": [ModelCheckpoint(filename="{step}", every_n_train_steps=3, **keep)],
        "exception": [OnExceptionCheckpoint(folder)],
    }
    automatic = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm"}
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*([callback] if callback else []), *checkpoints.get(when, [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "logger": False,
            "enable_checkpointing": when in checkpoints and when != "swa",
            "num_sanity_val_steps": 0,
            **automatic,
            **more,
        },
    )


def fit(
    folder,
    mode,
    *,
    when="",
    lit=None,
    epochs=EPOCHS,
    unit="epoch",
    precision="32-true",
    logger=False,
    start=None,
    **settings,
):
    """Train a module of one's own, with RePr unless `mode` is None; the module and the callback."""
    settings.pop("until", None)
    callback = mode and RePrCallback(model="net", unit=unit, **{**SETTINGS, "subnetwork": mode, **settings})
    module = lit or Lit()
    more = {"precision": precision}
    if logger:
        more |= {"logger": CSVLogger(folder, name="", version="logs"), "log_every_n_steps": 1}
    if lit is not None and not lit.automatic_optimization:
        more |= {"gradient_clip_val": None, "gradient_clip_algorithm": None}
    runs = trainer(folder, callback, when=when, epochs=epochs, **more)
    runs.fit(module, Loader(), Loader() if when == "validation" else None, ckpt_path=start)
    return module, callback


def main(out: Path) -> None:
    """Go on from checkpoints."""
    for folder in sorted(out.iterdir()):
        mode, _, when = folder.name.partition("-")
        ends = {}
        for name in CHECKPOINTS[when]:
            start = folder / f"{name}.ckpt"
            ends[name] = fit(folder / "again", mode, when=when, start=start)[0].state_dict()
        torch.save(ends, folder / "ends.pt")


def together(out: Path) -> None:
    """Train with DDP, each process on its half of the images."""
    torch.set_num_threads(1)
    ends = {}
    for mode in ("masked", "compact"):
        module = Lit()
        callback = RePrCallback(model="net", **{**SETTINGS, "subnetwork": mode})
        ddp = {"strategy": "ddp", "devices": 2, "precision": "64-true"}
        trainer(out, callback, **ddp).fit(module, DataLoader(data(), batch_size=3))
        dropped = [t["filters"] for t in callback.state_dict()["scheme"]["history"]]
        ends[mode] = ({name: value.clone() for name, value in module.state_dict().items()}, dropped)
    torch.save(ends, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    (together if "RANK" in os.environ else main)(Path(sys.argv[1]))
    leave_together()
