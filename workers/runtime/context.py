"""The context a job works at: its store, its device, its checkpoints, and the bell that asks it to step aside.

Everything a job function needs from outside stands here, so that each is a plain function
`work(context, folder)` which writes its data files into `folder` and returns the small numbers for the
manifest. A `JobContext` is made by `workers.execute`, or by hand in a Python session:
`JobContext.alone(job, Store.open("pdd-store"))`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from jobs.errors import Yielded
from jobs.graph import Job
from jobs.keys import seed_from
from workers.runtime.process import device_of_choice
from workers.runtime.time_limit import TimeLimit
from workers.store.checkpoints import Checkpoints
from workers.store.store import Store

_LOOK_SECONDS = 0.5
"""How often the stop file is looked for: often enough for a person, rare enough for a network file system."""


def _nobody(done: float, note: str) -> None:
    return None


@dataclass
class JobContext:
    """One job's surroundings.

    Attributes:
        report: called with the share done in [0, 1] and a short note.
        stop_file: while this file exists, jobs save what they have and yield.
        time_limit: when it is over, they do the same.
        memory_level: 0 at first; raised by the driver after each out-of-memory ending.
    """

    job: Job
    store: Store
    device: torch.device
    checkpoints: Checkpoints
    report: Callable[[float, str], None] = _nobody
    stop_file: Path | None = None
    time_limit: TimeLimit = TimeLimit()
    memory_level: int = 0
    _looked: float = field(default=-_LOOK_SECONDS, repr=False)
    _stopping: bool = field(default=False, repr=False)

    @classmethod
    def alone(cls, job: Job, store: Store) -> JobContext:
        """A context outside any run: no progress, nobody to stop it."""
        return cls(job, store, device_of_choice(), Checkpoints(store.root))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator for one purpose of this job, seeded from the job's key."""
        return torch.Generator().manual_seed(seed_from(self.job.key, *purpose))

    def parent(self, role: str) -> str:
        """The key of the only parent in a role."""
        (key,) = self.job.parents[role]
        return key

    def parents(self, role: str) -> tuple[str, ...]:
        """The keys of all parents in a role, in order; empty when there are none."""
        return tuple(self.job.parents.get(role, ()))

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop or the time limit is over; looks at the disk at most twice a second."""
        now = time.monotonic()
        if not self._stopping and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._stopping = (self.stop_file is not None and self.stop_file.exists()) or self.time_limit.over()
        return self._stopping

    def yield_if_asked(self, where: str) -> None:
        """Break off work that keeps nothing.

        Raises:
            Yielded: the run was asked to stop, or the time limit is over.
        """
        if self.stopping:
            raise Yielded(f"{self.job.key}: asked to stop {where}")

    def report_progress(self, done: float, note: str = "") -> None:
        """Report progress at a point where nothing is lost by leaving.

        Raises:
            Yielded: somebody asked the run to stop, or the worker's time limit is over.
        """
        self.report(done, note)
        if self.stopping:
            raise Yielded(f"{self.job.key}: asked to stop at {done:.0%}")
