"""The time left of a run, learned while it goes on: what jobs took, by what they were expected to take, by kind.

A machine that is shared, a data set on a slow disk or a method that is priced wrongly shows in the jobs that are done
and in those that run longer than was expected; what is left is corrected by that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.graph import Graph, Job
from jobs.keys import kind_of

_PRIOR = 2.0
"""The weight of all kinds together in the pace of one kind, in jobs of that kind."""
_LATEST = 500
"""Jobs of a kind that are remembered, for speed."""
_LEAST = 0.01
"""Expected seconds below which a job is all start."""
_WARMING_UP = 60.0
"""The first job of a worker, which loads code as well, tells nothing of the others if it takes less than this."""
_OVERDUE = 1 / 6
"""A job that should have ended runs on for this share of its age, so that nobody is told for long that it ends now."""
_TOLD = 0.1
"""The share of a job that must be done for it to say how long the whole takes."""
_SHORTEST = 5.0
"""Seconds that are looked back at least."""


@dataclass(frozen=True)
class Running:
    """A job in progress: the share it has done (0 to 1), its own words, and seconds since it was claimed."""

    key: str
    done: float = 0.0
    note: str = ""
    seconds: float = 0.0


class Pace:
    """How many seconds jobs take for each second they were expected to take, by kind.

    What a machine does in the next minute, the last minute tells best, and of the next hour the last hour: a load that
    comes and goes is a part of the average over a long time, and all there is in a short one. So jobs count by how long
    ago they ended, against the time for which they are to speak (`horizon`).
    """

    def __init__(self, earlier: Pace | None = None) -> None:
        known = {} if earlier is None else earlier._jobs
        self._jobs: dict[str, list[_Ended]] = {kind: list(jobs) for kind, jobs in known.items()}
        self._started: dict[str, tuple[float, bool]] = {} if earlier is None else dict(earlier._started)
        self._warm: set[str | None] = set()

    def start(self, key: str, slot: str | None, at: float) -> None:
        """Note that a job was started.

        Args:
            key: the job.
            slot: its worker.
            at: when, in seconds of any clock.
        """
        self._started[key] = at, slot in self._warm
        self._warm.add(slot)

    def end(self, key: str, at: float, expected: float | None) -> None:
        """Note that a job ended.

        Args:
            key: the job.
            at: when, in seconds of the same clock.
            expected: the seconds that were expected of it; None for one that came back undone.
        """
        started, _ = self._started.get(key, (at, False))
        if expected is not None and self.is_telling(key, at - started):
            self.learn(kind_of(key), at - started, expected, at)
        self._started.pop(key, None)

    def is_telling(self, key: str, seconds: float) -> bool:
        """Whether a job that goes on for so long tells of others: most of a worker's first one is loading code."""
        return seconds > _WARMING_UP or self._started.get(key, (0.0, False))[1]

    def learn(self, kind: str, took: float, expected: float, at: float) -> None:
        """Take a job into account.

        Args:
            kind: its kind.
            took: the seconds that it took.
            expected: those that were expected.
            at: when it ended, in seconds of the same clock.
        """
        jobs = self._jobs.setdefault(kind, [])
        jobs.append(_Ended(at, took / max(expected, _LEAST), expected))
        del jobs[:-_LATEST]

    def of(self, kinds: Iterable[str], at: float, horizon: float = math.inf) -> dict[str, float]:
        """The pace of each kind; 1 before anything is known, that of all kinds for one of which no job was done.

        Args:
            kinds: the kinds.
            at: the time of the same clock.
            horizon: the seconds from then on for which the pace is to hold.
        """
        known = {kind: [job.weighed(at, horizon) for job in jobs] for kind, jobs in self._jobs.items()}
        overall = _median([job for jobs in known.values() for job in jobs], 1.0)
        return {kind: _shrunk(known.get(kind, []), overall) for kind in kinds}


