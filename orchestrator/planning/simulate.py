"""A simulated run: which jobs it would compute, and when it would end.

The makespan is not a formula: the scheduler of a real run (`orchestrator.scheduler.scheduler`) is fed invented
completions at their estimated times, so the forecast waits, orders and limits as the run will. Twenty thousand jobs
take about a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection

from orchestrator.scheduler import events
from orchestrator.scheduler.job_status import UNFINISHED
from orchestrator.scheduler.schedule import Schedule
from orchestrator.scheduler.scheduler import Scheduler, State


def jobs_to_run(schedule: Schedule, cached: Collection[str]) -> list[str]:
    """The keys that a run would compute, in the schedule's order."""
    scheduler = Scheduler(State.initial(schedule))
    scheduler.feed(events.Began(0.0, frozenset(cached)))
    return [key for key in schedule.keys if scheduler.jobs[key].status in UNFINISHED]


def makespan(schedule: Schedule, cached: Collection[str], seconds: Callable[[str], float], workers: int) -> float:
    """The length in seconds of a simulated run, from its first event to its last.

    Args:
        schedule: the jobs, targets and limits.
        cached: the keys whose artifacts are in the store.
        seconds: how long a job takes, by key.
        workers: the number of slots.
    """
    return max(ends(schedule, cached, seconds, workers).values(), default=0.0)


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
