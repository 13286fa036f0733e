"""The workers of a run on SLURM: submitted while there is work for them, given back when there is none.

A `Cluster` (see `orchestrator.clusters.ray_cluster`) whose nodes come and go. What it has is read from SLURM's queue
and never remembered, so a driver that was started again takes over the workers of its predecessor. When the queue
does not answer, nothing is submitted and nothing given up.

SLURM is asked in the background, one exchange at a time: the driver goes on with its jobs while a controller is
silent. A refusal of `sbatch` and a node on which workers fail make the run slower, not shorter: it tries again later,
with fewer workers and without that node, and ends only when nobody works and asking again cannot help.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from jobs.errors import PddError
from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.ray_cluster import AttachedCluster, NodeActions, NodeUsage, PlainNodes
from orchestrator.clusters.slurm.client import SlurmClient, in_background
from orchestrator.clusters.slurm.parsers import ONE_USERS_JOBS, JobEnd, QueuedJob, refused_for_good
from orchestrator.clusters.slurm.ray_node import JOB_RESOURCE
from orchestrator.clusters.slurm.run_folder import ALL_WORKERS, RunFolder
from orchestrator.clusters.slurm.sbatch import name_of, workers_missing
from orchestrator.runs.pool import PoolBroken
from orchestrator.scheduler.groups import Groups
from orchestrator.scheduler.job_status import Status
from orchestrator.scheduler.state import State

BUSY_POLL_SECONDS = 5.0
"""Seconds between two looks at SLURM's queue while workers come and go."""
QUIET_POLL_SECONDS = 30.0
"""The same while nothing changes."""
QUIET_AFTER_SECONDS = 60.0
"""Seconds without a change after which a run is quiet."""
WAITING_MESSAGE_SECONDS = 60.0
"""Seconds after which the run says again what it waits for."""
RETRY_SECONDS = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds until workers are submitted again after a first, second, … failure in a row."""
NODE_FAILURES = 2
"""Workers that may fail on a node before it is left out."""
LEFT_OUT_SECONDS = 1800.0
"""Seconds for which a node is left out; twice as long after each further failure on it."""
FAILURES, FAILING_NODES = 5, 3
"""Workers in a row, and nodes, that may fail before a run on which nobody works gives up."""
LEAVE_SECONDS = 30.0
"""Seconds that workers get to leave the queue before they are cancelled."""
KEPT_FOR_WORK_SECONDS = 90.0
"""How much longer an idle worker is kept that a job could use: a job that waits for a dead worker's claim asks every
two seconds, and a worker must see the claim for a lease (30 s) before it counts as dead."""
CLOSE_SECONDS = 20.0
"""Seconds that a last exchange with SLURM may take when the run ends."""

Background = Callable[[Callable[[], Any]], Future[Any]]


@dataclass
class Retry:
    """The wait before the next try: longer after each failure in a row."""

    failures: int = 0
    at: float = -inf

    def failed(self, now: float) -> None:
        """Wait for the next try."""
        self.at = now + RETRY_SECONDS[min(self.failures, len(RETRY_SECONDS) - 1)]
        self.failures += 1

    def succeeded(self) -> None:
        """Begin anew with the shortest wait."""
        self.failures, self.at = 0, -inf


@dataclass
class FailedStarts:
    """The workers that failed before they joined, by node, since one last joined."""

    by_node: Counter[str] = field(default_factory=Counter)
    """The unknown node is the empty name."""
    in_a_row: int = 0
    last: str = ""
    _until: dict[str, float] = field(default_factory=dict)
    """Until when each node is left out: what it lacks, such as its file system, may come back."""

    def excluded(self, now: float) -> tuple[str, ...]:
        """The nodes that are left out."""
        return tuple(sorted(node for node, until in self._until.items() if until > now))

    def add(self, node: str, sentence: str, now: float) -> bool:
        """Count one; whether its node is left out from now on."""
        self.by_node[node] += 1
        self.in_a_row += 1
        self.last = sentence
        if not node or (more := self.by_node[node] - NODE_FAILURES) < 0:
            return False
        anew = self._until.get(node, -inf) <= now
        self._until[node] = now + LEFT_OUT_SECONDS * 2**more
        return anew

    def joined(self, node: str) -> None:
        """Forget what failed in a row, and trust this node again."""
        self.in_a_row = 0
        self.by_node.pop(node, None)
        self._until.pop(node, None)

    @property
    def everywhere(self) -> bool:
        """Whether so many failed on so many nodes that no node is to blame."""
        return self.in_a_row >= FAILURES and len(self.by_node.keys() - {""}) >= FAILING_NODES


@dataclass(frozen=True)
class QueueAnswer:
    """What SLURM says at one look: its worker jobs (None: nothing), how lost ones ended, whether only the head runs."""

    jobs: list[QueuedJob] | None
    ends: Mapping[str, JobEnd] = field(default_factory=dict)
    only_head_runs: bool = False


@dataclass
class SlurmAutoscaler(PlainNodes):
    """The nodes of elastic mode."""

    ray: AttachedCluster
    run_folder: RunFolder
    run: str
    spec: SlurmClusterSpec
    submit: Callable[[int, tuple[str, ...]], list[str]]
    """Submits so many workers that keep away from these nodes, and returns their ids."""
    client: SlurmClient = field(default_factory=SlurmClient)
    clock: Callable[[], float] = time.monotonic
    background: Background = in_background
    open_jobs: Callable[[], int] = lambda: 0
    """How many of our jobs run or could, asked about once a second."""
    _exchange: tuple[Future[Any], Callable[[Future[Any]], Iterator[str]]] | None = None
    """What SLURM was asked, and who takes the answer."""
    _idle_since: dict[str, float] = field(default_factory=dict)
    _leaving: dict[str, float] = field(default_factory=dict)
    """The workers told to go, and when."""
    _submitted: set[str] = field(default_factory=set)
    """The workers that have neither joined nor failed yet."""
    _joined: set[str] = field(default_factory=set)
    _new: set[str] = field(default_factory=set)
    """The workers that joined since the last look."""
    _working: int = 0
    """How many nodes work for the run."""
    _living: int = 0
    """How many workers SLURM held at the last look."""
    _retry: Retry = field(default_factory=Retry)
    _refusal: str = ""
    _most: int | None = None
    """How many workers to submit at a time, after refusals."""
    _failed: FailedStarts = field(default_factory=FailedStarts)
    _failure_retry: Retry = field(default_factory=Retry)
    _stuck: set[str] = field(default_factory=set)
    """The workers that were found never to start at the last look."""
    _asked_at: float = -inf
    _changed_at: float = -inf
    _view: tuple[int, ...] = ()
    _quiet_until: float = -inf
    _unanswered: bool = False

    @property
    def name(self) -> str:
        """The name of the workers in SLURM's queue."""
        return name_of(self.run, "worker")

    def open(self) -> Any:
        """Ask SLURM, then connect to the head: both take their time side by side."""
        self._look()
        return self.ray.open()

    def reconcile(self, nodes: Sequence[NodeUsage]) -> NodeActions:
        """Submit what is missing, and choose the nodes that have nothing to do.

        Raises:
            PoolBroken: nobody works, and nobody will.
        """
        here = {job for node in nodes if (job := _job(node))}
        if new := here - self._joined:
            self._failed.in_a_row = 0
            self._failure_retry.succeeded()
            self._new |= new
        self._joined |= here
        self._submitted -= here
        self._working = len(nodes)
        messages: list[str] = []
        if self._exchange is None and self.clock() >= self._next_look():
            self._look()
        while self._exchange is not None and self._exchange[0].done():
            (future, take), self._exchange = self._exchange, None
            messages += take(future)
        return NodeActions(tuple(messages), tuple(self._idle(nodes)))

    def released(self, nodes: Sequence[NodeUsage]) -> None:
        """Tell the SLURM jobs of these nodes to end."""
        for node in nodes:
            self.run_folder.dismiss(_job(node))
            self._leaving[_job(node)] = self.clock()

    def close(self) -> None:
        """End all workers, and disconnect: they are told to go, and cancelled if they stay."""
        self.run_folder.dismiss(ALL_WORKERS)
        deadline = self.clock() + CLOSE_SECONDS
        while self._exchange is not None and not self._exchange[0].done() and self.clock() < deadline:
            time.sleep(0.1)  # a last submission; its workers find that they are not needed
        self.client.cancel(job.id for job in self.client.jobs(self.name) or () if job.state == "PENDING")
        self.ray.close()
        if not self.client.wait_until_gone(self.name, LEAVE_SECONDS):
            self.client.cancel_all(self.name)
            self.client.wait_until_gone(self.name, LEAVE_SECONDS)

    # Exchanges with SLURM: what is asked runs in the background, what is answered is taken by the driver.

    def _next_look(self) -> float:
        """When to look at the queue again: seldom while nothing changes."""
        missing = workers_missing(self.open_jobs(), self.spec, self._living)
        view = (self._working, self._living, missing, len(self._leaving), len(self._submitted))
        if view != self._view:
            self._view, self._changed_at = view, self.clock()
        quiet = self.clock() - self._changed_at >= QUIET_AFTER_SECONDS
        return self._asked_at + (QUIET_POLL_SECONDS if quiet else BUSY_POLL_SECONDS)

    def _look(self) -> None:
        self._asked_at = self.clock()
        ask = partial(self._ask, frozenset(self._submitted - self._leaving.keys()))
        self._exchange = (self.background(ask), self._take_answer)

    def _ask(self, expected: frozenset[str]) -> QueueAnswer:
        """The question, in the background; of workers that are not in the queue any more it asks how they ended."""
        queued = self.client.jobs(self.name)
        if queued is None:
            return QueueAnswer(None)
        lost = expected - {job.id for job in queued if job.there}
        limited = any(re.fullmatch(ONE_USERS_JOBS, job.reason) for job in queued if job.state == "PENDING")
        return QueueAnswer(queued, self.client.ends(lost), limited and self.client.running() == 1)

    def _take_answer(self, future: Future[QueueAnswer]) -> Iterator[str]:
        """Let the number of workers follow the work."""
        answer = future.result()
        if answer.jobs is None:
            if not self._unanswered:
                yield "SLURM's queue does not answer; no workers are submitted meanwhile"
            self._unanswered = True
            return
        self._unanswered = False
        living = [job for job in answer.jobs if job.living and not job.held and job.id not in self._leaving]
        self._living = len(living)
        for job in living:
            if job.id in self._new:
                self._failed.joined(job.nodes)
        self._new.clear()
        yield from self._take_ends({job.id for job in answer.jobs if job.there}, answer.ends)
        self._check_that_workers_may_start(living, answer)
        yield from self._waiting(living)
        self._act(answer.jobs, living)

    def _act(self, queued: Sequence[QueuedJob], living: Sequence[QueuedJob]) -> None:
        """Cancel and submit, in the background."""
        overdue = {job for job, since in self._leaving.items() if self.clock() - since > LEAVE_SECONDS}
        cancelled = [job.id for job in queued if job.held or job.id in overdue]
        self._leaving = {job: at for job, at in self._leaving.items() if any(job == each.id for each in queued)}
        missing = 0
        if self.clock() >= max(self._retry.at, self._failure_retry.at):
            missing = workers_missing(self.open_jobs(), self.spec, len(living))
        allowed = self.spec.max_workers if self.open_jobs() else 0
        surplus = max(0, len(living) - allowed)  # of a job that was replaced while SLURM took it back into the queue
        spare = [job.id for job in living if job.state == "PENDING"][:surplus]
        self._submitted -= set(spare)
        cancelled += spare
        count = missing if self._most is None else min(missing, self._most)
        if not count and not cancelled:
            return

        excluded = self._failed.excluded(self.clock())

        def act() -> list[str]:
            self.client.cancel(cancelled)
            return self.submit(count, excluded) if count else []

        self._exchange = (self.background(act), partial(self._take_submission, count, bool(living)))

    def _take_submission(self, count: int, others: bool, future: Future[list[str]]) -> Iterator[str]:
        """What `sbatch` answers; a refusal is said once in its own words."""
        error = future.exception()
        if error is None and count == 0:  # only cancelled
            return
        if error is None:
            ids = future.result()
            self._living += len(ids)
            self._retry.succeeded()
            self._refusal, self._most = "", None if self._most is None or self._most > count else 2 * self._most
            self._submitted |= set(ids)
            self._changed_at = self.clock()
            yield f"submitted {len(ids)} worker{'s' if len(ids) > 1 else ''} to SLURM ({', '.join(ids)})"
            return
        if not isinstance(error, PddError):
            raise error
        self._retry.failed(self.clock())
        self._most = max(1, count // 2)
        if refused_for_good(str(error)) and not self._working and not others:
            nodes = ", ".join(self._failed.excluded(self.clock()))
            raise PoolBroken(f"{error}; left out: {nodes}; {self._failed.last}" if nodes else str(error))
        if str(error) != self._refusal:
            self._refusal = str(error)
            yield f"{error}; it is tried again with fewer workers, after 5 s, later after up to 60 s"

    # Workers that fail, and workers that never start.

    def _take_ends(self, there: set[str], ends: Mapping[str, JobEnd]) -> Iterator[str]:
        """Count the workers that ended before they joined, each with the node, the cause and the last line of its log.

        Raises:
            PoolBroken: nobody works, and workers fail on all nodes that were tried.
        """
        lost, refusals = self._submitted - there - self._leaving.keys(), self.run_folder.refused()
        if lost:
            self._submitted -= lost
            self._changed_at = self.clock()
        failed = [job for job in sorted(lost) if job not in ends or ends[job].failed]
        for job in failed:
            end = ends.get(job, JobEnd("", "", "?"))
            no_log = f"it left no log; does the node see {self.run_folder.folder}?"
            why = refusals.get(job) or self.run_folder.last_lines(job, 2) or no_log
            where = f" on {end.node}" if end.node else ""
            sentence = f"worker {job} failed{where} ({end.cause()}): {why}"
            left_out = self._failed.add(end.node, sentence, self.clock())
            yield sentence + (f"; {end.node} is left out from now on" if left_out else "")
        if lost:  # also those that somebody cancels, who may go on doing so
            self._failure_retry.failed(self.clock())
        if not self._working and self._failed.everywhere:
            nodes = ", ".join(filter(None, sorted(self._failed.by_node)))
            raise PoolBroken(
                f"{self._failed.in_a_row} workers ended before they joined, on {nodes}; the last: {self._failed.last}; "
                f"their logs are in {self.run_folder.jobs}"
            )

    def _check_that_workers_may_start(self, living: Sequence[QueuedJob], answer: QueueAnswer) -> None:
        """Find out that waiting would not help.

        Raises:
            PoolBroken: nobody works, and at two looks in a row no worker may ever start.
        """
        limited = {job.id for job in living if answer.only_head_runs and re.fullmatch(ONE_USERS_JOBS, job.reason)}
        stuck = limited | {job.id for job in living if job.never_starts}
        for_good, self._stuck = stuck & self._stuck, stuck
        if self._working or not living or len(for_good) < len(living):
            return
        if limited:
            raise PoolBroken(
                f"SLURM lets you run one job at a time ({living[0].reason}), and the head is that job: "
                "set `mode: gang` in cluster.yaml, where one job is the whole run"
            )
        raise PoolBroken(f"SLURM will not start the workers: {living[0].sentence()}")

    def _waiting(self, living: Sequence[QueuedJob]) -> Iterator[str]:
        """Say what the run waits for, when nothing of it runs."""
        if not living or any(job.state == "RUNNING" for job in living) or self.clock() < self._quiet_until:
            return
        self._quiet_until = self.clock() + WAITING_MESSAGE_SECONDS
        yield "waiting for SLURM: " + ", ".join(job.sentence() for job in living[:4]) + (" …" if living[4:] else "")

    def _idle(self, nodes: Sequence[NodeUsage]) -> Iterator[str]:
        """The nodes that had nothing to do for long enough, as far as `min_workers` and jobs that wait let them go."""
        now, idle = self.clock(), {node.id for node in nodes if node.busy == 0}
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        since = {node.id: now - self._idle_since[node.id] for node in nodes if node.id in idle}
        overdue = [name for name, seconds in since.items() if seconds >= self.spec.idle_seconds]
        surplus = max(0, len(nodes) - workers_missing(self.open_jobs(), self.spec, 0))
        stuck = [name for name in overdue if since[name] >= self.spec.idle_seconds + KEPT_FOR_WORK_SECONDS]
        leaving = stuck + [name for name in overdue if name not in stuck][: max(0, surplus - len(stuck))]
        yield from leaving[: max(0, len(nodes) - self.spec.min_workers)]


class OpenJobs:
    """How many jobs run or could: of those that exclude each other, as many as may at once."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._ready: set[str] = set()
        self._grouped: dict[str, None] = {}
        """Those of the ready jobs that are in groups, the first to be ready first."""

    def take(self, state: State) -> None:
        """Follow an event; to be called after every one, whose changes are all that is looked at."""
        self._state = state
        for key, _, job in state.changes:
            if job.status is not Status.READY:
                self._ready.discard(key)
                self._grouped.pop(key, None)
            else:
                self._ready.add(key)
                if state.schedule.exclusive.get(key):
                    self._grouped[key] = None

    def count(self) -> int:
        """The number after the last event."""
        if self._state is None:
            return 0
        running = [key for key in self._state.slots.values() if key is not None]
        groups = Groups(self._state.schedule, running)
        admitted = sum(groups.admit(key) is None for key in self._grouped)
        return len(running) + len(self._ready) - len(self._grouped) + admitted


def _job(node: NodeUsage) -> str:
    """The SLURM job of a node."""
    return next((name.removeprefix(JOB_RESOURCE) for name in node.resources if name.startswith(JOB_RESOURCE)), "")
