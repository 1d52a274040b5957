"""What a run tells while it goes on; the command line draws a bar from it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torchreaper as tr

logger = logging.getLogger("torchreaper.lab")


class Progress(Protocol):
    """Listens to one run after the other; `beside` gives one for each of several runs at once."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Images are being read: `done` of `total` of the split called `what`."""

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        """A run begins: `epochs` epochs of `batches` batches, the first `done` of them finished before."""

    def batch(self, epoch: int, batch: int, loss: float | None) -> None:
        """Batch number `batch` (from 1) is done; its loss only at times, so that the device need not wait."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is done: its line of `metrics.jsonl`."""

    def transition(self, epoch: int, transition: tr.Transition) -> None:
        """Filters went or came back at the end of `epoch`."""

    def note(self, text: str) -> None:
        """Something to know that is not an error, such as a damaged checkpoint."""

    def end_run(self, result: dict[str, Any]) -> None:
        """The run is finished: its `result.json`."""

    def leave(self) -> None:
        """The run has failed, or cannot be begun: nothing more comes from it."""

    def beside(self, name: str) -> Progress:
        """What listens to the run called `name` alone, while others go on."""
        return self


class Silent(Progress):
    """Says nothing: one of several processes that train together speaks for all."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Ignored."""

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        """Ignored."""

    def batch(self, epoch: int, batch: int, loss: float | None) -> None:
        """Ignored."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Ignored."""

    def transition(self, epoch: int, transition: tr.Transition) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

    def end_run(self, result: dict[str, Any]) -> None:
        """Ignored."""

    def leave(self) -> None:
        """Ignored."""


class NullProgress(Silent):
    """Shows nothing; notes go to the log `torchreaper.lab` as warnings."""

    def note(self, text: str) -> None:
        """To the log."""
        logger.warning(text)
