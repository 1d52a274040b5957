"""What is to be run, and in which order it can be."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric

from torchreaper.errors import ReaperError
from torchreaper.lab import stopping
from torchreaper.lab.comparison import Failure, Result
from torchreaper.lab.errors import LESS_MEMORY, UserError
from torchreaper.lab.processes import by_rank_zero
from torchreaper.lab.progress import Progress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import finished, train
from torchreaper.lab.runs import RunFailed, folder_of, write_error

#: How often a run whose process has died is taken up again from its checkpoint.
RETRIES = 2

Outcome = Result | Failure
Ended = tuple["Job", Outcome]


@dataclass(frozen=True, eq=False)
class Job:
    """One run, as plain values that another process can be sent.

    Attributes:
        recipe, scheme, seed, out, device: As in `run.train`.
        after: The jobs that must be finished before; two with one folder are the same job.
        label: What it is called, where that is not scheme and seed.
    """

    recipe: Recipe
    scheme: str
    seed: int
    out: Path
    device: str = "auto"
    after: tuple[Job, ...] = ()
    label: str = ""

    @property
    def folder(self) -> Path:
        """The run's folder, which is what tells one job from another."""
        return folder_of(self.out, self.recipe.name, self.scheme, self.seed)

    @property
    def name(self) -> str:
        """What it is called beside the others of a comparison."""
        return self.label or f"{self.scheme}, seed {self.seed}"

    def failed(self, reason: str) -> Failure:
        """It did not finish, because of `reason`."""
        return Failure(self.scheme, self.seed, reason)


#: Who is to be told of a job.
Listen = Callable[[Job], Progress]


class Executor(Protocol):
    """A way to run jobs."""

    @property
    def at_once(self) -> int:
        """How many runs go on side by side, at most; known for good when the first job is yielded."""

    def run(self, jobs: Sequence[Job], listen: Listen) -> Generator[Ended]:
        """Run all jobs and those they need, and yield each one that ends; close the iterator to stop early.

        A run that fails is a `Failure`, and so is one that needs it; the others go on. A run whose process dies is
        taken up again from its checkpoint, up to `RETRIES` times.

        Raises:
            UserError: A run cannot be begun. The others are stopped; what they have finished is kept.
        """


def perform(
    job: Job, progress: Progress, *, threads: int | None = None, at_once: int = 1, fabric: Fabric | None = None
) -> Outcome:
    """Do a job in this process. `progress` is told the end of a run that was finished before, too.

    With a `fabric` this is one of several processes that do it together.

    What the user's own network, data or scheme raises, or the device (out of memory), fails this run alone; the
    traceback is put into the run's folder.

    Raises:
        UserError, ReaperError: The run cannot be begun.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    how: dict[str, Any] = {"scheme": job.scheme, "seed": job.seed, "out": job.out}
    try:
        known = by_rank_zero(fabric, lambda: finished(job.recipe, **how))
        result = train(job.recipe, **how, progress=progress, device=job.device, fabric=fabric, jobs=at_once)
    except Exception as error:
        if stopping.asked() is not None:  # and this is what became of it
            raise stopping.Stopped from error
        if isinstance(error, RunFailed):
            return job.failed(str(error))
        if isinstance(error, (UserError, ReaperError, BrokenPipeError)):  # the last: who was to be told, is gone
            raise
        return job.failed(_unexpected(error, job.folder))
    finally:
        if threads is not None:
            torch.set_num_threads(before)
    if known is not None:
        progress.end_run(result)
    return result


def _unexpected(error: Exception, folder: Path) -> str:
    """An error that nobody foresaw, in one line; all of it goes to the run's folder."""
    *_, where = traceback.extract_tb(error.__traceback__)
    what = " ".join(str(error).split())[:_LONGEST]
    more = write_error(folder, "".join(traceback.format_exception(error)))
    if _is_of_memory(error):
        return f"memory ran out ({type(error).__name__}: {what}); {LESS_MEMORY}; {more}finished epochs are kept"
    return f"{type(error).__name__}: {what} ({where.filename}, line {where.lineno}); {more}finished epochs are kept"


def _is_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of its GPU; torch says so by a type of its own, or only in words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in _OF_MEMORY)
    )


_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


class Plan:
    """Which jobs wait, which go on, which have ended: the book that every executor keeps.

    Every job stands in it once, after those it needs, and else in the order given.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs: dict[Path, Job] = {}
        for job in jobs:
            self._add(job)
        self._waiting = list(self.jobs.values())
        self._ended: dict[Path, Outcome] = {}
        self._deaths: dict[Path, int] = {}

    def _add(self, job: Job) -> None:
        for first in job.after:
            self._add(first)
        self.jobs.setdefault(job.folder, job)

    @property
    def open(self) -> bool:
        """Whether a job waits or goes on."""
        return len(self._ended) < len(self.jobs)

    def take(self) -> Job | None:
        """The next job that can begin now; None: there is none, or none yet."""
        for place, job in enumerate(self._waiting):
            if all(first.folder in self._ended for first in job.after):
                return self._waiting.pop(place)
        return None

    def end(self, job: Job, outcome: Outcome) -> list[Ended]:
        """Note the end of a job that was taken; returns it, and those that cannot be run because it failed."""
        self._ended[job.folder] = outcome
        ended: list[Ended] = [(job, outcome)]
        if isinstance(outcome, Failure):
            reason = f"needs {job.name}, which failed: {outcome.reason}"
            for other in list(self._waiting):
                if other in self._waiting and job.folder in {first.folder for first in other.after}:
                    self._waiting.remove(other)
                    ended += self.end(other, other.failed(reason))
        return ended

    def died(self, job: Job, how: str, note: Callable[[str], None]) -> list[Ended]:
        """Note that the process of a job that was taken is gone: the job waits again, or has failed for good.

        Args:
            how: What is known of the death, such as "killed by SIGKILL".
            note: Is told that the job is tried again.
        """
        times = self._deaths[job.folder] = self._deaths.get(job.folder, 0) + 1
        if times > RETRIES:
            return self.end(job, job.failed(f"its process died {times} times (the last time {how}); {_REMEDY}"))
        note(f"its process died ({how}); it is taken up again from its last checkpoint, {times} of {RETRIES} times")
        self._waiting.insert(0, job)
        return []


_LONGEST = 300  # characters of an error's own text
_REMEDY = "is there memory enough? Fewer jobs at once need less; finished epochs are kept"
