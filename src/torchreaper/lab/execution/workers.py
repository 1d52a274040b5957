"""Runs in worker processes of this machine, several at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from torchreaper.lab import stopping
from torchreaper.lab.execution import worker
from torchreaper.lab.execution.jobs import Ended, Job, Listen, Plan
from torchreaper.lab.execution.telling import Raised, Told, Warned, hear
from torchreaper.lab.locking import clear

PATIENCE = 5.0  # seconds that a worker is given to end by itself
# Seconds until a worker is said to have died: a signal to a whole group may end it before it has reached this process.
MOMENT = 0.2


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip()]


@dataclass(frozen=True)
class Workers:
    """Worker processes; all share the GPU where there is one, and take turns where there are several.

    They are spawned, not forked, which torch does not survive: a script that comes here must do so below
    ``if __name__ == "__main__":``.

    Attributes:
        at_once: How many.
        threads: CPU threads of each; None: the cores shared out, at least 1.
    """

    at_once: int
    threads: int | None = None

    def run(self, jobs: Sequence[Job], listen: Listen) -> Generator[Ended]:
        """As `Executor.run` says."""
        plan = Plan(jobs)
        # By what was asked for: what is left to do after a stop must have the threads of what was done before it.
        threads = self.threads or max(1, cores() // self.at_once)
        devices = gpus()
        count = min(self.at_once, len(plan.jobs))
        places = [
            _Place(threads, count, devices[number % len(devices)] if len(devices) > 1 else None)
            for number in range(count)
        ]
        try:
            while plan.open:
                for place in places:
                    if place.job is None and (job := plan.take()) is not None:
                        place.give(job)
                busy: dict[Any, _Place] = {place.pipe: place for place in places if place.job is not None}
                for pipe in connection.wait(list(busy)):
                    yield from self._hear(busy[pipe], plan, listen)
            for place in places:
                place.dismiss()
        finally:
            with stopping.whole():
                for place in places:
                    place.stop()
                for job in plan.jobs.values():
                    clear(job.folder)

    def _hear(self, place: _Place, plan: Plan, listen: Listen) -> list[Ended]:
        """What came from a busy worker: its job's outcome, something to pass on, or its death."""
        job = place.job
        assert job is not None
        progress = listen(job)
        try:
            said = place.hear()
        except (EOFError, OSError):
            how = place.bury()
            time.sleep(MOMENT)
            return plan.died(job, how, progress.note)
        if isinstance(said, (Told, Warned)):
            hear(said, progress, job.name)
            return []
        if isinstance(said, Raised):
            raise said.error from said.cause
        place.job = None
        return plan.end(job, said)


class _Place:
    """Room for one worker: a process from its first job on, and another one when that has died."""

    def __init__(self, threads: int, at_once: int, gpu: str | None) -> None:
        self.job: Job | None = None
        self._how = threads, at_once, gpu
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pipe(self) -> Connection:
        assert self._pipe is not None
        return self._pipe

    def give(self, job: Job) -> None:
        """Let the worker do `job`; it is busy until it has sent the outcome."""
        self.job = job
        if self._process is None:
            self._start()
        with suppress(OSError):  # it has died while idle: `hear` will find out
            self.pipe.send_bytes(pickle.dumps(job))

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        with _undisturbed():
            self._pipe, theirs = spawning.Pipe()
            # Not a daemon, as those may have no processes of their own, such as readers of images.
            process = spawning.Process(target=worker.main, args=(theirs, *self._how), name="torchreaper worker")
            process.start()
            self._process = process
            theirs.close()

    def hear(self) -> Any:
        """The next thing the worker has sent. Raises `EOFError` or `OSError` where it has died."""
        return pickle.loads(self.pipe.recv_bytes())

    def bury(self) -> str:
        """Clear up after a worker that has died; how it died."""
        assert self._process is not None
        self.job = None
        self._process.join()  # not before that is the lock on the run's folder free for certain
        code = self._process.exitcode or 0
        self.stop()
        if code >= 0:
            return f"it ended with exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def dismiss(self) -> None:
        """Ask the worker to end."""
        if self._process is not None:
            try:
                self.pipe.send_bytes(pickle.dumps(None))
            except OSError:
                return
            self._process.join(PATIENCE)

    def stop(self) -> None:
        """End the worker, whatever it does; its run can be taken up again."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self.pipe.close()
        self._process = self._pipe = None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """An order to stop waits until the end of the block, and a process that is started in it sees no Ctrl-C.

    Otherwise it would tell of one with a traceback while it is still importing what it needs.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let signals in again
    with stopping.whole():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
