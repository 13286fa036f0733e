"""The time left of a run, learned while it goes on: what jobs took, by what they were expected to take, by kind.

A machine that is shared, a data set on a slow disk or a method that is priced wrongly shows in the jobs that are done
and in those that run longer than was expected; what is left is corrected by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.graph import Graph, Job
from jobs.keys import kind_of

_PRIOR = 2.0
"""The weight of all kinds together in the pace of one kind, in jobs of that kind."""
_LATEST = 12
"""Jobs of a kind that are remembered: the load of a machine changes."""
_LEAST = 0.01
"""Expected seconds below which a job is all start."""
_WARMING_UP = 60.0
"""The first job of a worker, which loads code as well, tells nothing of the others if it takes less than this."""
_OVERDUE = 1 / 6
"""A job that should have ended runs on for this share of its age, so that nobody is told for long that it ends now."""
_TOLD = 0.1
"""The share of a job that must be done for it to say how long the whole takes."""


@dataclass(frozen=True)
class Running:
    """A job in progress: the share it has done (0 to 1), its own words, and seconds since it was claimed."""

    key: str
    done: float = 0.0
    note: str = ""
    seconds: float = 0.0


class Pace:
    """How many seconds jobs take for each second they were expected to take, by kind."""

    def __init__(self, earlier: Pace | None = None) -> None:
        known = {} if earlier is None else earlier._jobs
        self._jobs: dict[str, list[tuple[float, float]]] = {kind: list(jobs) for kind, jobs in known.items()}
        self._started: dict[str, tuple[float, bool]] = {}
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
        started, warm = self._started.pop(key, (at, False))
        if expected is not None and (warm or at - started > _WARMING_UP):
            self.learn(kind_of(key), at - started, expected)

    def learn(self, kind: str, took: float, expected: float) -> None:
        """Take a job into account.

        Args:
            kind: its kind.
            took: the seconds that it took.
            expected: those that were expected.
        """
        jobs = self._jobs.setdefault(kind, [])
        jobs.append((took / max(expected, _LEAST), expected))
        del jobs[:-_LATEST]

    def of(self, kind: str) -> float:
        """The pace of a kind; 1 before anything is known, that of all kinds for one of which no job was done."""
        overall = _median([job for jobs in self._jobs.values() for job in jobs], 1.0)
        jobs = self._jobs.get(kind, [])
        return (len(jobs) * _median(jobs, overall) + _PRIOR * overall) / (len(jobs) + _PRIOR)


def _median(jobs: Sequence[tuple[float, float]], default: float) -> float:
    """The median pace of jobs, by the seconds that were expected of each."""
    half = sum(weight for _, weight in jobs) / 2
    for pace, weight in sorted(jobs):
        half -= weight
        if half <= 0:
            return pace
    return default


def time_left(
    graph: Graph, expected: Mapping[str, float], running: Iterable[Running], pace: Pace, slots: int
) -> float | None:
    """Seconds until the last open job ends.

    Args:
        graph: which job waits for which.
        expected: the seconds of each open job from start to end, as they were expected before the run.
        running: the jobs in progress.
        pace: what the run has shown so far.
        slots: workers that are alive.

    Returns:
        None where work is left and there is no worker.
    """
    active = {job.key: job for job in running if job.key in expected}
    learned = Pace(pace)
    for key, job in active.items():
        hoped = expected[key] * pace.of(kind_of(key))
        if (whole := _whole(job, hoped)) > hoped:
            learned.learn(kind_of(key), whole, expected[key])
    paces = {kind: learned.of(kind) for kind in {kind_of(key) for key in expected}}
    left = {key: seconds * paces[kind_of(key)] for key, seconds in expected.items()}
    left |= {key: _remaining(job, _whole(job, left[key])) for key, job in active.items()}
    return shortest(graph, left, slots)


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


def _whole(job: Running, hoped: float) -> float:
    """Seconds that a running job takes from start to end: as hoped, or more by its age and by what it has done.

    Less is not believed: a job that goes on from a checkpoint is far for its age.
    """
    by_itself = job.seconds / job.done if job.done >= _TOLD else job.seconds * (1 + _OVERDUE)
    return max(hoped, by_itself)


def _remaining(job: Running, whole: float) -> float:
    """Seconds that are left of a running job which takes `whole`."""
    return whole * (1 - job.done) if job.done else max(whole - job.seconds, 0.0)