@dataclass(frozen=True)
class _Ended:
    """When a job ended, its pace, and its expected seconds."""

    at: float
    pace: float
    expected: float

    def weighed(self, at: float, horizon: float) -> _Weighed:
        """The job as it counts at a later time."""
        count = math.exp(-max(0.0, at - self.at) / horizon)
        return _Weighed(self.pace, count, count * self.expected)


class _Weighed(NamedTuple):
    """The pace of a job, how much it counts as a job, and by the seconds that were expected of it."""

    pace: float
    jobs: float
    seconds: float


def _shrunk(jobs: Sequence[_Weighed], overall: float) -> float:
    """The pace of the jobs of a kind, nearer to that of all kinds where they are few."""
    count = sum(job.jobs for job in jobs)
    return (count * _median(jobs, overall) + _PRIOR * overall) / (count + _PRIOR)


def _median(jobs: Sequence[_Weighed], default: float) -> float:
    """The median pace of jobs, by the seconds that were expected of each."""
    half = sum(job.seconds for job in jobs) / 2
    for job in sorted(jobs):
        half -= job.seconds
        if half <= 0:
            return job.pace
    return default


def time_left(
    graph: Graph, expected: Mapping[str, float], running: Iterable[Running], pace: Pace, slots: int, at: float
) -> float | None:
    """Seconds until the last open job ends.

    Args:
        graph: which job waits for which.
        expected: the seconds of each open job from start to end, as they were expected before the run.
        running: the jobs in progress.
        pace: what the run has shown so far.
        slots: workers that are alive.
        at: the time, by the clock of the pace.

    Returns:
        None where work is left and there is no worker.
    """
    active = {job.key: job for job in running if job.key in expected}

    def left(horizon: float) -> float | None:
        return shortest(graph, _left(expected, active, pace, at, horizon), slots)

    whole_run = left(math.inf)
    return whole_run and left(max(whole_run, _SHORTEST))


def _left(
    expected: Mapping[str, float], active: Mapping[str, Running], pace: Pace, at: float, horizon: float
) -> dict[str, float]:
    """The seconds that are left of each open job."""
    paces = _paces({kind_of(key) for key in expected}, expected, active, pace, at, horizon)
    left = {key: seconds * paces[kind_of(key)] for key, seconds in expected.items()}
    return left | {key: _remaining(job, left[key], pace) for key, job in active.items()}


def _paces(
    kinds: Iterable[str],
    expected: Mapping[str, float],
    active: Mapping[str, Running],
    pace: Pace,
    at: float,
    horizon: float,
) -> dict[str, float]:
    """The pace of each kind; a job that runs late tells of those of its kind that wait.

    Args:
        kinds: the kinds.
        expected: the seconds that were expected of each job in progress.
        active: those jobs by key.
        pace: what the jobs that are done have shown.
        at: the time, by the clock of the pace.
        horizon: the seconds from then on for which the paces are to hold.
    """
    hoped = pace.of({kind_of(key) for key in active}, at, horizon)
    learned = Pace(pace)
    for key, job in active.items():
        in_time = expected[key] * hoped[kind_of(key)]
        if (whole := _whole(job, in_time, pace)) > in_time:
            learned.learn(kind_of(key), whole, expected[key], at)
    return learned.of(kinds, at, horizon)


def shortest(graph: Graph, left: Mapping[str, float], slots: int) -> float | None:
    """The longer of the remaining chain and the work over all slots: no schedule is faster.

    One that always takes the longest chain first is rarely much slower.

    Args:
        graph: which job waits for which.
        left: the seconds that are left of each open job.
        slots: workers that are alive; None is returned when work is left and there are none.
    """
    if not left:
        return 0.0
    if slots < 1:
        return None

    def seconds(job: Job) -> float:
        return left.get(job.key, 0.0)

    return max(max(graph.remaining_path(seconds).values()), sum(left.values()) / slots)


