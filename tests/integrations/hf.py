"""A model of transformers, its data and its Trainer; run as a script it goes on from checkpoints.

    python -m tests.integrations.hf FOLDER
    torchrun --nproc-per-node 2 -m tests.integrations.hf FOLDER

FOLDER holds a folder MODE-WHEN for each run; its end from each checkpoint goes to `ends.pt` beside them. Two processes
train together instead, and write their ends to FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tests.zoo import torchvision_importable

torchvision_importable()
os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages it imports
    import transformers
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from torchreaper.integrations.transformers import RePrCallback  # noqa: E402  (it needs the first line of these)
from torchreaper.ranks import leave_together  # noqa: E402

SETTINGS = {"full": 2, "sub": 1, "cycles": 2, "fraction": 0.3, "skip": None}
EPOCHS = 7
#: Those that a fresh process goes on from. At "steps" step 12 ends an epoch and is saved before its unit is ended.
CHECKPOINTS = {"epoch": (4, 8, 12, 16), "steps": (3, 9, 12)}
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Images(Dataset):
    """24 images of noise in three classes."""

    def __init__(self, rows: int = 24) -> None:
        draw = torch.Generator().manual_seed(7)
        self.images = torch.randn(rows, 3, 16, 16, generator=draw)
        self.labels = torch.randint(3, (rows,), generator=draw)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


def resnet() -> ResNetForImageClassification:
    """A small one, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
        return ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=3, **sizes))


def arguments(folder: Path, when: str = "no", **more) -> TrainingArguments:
    """Quiet ones, without shuffling: a plain loop is to do the same."""
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": 6,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "train_sampling_strategy": "sequential",
            "save_strategy": when,
            "save_steps": 3,
            "logging_steps": 4,
            **more,
        },
    )


def fit(folder: Path, mode: str | None, *, when: str = "no", start=None, settings=None, **more):
    """Train a model of one's own, with RePr unless `mode` is None; the Trainer and the callback."""
    callback = mode and RePrCallback(**{**SETTINGS, "subnetwork": mode, **(settings or {})})
    callbacks = [callback] if callback else []
    runs = Trainer(resnet(), arguments(folder, when, **more), train_dataset=Images(), callbacks=callbacks)
    runs.train(resume_from_checkpoint=start)
    return runs, callback


def main(out: Path) -> None:
    """Go on from checkpoints."""
    for folder in sorted(out.iterdir()):
        mode, _, when = folder.name.partition("-")
        ends = {}
        for step in CHECKPOINTS[when]:
            start = str(folder / f"checkpoint-{step}")
            ends[step] = fit(out.parent / "again", mode, when="no", start=start)[0].model.state_dict()
        torch.save(ends, folder / "ends.pt")


def together(out: Path) -> None:
    """Train with DDP, each process on its half of the images."""
    torch.set_num_threads(1)
    runs, callback = fit(out, "auto", per_device_train_batch_size=3, train_sampling_strategy="random")
    dropped = [t["filters"] for t in callback.state_dict()["scheme"]["history"]]
    torch.save((runs.model.state_dict(), dropped), out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    (together if "RANK" in os.environ else main)(Path(sys.argv[1]))
    leave_together()
