"""A simulated run: which jobs it would compute, and when it would end.

The makespan is not a formula: the scheduler of a real run (`orchestrator.scheduler.scheduler`) is fed invented
completions at their estimated times, so the forecast waits, orders and limits as the run will. Twenty thousand jobs
take about a second.

No rule that looks at one job at a time is best everywhere: now and then first come first served ends sooner than the
order that brings answers first. So both are simulated before a run, and it goes in the one that ends sooner.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache

from orchestrator.scheduler import events
from orchestrator.scheduler.job_status import UNFINISHED
from orchestrator.scheduler.schedule import DUE, FIRST_COME, Schedule
from orchestrator.scheduler.scheduler import Scheduler
from orchestrator.scheduler.state import State

ORDERS = (DUE, 0.45, 0.35, 0.5, 0.3, 0.2, 0.1, 0.0)
"""The orders (`Schedule.due`) that are tried before first come first served, those with early answers first."""
NEARLY = 1.001
"""A makespan is as good as the shortest one when it is so near to what no order can beat."""


def jobs_to_run(schedule: Schedule, cached: Collection[str]) -> list[str]:
    """The keys that a run would compute, in the schedule's order."""
    scheduler = Scheduler(State.initial(schedule))
    scheduler.feed(events.Began(0.0, frozenset(cached)))
    return [key for key in schedule.keys if scheduler.jobs[key].status in UNFINISHED]


def makespan(schedule: Schedule, cached: Collection[str], seconds: Callable[[str], float], workers: int) -> float:
    """The length in seconds of a simulated run in its order (`in_order`), from its first event to its last.

    Args:
        schedule: the jobs, targets and limits.
        cached: the keys whose artifacts are in the store.
        seconds: how long a job takes, by key.
        workers: the number of slots.
    """
    return in_order(schedule, cached, seconds, workers)[1]


def in_order(
    schedule: Schedule, cached: Collection[str], seconds: Callable[[str], float], workers: int
) -> tuple[Schedule, float]:
    """A schedule in the first of all orders in which the run is no longer than first come first served.

    Args:
        schedule: the jobs, targets and limits.
        cached: the keys whose artifacts are in the store.
        seconds: how long a job takes, by key.
        workers: the number of slots.

    Returns:
        The schedule, and the length in seconds of the simulated run.
    """

    @cache
    def length(due: float) -> float:
        return max(ends(replace(schedule, due=due), cached, seconds, workers).values(), default=0.0)

    if length(DUE) <= NEARLY * _shortest(schedule, jobs_to_run(schedule, cached), seconds, workers):
        return schedule, length(DUE)
    due = next((due for due in ORDERS if length(due) <= length(FIRST_COME)), FIRST_COME)
    return replace(schedule, due=due), length(due)


def _shortest(schedule: Schedule, keys: Collection[str], seconds: Callable[[str], float], workers: int) -> float:
    """What no order can beat: the longest chain of jobs, parents first, and their work by the number of workers."""
    chain: dict[str, float] = {}
    for key in keys:
        chain[key] = seconds(key) + max((chain.get(parent, 0.0) for parent in schedule.parents[key]), default=0.0)
    return max(*chain.values(), sum(map(seconds, keys)) / workers) if chain else 0.0


def ends(
    schedule: Schedule, cached: Collection[str], seconds: Callable[[str], float], workers: int
) -> dict[str, float]:
    """When each job of a simulated run would end.

    Args:
        schedule: the jobs, targets and limits.
        cached: the keys whose artifacts are in the store.
        seconds: how long a job takes, by key.
        workers: the number of slots.

    Returns:
        Seconds since the run began, by key of the jobs that it would compute.
    """
    scheduler = Scheduler(State.initial(schedule))
    running: list[tuple[float, str, str]] = []

    def feed(event: events.Event) -> None:
        for action in scheduler.feed(event):
            if isinstance(action, events.Start):
                heapq.heappush(running, (event.at + seconds(action.key), action.key, action.slot))

    feed(events.Began(0.0, frozenset(cached)))
    for number in range(min(workers, len(schedule.keys))):
        if scheduler.finished is None:
            feed(events.SlotJoined(0.0, f"slot-{number}"))
    ended: dict[str, float] = {}
    while scheduler.finished is None:
        now, key, slot = heapq.heappop(running)
        ended[key] = now
        feed(events.JobDone(now, key, slot, seconds(key)))
    return ended
