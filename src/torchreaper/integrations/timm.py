"""RePr in a training run made of timm's own parts, as its script makes it: what ``reaper timm-train`` runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.utils import CheckpointSaver, init_distributed_device, random_seed

from torchreaper.integrations.adapter import Adapter
from torchreaper.integrations.timm_epoch import Tell, train_epoch, wrapped
from torchreaper.integrations.timm_parts import build
from torchreaper.integrations.timm_saving import load, save, what, writing
from torchreaper.integrations.timm_validation import judge
from torchreaper.ranks import leave_together, rewrapped


class Training:
    """One run, begun or taken up again; alone, or one of the processes that torchrun or Slurm has started.

    Args:
        args: those of timm's ``train.py``, by its names.
        folder: where its checkpoint goes, and timm's of the best epochs that had all filters.
        settings: those of :class:`torchreaper.RePr`, in epochs.
        tell: is given the epoch, the batches done, those of the epoch, and the mean loss so far.

    Raises:
        ReaperError: what timm or the scheme refuses, or other arguments than the run in the folder was begun with.
    """

    def __init__(self, args: Any, folder: Path, settings: dict[str, Any], tell: Tell = lambda *_: None) -> None:
        self.args, self.folder, self.tell = args, folder, tell
        self.history: list[dict[str, Any]] = []
        device = init_distributed_device(args)
        self._what = what(args, settings)
        saved = load(folder, self._what, args)
        random_seed(args.seed, args.rank)
        self.adapter, self.parts = Adapter(**settings), (parts := build(args, device))
        kept = (parts.model, parts.optimizer, args, parts.ema, parts.scaler)
        self.saver = CheckpointSaver(*kept, checkpoint_dir=str(folder), max_history=args.checkpoint_hist)
        if saved is not None:
            self._load(saved)
        self.adapter.start(parts.model, parts.optimizer, parts.inputs, done=len(self.history), until=parts.epochs)
        self._called = wrapped(args, parts)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train the epochs that are left; a line of numbers for each, when it is on the disk.

        Raises:
            FloatingPointError: the loss is not finite any more; the epoch before is on the disk.
        """
        args, parts, last = self.args, self.parts, time.perf_counter()
        if not self.history:
            self._save()  # the folder is this run's from now on
        for epoch in range(len(self.history), parts.epochs):
            happened, compact = self.adapter.reached(epoch), self.adapter.settings.get("subnetwork") == "compact"
            if happened and compact and args.distributed:
                self._called = rewrapped(self._called)
            random_seed(args.seed + args.world_size * (1 + epoch), args.rank)  # whatever was drawn before
            if args.distributed:
                parts.images.training.sampler.set_epoch(epoch)
            line: dict[str, Any] = {"epoch": epoch, "lr": max(group["lr"] for group in parts.optimizer.param_groups)}
            line["train_loss"] = loss = train_epoch(args, parts, self._called, epoch, self.tell)
            if not math.isfinite(loss):
                raise FloatingPointError(f"epoch {epoch}: the loss is {loss}; use a lower lr, or clip_grad")
            line |= judge(args, parts)
            line |= {name.removeprefix("repr/"): value for name, value in self.adapter.values().items()}
            self._end(line)
            before, last = last, time.perf_counter()
            self.history.append({**line, "seconds": round(last - before, 2)})
            self._save()
            yield self.history[-1]
        self.adapter.finish()
        leave_together()

    def _end(self, line: dict[str, Any]) -> None:
        """What follows validation; timm's checkpoints are of whole networks."""
        epoch, metric = line["epoch"], line.get("ema_top1", line["top1"])
        if self.args.rank == 0 and not line["sub"]:
            with writing(self.folder):
                self.saver.save_checkpoint(epoch, metric)
        if self.parts.schedule is not None:
            self.parts.schedule.step(epoch + 1, metric)

    def _save(self) -> None:
        if self.args.rank:
            return
        kept = {name: getattr(self.saver, name) for name in ("checkpoint_files", "best_epoch", "best_metric")}
        state = {"what": self._what, "history": self.history, "parts": self.parts.state_dict(), "saver": kept}
        save(self.folder, {**state, "repr": self.adapter.state_dict()})

    def _load(self, state: dict[str, Any]) -> None:
        self.parts.load_state_dict(state["parts"])
        self.adapter.load_state_dict(state["repr"])
        vars(self.saver).update(state["saver"])
        self.history = state["history"]
