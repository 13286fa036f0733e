"""What a run will take, before it is started: measured seconds, the critical path, the makespan.

The makespan is not a formula: the same decision core that runs for real (`orchestrator.state`) is fed made-up
completions at their estimated times, so the forecast waits, orders and limits as the run will.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jobs import cost
from jobs.graph import Graph, Job
from jobs.specs import DistilSpec, ExpertsSpec
from orchestrator import events
from orchestrator.plan import Plan
from orchestrator.state import State, Status, decide
from workers.store import Store

WORKERS = (1, 4, 16, 64)
"""The sizes for which `plan` prints a makespan."""


@dataclass(frozen=True)
class Prices:
    """Seconds of every job, and how many of them were measured rather than estimated."""

    seconds: Mapping[str, float]
    measured: int

    def of(self, job: Job) -> float:
        """Seconds of a job on one worker."""
        return self.seconds[job.key]


def prices(graph: Graph, store: Store) -> Prices:
    """Seconds by key: of the job itself or of one like it in the store, an estimate from its work otherwise."""
    witnesses: dict[Any, float] = {}
    for job in graph:
        if store.has(job.key):
            taken = store.manifest(job.key).seconds
            witnesses[job.key] = taken
            witnesses.setdefault(cost.signature(job, graph), taken)
    known = sum(job.key in witnesses or cost.signature(job, graph) in witnesses for job in graph)
    return Prices({job.key: cost.seconds(job, graph, {}, witnesses) for job in graph}, known)


def uninterrupted(job: Job, seconds: float) -> float:
    """Of a job's seconds those that are lost if it has to leave at a bad moment: it should find room for them.

    A stage saves wherever it is; a cohort after each of its experts; the others start again from nothing.
    """
    match job.spec:
        case DistilSpec():
            return 0.0
        case ExpertsSpec(count=count):
            return seconds / count
    return seconds


def to_run(plan: Plan, cached: Collection[str]) -> list[str]:
    """The keys a run would compute, in the plan's order."""
    state, _ = decide(State.initial(plan), events.Began(0.0, frozenset(cached)))
    settled = {Status.CACHED, Status.UNNEEDED}
    return [key for key in plan.keys if state.jobs[key].status not in settled]


def makespan(plan: Plan, cached: Collection[str], seconds: Callable[[str], float], workers: int) -> float:
    """Seconds from the first event to the last on `workers` slots, decided as a real run is."""
    state = State.initial(plan)
    running: list[tuple[float, str, str]] = []

    def feed(event: events.Event) -> None:
        nonlocal state
        state, actions = decide(state, event)
        for action in actions:
            if isinstance(action, events.Start):
                heapq.heappush(running, (event.at + seconds(action.key), action.key, action.slot))

    feed(events.Began(0.0, frozenset(cached)))
    for number in range(min(workers, len(plan.keys))):
        if state.finished is None:
            feed(events.SlotJoined(0.0, f"slot-{number}"))
    now = 0.0
    while state.finished is None:
        now, key, slot = heapq.heappop(running)
        feed(events.JobDone(now, key, slot, seconds(key)))
    return now
