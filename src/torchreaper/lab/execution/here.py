"""Runs in this process, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torchreaper.lab.execution.jobs import Ended, Job, Listen, Plan, perform


@dataclass(frozen=True)
class Here:
    """This process; `threads` as in `choose`."""

    threads: int | None = None
    at_once: int = 1

    def run(self, jobs: Sequence[Job], listen: Listen) -> Generator[Ended]:
        """As `Executor.run` says."""
        plan = Plan(jobs)
        while (job := plan.take()) is not None:
            yield from plan.end(job, perform(job, listen(job), threads=self.threads))
