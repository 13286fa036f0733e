"""The workers of a run on SLURM: submitted while there is work for them, given back when there is none.

A `Cluster` (see `orchestrator.clusters.ray_cluster`) whose nodes are lent. What it has is read from SLURM's queue
and never remembered, so a driver that was started again takes over the workers of its predecessor. When the queue
does not answer, nothing is submitted and nothing given up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import AttachedCluster, NodeActions, NodeUsage, PlainNodes
from orchestrator.clusters.slurm.client import SlurmClient
from orchestrator.clusters.slurm.parsers import QueuedJob
from orchestrator.clusters.slurm.ray_node import JOB_RESOURCE
from orchestrator.clusters.slurm.run_folder import ALL_WORKERS, RunFolder
from orchestrator.clusters.slurm.sbatch import name_of, workers_missing
from orchestrator.runs.pool import PoolBroken
from orchestrator.scheduler.job_status import Status
from orchestrator.scheduler.scheduler import State

QUEUE_POLL_SECONDS = 5.0
"""Seconds between two looks at SLURM's queue."""
WAITING_MESSAGE_SECONDS = 60.0
"""Seconds after which the run says again what it waits for."""
FAILED_STARTS = 3
"""Workers in a row that may refuse, or end before they joined, before the run gives up."""
LEAVE_SECONDS = 30.0
"""Seconds that workers get to leave the queue before they are cancelled."""


@dataclass
class SlurmAutoscaler(PlainNodes):
    """The nodes of elastic mode."""

    ray: AttachedCluster
    run_folder: RunFolder
    run: str
    spec: SlurmClusterSpec
    submit: Callable[[int], list[str]]
    """Submits so many workers."""
    client: SlurmClient = field(default_factory=SlurmClient)
    clock: Callable[[], float] = time.monotonic
    open_jobs: int = 0
    """How many of our jobs run or could."""
    _idle_since: dict[str, float] = field(default_factory=dict)
    _leaving: dict[str, float] = field(default_factory=dict)
    """The workers told to go, and when."""
    _submitted: set[str] = field(default_factory=set)
    _joined: set[str] = field(default_factory=set)
    _ask_at: float = -inf
    _quiet_until: float = -inf
    _reported: set[str] = field(default_factory=set)
    _unanswered: bool = False

    @property
    def name(self) -> str:
        """Of the workers in SLURM's queue."""
        return name_of(self.run, "worker")

    def open(self) -> Any:
        """Ask for workers, then connect to the head: SLURM and Ray take their time side by side."""
        list(self._adapt())
        return self.ray.open()

    def reconcile(self, nodes: Sequence[NodeUsage]) -> NodeActions:
        """Submit what is missing, and choose the nodes that have nothing to do.

        Raises:
            PoolBroken: several workers in a row could not start.
        """
        self._joined |= {job for node in nodes if (job := _job(node))}
        messages = [*self._refusals()]
        if self.clock() >= self._ask_at:
            messages += self._adapt()
        return NodeActions(tuple(messages), tuple(self._idle(nodes)))

    def released(self, nodes: Sequence[NodeUsage]) -> None:
        """Tell the SLURM jobs of these nodes to end."""
        for node in nodes:
            self.run_folder.dismiss(_job(node))
            self._leaving[_job(node)] = self.clock()

    def close(self) -> None:
        """End all workers, and disconnect: they are told to go, and cancelled if they stay."""
        self.run_folder.dismiss(ALL_WORKERS)
        self.client.cancel(job.id for job in self.client.jobs(self.name) or () if job.state == "PENDING")
        self.ray.close()
        if not self.client.wait_until_gone(self.name, LEAVE_SECONDS):
            self.client.cancel_all(self.name)
            self.client.wait_until_gone(self.name, LEAVE_SECONDS)

    def _adapt(self) -> Iterator[str]:
        """Let the number of workers follow the work."""
        self._ask_at = self.clock() + QUEUE_POLL_SECONDS
        queued = self.client.jobs(self.name)
        if queued is None:
            if not self._unanswered:
                yield "SLURM's queue does not answer; no workers are submitted meanwhile"
            self._unanswered = True
            return
        self._unanswered = False
        self.client.cancel(
            job.id for job in queued if job.held or self.clock() - self._leaving.get(job.id, inf) > LEAVE_SECONDS
        )
        living = [job for job in queued if job.living and not job.held and job.id not in self._leaving]
        yield from self._waiting(living)
        self._count_failures(queued)
        missing = workers_missing(self.open_jobs, self.spec, len(living))
        if missing:
            ids = self.submit(missing)
            self._submitted |= set(ids)
            yield f"submitted {missing} worker{'s' if missing > 1 else ''} to SLURM ({', '.join(ids)})"
        elif self.open_jobs == 0:
            self.client.cancel(job.id for job in living if job.state == "PENDING")

    def _waiting(self, living: Sequence[QueuedJob]) -> Iterator[str]:
        """Say what the run waits for, when nothing of it runs."""
        if not living or any(job.state == "RUNNING" for job in living) or self.clock() < self._quiet_until:
            return
        self._quiet_until = self.clock() + WAITING_MESSAGE_SECONDS
        yield "waiting for SLURM: " + ", ".join(job.sentence() for job in living[:4]) + (" …" if living[4:] else "")

    def _count_failures(self, queued: Sequence[QueuedJob]) -> None:
        there = {job.id for job in queued if job.there}
        lost = self._submitted - there - self._joined - self._leaving.keys()
        if len(lost) >= FAILED_STARTS and not self._joined:
            raise PoolBroken(f"{len(lost)} workers ended before they joined; their logs are in {self.run_folder.jobs}")

    def _refusals(self) -> Iterator[str]:
        refused = self.run_folder.refused()
        for job in refused.keys() - self._reported:
            self._reported.add(job)
            yield f"worker {job} refuses to start: {refused[job]}"
        if len(refused) >= FAILED_STARTS and not self._joined:
            raise PoolBroken(f"{len(refused)} workers refused to start, the last: {list(refused.values())[-1]}")

    def _idle(self, nodes: Sequence[NodeUsage]) -> Iterator[str]:
        """The nodes that had nothing to do for long enough."""
        now, idle = self.clock(), {node.id for node in nodes if node.busy == 0}
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        for node in nodes:
            if node.id in idle and now - self._idle_since[node.id] >= self.spec.idle_seconds:
                yield node.id


def open_jobs(state: State) -> int:
    """How many jobs run or could: of those that exclude each other, as many as may run at once."""
    running = [key for key, job in state.jobs.items() if job.status is Status.RUNNING]
    in_use = Counter(group for key in running for group in state.schedule.exclusive.get(key, ()))
    count = len(running)
    for key, job in state.jobs.items():
        groups = state.schedule.exclusive.get(key, ())
        if job.status is Status.READY and all(in_use[group] < state.schedule.limits[group] for group in groups):
            in_use.update(groups)
            count += 1
    return count


def _job(node: NodeUsage) -> str:
    """The SLURM job that lends a node."""
    return next((name.removeprefix(JOB_RESOURCE) for name in node.resources if name.startswith(JOB_RESOURCE)), "")