def _whole(job: Running, hoped: float, pace: Pace) -> float:
    """Seconds that a running job takes from start to end: as hoped, or more by its age and by what it has done.

    Less is not believed: a job that goes on from a checkpoint is far for its age. Nor is the share that the first job
    of a worker has done: its age is that of loading code.
    """
    believed = job.done >= _TOLD and pace.is_telling(job.key, job.seconds)
    return max(hoped, job.seconds / job.done if believed else job.seconds * (1 + _OVERDUE))


def _remaining(job: Running, hoped: float, pace: Pace) -> float:
    """Seconds that are left of a running job which was hoped to take so many."""
    whole = _whole(job, hoped, pace)
    return whole * (1 - job.done) if job.done else max(whole - job.seconds, 0.0)


_ALL = ""
"""The name of no kind, whose pace is that of all."""
_ENDS = ("job_done", "job_found", "job_failed", "job_skipped")
_RETURNS = ("job_busy", "job_yielded")


class WorkLeft:
    """The work that is left of a run, as its journal tells; `follow` takes its records one after another."""

    def __init__(self) -> None:
        self.slots = 0
        self.beside: set[str] = set()
        """Slots beside cards, which take only what needs none."""
        self.pace = Pace()
        self.waiting: dict[str, float] = {}
        """The expected seconds of all open jobs by kind."""
        self.paths: dict[str, float] = {}
        """The expected seconds of the longest chain that begins with each job that is ready or running."""
        self.expected: dict[str, float] = {}
        """The expected seconds of each job that was started."""

    def follow(self, record: Mapping[str, Any]) -> None:
        """Take a record into account; one of an earlier version, which does not say what was expected, tells less."""
        match record["event"]:
            case "slot_joined":
                self.beside |= {record["slot"]} if record.get("cpu_only") else set()
                self.slots += record["slot"] not in self.beside
            case "slot_left":
                self.slots -= record["slot"] not in self.beside
            case "work_left":
                self.waiting = dict(record["by_kind"])
            case "job_ready":
                self.paths[record["key"]] = record["remaining_path"]
            case "job_started":
                self.expected[record["key"]] = record.get("expected_seconds", 0.0)
                self.pace.start(record["key"], record["slot"], record["seconds"])
            case event if event in _ENDS or event in _RETURNS:
                self._end(record["key"], event, record["seconds"])

    def _end(self, key: str, event: str, at: float) -> None:
        expected = self.expected.get(key, 0.0)
        self.pace.end(key, at, expected if event == "job_done" and expected else None)
        if event in _ENDS:
            self.paths.pop(key, None)
            if kind_of(key) in self.waiting:
                self.waiting[kind_of(key)] = max(0.0, self.waiting[kind_of(key)] - expected)

    def time_left(self, running: Iterable[Running], at: float) -> float | None:
        """Seconds until the last open job ends, as `time_left` has them, as far as a journal knows.

        Args:
            running: the jobs in progress.
            at: seconds since the driver began.

        Returns:
            None where work is left and there is no worker.
        """
        active = {job.key: job for job in running if job.key in self.paths}
        whole_run = self._left(active, at, math.inf)
        return whole_run and self._left(active, at, max(whole_run, _SHORTEST))

    def _left(self, active: Mapping[str, Running], at: float, horizon: float) -> float | None:
        expected = {key: self.expected.get(key, 0.0) for key in active}
        kinds = {*self.waiting, *map(kind_of, active), _ALL}
        paces = _paces(kinds, expected, active, self.pace, at, horizon)
        own = {key: _remaining(job, expected[key] * paces[kind_of(key)], self.pace) for key, job in active.items()}
        chains = [own.get(key, 0.0) + (path - expected.get(key, 0.0)) * paces[_ALL] for key, path in self.paths.items()]
        if not chains or self.slots < 1:
            return None if chains else 0.0
        work = sum(own.values()) + sum(seconds * paces[kind] for kind, seconds in self.waiting.items())
        work -= sum(expected[key] * paces[kind_of(key)] for key in active if kind_of(key) in self.waiting)
        return max(max(chains), work / self.slots)
