"""A simulated run: which jobs it would compute, and when it would end.

The makespan is not a formula: the same decision core that runs for real (`orchestrator.scheduler.scheduler`) is fed
made-up completions at their estimated times, so the forecast waits, orders and limits as the run will. One scheduler
takes all events of a forecast, which makes twenty thousand jobs a matter of a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection

from orchestrator.scheduler import events
from orchestrator.scheduler.schedule import Schedule
from orchestrator.scheduler.scheduler import Course, State, Status, decide


def jobs_to_run(plan: Schedule, cached: Collection[str]) -> list[str]:
    """The keys a run would compute, in the plan's order."""
    state, _ = decide(State.initial(plan), events.Began(0.0, frozenset(cached)))
    settled = {Status.CACHED, Status.UNNEEDED}
    return [key for key in plan.keys if state.jobs[key].status not in settled]


def makespan(plan: Schedule, cached: Collection[str], seconds: Callable[[str], float], workers: int) -> float:
    """Seconds from the first event to the last on `workers` slots, decided as a real run is."""
    course = Course(State.initial(plan))
    running: list[tuple[float, str, str]] = []

    def feed(event: events.Event) -> None:
        for action in course.feed(event):
            if isinstance(action, events.Start):
                heapq.heappush(running, (event.at + seconds(action.key), action.key, action.slot))

    feed(events.Began(0.0, frozenset(cached)))
    for number in range(min(workers, len(plan.keys))):
        if course.finished is None:
            feed(events.SlotJoined(0.0, f"slot-{number}"))
    now = 0.0
    while course.finished is None:
        now, key, slot = heapq.heappop(running)
        feed(events.JobDone(now, key, slot, seconds(key)))
    return now
