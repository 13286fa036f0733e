"""What a run will take, before it is started: measured seconds, the critical path, the makespan.

The makespan is not a formula: the same decision core that runs for real (`orchestrator.scheduler.scheduler`) is fed
made-up completions at their estimated times, so the forecast waits, orders and limits as the run will. One `Course`
takes all of a forecast's events, which makes twenty thousand jobs a matter of a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from jobs import cost
from jobs.graph import Graph, Job
from jobs.keys import kind_of
from jobs.specs import DistilSpec, ExpertsSpec
from orchestrator.scheduler import events
from orchestrator.scheduler.schedule import Plan
from orchestrator.scheduler.scheduler import Course, State, Status, decide
from workers.store.store import Store

WORKERS = (1, 4, 16, 64)
"""The sizes for which `plan` prints a makespan."""


DurationSource = Literal["measured", "corrected", "calibrated"]
"""Where a price comes from: the job itself, or one of its size, was measured in this store; or jobs of its kind were,
and the price of its work is corrected by how far they were off; or it is its work at the calibrated rate alone."""


@dataclass(frozen=True)
class Prices:
    """Seconds of every job by key, and where each comes from."""

    seconds: Mapping[str, float]
    witnesses: Mapping[str, DurationSource]

    def of(self, job: Job) -> float:
        """Seconds of a job on one worker."""
        return self.seconds[job.key]

    @property
    def measured(self) -> int:
        """How many were measured rather than estimated."""
        return sum(witness == "measured" for witness in self.witnesses.values())


def prices(graph: Graph, store: Store, machine: cost.Machine = cost.CORE) -> Prices:
    """Seconds by key, each by its best witness."""
    taken = {key: store.manifest(key).seconds for key in there(graph, store)}
    efforts = {job.key: cost.effort(job, graph) for job in graph}
    seconds = {key: cost.estimate(needed, machine) for key, needed in efforts.items()}
    witnesses: dict[str, DurationSource] = dict.fromkeys(graph.jobs, "calibrated")
    if not taken:
        return Prices(seconds, witnesses)
    corrections = _corrections(taken, seconds)
    signatures = {job.key: cost.signature(job, graph, efforts[job.key]) for job in graph}
    alike: dict[cost.Signature, float] = {}
    for key, measured in taken.items():
        alike.setdefault(signatures[key], measured)
    for job in graph:
        if signatures[job.key] in alike:
            seconds[job.key] = taken.get(job.key, alike[signatures[job.key]])
            witnesses[job.key] = "measured"
        elif job.kind in corrections:
            seconds[job.key] *= corrections[job.kind]
            witnesses[job.key] = "corrected"
    return Prices(seconds, witnesses)


def there(graph: Graph, store: Store) -> set[str]:
    """The keys of a graph whose artifacts are whole in the store."""
    return {key for key in graph.jobs.keys() & set(store.keys()) if store.has(key)}


def core_here(workers: int) -> cost.Machine:
    """A core of this machine, as fast as it was for a moment with as many workers at once."""
    from workers.training import benchmark  # takes torch along

    return cost.CORE.slower(benchmark.slowness(workers))


def _corrections(taken: Mapping[str, float], estimated: Mapping[str, float]) -> dict[str, float]:
    """By kind of what was measured: the seconds it took by the seconds that were estimated."""
    sums: dict[str, tuple[float, float]] = {}
    for key, measured in taken.items():
        real, thought = sums.get(kind_of(key), (0.0, 0.0))
        sums[kind_of(key)] = real + measured, thought + estimated[key]
    return {kind: real / thought for kind, (real, thought) in sums.items() if real and thought}


def uninterrupted(job: Job, seconds: float) -> float:
    """Of a job's seconds those that are lost if it has to leave at a bad moment: it should find room for them.

    A stage saves wherever it is; a batch of experts after each of its experts; the others start again from nothing.
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
