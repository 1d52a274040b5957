"""Runs as tasks of a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchreaper.lab.errors import UserError
from torchreaper.lab.execution.jobs import Ended, Job, Listen, Outcome, Plan
from torchreaper.lab.execution.telling import Raised, Told, Warned, attempt, hear

#: The address that means: start a cluster on this machine, and end it with the comparison.
LOCAL = "local"
LOOK_EVERY = 0.2  # seconds between two looks at what the runs tell


@dataclass
class Cluster:
    """A Ray cluster; every run is a task that asks for ``threads`` CPUs and, if it is to use one, a GPU.

    The machines of a cluster must see ``out`` and the data at the same paths, and have torchreaper installed.

    Attributes:
        address: Of the cluster, as `ray.init` takes it; `LOCAL`: one that is started here.
        threads: CPU threads of a run; None: 1.

    Raises:
        UserError: Ray is not installed.
    """

    address: str = LOCAL
    threads: int | None = None
    at_once: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        _ray()

    def run(self, jobs: Sequence[Job], listen: Listen) -> Generator[Ended]:
        """As `Executor.run` says."""
        ray = _ray()
        plan = Plan(jobs)
        threads = self.threads or 1
        with self._connected() as resources:
            told = ray.remote(num_cpus=0)(_Told).remote()
            gpus = {name: self._gpus(name, resources) for name in {job.device for job in plan.jobs.values()}}
            self.at_once = max(1, int(resources.get("CPU", 1) // threads))
            if any(gpus.values()):
                self.at_once = max(1, min(self.at_once, int(resources.get("GPU", 1))))
            # Ray's own retries would repeat what is wrong for good, and nobody would be told.
            task = ray.remote(max_retries=0)(_attempt)
            running: dict[Any, Job] = {}

            def pass_on() -> None:
                for folder, said in ray.get(told.take.remote()):
                    hear(said, listen(plan.jobs[Path(folder)]), plan.jobs[Path(folder)].name)

            try:
                while plan.open:
                    while len(running) < 2 * self.at_once and (job := plan.take()) is not None:
                        asked = task.options(num_cpus=threads, num_gpus=gpus[job.device], name=job.name)
                        running[asked.remote(_absolute(job), str(job.folder), told, threads, self.at_once)] = job
                    ready, _ = ray.wait(list(running), timeout=LOOK_EVERY)
                    pass_on()
                    for reference in ready:
                        job = running.pop(reference)
                        yield from self._ended(reference, job, plan, listen)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

    def _ended(self, reference: Any, job: Job, plan: Plan, listen: Listen) -> list[Ended]:
        ray = _ray()
        dead = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        try:
            outcome: Outcome | Raised = ray.get(reference)
        except dead as error:
            return plan.died(job, type(error).__name__, listen(job).note)
        if isinstance(outcome, Raised):
            raise outcome.error from outcome.cause
        return plan.end(job, outcome)

    def _gpus(self, device: str, resources: dict[str, float]) -> int:
        return int(device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1))

    @contextmanager
    def _connected(self) -> Iterator[dict[str, float]]:
        """What the cluster has; it is left, and ended if it was started here, at the end of the block."""
        ray = _ray()
        if ray.is_initialized():
            yield ray.cluster_resources()
            return
        here = {"include_dashboard": False} if self.address == LOCAL else {}
        try:
            _reach(self.address)
            ray.init(address=self.address, log_to_driver=False, logging_level="error", **here)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"ray={self.address!r}: cannot be reached ({reason}); start it, or use {LOCAL}") from error
        try:
            yield ray.cluster_resources()
        finally:
            ray.shutdown()


class _Told:
    """Where the tasks put what their runs tell; lives in a process of the cluster."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Told | Warned]] = []

    def put(self, folder: str, said: Told | Warned) -> None:
        self._waiting.append((folder, said))

    def take(self) -> list[tuple[str, Told | Warned]]:
        taken, self._waiting = self._waiting, []
        return taken


def _attempt(job: Job, folder: str, told: Any, threads: int, at_once: int) -> Outcome | Raised:
    ray = _ray()

    def send(said: Told | Warned) -> None:
        ray.get(told.put.remote(folder, said))  # waited for: nothing may come after the outcome

    return attempt(job, send, threads=threads, at_once=at_once)


def _reach(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _absolute(job: Job) -> Job:
    """The same job for a process in another folder, where those it needs have ended."""
    return replace(
        job,
        recipe=job.recipe.at(job.recipe.base.absolute()),
        out=job.out.absolute(),
        after=(),
    )


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it ray warns of a change to come
    before = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ImportError:
        raise UserError("ray: is not installed; pip install 'torchreaper[ray]'") from None
    if threading.current_thread() is threading.main_thread() and callable(before):
        signal.signal(signal.SIGTERM, before)  # which ray takes for itself
    return ray
