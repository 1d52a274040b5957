"""What a run tells, on its way from another process to whoever listens."""

from __future__ import annotations

import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torchreaper as tr
from torchreaper.errors import NoEffectWarning, OneLayerWarning
from torchreaper.lab.errors import UserError
from torchreaper.lab.execution.jobs import Job, Outcome, perform
from torchreaper.lab.progress import NullProgress, Progress

EVERY = 0.1  # seconds between two batches that are told of: nobody sees more


@dataclass(frozen=True)
class Told:
    """A call of `Progress`, by name."""

    method: str
    arguments: tuple[Any, ...]

    def tell(self, progress: Progress) -> None:
        """Make the call."""
        getattr(progress, self.method)(*self.arguments)


@dataclass(frozen=True)
class Warned:
    """One of this package's warnings."""

    text: str
    category: type[Warning]


@dataclass(frozen=True)
class Raised:
    """An error that ends the comparison, with the traceback it had there."""

    error: Exception
    traceback: str

    @property
    def cause(self) -> Exception:
        """To raise it from: where it came from."""
        return RuntimeError(f"in the process of the run:\n{self.traceback}")


class Remote(NullProgress):
    """Sends what a run tells to `send`, batches at most ten times a second."""

    def __init__(self, send: Callable[[Told], None]) -> None:
        self._send = send
        self._sent = 0.0

    def loading(self, what: str, done: int, total: int) -> None:
        """Sent."""
        self._send(Told("loading", (what, done, total)))

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        """Sent."""
        self._send(Told("start_run", (title, epochs, batches, done)))

    def batch(self, epoch: int, batch: int, loss: float | None) -> None:
        """Sent where it has a loss or is due."""
        now = time.monotonic()
        if loss is not None or now - self._sent >= EVERY:
            self._sent = now
            self._send(Told("batch", (epoch, batch, loss)))

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Sent."""
        self._send(Told("epoch", (metrics,)))

    def transition(self, epoch: int, transition: tr.Transition) -> None:
        """Sent."""
        self._send(Told("transition", (epoch, transition)))

    def note(self, text: str) -> None:
        """Sent."""
        self._send(Told("note", (text,)))

    def end_run(self, result: dict[str, Any]) -> None:
        """Sent."""
        self._send(Told("end_run", (result,)))


def attempt(job: Job, send: Callable[[Told | Warned], None], *, threads: int, at_once: int) -> Outcome | Raised:
    """Do a job in a process that is there for it, and send what it tells."""
    try:
        with _warnings_sent(send):
            return perform(job, Remote(send), threads=threads, at_once=at_once)
    except Exception as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some errors cannot travel
            error = UserError(str(error))
        return Raised(error, text)


@contextmanager
def _warnings_sent(send: Callable[[Told | Warned], None]) -> Iterator[None]:
    def sent(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        send(Warned(str(message), category))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (NoEffectWarning, OneLayerWarning):
            warnings.simplefilter("default", category)
        warnings.showwarning = sent
        yield


def hear(said: Told | Warned, progress: Progress, name: str) -> None:
    """Pass on what the run called `name` has sent; a warning as one of this process."""
    if isinstance(said, Warned):
        warnings.warn(f"{name}: {said.text}", said.category, stacklevel=2)
    else:
        said.tell(progress)
