"""Where the runs of a comparison go on: in this process, in worker processes, or on a Ray cluster.

Every executor takes `Job`s and yields each with its `Outcome` as it ends; only this package knows how.
"""

from __future__ import annotations

from torchreaper.lab.errors import UserError
from torchreaper.lab.execution.cluster import LOCAL, Cluster
from torchreaper.lab.execution.here import Here
from torchreaper.lab.execution.jobs import RETRIES, Executor, Job, Listen, Outcome, Plan, perform
from torchreaper.lab.execution.workers import Workers

__all__ = [
    "LOCAL",
    "RETRIES",
    "Cluster",
    "Executor",
    "Here",
    "Job",
    "Listen",
    "Outcome",
    "Plan",
    "Workers",
    "choose",
    "perform",
]


def choose(*, jobs: int = 1, ray: str | None = None, threads: int | None = None) -> Executor:
    """The executor that the options of the command line mean.

    Args:
        jobs: How many worker processes; 1: none, the runs go on in this one.
        ray: The address of a cluster, or `LOCAL` for one that is started here; None: no Ray.
        threads: CPU threads of a run; None: torch's choice in this process, else the cores shared out.

    Raises:
        UserError: A number below 1, both at once, or Ray is not installed.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs}: must be 1 or more")
    if ray is not None and jobs > 1:
        raise UserError(f"jobs={jobs}: has no effect with ray={ray!r}, whose cluster decides; leave one of them out")
    if ray is not None:
        return Cluster(ray, threads)
    return Workers(jobs, threads) if jobs > 1 else Here(threads)
